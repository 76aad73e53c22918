from typing import ClassVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from train.config import ConfigError
from train.experiment import abstract_state, optimizer
from train.optim import make_optimizer, make_schedule
from train.parameters import frozen_paths

SHAPES = {'conv1': {'kernel': (3, 4)}, 'layer1.0': {'bn1': {'scale': (4,), 'bias': (4,)}, 'fc': {'kernel': (4, 2)}}}


def random_tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s)), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def our_steps(config, steps: int = 4) -> dict:
    """Parameters after some steps with given gradients, in float64."""
    with jax.enable_x64(True):
        params = random_tree(0)
        tx = make_optimizer(config, optax.constant_schedule(config.learning_rate), params)
        state = tx.init(params)
        for step in range(steps):
            updates, state = tx.update(random_tree(step + 1), state, params)
            params = optax.apply_updates(params, updates)
    return flax.traverse_util.flatten_dict(params, sep='.')


def torch_steps(build, clip: float = 0.0, decay_all: bool = False, steps: int = 4) -> dict:
    """The same with a torch optimiser: build(groups) on groups with and without decay."""
    with jax.enable_x64(True):
        trees = [flax.traverse_util.flatten_dict(random_tree(seed), sep='.') for seed in range(steps + 1)]
    params = {name: torch.nn.Parameter(torch.tensor(np.asarray(value))) for name, value in trees[0].items()}
    decayed = [p for name, p in params.items() if decay_all or name.endswith('kernel')]
    others = [p for p in params.values() if not any(p is q for q in decayed)]
    optimizer = build([{'params': decayed}, {'params': others, 'weight_decay': 0.0}])
    for grads in trees[1:]:
        for name, parameter in params.items():
            parameter.grad = torch.tensor(np.asarray(grads[name]))
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in params.items()}


def assert_same(ours: dict, theirs: dict, rtol: float = 1e-12) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, err_msg=name)


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('decay_all', [False, True])
def test_sgd_is_torchs(tiny_config, nesterov: bool, decay_all: bool):
    tiny_config.update(
        {'learning_rate': 0.2, 'weight_decay': 0.1, 'nesterov': nesterov, 'decay_norm_and_bias': decay_all}
    )
    theirs = torch_steps(
        lambda groups: torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=0.1, nesterov=nesterov),
        decay_all=decay_all,
    )
    assert_same(our_steps(tiny_config), theirs)


def test_clipping_comes_before_decay_as_in_torch(tiny_config):
    tiny_config.update({'learning_rate': 0.2, 'weight_decay': 0.1, 'clip_norm': 0.7})
    theirs = torch_steps(lambda groups: torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=0.1), clip=0.7)
    assert_same(our_steps(tiny_config), theirs, rtol=1e-5)  # torch divides by the norm plus 1e-6


def test_adamw_is_torchs(tiny_config):
    tiny_config.update({'optimizer': 'adamw', 'learning_rate': 0.01, 'weight_decay': 0.1})
    theirs = torch_steps(lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1))
    assert_same(our_steps(tiny_config), theirs, rtol=1e-9)


def test_frozen_parameters_stay_and_do_not_count_in_the_norm(tiny_config):
    tiny_config.update(
        {'learning_rate': 0.2, 'weight_decay': 0.1, 'clip_norm': 0.7, 'freeze': ('layer1.*.bn?.*', 'conv1.*')}
    )
    start = flax.traverse_util.flatten_dict(random_tree(0), sep='.')
    params = our_steps(tiny_config, steps=1)
    for name in ('conv1.kernel', 'layer1.0.bn1.scale', 'layer1.0.bn1.bias'):
        np.testing.assert_allclose(params[name], start[name], rtol=1e-6)
    with jax.enable_x64(True):
        weight, grad = random_tree(0)['layer1.0']['fc']['kernel'], random_tree(1)['layer1.0']['fc']['kernel']
        expected = weight - 0.2 * (grad * 0.7 / jnp.linalg.norm(grad) + 0.1 * weight)
    np.testing.assert_allclose(params['layer1.0.fc.kernel'], expected, rtol=1e-12)
    tx = make_optimizer(tiny_config, optax.constant_schedule(0.1), random_tree(0))
    moments = [leaf.shape for leaf in jax.tree.leaves(tx.init(random_tree(0))) if leaf.ndim]
    assert moments == [(4, 2)]


