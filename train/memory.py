"""Large memory pages for training on the CPU."""

import os
import sys
from pathlib import Path

SETTING = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def use_large_pages(setting: Path = SETTING) -> None:
    """Where Linux gives large pages to programs that ask, starts this program anew as one that asks.

    A step takes its arrays from the system and gives them back, page by page, each time. The C library reads
    `GLIBC_TUNABLES` before a program begins; where it is set already it is left as it is.
    """
    if 'GLIBC_TUNABLES' in os.environ or not setting.exists() or '[madvise]' not in setting.read_text():
        return
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
