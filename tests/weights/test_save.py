"""What flaxzoo saves, PyTorch loads: trained in JAX, strict, and the logits agree."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import flaxzoo
import reference
from flaxzoo.layers import LayerNorm, Norm, SqueezeExcite
from flaxzoo.weights import save as save_module
from flaxzoo.weights.files import read_metadata
from flaxzoo.weights.save import write_weights
from flaxzoo.weights.torch_file import DTYPES, STORAGES

NAME = 'resnet18'


@pytest.fixture(scope='module')
def trained():
    """A network after one training step of plain gradient descent, and images."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(4, 40, 32, 3)).astype(np.float32), np.array([0, 1, 2, 3])
    model = flaxzoo.create(NAME)

    @jax.jit
    def step(rng):
        variables = model.init(rng, x)

        def loss(params):
            inputs = {'params': params, 'batch_stats': variables['batch_stats']}
            logits, new = model.apply(inputs, x, train=True, mutable=['batch_stats'])
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean(), new

        gradients, new = jax.grad(loss, has_aux=True)(variables['params'])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables['params'], gradients)
        return {'params': params, **new}

    variables = step(jax.random.key(0))
    return variables, x, np.asarray(jax.jit(model.apply)(variables, x))


def check(weights, x, logits):
    network = reference.build(NAME).eval()
    network.load_state_dict(weights, strict=True)
    with torch.no_grad():
        theirs = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(theirs, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_torch_loads_safetensors(trained, tmp_path):
    variables, x, logits = trained
    flaxzoo.save(tmp_path / 'x.safetensors', variables, {'step': 1, 'note': 'a', 'accuracy': [0.5]})
    check(safetensors.torch.load_file(tmp_path / 'x.safetensors'), x, logits)
    with safetensors.safe_open(tmp_path / 'x.safetensors', 'np') as file:
        metadata = file.metadata()
    assert len(metadata.pop('flaxzoo.sha256')) == 64
    assert metadata == {'format': 'pt', 'step': '1', 'note': 'a', 'accuracy': '[0.5]'}
    assert read_metadata(tmp_path / 'x.safetensors').items() > metadata.items()


@pytest.mark.parametrize('suffix', ['pth', 'pt'])
def test_torch_loads_pth(trained, tmp_path, suffix):
    variables, x, logits = trained
    flaxzoo.save(str(tmp_path / f'x.{suffix}'), variables)
    check(torch.load(tmp_path / f'x.{suffix}', weights_only=True), x, logits)
    check(torch.load(tmp_path / f'x.{suffix}', weights_only=True, mmap=True), x, logits)


@pytest.mark.parametrize('suffix', ['safetensors', 'pth', 'npz'])
def test_round_trip(trained, tmp_path, suffix):
    variables = trained[0]
    flaxzoo.save(tmp_path / f'x.{suffix}', variables)
    assert [path.name for path in tmp_path.iterdir()] == [f'x.{suffix}']
    _, again = flaxzoo.load(NAME, tmp_path / f'x.{suffix}')
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))


@pytest.mark.parametrize('dtype', [DTYPES[name] for name in STORAGES.values()], ids=str)
def test_every_dtype_of_pth(tmp_path, dtype):
    values = {
        'x': np.arange(6).reshape(2, 3).astype(dtype),
        'scalar': np.array(1, dtype),
        'none': np.empty((0, 2), dtype),
    }
    values['transposed'] = values['x'].T
    write_weights(tmp_path / 'x.pth', values)
    theirs = torch.load(tmp_path / 'x.pth', weights_only=True)
    ours = flaxzoo.read_weights(tmp_path / 'x.pth')
    assert list(theirs) == list(ours) == list(values)
    for key, value in values.items():
        assert str(theirs[key].dtype).removeprefix('torch.') == next(k for k, v in DTYPES.items() if v == dtype)
        wide = theirs[key].to(torch.complex128).numpy()
        np.testing.assert_array_equal(wide, value.astype(np.complex128))
        np.testing.assert_array_equal(ours[key], value)


