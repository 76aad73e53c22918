"""ResNeXt-29 8x64d on CIFAR-100 by the recipe of the ResNeXt authors' code, that of cifar10_resnext29.py.

    python -m train --config configs/cifar100_resnext29.py --workdir runs/cifar100

The paper reports 17.77% error (with batches of 256 and pre-activation blocks).

Data: tfds:cifar100, prepared once in array_record format (TensorFlow Datasets).
Hardware: meant for one or more GPUs. Run time and accuracy were not measured.
"""

from ml_collections import ConfigDict

from configs import cifar10_resnext29


def get_config() -> ConfigDict:
    """What differs from cifar10_resnext29.py."""
    config = cifar10_resnext29.get_config()
    config.dataset = 'tfds:cifar100'
    config.mean, config.std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return config
