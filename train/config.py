"""The configuration of a run: its fields and defaults, and reading it with every mistake named."""

import ast
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flaxzoo.preset import INTERPOLATIONS
from flaxzoo.registry import suggest
from train.errors import UserError

CHOICES = {
    'parallel': ('pmap', 'mesh'),
    'dtype': ('float32', 'bfloat16'),
    'crop': ('none', 'pad', 'resized'),
    'optimizer': ('sgd', 'adamw'),
    'schedule': ('cosine', 'step', 'constant'),
    'eval_interpolation': ('', *INTERPOLATIONS),
    'bad_images': ('fail', 'skip'),
}

# Fields that may change when a run is resumed: they say where and how often, not what is computed. Whether other data
# lie in another place, data.json says.
NEUTRAL = frozenset(
    (
        'dataset',
        'data_dir',
        'bad_images',
        'num_workers',
        'parallel',
        'log_every_steps',
        'eval_every_epochs',
        'eval_batch_size',
        'checkpoint_every_steps',
        'keep_checkpoints',
        'compilation_cache',
    )
)


# Fields of the preparation of images; empty ones are filled in before a run starts.
PREPARATION = ('image_size', 'eval_resize', 'eval_interpolation', 'mean', 'std')


class ConfigError(UserError):
    """A field or a value that the configuration does not have."""


def default_config() -> ConfigDict:
    """Every field with its default; a config file starts from this and states what differs."""
    config = ConfigDict()
    config.seed = 0

    # The network: a name of flaxzoo.list_models(), further fields of it, and what to start from.
    config.model = ''
    config.model_fields = ConfigDict()
    config.init_from = ''  # weights for flaxzoo.load: a tag like 'IMAGENET1K_V2' or a file; '' starts at random
    config.freeze = ()  # torch-name wildcards of parameters that stay as they are: ('conv1.weight', 'layer1.*')
    config.freeze_batch_norm = False  # keep and use the running statistics while training
    config.sync_batch_norm = True  # statistics of the batch on all devices; False: each device's own part
    config.dtype = 'float32'  # of the computation; parameters are float32

    # The data: digits, folder:PATH or tfds:NAME.
    config.dataset = ''
    config.data_dir = ''  # where TFDS data sets are; '' is ~/tensorflow_datasets
    config.bad_images = 'fail'  # 'skip': those that cannot be read are listed, and the others trained on
    config.exif_orientation = False  # turn photographs as their EXIF data say; torchvision does not
    config.num_workers = 0  # processes that load images; 0 loads in threads of this one
    # What is left open here (PREPARATION) is as the weights of init_from want it; see preparation.py.
    config.image_size = 0  # pixels; without such weights 0 takes the images as they are
    config.eval_resize = 0  # shorter side before the centre crop of image_size; else 0 is image_size
    config.eval_interpolation = ''  # of that resize: nearest, bilinear, bicubic or lanczos; else '' is bilinear
    config.mean = ()  # a channel, of pixels in [0, 1]; else () is 0.5
    config.std = ()  # else () is 0.25
    config.crop = 'none'  # 'pad': a random crop of the zero-padded image; 'resized': Inception's random resized crop
    config.pad = 4  # pixels a side
    config.crop_scale = (0.08, 1.0)  # share of the image's area that a random resized crop covers
    config.flip = False  # left-right, with probability 1/2

    # The optimisation.
    config.batch_size = 128  # over all devices and processes
    config.epochs = 100
    config.optimizer = 'sgd'
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.nesterov = False
    config.weight_decay = 1e-4
    config.decay_norm_and_bias = False  # True: all decay, also vectors and what the network excludes from it
    config.clip_norm = 0.0  # the gradient's global norm at most; 0 is off
    config.label_smoothing = 0.0
    config.schedule = 'cosine'
    config.warmup_epochs = 0.0
    config.step_epochs = (50, 75)  # where 'step' multiplies the learning rate by step_factor
    config.step_factor = 0.1
    config.ema_decay = 0.0  # of an average of the variables, evaluated instead of them; 0 is off

    # The machine and the records.
    config.parallel = 'pmap'  # or 'mesh': jit(shard_map); the same numbers
    config.log_every_steps = 50
    config.eval_every_epochs = 1.0
    config.eval_batch_size = 0  # 0 is batch_size
    config.checkpoint_every_steps = 0  # besides the checkpoint after each evaluation
    config.keep_checkpoints = 3  # the newest; the best one is kept as well
    config.compilation_cache = True

    config.lock()
    config.model_fields.unlock()
    return config


