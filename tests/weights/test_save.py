"""What flaxzoo saves, PyTorch loads: trained in JAX, strict, and the logits agree."""

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
from flaxzoo.weights import save as save_module
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
        assert file.metadata() == {'format': 'pt', 'step': '1', 'note': 'a', 'accuracy': '[0.5]'}


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
