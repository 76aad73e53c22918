"""From a config to the things it describes: data, network, optimiser, devices and the state before the first step."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from train import augment
from train.config import ConfigError
from train.data import Dataset, open_dataset
from train.data.check import checked
from train.data.pipeline import readable, skips
from train.optim import make_optimizer, make_schedule
from train.parallel import MeshParallel, make_parallel
from train.preparation import settled
from train.state import TrainState, abstract_variables, build_model, initial_variables, make_state


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, built; nothing in it changes while it trains.

    image_shape: (H, W, C) of the images that the network sees.
    """

    config: ConfigDict
    data: Dataset
    image_shape: tuple[int, int, int]
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    parallel: MeshParallel

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        variables = initial_variables(self.config, self.model, self.image_shape)
        return make_state(variables, self.tx, self.config.ema_decay)

    def steps(self, epochs: float) -> int:
        """Epochs of the training images in steps."""
        return steps_of(epochs, len(self.data.train), self.config.batch_size)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return max(1, self.steps(self.config.epochs))

    @property
    def evaluations(self) -> set[int]:
        """The steps after which the network is evaluated; the last is one."""
        every = self.config.eval_every_epochs
        count = int(self.config.epochs / every)
        return {max(1, self.steps(i * every)) for i in range(1, count + 1)} | {self.total}


def build(config: ConfigDict) -> Experiment:
    """Opens the data and builds the rest; raises a UserError for what is wrong with any of it."""
    parallel = make_parallel(config.parallel, config.batch_size)
    data = checked(open_dataset(config), config.bad_images)
    first, _ = readable(data.held_out, 0, skip=skips(config))
    config = settled(config, first['image'].shape[-1])
    shape = image_shape(config, first['image'].shape)
    model = build_model(config, len(data.class_names))
    schedule = make_schedule(config, partial(steps_of, images=len(data.train), batch_size=config.batch_size))
    tx = optimizer(config, schedule, model, abstract_variables(model, shape))
    return Experiment(config, data, shape, model, tx, schedule, parallel)


def abstract_state(config: ConfigDict, model: nn.Module, shape: tuple[int, int, int]) -> TrainState:
    """The shapes and dtypes of a run's state for images (H, W, C); takes no data set and no computation."""
    variables = abstract_variables(model, shape)
    tx = optimizer(config, optax.constant_schedule(0.0), model, variables)
    return jax.eval_shape(partial(make_state, tx=tx, ema_decay=config.ema_decay), variables)


def optimizer(
    config: ConfigDict, schedule: optax.Schedule, model: nn.Module, variables: Any
) -> optax.GradientTransformation:
    """The optimiser for a network's variables; their arrays are not needed."""
    return make_optimizer(config, schedule, variables['params'], getattr(model, 'no_weight_decay', ()))


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """The step at which so many epochs are seen, to the nearest."""
    return round(epochs * images / batch_size)


def image_shape(config: ConfigDict, stored: tuple[int, int, int]) -> tuple[int, int, int]:
    """(H, W, C) of the images that the network sees, from that of a whole one."""
    height, width, channels = stored
    if len(config.mean) not in (1, channels) or len(config.std) not in (1, channels):
        raise ConfigError(f'config.mean and config.std need 1 or {channels} values, one a channel of the images')
    return (config.image_size or height, config.image_size or width, channels)


def augmenter(config: ConfigDict) -> partial:
    """(keys, uint8 images) -> images: the part of the augmentation that the device does."""
    return partial(augment.augment, pad=config.pad if config.crop == 'pad' else 0, flip=config.flip)


def normaliser(config: ConfigDict) -> partial:
    """uint8 images -> what the network takes, in the dtype of the computation."""
    return partial(augment.normalise, mean=config.mean, std=config.std, dtype=jnp.dtype(config.dtype))
