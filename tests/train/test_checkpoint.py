"""Checkpoints: kept, atomic, verified; every damage is found and the one before is used."""

import gc
import multiprocessing
import os
import re
import resource
import shutil
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from train.checkpoint import CheckpointError, Checkpoints
from train.state import TrainState, make_state

# When one array cannot be read, orbax closes its event loop under the reads of the others, which complain about it.
pytestmark = pytest.mark.filterwarnings('ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning')

TX = optax.sgd(0.1, momentum=0.9)


def state_of(step: int) -> TrainState:
    """A state whose every array depends on the step."""
    rng = np.random.default_rng(step)
    variables = {
        'params': {'layer1.0': {'conv1': {'kernel': rng.normal(size=(3, 3, 8, 8)).astype(np.float32)}}},
        'batch_stats': {'bn1': {'mean': rng.normal(size=8).astype(np.float32)}},
    }
    state = make_state(variables, TX, ema_decay=0.9).replace(step=np.int32(step))
    return jax.tree.map(np.asarray, state)


TARGET = jax.eval_shape(lambda state: state, state_of(0))


def save(directory: Path, *steps: int, keep: int = 3, scores: dict[int, float] | None = None) -> Checkpoints:
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            checkpoints.save(state_of(step), {'note': f'of {step}'}, (scores or {}).get(step))
    return checkpoints


def assert_is(state: TrainState, step: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))


def test_leaving_the_context_waits_for_the_last_save(tmp_path: Path):
    save(tmp_path, 5, scores={5: 0.5})
    state, record = Checkpoints(tmp_path).restore(5, TARGET)
    assert_is(state, 5)
    assert record == {'note': 'of 5', 'score': 0.5}
    assert isinstance(state, TrainState)


def test_a_save_is_not_disturbed_by_what_happens_to_the_arrays_of_the_next(tmp_path: Path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 4):
            checkpoints.save(state_of(step), {}, None)
    for step in range(1, 4):
        assert_is(checkpoints.restore(step, TARGET)[0], step)


def test_the_newest_and_the_best_are_kept(tmp_path: Path):
    scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.9, 5: 0.2, 6: 0.1, 7: 0.3}
    checkpoints = save(tmp_path, *scores, keep=2, scores=scores)
    assert checkpoints.steps == [4, 6, 7]
    assert checkpoints.best == 4
    # Another process knows the best one from what is on disk.
    again = save(tmp_path, 8, 9, keep=2)
    assert again.steps == [4, 8, 9]
    assert again.best == 4


def test_without_a_checkpoint_there_is_none(tmp_path: Path):
    assert Checkpoints(tmp_path / 'none').restore_newest(TARGET) is None
    assert Checkpoints(tmp_path).best is None


