"""Optimisers, schedules and which parameters they touch, with torch's conventions."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from flaxzoo.registry import suggest
from train.config import ConfigError


def make_optimizer(config: ConfigDict, schedule: optax.Schedule, params: Any) -> optax.GradientTransformation:
    """The optimiser of a config for `params` (only their names are used).

    The order is torch's: the gradient's norm is clipped, then the optimiser works. SGD takes weight decay in the
    coupled form (decay * weight is added to the gradient before momentum), AdamW in the decoupled one. Frozen
    parameters get no update, no decay and no optimiser state, and do not count in the norm.
    """

    def decayed(params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: config.decay_norm_and_bias or _is_weight(path), params)

    if config.optimizer == 'sgd':
        rule = optax.chain(
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov),
        )
    else:
        rule = optax.adamw(schedule, b1=config.momentum, weight_decay=config.weight_decay, mask=decayed)
    if config.clip_norm:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if config.freeze:
        labels = _frozen_or_trained(params, config.freeze)
        rule = optax.multi_transform({'trained': rule, 'frozen': optax.set_to_zero()}, labels)
    return rule


def make_schedule(config: ConfigDict, steps_of: Any) -> optax.Schedule:
    """Step -> learning rate: a linear warm-up, then cosine to zero, steps down, or constant.

    Args:
      steps_of: epochs -> steps.
    """
    peak, warmup, total = config.learning_rate, steps_of(config.warmup_epochs), steps_of(config.epochs)
    if config.schedule == 'cosine':
        main = optax.cosine_decay_schedule(peak, max(1, total - warmup))
    elif config.schedule == 'step':
        drops = {steps_of(epoch) - warmup: config.step_factor for epoch in config.step_epochs}
        main = optax.piecewise_constant_schedule(peak, drops)
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    # The first step is one notch up, not at zero: no step is wasted.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), main], [warmup])


def _is_weight(path: jax.tree_util.KeyPath) -> bool:
    return path[-1].key not in ('scale', 'bias')


def _frozen_or_trained(params: Any, patterns: Sequence[str]) -> Any:
    """'frozen' or 'trained' for each parameter; a pattern that names no parameter is a ConfigError."""
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f'config.freeze: no parameter is named {pattern!r}{suggest(pattern, names)}')

    def label(path: jax.tree_util.KeyPath, _: Any) -> str:
        return 'frozen' if any(fnmatch.fnmatchcase(_name(path), pattern) for pattern in patterns) else 'trained'

    return jax.tree.map_with_path(label, params)


def _name(path: jax.tree_util.KeyPath) -> str:
    """A parameter's path joined by dots: torch's name, but for the last part (kernel, scale)."""
    return '.'.join(key.key for key in path)
