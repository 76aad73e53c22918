"""What the tests of layers share."""

from tests.ops.conftest import x64

__all__ = ['x64']
