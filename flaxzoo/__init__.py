"""The image-classification networks PyTorch users know, in JAX/Flax, proven equal and trainable."""

from flaxzoo.registry import create, list_models
from flaxzoo.weights.convert import ConversionError, from_torch, to_torch

__all__ = ['ConversionError', 'create', 'from_torch', 'list_models', 'to_torch']
