"""What a run carries from step to step, and how it begins."""

import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import flaxzoo
from train.config import ConfigError
from train.preparation import say_differences


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint holds.

    Attributes:
      step: number of updates done, int32.
      params: float32.
      batch_stats: running statistics; empty if the network has none.
      opt_state: the optimiser's.
      ema: exponential average of {'params', 'batch_stats'}, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation uses: the average if there is one."""
        return self.ema or {'params': self.params, 'batch_stats': self.batch_stats}


def build_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The network of a config, its BatchNorm synchronised or frozen as the config says."""
    try:
        model = flaxzoo.create(config.model, num_classes=num_classes, **config.model_fields.to_dict())
    except (ValueError, TypeError) as error:
        raise ConfigError(f'config.model or config.model_fields: {error}') from error
    axis = 'batch' if config.sync_batch_norm else None
    return flaxzoo.with_policy(model, axis_name=axis, freeze_batch_norm=config.freeze_batch_norm)


def initial_variables(config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The variables before the first step, for images (H, W, C): random, or the weights that config.init_from names."""
    if not config.init_from:
        return flaxzoo.init(model, jax.random.key(config.seed), jnp.zeros((1, *image_shape)))
    fields = {'num_classes': model.num_classes, 'in_channels': image_shape[-1], **config.model_fields.to_dict()}
    try:
        loaded, variables = flaxzoo.load(config.model, weights=config.init_from, rng=config.seed, **fields)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f'config.init_from: {error}') from error
    _check_same(model, loaded)
    say_differences(config, loaded.preset, image_shape[-1])
    return variables


def _check_same(model: nn.Module, loaded: nn.Module) -> None:
    """Raises if the network that weights were loaded for is not the config's but for the policy of the run."""
    other = {'remat', 'axis_name', 'freeze_batch_norm', *(() if model.fixed_size else ('image_size',))}
    fields = [field.name for field in dataclasses.fields(model) if field.compare and field.name not in other]
    words = [
        f'{name} = {getattr(loaded, name)!r}, the config {getattr(model, name)!r}'
        for name in fields
        if getattr(loaded, name) != getattr(model, name)
    ]
    if words:
        raise ConfigError(f'config.init_from: its network has {"; ".join(words)}: set config.model_fields')


def abstract_variables(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The shapes and dtypes of a network's variables for images (H, W, C)."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))


def make_state(variables: dict[str, Any], tx: optax.GradientTransformation, ema_decay: float = 0.0) -> TrainState:
    """The state before the first step, from {'params'} and, if the network has them, {'batch_stats'}."""
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    ema = jax.tree.map(jnp.copy, {'params': params, 'batch_stats': batch_stats}) if ema_decay else None
    return TrainState(jnp.int32(0), params, batch_stats, tx.init(params), ema)
