"""Options crossed: every form of network, built, traced, trained, folded, converted and counted with each of them.

Shapes alone, so that every form can be taken; tests of their own check the numbers.
"""

import contextlib
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxzoo
from flaxzoo.analysis.summary import summarize
from tests.models.cases import FAST
from train.parallel import MeshParallel
from train.state import make_state
from train.step import make_train_step

OPTIONS = ('remat', 'freeze_batch_norm', 'axis_name', 'headless', 'one_channel', 'bfloat16', 'plain')
# None and all together for every form; each alone and all pairs for one network, with one block a stage.
CASES = [(name, options) for name in (*FAST, 'densenet121', 'vit_b_32', 'swin_t') for options in ((), OPTIONS)]
CASES += [('small', options) for count in (1, 2) for options in combinations(OPTIONS, count)]
SMALL = {'layers': (1, 1, 1, 1), 'image_size': 64}


class Setup:
    """A network with some options, its image and the shapes of its variables."""

    def __init__(self, name, options):
        self.options = options
        policy = {'remat': 'remat' in options, 'freeze_batch_norm': 'freeze_batch_norm' in options}
        axis_name = 'batch' if 'axis_name' in options else None
        name, fields = ('resnet18', SMALL) if name == 'small' else (name, {})
        model = flaxzoo.create(name, num_classes=0 if 'headless' in options else 10, **fields)
        self.model = flaxzoo.with_policy(model, axis_name=axis_name, **policy)
        self.dtype = jnp.bfloat16 if 'bfloat16' in options else jnp.float32
        size = model.image_size
        self.shape = (size, size, 1 if 'one_channel' in options else 3)
        self.image = jax.ShapeDtypeStruct((2, *self.shape), self.dtype)
        self.variables = jax.eval_shape(self.model.init, jax.random.key(0), self.image)
        # Without memory of their own: the largest network has 133M parameters.
        self.zeros = jax.tree.map(lambda leaf: np.broadcast_to(leaf.dtype.type(0), leaf.shape), self.variables)


@pytest.fixture
def setup(request):
    name, options = request.param
    with flaxzoo.plain() if 'plain' in options else contextlib.nullcontext():
        yield Setup(name, options)


def _id(case):
    name, options = case
    return f'{name}-{"+".join(options) or "none"}' if len(options) < len(OPTIONS) else f'{name}-all'


def cases(test):
    return pytest.mark.parametrize('setup', CASES, ids=map(_id, CASES), indirect=True)(test)


@cases
def test_options_together(setup):
    result_width = _evaluates(setup)
    _trains(setup, result_width)
    _gives_feature_maps(setup)
    _converts(setup)
    _folds_and_is_counted(setup)


def _evaluates(setup):
    assert {leaf.dtype for leaf in jax.tree.leaves(setup.variables)} == {np.dtype('float32')}
    out = jax.eval_shape(setup.model.apply, setup.variables, setup.image)
    assert out.dtype == setup.dtype
    assert out.ndim == 2
    if 'headless' not in setup.options:
        assert out.shape == (2, 10)
    return out.shape[1]


def _trains(setup, classes):
    """The training program's step, mapped over two devices, keeps the state's shapes and dtypes."""
    tx = optax.sgd(0.1, momentum=0.9)
    step = make_train_step(
        setup.model, tx, augment=lambda keys, images: images, normalise=lambda images: images.astype(setup.dtype)
    )
    state = jax.eval_shape(partial(make_state, tx=tx), setup.variables)
    batch = {
        'image': jax.ShapeDtypeStruct((4, *setup.shape), jnp.uint8),
        'label': jax.ShapeDtypeStruct((4,), jnp.int32),
    }
    after, _ = jax.eval_shape(MeshParallel(jax.devices()[:2]).compile(step), state, batch)
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (after, state)]
    assert kinds[0] == kinds[1]


def _gives_feature_maps(setup):
    maps = jax.eval_shape(lambda v, x: flaxzoo.features(setup.model, v, x), setup.variables, setup.image)
    assert maps.keys() == set(setup.model.stages)
    assert {leaf.dtype for leaf in maps.values()} == {np.dtype(setup.dtype)}


def _converts(setup):
    state_dict = flaxzoo.to_torch(setup.zeros)
    back = flaxzoo.from_torch(setup.model, state_dict, input_shape=(1, *setup.shape))
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, setup.zeros)


def _folds_and_is_counted(setup):
    shape = (1, *setup.shape)
    folded = flaxzoo.fold_batch_norm(setup.model, setup.zeros, input_shape=shape)
    names = [path[-1].key for path, _ in jax.tree.leaves_with_path(setup.zeros)]
    left = [path[-1].key for path, _ in jax.tree.leaves_with_path(folded)]
    if 'var' in names:
        assert left.count('folded_bias') > 0.4 * names.count('var')  # DenseNet's come before convolutions
    out = jax.eval_shape(setup.model.apply, folded, setup.image)
    assert out.dtype == setup.dtype
    summary = summarize(setup.model, shape)
    assert summary.parameters == sum(leaf.size for leaf in jax.tree.leaves(setup.variables['params']))
    assert summary.macs > 1e7


@pytest.mark.parametrize('name', ['resnet18', 'bn_inception', 'squeezenet1_1'])
@pytest.mark.parametrize(
    'options', [{'remat': True}, {'remat': True, 'axis_name': 'batch'}, {'freeze_batch_norm': True}]
)
def test_initial_variables_are_arrays_in_any_run(name, options):
    model = flaxzoo.create(name, num_classes=10)
    expected = flaxzoo.init(model, jax.random.key(0))
    variables = flaxzoo.init(flaxzoo.with_policy(model, **options), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
