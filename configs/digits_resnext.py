"""ResNeXt"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model = 'resnext29_32x4d'
    config.model_fields.groups = 8
    config.dataset = 'digits'
    config.mean, config.std = (0.305,), (0.376,)
    config.crop, config.pad = 'pad', 1
    config.batch_size = 64
    config.epochs = 15
    config.learning_rate = 0.1
    config.nesterov = True
    config.weight_decay = 5e-4
    config.warmup_epochs = 1.0
    config.label_smoothing = 0.1
    config.log_every_steps = 20
    config.eval_every_epochs = 3.0
    return config
