"""How images are prepared: as the config says, else as the weights want that the run starts from.

What was used is in the run's config.json, so that a resumed run and `train.predict` use the same.
"""

import copy
import logging
from typing import Any

from ml_collections import ConfigDict

from flaxzoo.preset import Preset, preset_of
from flaxzoo.weights.source import parse
from train.config import PREPARATION, ConfigError

logger = logging.getLogger('train')

# Of pixels in [0, 1], where nothing else is known.
MEAN, STD = (0.5,), (0.25,)


def settled(config: ConfigDict, channels: int) -> ConfigDict:
    """A copy of the config in which no value of the preparation is left open, for images of so many channels.

    Raises:
      ConfigError: config.init_from names no weights, or the size of the images is not known.
    """
    config = copy.deepcopy(config)
    try:
        preset = _preset(config)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f'config.init_from: {error}') from error
    if preset:
        config.image_size = config.image_size or preset.crop
    wanted = _wanted(preset, config, channels) if preset else {'mean': MEAN, 'std': STD}
    if config.init_from and not preset and not (config.mean and config.std):
        words = ' and '.join(f'config.{field} = {wanted[field]}' for field in ('mean', 'std') if not config[field])
        logger.warning('%s does not say how its images were normalised: taking %s', config.init_from, words)
    for field, value in wanted.items():
        config[field] = config[field] or value
    if config.crop == 'resized' and not config.image_size:
        raise ConfigError("config.crop = 'resized' needs config.image_size")
    return config


def as_recorded(config: ConfigDict, record: dict[str, Any]) -> ConfigDict:
    """A copy of the config with what it leaves open as in the record of the run that it resumes, if there is one."""
    config = copy.deepcopy(config)
    for field in PREPARATION:
        if not config[field] and field in record:
            value = record[field]
            config[field] = tuple(value) if isinstance(value, list) else value
    return config


def say_differences(config: ConfigDict, preset: Preset | None, channels: int) -> None:
    """Logs where the config prepares images otherwise than the weights want that it starts from."""
    wanted = _wanted(preset, config, channels) if preset else {}
    words = [
        f'config.{field} = {config[field]!r} (the weights: {value!r})'
        for field, value in wanted.items()
        if not _same(config[field], value)
    ]
    if words:
        logger.warning('images are prepared otherwise than for %s: %s', config.init_from, ', '.join(words))


def _same(given: Any, wanted: Any) -> bool:
    """Whether two values of a field mean the same; one number stands for all channels."""
    if isinstance(given, tuple) and len(given) == 1:
        given *= len(wanted)
    return given == wanted


def _preset(config: ConfigDict) -> Preset | None:
    if not config.init_from:
        return None
    source = parse(config.model, config.init_from)
    return preset_of(source, source.fetch().path if source.kind == 'file' else None)


def _wanted(preset: Preset, config: ConfigDict, channels: int) -> dict[str, Any]:
    """What the weights want, by fields of the config."""
    mean, std = preset.mean, preset.std
    if len(mean) != channels:  # the first convolution is adapted to them; the colours' average is near
        mean, std = ((sum(values) / len(values),) for values in (mean, std))
    size = config.image_size or preset.crop
    return {
        'mean': mean,
        'std': std,
        'image_size': preset.crop,
        'eval_resize': preset.scaled(size).resize,  # the same share of the image is seen
        'eval_interpolation': preset.interpolation,
    }
