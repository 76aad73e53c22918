"""AlexNet in its second, one-column form.

Paper: https://arxiv.org/abs/1404.5997. Reference: torchvision.models.alexnet; names of parameters are its own.
"""

from functools import partial

import flax.linen as nn
import jax

from flaxzoo.dialect import Dialect
from flaxzoo.layers import Conv2d, Dropout, Linear, Network, adaptive_avg_pool2d, flatten, max_pool2d, sequential, tap

pool = partial(max_pool2d, kernel_size=3, stride=2)

FEATURES = (
    partial(Conv2d, 64, 11, stride=4, padding=2),
    nn.relu,
    pool,
    partial(Conv2d, 192, 5, padding=2),
    nn.relu,
    pool,
    partial(Conv2d, 384, 3, padding=1),
    nn.relu,
    partial(Conv2d, 256, 3, padding=1),
    nn.relu,
    partial(Conv2d, 256, 3, padding=1),
    nn.relu,
    pool,
)


class AlexNet(Network):
    """`torchvision.models.AlexNet`, for images of 63 pixels or more.

    Attributes:
      dropout: probability with which training drops the inputs of the first two linear layers.
    """

    dropout: float = 0.5

    stages = ('features.1', 'features.4', 'features.11')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = self.sequential_blocks(x, train, 'features', [FEATURES])
        x = flatten(tap(self, 'avgpool', adaptive_avg_pool2d(x, 6)))
        dropout = partial(Dropout, self.dropout)
        head = (dropout, partial(Linear, 4096), nn.relu, dropout, partial(Linear, 4096), nn.relu)
        x = sequential(self, x, train, 'classifier', head)
        return Linear(self.num_classes, name='classifier.6')(x)


VARIANTS = {'alexnet': partial(AlexNet)}

DIALECTS = (
    Dialect(
        'pretrainedmodels',
        marker=r'_features\.0\.weight',
        rename=(
            (r'_(features\..+)', r'\1'),
            (r'linear0\.(\w+)', r'classifier.1.\1'),
            (r'linear1\.(\w+)', r'classifier.4.\1'),
            (r'last_linear\.(\w+)', r'classifier.6.\1'),
        ),
    ),
)