@pytest.mark.parametrize(
    ('pattern', 'near'),
    [('conv2.weight', 'conv1.weight'), ('conv1.kernel', 'conv1.weight'), ('layer1.0.bn1.scale', 'layer1.0.bn1.bias')],
)
def test_a_pattern_that_freezes_nothing_names_the_nearest(tiny_config, pattern, near):
    tiny_config.freeze = ('conv1.*', pattern)
    with pytest.raises(ConfigError, match=f"no parameter has the torch name '{pattern}', did you mean .*{near}"):
        make_optimizer(tiny_config, optax.constant_schedule(0.1), random_tree(0))


@pytest.mark.parametrize('pattern', ['conv1.weight', 'conv1.*', '*1.weight'])
def test_names_of_frozen_parameters_are_torchs(pattern):
    assert ('conv1', 'kernel') in frozen_paths(random_tree(0), [pattern])


# Leaves of several kinds of networks, by torch's names, and whether they decay.
KINDS = {
    ('conv', 'kernel'): ((3, 3, 4, 8), True),
    ('conv', 'bias'): ((8,), False),
    ('bn', 'scale'): ((8,), False),
    ('fc', 'kernel'): ((8, 5), True),
    ('attention', 'in_proj_weight'): ((24, 8), True),
    ('attention', 'in_proj_bias'): ((24,), False),
    ('attention', 'relative_position_bias_table'): ((9, 2), False),
    ('attention', 'logit_scale'): ((2, 1, 1), False),
    ('class_token',): ((1, 1, 8), False),
    ('pos_embedding',): ((1, 9, 8), False),
    ('block', 'layer_scale'): ((8, 1, 1), False),
    ('gamma',): ((8,), False),
}
EXCLUDED = ('class_token', 'pos_embedding', '*.relative_position_bias_table', '*.logit_scale', '*.layer_scale')


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
@pytest.mark.parametrize('freeze', [(), ('fc.*', 'class_token')])
def test_what_decays_is_a_matrix_that_the_network_does_not_exclude(tiny_config, optimizer, freeze):
    tiny_config.update({'optimizer': optimizer, 'weight_decay': 0.1, 'freeze': freeze})
    params = flax.traverse_util.unflatten_dict({path: jnp.ones(shape) for path, (shape, _) in KINDS.items()})
    tx = make_optimizer(tiny_config, optax.constant_schedule(0.5), params, EXCLUDED)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = {path for path, update in flax.traverse_util.flatten_dict(updates).items() if update.any()}
    assert moved == {path for path, (_, decays) in KINDS.items() if decays and not (freeze and path[0] == 'fc')}


def test_the_networks_own_exclusions_reach_the_optimiser(tiny_config):
    class Model(nn.Module):
        no_weight_decay: ClassVar = ('token',)

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name='fc')(x) + self.param('token', nn.initializers.ones, (1, 2))

    tiny_config.update({'weight_decay': 0.1, 'momentum': 0.0})
    state = abstract_state(tiny_config, Model(), (4, 4, 1))
    tx = optimizer(tiny_config, optax.constant_schedule(0.5), Model(), {'params': state.params})
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), state.params)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert not updates['token'].any()
    assert updates['fc']['kernel'].all()


def schedule_of(config, **fields) -> np.ndarray:
    """The learning rates of a run of ten steps an epoch."""
    config.update(fields)
    schedule = make_schedule(config, lambda epochs: round(10 * epochs))
    return np.array([schedule(step) for step in range(10 * config.epochs)])


def test_cosine_with_warmup(tiny_config):
    rates = schedule_of(tiny_config, learning_rate=0.4, epochs=6, warmup_epochs=1.0, schedule='cosine')
    np.testing.assert_allclose(rates[:10], 0.04 * np.arange(1, 11), rtol=1e-5)
    np.testing.assert_allclose(rates[10:], 0.2 * (1 + np.cos(np.pi * np.arange(50) / 50)), rtol=1e-4, atol=1e-7)


def test_steps_with_warmup_fall_at_their_epochs(tiny_config):
    rates = schedule_of(
        tiny_config,
        learning_rate=0.4,
        epochs=6,
        warmup_epochs=1.0,
        schedule='step',
        step_epochs=(2, 4),
        step_factor=0.1,
    )
    np.testing.assert_allclose(rates[:10], 0.04 * np.arange(1, 11), rtol=1e-5)
    np.testing.assert_allclose(rates[10:20], 0.4, rtol=1e-5)
    np.testing.assert_allclose(rates[20:40], 0.04, rtol=1e-5)
    np.testing.assert_allclose(rates[40:], 0.004, rtol=1e-5)


def test_constant(tiny_config):
    rates = schedule_of(tiny_config, learning_rate=0.4, epochs=2, schedule='constant')
    np.testing.assert_allclose(rates, 0.4, rtol=1e-6)
