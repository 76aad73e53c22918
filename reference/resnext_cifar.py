"""ResNeXt for 32x32 images in torch, written from section 5.3 of https://arxiv.org/abs/1611.05431.

A 3x3 stem of 64 filters at full resolution, stages of bottlenecks at 32, 16 and 8 pixels whose widths double, 256
outputs in the first, global average pooling and one linear layer. Module names follow torchvision's ResNet.
"""

from functools import partial

from torch import nn


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int, groups: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        if inputs == outputs and stride == 1:
            self.downsample = nn.Identity()
        else:
            projection = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))


class ResNeXt(nn.Module):
    def __init__(self, blocks: tuple[int, ...], cardinality: int, base_width: int, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.stages = len(blocks)
        inputs = 64
        for stage, count in enumerate(blocks):
            outputs, width = 256 * 2**stage, cardinality * base_width * 2**stage
            layer = nn.Sequential()
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(Block(inputs, outputs, width, cardinality, stride))
                inputs = outputs
            setattr(self, f'layer{stage + 1}', layer)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f'layer{stage + 1}')(x)
        return self.fc(x.mean(dim=(2, 3)))


MODELS = {
    'resnext29_8x64d': partial(ResNeXt, (3, 3, 3), 8, 64),
    'resnext29_16x64d': partial(ResNeXt, (3, 3, 3), 16, 64),
    'resnext29_32x4d': partial(ResNeXt, (3, 3, 3), 32, 4),
    'resnext50_32x4d_cifar': partial(ResNeXt, (3, 4, 6, 3), 32, 4),
}
