"""ResNet, ResNeXt and Wide ResNet, for ImageNet and in the ResNeXt paper's CIFAR form.

Papers: https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/1611.05431, https://arxiv.org/abs/1605.07146.
Squeeze-and-excitation, an option of each block: https://arxiv.org/abs/1709.01507.
Reference: torchvision.models.resnet; `resnext101_32x4d` and the `se` forms are timm's. Names of parameters are theirs.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    Conv2d,
    Linear,
    Network,
    Norm,
    SpaceToDepthConv2d,
    SqueezeExcite,
    global_avg_pool2d,
    kaiming_normal_fan_out,
    kept_relu,
    max_pool2d,
    tap,
)

conv = partial(Conv2d, bias=False, kernel_init=kaiming_normal_fan_out)


class Block(nn.Module):
    """What both residual blocks are told, and their shortcut."""

    planes: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    base_width: int = 64
    downsample: bool = False
    zero_init_residual: bool = False
    norm_layer: Norm = Norm()
    attn_layer: Callable[..., nn.Module] | None = None

    expansion: ClassVar[int]

    def shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        """`x`, projected where the block changes its shape."""
        if not self.downsample:
            return x
        x = conv(self.planes * self.expansion, 1, stride=self.stride, name='downsample.0')(x)
        return self.norm_layer(name='downsample.1')(x, train)

    def join(self, x: jax.Array, shortcut: jax.Array, norm: str, train: bool) -> jax.Array:
        """The norm called `norm`, attention if any, the addition and the last ReLU."""
        # With zero_init_residual a block starts as the identity.
        init = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        x = self.norm_layer(scale_init=init, name=norm)(x, train)
        if self.attn_layer:
            x = self.attn_layer(x.shape[-1], name='se')(x)
        return kept_relu(x + shortcut)


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut: (N, H, W, C) -> (N, H / stride, W / stride, planes)."""

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shortcut = self.shortcut(x, train)
        x = conv(self.planes, 3, stride=self.stride, padding=1, name='conv1')(x)
        x = nn.relu(self.norm_layer(name='bn1')(x, train))
        x = conv(self.planes, 3, padding=1, name='conv2')(x)
        return self.join(x, shortcut, 'bn2', train)


class Bottleneck(Block):
    """1x1, grouped 3x3, 1x1 and a shortcut: (N, H, W, C) -> (N, H / stride, W / stride, 4 * planes).

    The stride is on the 3x3, as in torchvision (called ResNet v1.5); the paper has it on the first 1x1.
    """

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = int(self.planes * (self.base_width / 64)) * self.groups
        shortcut = self.shortcut(x, train)
        x = conv(width, 1, name='conv1')(x)
        x = nn.relu(self.norm_layer(name='bn1')(x, train))
        spatial = {'stride': self.stride, 'padding': self.dilation, 'dilation': self.dilation}
        x = conv(width, 3, groups=self.groups, **spatial, name='conv2')(x)
        x = nn.relu(self.norm_layer(name='bn2')(x, train))
        x = conv(self.planes * self.expansion, 1, name='conv3')(x)
        return self.join(x, shortcut, 'bn3', train)


