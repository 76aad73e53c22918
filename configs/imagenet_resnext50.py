"""ResNeXt-50 32x4d on ImageNet with batches of 1,024, warm-up and cosine.

    python -m train --config configs/imagenet_resnext50.py --workdir runs/resnext50 --config.data_dir=DIR

100 epochs, learning rate 0.4 after 5 epochs of warm-up and then cosine to zero, Nesterov momentum, weight decay 5e-5
but not on BatchNorm and biases, label smoothing 0.1, an average of the weights, random resized
crop and flip; in bfloat16.

Data: tfds:imagenet2012, prepared once in array_record format; or --config.dataset=folder:DIR, with DIR/train and
DIR/val.
Hardware: meant for 8 GPUs or a TPU. Run time and accuracy were not measured.
"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config() -> ConfigDict:
    """What differs from train/config.py."""
    config = default_config()
    config.model = 'resnext50_32x4d'
    config.dtype = 'bfloat16'
    config.sync_batch_norm = False
    config.dataset = 'tfds:imagenet2012'
    config.num_workers = 16
    config.image_size, config.eval_resize = 224, 256
    config.mean, config.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.crop, config.flip = 'resized', True
    config.batch_size = 1024
    config.epochs = 100
    config.learning_rate = 0.4
    config.warmup_epochs = 5.0
    config.nesterov = True
    config.weight_decay = 5e-5
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999
    config.log_every_steps = 100
    config.checkpoint_every_steps = 1000
    return config
