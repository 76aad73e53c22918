"""ResNet-50 on ImageNet by torchvision's recipe for its IMAGENET1K_V1 weights.

    python -m train --config configs/imagenet_resnet50.py --workdir runs/resnet50 --config.data_dir=DIR

90 epochs of batches of 256, learning rate 0.1 divided by 10 after 30 and 60 epochs, momentum, weight decay 1e-4 on all
parameters, random resized crop and flip. torchvision reports 76.13% with it; here it is computed in bfloat16.

Data: tfds:imagenet2012, prepared once in array_record format; or --config.dataset=folder:DIR, with DIR/train and
DIR/val.
Hardware: meant for 8 GPUs or a TPU. Run time and accuracy were not measured.
"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config() -> ConfigDict:
    """What differs from train/config.py."""
    config = default_config()
    config.model = 'resnet50'
    config.dtype = 'bfloat16'
    config.sync_batch_norm = False  # 32 images a device are enough, and torchvision's were not synchronised
    config.dataset = 'tfds:imagenet2012'
    config.num_workers = 16
    config.image_size, config.eval_resize = 224, 256
    config.mean, config.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.crop, config.flip = 'resized', True
    config.batch_size = 256
    config.epochs = 90
    config.learning_rate = 0.1
    config.weight_decay = 1e-4
    config.decay_norm_and_bias = True
    config.schedule = 'step'
    config.step_epochs = (30, 60)
    config.log_every_steps = 100
    config.checkpoint_every_steps = 1000
    return config
