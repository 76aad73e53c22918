"""What README shows works as it stands."""

import importlib.util
import re
from pathlib import Path

from tests.models.test_names import COUNTS

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
# Blocks that fetch released weights; tests/weights runs the same calls on files of its own.
FETCHING = 'flaxzoo.load('


def test_the_python_blocks_run():
    blocks = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    offline = [block for block in blocks if FETCHING not in block]
    assert len(offline) >= 4
    names: dict = {}
    for block in offline:
        exec(compile(block, 'README.md', 'exec'), names)
    assert names['logits'].shape == (2, 10)
    assert names['logits'].dtype == 'bfloat16'
    assert names['report'].error < 1e-10
    assert names['report'].first_above(1e-10) is None


def test_the_commands_pictures_and_configs_exist():
    for module in re.findall(r'python -m ([a-z_.]+)', README):
        assert importlib.util.find_spec(module), module
    for picture in re.findall(r'!\[.*?\]\((.*?)\)', README):
        assert (ROOT / picture).is_file(), picture
    for config in (ROOT / 'configs').glob('[a-z]*.py'):
        assert f'`{config.stem}`' in README, config
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'`?make ([a-z-]+)', README):
        assert f'\n{target}:' in makefile, target


def test_the_table_has_every_network_and_its_parameters():
    rows = re.findall(r'^\| `(\w+)` \| ([\d,]+) \|', README, re.MULTILINE)
    assert {name: int(count.replace(',', '')) for name, count in rows} == COUNTS