def array_file(checkpoint: Path) -> Path:
    """The largest file of a checkpoint: it holds arrays."""
    return max((p for p in checkpoint.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(checkpoint: Path) -> None:
    path = array_file(checkpoint)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(checkpoint: Path) -> None:
    path = array_file(checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def change_the_record(checkpoint: Path) -> None:
    path = checkpoint / '_CHECKPOINT_METADATA'
    path.write_text(path.read_text().replace('of 3', 'of 2'))


DAMAGES = {
    'truncated': truncate,
    'deleted': lambda checkpoint: array_file(checkpoint).unlink(),
    'bit flipped': flip_a_bit,
    'empty': empty,
    'record truncated': lambda checkpoint: (checkpoint / '_CHECKPOINT_METADATA').write_text('{"cust'),
    'record deleted': lambda checkpoint: (checkpoint / '_CHECKPOINT_METADATA').unlink(),
    'record changed': change_the_record,
    'structure truncated': lambda checkpoint: (checkpoint / 'state' / '_METADATA').write_text('{'),
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path: Path, damage):
    save(tmp_path, 1, 2, 3, scores={3: 0.9})
    damage(tmp_path / '00000003')
    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match='checkpoint .*00000003 .*; using step 2 before it'):
        state, record = checkpoints.restore_newest(TARGET)
    assert_is(state, 2)
    assert record['note'] == 'of 2'
    # Nothing is lost, and the step can be saved again.
    assert checkpoints.steps == [1, 2]
    assert (tmp_path / '00000003.damaged').is_dir()
    save(tmp_path, 3)
    assert_is(checkpoints.restore_newest(TARGET)[0], 3)


def test_several_damaged_ones_are_skipped(tmp_path: Path):
    save(tmp_path, 1, 2, 3)
    truncate(tmp_path / '00000003')
    flip_a_bit(tmp_path / '00000002')
    with pytest.warns(UserWarning, match='using step 1') as warned:
        assert_is(Checkpoints(tmp_path).restore_newest(TARGET)[0], 1)
    assert len(warned) == 2


def test_if_none_is_whole_nothing_is_started_and_nothing_moved(tmp_path: Path):
    save(tmp_path, 1, 2)
    truncate(tmp_path / '00000001')
    truncate(tmp_path / '00000002')
    with pytest.raises(CheckpointError, match=r'(?s)none of the checkpoints can be used.*00000002.*00000001'):
        Checkpoints(tmp_path).restore_newest(TARGET)
    assert Checkpoints(tmp_path).steps == [1, 2]


def test_another_structure_is_refused(tmp_path: Path):
    save(tmp_path, 1)
    other = TARGET.replace(params={'fc': TARGET.params['layer1.0']})
    with pytest.raises(CheckpointError, match='00000001 cannot be read'):
        Checkpoints(tmp_path).restore(1, other)


@pytest.mark.parametrize('change', [{'shape': (3, 3, 8, 9)}, {'dtype': np.float16}], ids=['shape', 'dtype'])
def test_other_shapes_and_dtypes_are_refused(tmp_path: Path, change: dict):
    save(tmp_path, 1)
    kernel = TARGET.params['layer1.0']['conv1']['kernel']
    other = jax.ShapeDtypeStruct(**{'shape': kernel.shape, 'dtype': kernel.dtype} | change)
    target = TARGET.replace(params={'layer1.0': {'conv1': {'kernel': other}}})
    with pytest.raises(CheckpointError, match=r'does not fit this run: params\.layer1\.0\.conv1\.kernel is float32'):
        Checkpoints(tmp_path).restore(1, target)


def apart(function: Callable[[Path], None], directory: Path) -> None:
    """Calls it in a process that ends at once: after a failed write orbax's threads would be waited for in vain."""
    process = multiprocessing.get_context('spawn').Process(target=_call_and_end, args=(function, directory))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 0


def _call_and_end(function: Callable[[Path], None], directory: Path) -> None:
    try:
        function(directory)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def fails_to_save(checkpoints: Checkpoints, state: TrainState) -> str:
    """The error of a save; the writing goes on after `save`, so either call may raise it."""
    with pytest.raises(CheckpointError) as error:  # noqa: PT012
        checkpoints.save(state, {}, None)
        time.sleep(1)  # the run trains on, and what fails meanwhile may print
        checkpoints.wait()
    return str(error.value)


def replaces_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / 'checkpoints'
    checkpoints = save(directory, 1)
    directory.rename(tmp_path / 'moved')
    directory.write_text('in the way')
    assert re.match(
        r'step 2 cannot be saved in .*; the last .* is that of step 1', fails_to_save(checkpoints, state_of(2))
    )
    with warnings.catch_warnings(action='ignore'):  # coroutines that orbax never awaits
        gc.collect()


def fills_the_disk(tmp_path: Path) -> None:
    """A limit for the size of files fails in tensorstore's threads, as a full disk does, for each array."""
    large = state_of(2)
    noise = np.random.default_rng(0).normal(size=(60, 64, 64, 9)).astype(np.float32)  # zeros would be compressed
    large.params['many'] = {f'conv{i}': array for i, array in enumerate(noise)}
    checkpoints = save(tmp_path, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    error = fails_to_save(checkpoints, large)
    assert re.fullmatch(r'step 2 cannot be saved in .*: File too large; the last .* is that of step 1', error)
    assert checkpoints.steps == [1]
    assert not list(tmp_path.glob('*tmp*'))


@pytest.mark.parametrize('function', [replaces_the_directory, fills_the_disk])
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, capfd, function: Callable[[Path], None]):
    apart(function, tmp_path)
    assert capfd.readouterr().err == ''


def test_damage_is_said_once_and_by_nobody_else(tmp_path: Path, capfd):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        for path in (tmp_path / f'{step:08d}' / 'state').rglob('*'):
            if path.is_file():
                path.write_bytes(b'')
    with pytest.raises(CheckpointError, match='none of the checkpoints can be used') as error:
        Checkpoints(tmp_path).restore_newest(TARGET)
    assert len(str(error.value).splitlines()) == 3
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('record', ['{}', '[]', '', '{"custom_metadata": {"score": null}}'])
def test_a_damaged_record_is_said_to_be_one(tmp_path: Path, record: str):
    save(tmp_path, 1)
    (tmp_path / '00000001' / '_CHECKPOINT_METADATA').write_text(record)
    with pytest.raises(CheckpointError, match=r'00000001 cannot be read: .*(record|METADATA|JSON)'):
        Checkpoints(tmp_path).restore(1, TARGET)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path):
    save(tmp_path, 1)
    bad = state_of(2)
    bad.params['layer1.0']['conv1']['kernel'].flat[7] = np.inf
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r'layer1\.0.*kernel.*not finite at step 2.* is that of step 1'),
    ):
        checkpoints.save(bad, {}, None)
    assert checkpoints.steps == [1]


def test_what_a_killed_save_leaves_is_no_checkpoint(tmp_path: Path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / '00000001', tmp_path / '00000002.orbax-checkpoint-tmp')
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps == [1]
    save(tmp_path, 2)
    assert_is(checkpoints.restore_newest(TARGET)[0], 2)