def load_config(path: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads `get_config()` from the file `path` and applies `('field', 'value')` overrides.

    Raises:
      ConfigError: the file cannot be read, or a field or value does not exist; names the nearest.
    """
    config = _run_config_file(Path(path))
    for field, text in overrides:
        _override(config, field, text)
    return validate(config)


def validate(config: ConfigDict) -> ConfigDict:
    """The config, or a ConfigError that names the first value that cannot be meant."""
    for field in ('model', 'dataset'):
        if not config[field]:
            raise ConfigError(f'config.{field} is not set')
    for field, choices in CHOICES.items():
        if config[field] not in choices:
            near = suggest(config[field], list(choices))
            raise ConfigError(f'config.{field} is one of {", ".join(choices)}, not {config[field]!r}{near}')
    for field in ('batch_size', 'epochs', 'log_every_steps', 'eval_every_epochs', 'keep_checkpoints'):
        if config[field] <= 0:
            raise ConfigError(f'config.{field} must be positive, got {config[field]!r}')
    if config.seed < 0:
        raise ConfigError(f'config.seed must not be negative, got {config.seed!r}')
    for field in ('momentum', 'label_smoothing', 'ema_decay'):
        if not 0 <= config[field] < 1:
            raise ConfigError(f'config.{field} must be at least 0 and below 1, got {config[field]!r}')
    for field, value in config.model_fields.to_dict().items():
        if not _is_json(value):
            raise ConfigError(
                f'config.model_fields.{field} is {value!r}, which a run cannot record: fields of the network are '
                'numbers, strings, booleans, None and tuples of them. How BatchNorm trains is said by '
                'config.sync_batch_norm and config.freeze_batch_norm'
            )
    if config.crop == 'resized' and not (config.image_size or config.init_from):
        raise ConfigError("config.crop = 'resized' needs config.image_size")
    return config


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON would give it back (tuples as lists)."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(values: dict[str, Any]) -> ConfigDict:
    """The config that `to_json` turned into `values`."""
    config = default_config()
    for field, value in values.items():
        _set(config, field, _tuples(value))
    return config


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples: fields of a network must be hashable."""
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`field: old -> new` for each field that changes what a run computes."""
    old = to_json(default_config()) | old  # of an older version, which had fewer fields
    fields = sorted((old.keys() | new.keys()) - NEUTRAL)
    return [f'{f}: {old.get(f)!r} -> {new.get(f)!r}' for f in fields if old.get(f) != new.get(f)]


def _run_config_file(path: Path) -> ConfigDict:
    if not path.is_file():
        near = suggest(path.name, [p.name for p in path.parent.glob('*.py')])
        raise ConfigError(f'there is no config file {path}{near}')
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config()
    except (AttributeError, TypeError) as error:
        unknown = re.search(r'Key "(\w+)" does not exist', str(error))
        if unknown:
            raise ConfigError(f'{path}: {_unknown(unknown[1])}') from None
        raise ConfigError(f'{path}: {error}') from error


def _override(config: ConfigDict, field: str, text: str) -> None:
    """Sets `field` (`model_fields.NAME` too) to the value that `text` writes in the field's type."""
    name, _, inner = field.partition('.')
    if name not in config:
        raise ConfigError(_unknown(name))
    if inner:
        if name != 'model_fields':
            raise ConfigError(f'config.{name} has no field {inner!r}')
        config.model_fields[inner] = _literal(text)
    elif isinstance(config[name], ConfigDict):
        raise ConfigError(f'config.{name} takes its fields one by one: --config.{name}.NAME=VALUE')
    elif isinstance(config[name], str):
        config[name] = text
    else:
        _set(config, name, _literal(text))


def _set(config: ConfigDict, field: str, value: Any) -> None:
    if field not in config:
        raise ConfigError(_unknown(field))
    expected = config[field]
    if isinstance(expected, ConfigDict):
        config[field] = ConfigDict(value)
        return
    fits = type(value) is type(expected) or (isinstance(expected, float) and type(value) is int)
    if not fits:
        raise ConfigError(f'config.{field} is of type {type(expected).__name__}, got {value!r}')
    config[field] = value


def _literal(text: str) -> Any:
    """A number, boolean or tuple written in `text`; any other text is itself."""
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _unknown(field: str) -> str:
    fields = list(default_config())
    return f'there is no field config.{field}{suggest(field, fields) or "; the fields are " + ", ".join(fields)}'
