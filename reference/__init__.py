"""The torch network that each registered name reimplements."""

import timm
import torch
import torchvision

from reference import bn_inception, inception_resnet_v1, inception_v1, resnext_cifar

OWN = {**resnext_cifar.MODELS, **inception_v1.MODELS, **bn_inception.MODELS, **inception_resnet_v1.MODELS}
TIMM = {
    'resnext101_32x4d': 'resnext101_32x4d',
    'seresnet50': 'seresnet50',
    'seresnext50_32x4d': 'seresnext50_32x4d',
    'seresnext101_32x4d': 'seresnext101_32x4d',
    'inception_v4': 'inception_v4',
    'inception_resnet_v2': 'inception_resnet_v2',
    'xception': 'legacy_xception',
}


class Hardsigmoid(torch.nn.Module):
    """`torch.nn.Hardsigmoid` with a gradient that is exact in float64 too; torch's has 1/6 rounded to float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu6(x + 3) / 6


def exact(module: torch.nn.Module) -> torch.nn.Module:
    """The module with gradients that can be compared in float64."""
    for child in module.modules():
        if isinstance(getattr(child, 'scale_activation', None), torch.nn.Hardsigmoid):
            child.scale_activation = Hardsigmoid()
    return module


def build(name: str, **fields) -> torch.nn.Module:
    """A torch module, from torchvision where it has the network, else timm, else our own reference.

    Its weights are the same in every run, so that a failure can be repeated.
    """
    torch.manual_seed(0)
    if name in OWN:
        return OWN[name](**fields)
    if name in TIMM:
        return timm.create_model(TIMM[name], **fields)
    if name in ('googlenet', 'inception_v3'):
        fields = {'init_weights': False, **fields}  # torchvision warns unless told
    return exact(torchvision.models.get_model(name, **fields))
