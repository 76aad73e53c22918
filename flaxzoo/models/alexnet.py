"""AlexNet in its second, one-column form.

Paper: https://arxiv.org/abs/1404.5997. Reference: torchvision.models.alexnet; names of parameters are its own.
"""

from functools import partial

import flax.linen as nn
import jax

from flaxzoo.dialect import Dialect
from flaxzoo.layers import Conv2d, Dropout, Linear, adaptive_avg_pool2d, flatten, max_pool2d


class AlexNet(nn.Module):
    """`torchvision.models.AlexNet`. Call it on `x: (N, H, W, C)`, 63 pixels or more, for logits (N, num_classes).

    Attributes:
      num_classes: width of the head `classifier.6`.
      dropout: probability with which training drops the inputs of the first two linear layers.
      remat: recompute the convolutions in the backward pass instead of storing them.
      image_size: the size in pixels that the network was designed for; it takes others.
    """

    num_classes: int = 1000
    dropout: float = 0.5
    remat: bool = False
    image_size: int = 224

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        features = nn.remat(AlexNet._features) if self.remat else AlexNet._features
        x = features(self, x)
        x = flatten(adaptive_avg_pool2d(x, 6))
        x = Dropout(self.dropout, name='classifier.0')(x, train)
        x = nn.relu(Linear(4096, name='classifier.1')(x))
        x = Dropout(self.dropout, name='classifier.3')(x, train)
        x = nn.relu(Linear(4096, name='classifier.4')(x))
        return Linear(self.num_classes, name='classifier.6')(x)

    def _features(self, x: jax.Array) -> jax.Array:
        x = nn.relu(Conv2d(64, 11, stride=4, padding=2, name='features.0')(x))
        x = max_pool2d(x, 3, stride=2)
        x = nn.relu(Conv2d(192, 5, padding=2, name='features.3')(x))
        x = max_pool2d(x, 3, stride=2)
        x = nn.relu(Conv2d(384, 3, padding=1, name='features.6')(x))
        x = nn.relu(Conv2d(256, 3, padding=1, name='features.8')(x))
        x = nn.relu(Conv2d(256, 3, padding=1, name='features.10')(x))
        return max_pool2d(x, 3, stride=2)


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
