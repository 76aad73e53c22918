"""Which images each network is tested on, and which networks `make test` runs numerically."""

from fnmatch import fnmatch
from functools import cache

import numpy as np
import pytest

import flaxzoo
from flaxzoo.weights.convert import template

# (N, H, W) by name pattern: odd, not square, and about as small as the network's training mode allows.
SIZES = {
    'resnext29*': (2, 21, 27),
    '*_cifar': (2, 21, 27),
    'alexnet': (2, 71, 93),
    'vgg*': (2, 37, 67),
    'inception_v1': (2, 79, 97),
    'bn_inception': (2, 95, 69),  # smaller ones leave a norm too few values: rounding grows past 1e-10
    'inception_v3': (2, 299, 307),  # its auxiliary head takes no less
    'inception_*': (4, 91, 107),
    'vit_*': (2, 224, 224),  # it takes no others
    '*': (2, 49, 67),
}

# One small network a form; `make test-all` runs every name.
FAST = (
    'alexnet',
    'vgg11_bn',
    'squeezenet1_1',
    'googlenet',
    'inception_v1',
    'bn_inception',
    'xception',
    'resnet18',
    'resnext29_32x4d',
    'resnext50_32x4d',
    'mobilenet_v3_small',
    'efficientnet_b0',
)

ALL_MODELS = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in flaxzoo.list_models()]


@cache
def shapes(name: str, num_classes: int | None = None) -> dict:
    """Shapes of the variables of a registered network, at its default size."""
    return template(flaxzoo.create(name, **({'num_classes': num_classes} if num_classes else {})))


def size(name: str) -> tuple[int, int, int]:
    return next(size for pattern, size in SIZES.items() if fnmatch(name, pattern))


def images(name: str, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Normally distributed images (N, H, W, channels), float64."""
    return np.random.default_rng(seed).normal(size=(*size(name), channels))


def labels(name: str, num_classes: int = 10) -> np.ndarray:
    return np.random.default_rng(1).integers(num_classes, size=size(name)[0])
