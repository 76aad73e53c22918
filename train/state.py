"""What a run carries from step to step, and how it begins."""

from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import flaxzoo
from train.config import ConfigError


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


def build_model(config: ConfigDict, num_classes: int) -> tuple[nn.Module, Any]:
    """The network of a config, and the variables to start from if config.init_from names weights (else None)."""
    fields = {'num_classes': num_classes, **config.model_fields.to_dict()}
    try:
        if config.init_from:
            model, variables = flaxzoo.load(config.model, weights=config.init_from, **fields)
        else:
            model, variables = flaxzoo.create(config.model, **fields), None
    except (ValueError, TypeError) as error:
        raise ConfigError(f'config.model, config.model_fields or config.init_from: {error}') from error
    if hasattr(model, 'norm_layer'):
        axis = 'batch' if config.sync_batch_norm else None
        norm = partial(model.norm_layer, axis_name=axis, frozen=config.freeze_batch_norm)
        model = model.clone(norm_layer=norm)
    return model, variables


def init_variables(model: nn.Module, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Random variables of a network for images (H, W, C): {'params', 'batch_stats'}."""
    image = jnp.zeros((1, *image_shape))
    variables = jax.jit(model.init)(jax.random.key(seed), image)
    return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


def make_state(variables: dict[str, Any], tx: optax.GradientTransformation, ema_decay: float = 0.0) -> TrainState:
    """The state before the first step."""
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    ema = jax.tree.map(jnp.copy, {'params': params, 'batch_stats': batch_stats}) if ema_decay else None
    return TrainState(jnp.int32(0), params, batch_stats, tx.init(params), ema)
