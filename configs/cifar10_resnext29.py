"""ResNeXt-29 8x64d on CIFAR-10 by the recipe of the ResNeXt authors' code.

    python -m train --config configs/cifar10_resnext29.py --workdir runs/cifar10

300 epochs of batches of 128, learning rate 0.1 divided by 10 after 150 and 225 epochs, Nesterov momentum, weight decay
5e-4 on all parameters, 4 pixels of padding, random crop and flip: github.com/facebookresearch/ResNeXt (the paper itself
trained with batches of 256 and pre-activation blocks, and reports 3.65% error).

Data: tfds:cifar10, prepared once in array_record format (TensorFlow Datasets).
Hardware: meant for one or more GPUs. Run time and accuracy were not measured.
"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config() -> ConfigDict:
    """What differs from train/config.py."""
    config = default_config()
    config.model = 'resnext29_8x64d'
    config.dataset = 'tfds:cifar10'
    config.num_workers = 2
    config.mean, config.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
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
