"""Optimisers and schedules, with torch's conventions."""

from collections.abc import Iterable
from typing import Any

import optax
from flax.traverse_util import path_aware_map
from ml_collections import ConfigDict

from train.parameters import decayed_paths, frozen_paths


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, params: Any, no_weight_decay: Iterable[str] = ()
) -> optax.GradientTransformation:
    """The optimiser of a config for `params` (only their names and shapes are used).

    The order is torch's: the gradient's norm is clipped, then the optimiser works. SGD takes weight decay in the
    coupled form (decay * weight is added to the gradient before momentum), AdamW in the decoupled one. Frozen
    parameters get no update, no decay and no optimiser state, and do not count in the norm.

    Args:
      no_weight_decay: the network's; torch-name wildcards of parameters that do not decay though they are no vectors.
    """
    paths = decayed_paths(params, no_weight_decay)

    def decayed(params: Any) -> Any:
        return path_aware_map(lambda path, _: config.decay_norm_and_bias or path in paths, params)

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
        frozen = frozen_paths(params, config.freeze)
        labels = path_aware_map(lambda path, _: 'frozen' if path in frozen else 'trained', params)
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
