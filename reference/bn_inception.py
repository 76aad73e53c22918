"""BN-Inception in torch, written from the appendix of https://arxiv.org/abs/1502.03167 and its Caffe release.

Module names are those of Cadene's pretrainedmodels. One table describes the blocks; paths are lists of steps.
"""

from functools import partial

import torch
from torch import nn

# Outputs of a block: 1x1 | reduction, 3x3 | reduction, double 3x3 | kind of pool, its projection.
BLOCKS = """
3a  64 |  64  64 |  64  96 | avg   32
3b  64 |  64  96 |  64  96 | avg   64
3c     | 128 160 |  64  96 | down
4a 224 |  64  96 |  96 128 | avg  128
4b 192 |  96 128 |  96 128 | avg  128
4c 160 | 128 160 | 128 160 | avg  128
4d  96 | 128 192 | 160 192 | avg  128
4e     | 128 192 | 192 256 | down
5a 352 | 192 320 | 160 224 | avg  128
5b 352 | 192 320 | 192 224 | max  128
"""

POOLS = {
    'avg': nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=True),
    'max': nn.MaxPool2d(3, stride=1, padding=1),
    'down': nn.MaxPool2d(3, stride=2, ceil_mode=True),
}


class BNInception(nn.Module):
    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.layer('conv1_7x7_s2', 3, 64, 7, 2)
        self.layer('conv2_3x3_reduce', 64, 64, 1)
        self.layer('conv2_3x3', 64, 192, 3)
        self.blocks = []
        width = 192
        for line in BLOCKS.strip().splitlines():
            first, second, third, fourth = (part.split() for part in line.split('|'))
            name, one = f'inception_{first[0]}_', first[1:]
            pool, projection = fourth[0], fourth[1:]
            stride = 2 if pool == 'down' else 1
            paths, outputs = [], 0
            if one:
                paths.append([self.layer(f'{name}1x1', width, int(one[0]), 1)])
                outputs += int(one[0])
            reduce, wide = map(int, second)
            paths.append(
                [
                    self.layer(f'{name}3x3_reduce', width, reduce, 1),
                    self.layer(f'{name}3x3', reduce, wide, 3, stride),
                ]
            )
            outputs += wide
            reduce, wide = map(int, third)
            paths.append(
                [
                    self.layer(f'{name}double_3x3_reduce', width, reduce, 1),
                    self.layer(f'{name}double_3x3_1', reduce, wide, 3),
                    self.layer(f'{name}double_3x3_2', wide, wide, 3, stride),
                ]
            )
            outputs += wide
            if projection:
                paths.append([POOLS[pool], self.layer(f'{name}pool_proj', width, int(projection[0]), 1)])
                outputs += int(projection[0])
            else:
                paths.append([POOLS[pool]])
                outputs += width
            self.blocks.append(paths)
            width = outputs
        self.last_linear = nn.Linear(width, num_classes)

    def layer(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2))
        self.add_module(f'{name}_bn', nn.BatchNorm2d(outputs))
        return name

    def run(self, step, x):
        if isinstance(step, nn.Module):
            return step(x)
        convolution, norm = self.get_submodule(step), self.get_submodule(f'{step}_bn')
        return norm(convolution(x)).relu()

    def forward(self, x):
        x = POOLS['down'](self.run('conv1_7x7_s2', x))
        x = POOLS['down'](self.run('conv2_3x3', self.run('conv2_3x3_reduce', x)))
        for paths in self.blocks:
            results = []
            for path in paths:
                y = x
                for step in path:
                    y = self.run(step, y)
                results.append(y)
            x = torch.cat(results, dim=1)
        return self.last_linear(x.mean(dim=(2, 3)))


MODELS = {'bn_inception': partial(BNInception)}
