from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.conftest import make_tiny_config
from train.config import ConfigError, default_config, differences, from_json, load_config, to_json, validate

HEADER = 'from train.config import default_config\n\n\ndef get_config():\n    config = default_config()\n'


def write(path: Path, *lines: str) -> str:
    required = ("config.model, config.dataset = 'resnet18', 'digits'", *lines, 'return config')
    path.write_text(HEADER + ''.join(f'    {line}\n' for line in required))
    return str(path)


def test_a_file_states_what_differs_and_the_command_line_overrides_it(tmp_path: Path):
    path = write(tmp_path / 'c.py', 'config.epochs = 7', 'config.model_fields.groups = 4')
    overrides = [
        ('learning_rate', '1'),
        ('flip', 'true'),
        ('step_epochs', '(1, 2)'),
        ('freeze', "('a.*',)"),
        ('model_fields.layers', '(1, 1)'),
        ('init_from', '12'),
    ]
    config = load_config(path, overrides)
    assert (config.epochs, config.learning_rate, config.flip) == (7, 1.0, True)
    assert (config.step_epochs, config.freeze, config.init_from) == ((1, 2), ('a.*',), '12')
    assert config.model_fields.to_dict() == {'groups': 4, 'layers': (1, 1)}
    assert config.momentum == default_config().momentum


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('config.lerning_rate = 1.0', r'c\.py: there is no field config\.lerning_rate, did you mean learning_rate\?'),
        ("config.epochs = 'ten'", r'c\.py: .*epochs'),
        ("config.crop = 'pda'", r"config\.crop is one of none, pad, resized, not 'pda', did you mean pad\?"),
        ('config.batch_size = 0', r'config\.batch_size must be positive, got 0'),
        ('config.seed = -1', r'config\.seed must not be negative'),
        ('config.momentum = 1.5', r'config\.momentum must be at least 0 and below 1'),
        ("config.crop = 'resized'", r'needs config\.image_size'),
        ("config.dataset = ''", r'config\.dataset is not set'),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, line: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / 'c.py', line))


@pytest.mark.parametrize(
    ('field', 'text', 'message'),
    [
        ('epoch', '3', r'no field config\.epoch, did you mean .*epochs'),
        ('epochs', 'many', r"config\.epochs is of type int, got 'many'"),
        ('epochs', '2.5', r'config\.epochs is of type int, got 2\.5'),
        ('flip', '1', r'config\.flip is of type bool, got 1'),
        ('freeze', 'conv1', r'config\.freeze is of type tuple'),
        ('parallel', 'pmapp', r"not 'pmapp', did you mean pmap"),
        ('model_fields', '3', r'config\.model_fields takes its fields one by one'),
        ('mean.x', '3', r"config\.mean has no field 'x'"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(tmp_path: Path, field: str, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / 'c.py'), [(field, text)])


def test_a_missing_file_names_the_nearest(tmp_path: Path):
    write(tmp_path / 'digits.py')
    with pytest.raises(ConfigError, match=r'no config file .*digit\.py, did you mean digits\.py'):
        load_config(str(tmp_path / 'digit.py'))


def test_json_brings_a_config_back(tiny_config):
    assert from_json(to_json(tiny_config)).to_dict() == tiny_config.to_dict()


def test_only_fields_that_change_the_run_differ(tiny_config):
    old = to_json(tiny_config)
    tiny_config.num_workers, tiny_config.log_every_steps, tiny_config.parallel = 3, 1, 'mesh'
    assert differences(old, to_json(tiny_config)) == []
    tiny_config.learning_rate, tiny_config.model_fields.groups = 0.5, 8
    named = differences(old, to_json(tiny_config))
    assert [line.split(':')[0] for line in named] == ['learning_rate', 'model_fields']
    assert 'learning_rate: 0.01 -> 0.5' in named


@pytest.mark.parametrize('value', [partial(dict), np.float32(1), (1, jnp.ones), object])
def test_a_field_of_the_network_that_cannot_be_recorded_is_named(value):
    config = make_tiny_config()
    config.model_fields.norm_layer = value
    with pytest.raises(ConfigError, match=r'config\.model_fields\.norm_layer is .*, which a run cannot record: fields'):
        validate(config)
