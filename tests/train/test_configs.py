"""Every file in configs/: it loads, its network exists, and its docstring says how it is run and what was measured."""

import ast
import re
from pathlib import Path

import jax
import pytest

from train.config import load_config
from train.experiment import abstract_state
from train.state import build_model

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_builds_its_state(path: Path):
    overrides = [('dataset', 'folder:photographs')] if path.stem == 'folder_finetune' else []
    config = load_config(str(path), overrides)
    model = build_model(config, 10)
    channels = len(config.mean) or 3
    size = config.image_size or model.image_size
    state = abstract_state(config, model, (size, size, channels))
    assert jax.tree.leaves(state.params)
    assert (state.ema is not None) == (config.ema_decay > 0)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_docstring_states_command_hardware_and_measurement(path: Path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f'python -m train --config configs/{path.name} ' in text
    assert 'Hardware: ' in text
    assert 'easured' in text or re.search(r'accuracy .*\d %', text)
