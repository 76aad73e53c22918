import threading

import jax
import numpy as np
import pytest

from train import prefetch
from train.config import ConfigError
from train.parallel import MeshParallel, PmapParallel, make_parallel
from train.prefetch import Prefetcher


@pytest.mark.parametrize('parallel', [PmapParallel, MeshParallel])
def test_arrays_come_back_as_they_went(parallel: type[MeshParallel]):
    tree = {'a': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'step': np.int32(4), 'none': None, 'empty': {}}
    back = parallel().fetch(parallel().replicate(tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert {type(leaf) for leaf in jax.tree.leaves(back)} == {np.ndarray}
    assert back['a'].flags.owndata or back['a'].base.flags.owndata


@pytest.mark.parametrize('parallel', [PmapParallel, MeshParallel])
def test_a_fetched_copy_survives_donation(parallel: type[MeshParallel]):
    parallel = parallel()
    step = parallel.compile(lambda state, batch: (state + 1, {}), donate_state=True)
    state = parallel.replicate(np.zeros(1000, np.float32))
    copies, batch = [], parallel.shard({'image': np.zeros((8, 1), np.uint8)})
    for _ in range(3):
        copies.append(parallel.fetch(state))
        given, (state, _) = state, step(state, batch)
        assert given.is_deleted()
    assert [copy[0] for copy in copies] == [0, 1, 2]


def test_the_batch_must_divide_over_the_devices():
    assert make_parallel('mesh', 16).device_count == 8
    assert isinstance(make_parallel('pmap', 16), PmapParallel)
    with pytest.raises(ConfigError, match='batch_size 12 does not divide over 8 devices; 16 would'):
        make_parallel('pmap', 12)


def numbers(count: int):
    yield from range(count)


def test_prefetching_keeps_order_and_places_each_batch():
    with Prefetcher(numbers(20), lambda n: n * 10) as batches:
        assert list(batches) == [n * 10 for n in range(20)]


def test_an_error_of_the_data_arrives_where_the_batch_is_asked_for():
    def failing():
        yield 1
        raise ValueError('broken image')

    got = []
    with pytest.raises(ValueError, match='broken image'), Prefetcher(failing(), lambda n: n) as batches:
        got.extend(iter(batches))
    with Prefetcher(failing(), lambda n: n) as batches:
        assert next(iter(batches)) == 1


def test_whatever_ends_the_thread_is_raised_where_the_batch_is_asked_for():
    def exiting():
        raise SystemExit(3)
        yield

    with pytest.raises(SystemExit), Prefetcher(exiting(), lambda n: n) as batches:
        next(iter(batches))


def test_a_loader_that_hangs_does_not_hang_the_rest(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(prefetch, 'PATIENCE', 0.1)
    release = threading.Event()

    def hanging():
        yield 1
        release.wait()

    with Prefetcher(hanging(), lambda n: n, give_up=lambda: True) as batches:
        assert list(batches) == [1]
    assert 'hangs' in caplog.text
    release.set()


def test_leaving_early_stops_the_thread_and_closes_the_data():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    with Prefetcher(endless(), lambda n: n) as batches:
        assert next(iter(batches)) == 0
    assert closed == [True]
    assert not [t for t in threading.enumerate() if t.name == 'prefetch']
