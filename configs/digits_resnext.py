"""A small ResNeXt (the paper's CIFAR form, one block a stage) on handwritten digits: what `make demo` trains.

    python -m train --config configs/digits_resnext.py --workdir runs/demo
    python -m train.predict --workdir runs/demo

Hardware: 2 CPU cores; nothing is downloaded, the 1,797 images of 8x8 pixels come with scikit-learn.
README has what was measured.
"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config() -> ConfigDict:
    """What differs from train/config.py."""
    config = default_config()
    config.model = 'resnext29_32x4d'
    config.model_fields.layers = (1, 1, 1)
    config.dataset = 'digits'
    config.mean, config.std = (0.305,), (0.376,)  # of the images to learn from
    config.crop, config.pad = 'pad', 1
    config.batch_size = 64
    config.epochs = 8
    config.optimizer = 'adamw'
    config.learning_rate = 0.003
    config.weight_decay = 0.02
    config.warmup_epochs = 1.0
    config.label_smoothing = 0.1
    config.log_every_steps = 10
    config.eval_every_epochs = 2.0
    return config
