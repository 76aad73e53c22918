"""Inception-ResNet-v1 with its residual branches scaled, on digits enlarged to the smallest size it takes.

    python -m train --config configs/residual_scaling.py --workdir runs/scaled
    python -m train --config configs/residual_scaling.py --workdir runs/ones --config.model_fields.scales=1.,1.,1.
    python -m benchmarks.residual_scaling       # both, two seeds each, and the picture

Full width and less than half the depth, the paper's head.
Hardware: 2 CPU cores; nothing is downloaded.
README has what was measured.
"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model = 'inception_resnet_v1'
    config.model_fields.embedding = None
    config.model_fields.dropout_prob = 0.0
    config.model_fields.blocks = (2, 4, 2)
    config.model_fields.scales = (0.17, 0.10, 0.20)
    config.dataset = 'digits'
    config.image_size = 75
    config.mean, config.std = (0.305,), (0.376,)
    config.batch_size = 64
    config.epochs = 6
    config.learning_rate = 0.02
    config.warmup_epochs = 0.5
    config.log_every_steps = 1
    return config