class ResNet(Network):
    """`torchvision.models.ResNet` with the ResNeXt paper's CIFAR stem as an option; its head is called `fc`.

    Attributes:
      block: BasicBlock or Bottleneck.
      layers: blocks a stage. Torch's networks have four stages, the CIFAR form of the paper three.
      groups, width_per_group: the ResNeXt cardinality and width (or the Wide ResNet width).
      replace_stride_with_dilation: for each stage after the first, dilate instead of stride.
      stem: 'imagenet' (7x7 stride 2 and a max pool), 'space_to_depth' (the same numbers, computed over blocks of 2x2
        pixels, for hardware that is slow at three channels) or 'cifar' (3x3, full resolution).
      zero_init_residual: start every block as the identity.
      norm_layer: the normalisation, for example `Norm(eps=1e-3)`.
      attn_layer: builds a block's attention from its width, for example `squeeze_excite`.
    """

    block: type[Block]
    layers: Sequence[int]
    groups: int = 1
    width_per_group: int = 64
    replace_stride_with_dilation: Sequence[bool] = (False, False, False)
    stem: str = 'imagenet'
    zero_init_residual: bool = False
    norm_layer: Norm = Norm()
    attn_layer: Callable[..., nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.stem not in ('imagenet', 'space_to_depth', 'cifar'):
            raise ValueError(f"stem must be 'imagenet', 'space_to_depth' or 'cifar', got {self.stem!r}")
        if len(self.replace_stride_with_dilation) < len(self.layers) - 1:
            raise ValueError(
                'replace_stride_with_dilation needs one value for each stage after the first: '
                f'{len(self.layers) - 1}, got {self.replace_stride_with_dilation!r}'
            )
        plain = self.groups == 1 and self.width_per_group == 64 and not any(self.replace_stride_with_dilation)
        if issubclass(self.block, BasicBlock) and not plain:
            raise ValueError('BasicBlock takes groups=1, width_per_group=64 and no dilation; use Bottleneck')
        super().__post_init__()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stem, and the last block of each stage."""
        return 'relu', *(f'layer{stage + 1}' for stage in range(len(self.layers)))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.stem == 'cifar':
            x = conv(64, 3, padding=1, name='conv1')(x)
        else:
            stem = partial(SpaceToDepthConv2d, **conv.keywords) if self.stem == 'space_to_depth' else conv
            x = stem(64, 7, stride=2, padding=3, name='conv1')(x)
        x = tap(self, 'relu', nn.relu(self.norm_layer(name='bn1')(x, train)))
        if self.stem != 'cifar':
            x = tap(self, 'maxpool', max_pool2d(x, 3, stride=2, padding=1))
        dilation = 1
        for stage, blocks in enumerate(self.layers):
            x, dilation = self._stage(x, train, stage, blocks, dilation)
        x = global_avg_pool2d(x)
        return Linear(self.num_classes, name='fc')(x)

    def _stage(self, x: jax.Array, train: bool, stage: int, blocks: int, dilation: int) -> tuple[jax.Array, int]:
        planes = 64 * 2**stage
        stride, first_dilation = min(stage, 1) + 1, dilation
        if stage and self.replace_stride_with_dilation[stage - 1]:
            # As torchvision: the first block keeps the dilation of the stage before.
            stride, dilation = 1, dilation * 2
        block = partial(
            self.block,
            planes=planes,
            groups=self.groups,
            base_width=self.width_per_group,
            zero_init_residual=self.zero_init_residual,
            norm_layer=self.norm_layer,
            attn_layer=self.attn_layer,
        )
        for i in range(blocks):
            first = i == 0
            build = partial(
                block,
                stride=stride if first else 1,
                dilation=first_dilation if first else dilation,
                downsample=first and (stride != 1 or x.shape[-1] != planes * self.block.expansion),
                name=f'layer{stage + 1}.{i}',
            )
            x = self.run_block(build, x, train)
        return x, dilation


def squeeze_excite(channels: int, name: str | None = None) -> SqueezeExcite:
    """timm's attention layer 'se': a sixteenth of the block's output channels, initialised like its convolutions."""
    return SqueezeExcite(channels // 16, kernel_init=kaiming_normal_fan_out, name=name)


# timm starts every block as the identity, torchvision does not.
se = partial(ResNet, Bottleneck, attn_layer=squeeze_excite, zero_init_residual=True)
cifar = partial(ResNet, Bottleneck, (3, 3, 3), stem='cifar', num_classes=10, image_size=32)

VARIANTS = {
    'resnet18': partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    'resnet34': partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    'resnet50': partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    'resnet101': partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    'resnet152': partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    'resnext50_32x4d': partial(ResNet, Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    'resnext101_32x4d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=4),
    'resnext101_32x8d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
    'resnext101_64x4d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=64, width_per_group=4),
    'wide_resnet50_2': partial(ResNet, Bottleneck, (3, 4, 6, 3), width_per_group=128),
    'wide_resnet101_2': partial(ResNet, Bottleneck, (3, 4, 23, 3), width_per_group=128),
    'seresnet50': partial(se, (3, 4, 6, 3)),
    'seresnext50_32x4d': partial(se, (3, 4, 6, 3), groups=32, width_per_group=4),
    'seresnext101_32x4d': partial(se, (3, 4, 23, 3), groups=32, width_per_group=4),
    'resnext29_8x64d': partial(cifar, groups=8, width_per_group=64),
    'resnext29_16x64d': partial(cifar, groups=16, width_per_group=64),
    'resnext29_32x4d': partial(cifar, groups=32, width_per_group=4),
    'resnext50_32x4d_cifar': partial(
        ResNet,
        Bottleneck,
        (3, 4, 6, 3),
        groups=32,
        width_per_group=4,
        stem='cifar',
        num_classes=10,
        image_size=32,
    ),
}

# Members of a block in ResNeXt.pytorch, the form in which most CIFAR weights were trained.
MEMBERS = {
    'conv_reduce': 'conv1',
    'bn_reduce': 'bn1',
    'conv_conv': 'conv2',
    'bn': 'bn2',
    'conv_expand': 'conv3',
    'bn_expand': 'bn3',
    'shortcut.shortcut_conv': 'downsample.0',
    'shortcut.shortcut_bn': 'downsample.1',
}
DIALECTS = (
    Dialect('pretrainedmodels', marker=r'last_linear\.weight', rename=((r'last_linear\.(\w+)', r'fc.\1'),)),
    Dialect(
        'ResNeXt.pytorch',
        marker=r'conv_1_3x3\.weight',
        rename=(
            (r'conv_1_3x3\.weight', r'conv1.weight'),
            (r'bn_1\.(\w+)', r'bn1.\1'),
            (r'classifier\.(\w+)', r'fc.\1'),
            *(
                (rf'stage_(\d)\.stage_\d_bottleneck_(\d+)\.{re.escape(theirs)}\.(\w+)', rf'layer\1.\2.{ours}.\3')
                for theirs, ours in MEMBERS.items()
            ),
        ),
    ),
)
