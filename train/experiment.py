"""From a config to the things it describes: data, network, optimiser, devices and the state before the first step."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from train import augment
from train.config import ConfigError
from train.data import Dataset, open_dataset
from train.optim import make_optimizer, make_schedule
from train.parallel import MeshParallel, make_parallel
from train.state import TrainState, build_model, init_variables, make_state


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, built; nothing in it changes while it trains."""

    config: ConfigDict
    data: Dataset
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    parallel: MeshParallel
    state: TrainState

    def steps(self, epochs: float) -> int:
        """Epochs of the training images in steps."""
        return steps_of(epochs, len(self.data.train), self.config.batch_size)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.steps(self.config.epochs)

    @property
    def evaluations(self) -> set[int]:
        """The steps after which the network is evaluated; the last is one."""
        every = self.config.eval_every_epochs
        count = int(self.config.epochs / every)
        return {max(1, self.steps(i * every)) for i in range(1, count + 1)} | {self.total}


def build(config: ConfigDict) -> Experiment:
    """Opens the data and builds the network; raises a UserError for what is wrong with either."""
    parallel = make_parallel(config.parallel, config.batch_size)
    data = open_dataset(config)
    shape = image_shape(config, data)
    model, variables = build_model(config, len(data.class_names))
    if variables is None:
        variables = init_variables(model, config.seed, shape)
    schedule = make_schedule(config, partial(steps_of, images=len(data.train), batch_size=config.batch_size))
    tx = make_optimizer(config, variables['params'], schedule)
    return Experiment(config, data, model, tx, schedule, parallel, make_state(variables, tx, config.ema_decay))


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """The step at which so many epochs are seen, to the nearest."""
    return round(epochs * images / batch_size)


def image_shape(config: ConfigDict, data: Dataset) -> tuple[int, int, int]:
    """(H, W, C) of the images that the network sees."""
    height, width, channels = data.held_out[0]['image'].shape
    if len(config.mean) not in (1, channels) or len(config.std) not in (1, channels):
        raise ConfigError(f'config.mean and config.std need 1 or {channels} values, one a channel of the images')
    return (config.image_size or height, config.image_size or width, channels)


def augmenter(config: ConfigDict) -> partial:
    """(keys, uint8 images) -> images: the part of the augmentation that the device does."""
    return partial(augment.augment, pad=config.pad if config.crop == 'pad' else 0, flip=config.flip)


def normaliser(config: ConfigDict) -> partial:
    """uint8 images -> what the network takes, in the dtype of the computation."""
    return partial(augment.normalise, mean=config.mean, std=config.std, dtype=jnp.dtype(config.dtype))
