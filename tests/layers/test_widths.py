"""Rounded channels are torchvision's."""

import pytest

from flaxzoo.layers import make_divisible


@pytest.mark.parametrize('divisor', [4, 8, 16])
def test_it_is_torchvisions_rounding(divisor):
    theirs = pytest.importorskip('torchvision.models._utils')._make_divisible
    widths = [
        *range(1, 700),
        *(channels * factor for channels in range(8, 400, 8) for factor in (0.35, 0.75, 1.1, 1.4)),
    ]
    assert [make_divisible(width, divisor) for width in widths] == [theirs(width, divisor) for width in widths]
