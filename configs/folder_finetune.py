"""A pretrained ResNet-50 fine-tuned on your own photographs.

    python -m train --config configs/folder_finetune.py --workdir runs/birds --config.dataset=folder:PATH
    python -m train.predict --workdir runs/birds photograph.jpg

PATH holds a directory a class with image files, or PATH/train and PATH/val hold them. The BatchNorm statistics,
the stem and the first stage stay as they are; another network's layers are named by its own parameters:
--config.model=resnext50_32x4d, --config.freeze="('conv1.*',)". Images are resized and normalised as the weights want.

Hardware: one GPU, or minutes an epoch on a CPU for some hundred images. Run time and accuracy were not measured.
"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config() -> ConfigDict:
    """What differs from train/config.py."""
    config = default_config()
    config.model = 'resnet50'
    config.init_from = 'IMAGENET1K_V2'
    config.freeze = ('conv1.*', 'bn1.*', 'layer1.*')
    config.freeze_batch_norm = True
    config.num_workers = 2
    config.crop, config.crop_scale, config.flip = 'resized', (0.35, 1.0), True
    config.batch_size = 32
    config.epochs = 10
    config.learning_rate = 0.005
    config.warmup_epochs = 0.5
    config.label_smoothing = 0.1
    config.log_every_steps = 10
    return config
