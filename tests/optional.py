"""torch, or a skipped test where it is not installed: what compares nothing with it runs without."""

from typing import Any

import pytest


class Torch:
    """The package, imported when a test first asks for something in it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pytest.importorskip('torch'), name)


class Functional:
    """`torch.nn.functional`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pytest.importorskip('torch').nn.functional, name)


torch, F = Torch(), Functional()
