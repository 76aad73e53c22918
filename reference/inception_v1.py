"""GoogLeNet in torch, written from table 1, figure 3 and section 5 of https://arxiv.org/abs/1409.4842.

What the paper leaves open is as in Caffe's bvlc_googlenet: pools round up, local response normalisation follows the
first pool and precedes the second. Module names follow torchvision's GoogLeNet.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2)

    def forward(self, x):
        return F.relu(self.conv(x))


class Block(nn.Module):
    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, projection: int):
        super().__init__()
        self.branch1 = Conv(inputs, one, 1)
        self.branch2 = nn.Sequential(Conv(inputs, reduce3, 1), Conv(reduce3, three, 3))
        self.branch3 = nn.Sequential(Conv(inputs, reduce5, 1), Conv(reduce5, five, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Conv(inputs, projection, 1))

    def forward(self, x):
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), dim=1)


class Auxiliary(nn.Module):
    def __init__(self, inputs: int, num_classes: int):
        super().__init__()
        self.conv = Conv(inputs, 128, 1)
        self.fc1 = nn.Linear(4 * 4 * 128, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x):
        x = F.avg_pool2d(x, 5, 3)
        x = self.conv(F.adaptive_avg_pool2d(x, (4, 4))).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    def __init__(self, num_classes: int = 1000, aux_logits: bool = True):
        super().__init__()
        self.norm = nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv1 = Conv(3, 64, 7, stride=2)
        self.conv2 = Conv(64, 64, 1)
        self.conv3 = Conv(64, 192, 3)
        self.inception3a = Block(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = Block(256, 128, 128, 192, 32, 96, 64)
        self.inception4a = Block(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = Block(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = Block(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = Block(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = Block(528, 256, 160, 320, 32, 128, 128)
        self.inception5a = Block(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = Block(832, 384, 192, 384, 48, 128, 128)
        self.aux1 = Auxiliary(512, num_classes) if aux_logits else None
        self.aux2 = Auxiliary(528, num_classes) if aux_logits else None
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x):
        x = self.norm(self.pool(self.conv1(x)))
        x = self.pool(self.norm(self.conv3(self.conv2(x))))
        x = self.pool(self.inception3b(self.inception3a(x)))
        x = first = self.inception4a(x)
        x = second = self.inception4d(self.inception4c(self.inception4b(x)))
        x = self.pool(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        logits = self.fc(self.dropout(x.mean((2, 3))))
        if self.training and self.aux1 is not None:
            return logits, self.aux2(second), self.aux1(first)
        return logits


MODELS = {'inception_v1': partial(GoogLeNet)}
