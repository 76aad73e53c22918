"""Inception-ResNet-v1 for faces in torch, with the module names of facenet-pytorch.

Written from figures 10 to 14 of https://arxiv.org/abs/1602.07261 and David Sandberg's FaceNet: a 512-d embedding of the
pooled features, and one more residual block without ReLU at the end.
"""

import torch
from torch import nn
from torch.nn import functional


class BasicConv2d(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel_size, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001, momentum=0.1)
        self.relu = nn.ReLU(inplace=False)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


def sequence(inputs: int, *layers) -> nn.Sequential:
    """Convolutions (outputs, kernel, stride, padding) one after another."""
    sequential = nn.Sequential()
    for outputs, kernel_size, stride, padding in layers:
        sequential.append(BasicConv2d(inputs, outputs, kernel_size, stride, padding))
        inputs = outputs
    return sequential


class Residual(nn.Module):
    """relu(x + scale * projection of the concatenated branches)."""

    def __init__(self, channels: int, scale: float, branches: list[nn.Module], width: int, relu: bool = True):
        super().__init__()
        self.scale = scale
        self.branches = len(branches)
        for i, branch in enumerate(branches):
            setattr(self, f'branch{i}', branch)
        self.conv2d = nn.Conv2d(width, channels, kernel_size=1)
        self.relu = nn.ReLU(inplace=False) if relu else None

    def forward(self, x):
        mixed = torch.cat([getattr(self, f'branch{i}')(x) for i in range(self.branches)], dim=1)
        x = x + self.scale * self.conv2d(mixed)
        return self.relu(x) if self.relu else x


def block35(scale: float) -> Residual:
    first = (32, 1, 1, 0)
    third = (32, 3, 1, 1)
    branches = [BasicConv2d(256, 32, 1), sequence(256, first, third), sequence(256, first, third, third)]
    return Residual(256, scale, branches, 96)


def block17(scale: float) -> Residual:
    branch1 = sequence(896, (128, 1, 1, 0), (128, (1, 7), 1, (0, 3)), (128, (7, 1), 1, (3, 0)))
    return Residual(896, scale, [BasicConv2d(896, 128, 1), branch1], 256)


def block8(scale: float, relu: bool = True) -> Residual:
    branch1 = sequence(1792, (192, 1, 1, 0), (192, (1, 3), 1, (0, 1)), (192, (3, 1), 1, (1, 0)))
    return Residual(1792, scale, [BasicConv2d(1792, 192, 1), branch1], 384, relu)


class Reduction(nn.Module):
    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = len(branches)
        for i, branch in enumerate(branches):
            setattr(self, f'branch{i}', branch)

    def forward(self, x):
        return torch.cat([getattr(self, f'branch{i}')(x) for i in range(self.branches)], dim=1)


class InceptionResnetV1(nn.Module):
    def __init__(
        self,
        classify: bool = True,
        num_classes: int = 1000,
        dropout_prob: float = 0.6,
        blocks: tuple[int, int, int] = (5, 10, 5),
    ):
        super().__init__()
        self.classify = classify
        self.conv2d_1a = BasicConv2d(3, 32, 3, stride=2)
        self.conv2d_2a = BasicConv2d(32, 32, 3)
        self.conv2d_2b = BasicConv2d(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = BasicConv2d(64, 80, 1)
        self.conv2d_4a = BasicConv2d(80, 192, 3)
        self.conv2d_4b = BasicConv2d(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(block35(0.17) for _ in range(blocks[0])))
        self.mixed_6a = Reduction(
            BasicConv2d(256, 384, 3, stride=2),
            sequence(256, (192, 1, 1, 0), (192, 3, 1, 1), (256, 3, 2, 0)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(block17(0.10) for _ in range(blocks[1])))
        self.mixed_7a = Reduction(
            sequence(896, (256, 1, 1, 0), (384, 3, 2, 0)),
            sequence(896, (256, 1, 1, 0), (256, 3, 2, 0)),
            sequence(896, (256, 1, 1, 0), (256, 3, 1, 1), (256, 3, 2, 0)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(block8(0.20) for _ in range(blocks[2])))
        self.block8 = block8(1.0, relu=False)
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout_prob)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=0.001, momentum=0.1, affine=True)
        if classify:
            self.logits = nn.Linear(512, num_classes)

    def forward(self, x):
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_3b(self.maxpool_3a(x))
        x = self.repeat_1(self.conv2d_4b(self.conv2d_4a(x)))
        x = self.repeat_2(self.mixed_6a(x))
        x = self.block8(self.repeat_3(self.mixed_7a(x)))
        x = self.dropout(self.avgpool_1a(x))
        x = self.last_bn(self.last_linear(x.flatten(1)))
        return self.logits(x) if self.classify else functional.normalize(x, p=2, dim=1)


MODELS = {'inception_resnet_v1': InceptionResnetV1}