def test_bfloat16(tmp_path):
    variables = {'params': {'x': {'bias': jnp.arange(3, dtype=jnp.bfloat16)}}}
    flaxzoo.save(tmp_path / 'x.safetensors', variables)
    assert safetensors.torch.load_file(tmp_path / 'x.safetensors')['x.bias'].dtype == torch.bfloat16
    with pytest.raises(flaxzoo.WeightsError, match='npz cannot hold'):
        flaxzoo.save(tmp_path / 'x.npz', variables)
    with pytest.raises(flaxzoo.WeightsError, match='which is not written to'):
        write_weights(tmp_path / 'x.pth', {'x': np.ones(2, ml_dtypes.float8_e4m3fn)})


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'x.pth'
    write_weights(path, {'x': np.ones(3)})
    before = path.read_bytes()

    def fail(partial, *_):
        partial.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setitem(save_module.WRITERS, '.pth', fail)
    with pytest.raises(OSError, match='disk full'):
        write_weights(path, {'x': np.zeros(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_bad_arguments(tmp_path):
    variables = {'params': {'x': {'bias': jnp.ones(3)}}}
    with pytest.raises(flaxzoo.WeightsError, match=r'suffix must be one of \.safetensors, \.pth'):
        flaxzoo.save(tmp_path / 'x.h5', variables)
    with pytest.raises(flaxzoo.WeightsError, match='metadata'):
        flaxzoo.save(tmp_path / 'x.pth', variables, {'a': 'b'})
    with pytest.raises(flaxzoo.ConversionError, match='collections'):
        flaxzoo.save(tmp_path / 'x.pth', {'params': {}, 'cache': {'x': jnp.ones(1)}})
    assert not list(tmp_path.iterdir())


FORMATS = ('safetensors', 'pth', 'npz')


@pytest.mark.parametrize('suffix', FORMATS)
def test_equal_variables_make_equal_bytes(tmp_path, suffix, monkeypatch):
    leaves = {
        name: {'bias': np.arange(3, dtype=np.float32), 'kernel': np.ones((2, 3), np.float32)} for name in 'abcdef'
    }
    flaxzoo.save(tmp_path / f'x.{suffix}', {'params': leaves})
    monkeypatch.setattr('time.time', lambda: 1e9)
    monkeypatch.setattr('time.localtime', lambda *_: (2031, 1, 1, 1, 1, 1, 0, 1, 0))
    for i in range(5):
        again = dict(sorted(leaves.items(), reverse=bool(i % 2)))
        flaxzoo.save(tmp_path / f'{i}.{suffix}', {'params': again})
        assert (tmp_path / f'{i}.{suffix}').read_bytes() == (tmp_path / f'x.{suffix}').read_bytes()


@pytest.mark.parametrize('suffix', FORMATS)
def test_modes_follow_the_umask(tmp_path, suffix):
    before = os.umask(0o027)
    try:
        write_weights(tmp_path / f'x.{suffix}', {'x': np.ones(3)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f'x.{suffix}').stat().st_mode) == 0o640


def test_damage_to_an_own_file_is_noticed(tmp_path):
    path = tmp_path / 'x.safetensors'
    write_weights(path, {'b': np.arange(5, dtype=np.float32), 'a': np.arange(3, dtype=np.int64), 'e': np.ones((0, 2))})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], 'little')
    for position in range(start, len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(flaxzoo.WeightsError, match='SHA-256'):
            flaxzoo.read_weights(path)
    path.write_bytes(content.replace(b'"b"', b'"c"'))
    with pytest.raises(flaxzoo.WeightsError, match='SHA-256'):
        flaxzoo.read_weights(path)
    path.write_bytes(content)
    np.testing.assert_array_equal(flaxzoo.read_weights(path)['a'], np.arange(3))


@pytest.mark.parametrize('name', sorted({*STORAGES.values(), 'float8_e4m3fn', 'uint16', 'uint64'} - {'complex128'}))
def test_every_dtype_of_safetensors(tmp_path, name):
    dtype = DTYPES[name]
    values = {
        'x': np.arange(6).reshape(2, 3).T.astype(dtype),
        'scalar': np.array(1, dtype),
        'none': np.ones((0, 2), dtype),
    }
    write_weights(tmp_path / 'x.safetensors', values)
    theirs = safetensors.torch.load_file(tmp_path / 'x.safetensors')
    ours = flaxzoo.read_weights(tmp_path / 'x.safetensors')
    for key, value in values.items():
        assert theirs[key].shape == value.shape
        assert ours[key].tobytes() == value.tobytes()
        assert theirs[key].contiguous().flatten().view(torch.uint8).numpy().tobytes() == value.tobytes()


@pytest.mark.parametrize('suffix', FORMATS)
@pytest.mark.parametrize('place', ['/dev/full', 'missing/x', 'file/x', 'folder'])
def test_a_place_that_cannot_be_written_is_named(tmp_path, suffix, place):
    path = tmp_path / f'{place}.{suffix}'
    if place == '/dev/full':
        path = tmp_path / f'x.{suffix}'
        (tmp_path / f'.{path.name}.{os.getpid()}.tmp').symlink_to('/dev/full')
    (tmp_path / 'file').write_text('x')
    (tmp_path / f'folder.{suffix}').mkdir()
    with pytest.raises(OSError, match=rf'{place.split("/")[0] or "No space left"}.*') as caught:
        write_weights(path, {'x': np.ones(100_000)})
    assert str(caught.value).endswith(f": '{path}'")
    assert caught.value.errno in (errno.ENOSPC, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    assert not list(tmp_path.glob('.*'))


def test_what_killed_processes_left_is_removed(tmp_path):
    finished = subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'], capture_output=True, check=True)
    dead = tmp_path / f'.x[1].pth.{int(finished.stdout)}.tmp'
    kept = [
        f'.x[1].pth.{os.getppid()}.tmp',
        '.x[1].pth.note.tmp',
        f'.y.pth.{int(finished.stdout)}.tmp',
        '.x[1].pth.1.tmp',
    ]
    for path in (dead, *(tmp_path / name for name in kept)):
        path.write_text('half')
    write_weights(tmp_path / 'x[1].pth', {'x': np.ones(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, 'x[1].pth'])


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write_weights('~/x.npz', {'x': np.ones(3)})
    assert list(flaxzoo.read_weights('~/x.npz')) == list(flaxzoo.read_weights(Path('~/x.npz'))) == ['x']


def test_half_of_the_variables(trained, tmp_path):
    variables = trained[0]
    model = flaxzoo.create(NAME)
    path = tmp_path / 'x.safetensors'
    with pytest.raises(flaxzoo.WeightsError, match="ResNet; 'batch_stats' belong to them"):
        flaxzoo.save(path, {'params': variables['params']}, model=model)
    with pytest.raises(flaxzoo.WeightsError, match="have no 'params'"):
        flaxzoo.save(path, {'batch_stats': variables['batch_stats']})
    with pytest.raises(flaxzoo.ConversionError, match='collections'):
        flaxzoo.save(path, variables['params'])
    without = {key: value for key, value in variables['params'].items() if key != 'fc'}
    with pytest.raises(flaxzoo.WeightsError, match=r'2 in all\):\n  - fc.bias\n  - fc.weight'):
        flaxzoo.save(path, {**variables, 'params': without}, model=model)
    with pytest.raises(flaxzoo.WeightsError, match=r'! fc.bias: shape \(1000,\), expected \(10,\)'):
        flaxzoo.save(path, variables, model=flaxzoo.create(NAME, num_classes=10))
    assert not list(tmp_path.iterdir())


def test_a_file_says_what_network_it_is_of(tmp_path):
    model = flaxzoo.create('resnet18', num_classes=7)
    object.__setattr__(model, 'variant', 'resnet18')
    gray = flaxzoo.init(model, jax.random.key(0), jnp.zeros((1, 64, 64, 1)))
    flaxzoo.save(tmp_path / 'x.safetensors', gray, {'epoch': 3}, model=model)
    metadata = read_metadata(tmp_path / 'x.safetensors')
    assert metadata['flaxzoo.model'] == 'resnet18'
    assert json.loads(metadata['flaxzoo.fields']) == {'num_classes': 7}
    assert metadata['epoch'] == '3'
    assert read_metadata(tmp_path / 'x.safetensors') == metadata
    flaxzoo.save(tmp_path / 'x.pth', gray, model=model)
    assert read_metadata(tmp_path / 'x.pth') == {}


@pytest.mark.parametrize('norm', [Norm(eps=1e-3, momentum=0.5), Norm(LayerNorm)], ids=['batch', 'layer'])
def test_fields_that_json_does_not_have(tmp_path, norm):
    path = tmp_path / 'x.safetensors'
    model = flaxzoo.create('resnet18', layers=np.array([1, 1, 1, 1]).tolist(), num_classes=np.int64(3), norm_layer=norm)
    model = model.clone(width_per_group=np.int64(64), layers=(np.int64(1),) * 4)
    variables = flaxzoo.init(model, jax.random.key(0))
    flaxzoo.save(path, variables, model=model)
    assert flaxzoo.load(path)[0] == model


def test_fields_that_no_file_holds_are_named(tmp_path, caplog):
    model = flaxzoo.create('resnet18', layers=(1, 1, 1, 1), attn_layer=SqueezeExcite)
    variables = flaxzoo.init(model, jax.random.key(0))
    flaxzoo.save(tmp_path / 'x.safetensors', variables, model=model)
    assert 'attn_layer=' in caplog.text
    assert 'layers=' not in caplog.text.replace('attn_layer=', '')
    assert 'flaxzoo.model' not in read_metadata(tmp_path / 'x.safetensors')
