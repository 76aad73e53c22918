"""The training program asks for large pages where the system leaves that to programs, and else starts as it is."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from train.memory import use_large_pages
print('started', flush=True)
use_large_pages(Path(sys.argv[1]))
print(os.getpid(), sys.argv[2:], os.environ.get('GLIBC_TUNABLES'))
"""


@pytest.mark.parametrize(
    ('setting', 'tunables', 'starts', 'expected'),
    [
        ('always [madvise] never', None, 2, 'glibc.malloc.hugetlb=1'),
        ('always [madvise] never', 'glibc.malloc.arena_max=1', 1, 'glibc.malloc.arena_max=1'),
        ('[always] madvise never', None, 1, None),
        ('always madvise [never]', None, 1, None),
        (None, None, 1, None),
    ],
)
def test_a_program_starts_anew_only_where_it_has_to_ask(tmp_path, setting, tunables, starts, expected):
    file = tmp_path / 'enabled'
    if setting:
        file.write_text(setting)
    env = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
    env |= {'GLIBC_TUNABLES': tunables} if tunables else {}
    arguments = ['--config', 'a file.py']
    command = [sys.executable, '-X', 'utf8', '-c', PROGRAM, file, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as program:
        try:
            output, _ = program.communicate(timeout=60)  # a program that starts anew for ever would never end
        finally:
            program.kill()
    assert program.returncode == 0
    assert output.splitlines() == ['started'] * starts + [f'{program.pid} {arguments} {expected}']
