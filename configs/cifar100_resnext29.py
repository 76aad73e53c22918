"""ResNeXt-29 8x64d on CIFAR-100 by the recipe of the ResNeXt authors' code, that of cifar10_resnext29.py.

    python -m train --config configs/cifar100_resnext29.py --workdir runs/cifar100

The paper reports 17.77% error (with batches of 256 and pre-activation blocks).

Data: tfds:cifar100, prepared once in array_record format (TensorFlow Datasets).
Hardware: meant for one or more GPUs. Run time and accuracy were not measured.
"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config() -> ConfigDict:
    """What differs from train/config.py."""
    config = default_config()
    config.model = 'resnext29_8x64d'
    config.dataset = 'tfds:cifar100'
    config.num_workers = 2
    config.mean, config.std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    config.crop, config.pad, config.flip = 'pad', 4, True
    config.batch_size = 128
    config.epochs = 300
    config.learning_rate = 0.1
    config.nesterov = True
    config.weight_decay = 5e-4
    config.decay_norm_and_bias = True
    config.schedule = 'step'
    config.step_epochs = (150, 225)
    config.eval_every_epochs = 5.0
    return config
