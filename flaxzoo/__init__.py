"""The image-classification networks PyTorch users know, in JAX/Flax, proven equal and trainable."""

from flaxzoo.analysis.fold import fold_batch_norm
from flaxzoo.feature_maps import FeatureExtractor, feature_info, feature_names, features
from flaxzoo.initialisation import init
from flaxzoo.layers.network import with_policy
from flaxzoo.memory import keep_memory
from flaxzoo.ops.plain import plain
from flaxzoo.preset import transforms
from flaxzoo.registry import create, list_models
from flaxzoo.weights.convert import ConversionError, from_torch, to_torch
from flaxzoo.weights.errors import DownloadError, WeightsError
from flaxzoo.weights.files import read_weights
from flaxzoo.weights.load import load, load_with_report
from flaxzoo.weights.save import save

__all__ = [
    'ConversionError',
    'DownloadError',
    'FeatureExtractor',
    'WeightsError',
    'create',
    'feature_info',
    'feature_names',
    'features',
    'fold_batch_norm',
    'from_torch',
    'init',
    'keep_memory',
    'list_models',
    'load',
    'load_with_report',
    'plain',
    'read_weights',
    'save',
    'to_torch',
    'transforms',
    'with_policy',
]
