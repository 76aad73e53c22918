"""Which modules drop something at random in training: two networks are compared with all of them switched off."""

from typing import Any

# Names of classes, of torch, torchvision, timm and flax alike; their subclasses count.
NAMES = frozenset(
    (
        'Dropout',
        '_DropoutNd',  # the base of torch's: Dropout1d to 3d, AlphaDropout, FeatureAlphaDropout
        'StochasticDepth',
        'DropPath',
        'DropBlock2d',
        'DropBlock3d',
        'PatchDropout',
    )
)


def drops_at_random(module: Any) -> bool:
    """Whether `module`, of torch or flax, is one that gives back its input when it is switched off."""
    return any(base.__name__ in NAMES for base in type(module).__mro__)
