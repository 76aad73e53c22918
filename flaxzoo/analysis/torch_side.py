"""The torch half of a comparison: what a `torch.nn.Module` computes on the same images, and drawing its weights."""

import contextlib
import copy
from collections import Counter
from typing import Any

import numpy as np

from flaxzoo.analysis.dropouts import drops_at_random
from flaxzoo.analysis.flax_side import Tensors, call_name, heads


def run_torch(module: Any, x: np.ndarray, labels: np.ndarray | None) -> Tensors:
    """As `run_flax`; outputs keep torch's layout. `x` is (N, H, W, C), or of another rank and then taken as it is."""
    import torch

    module = copy.deepcopy(module).to(torch.float64 if x.dtype == np.float64 else torch.float32)
    module.train(labels is not None)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    outputs = _listen(module)
    image = torch.from_numpy((np.moveaxis(x, -1, 1) if x.ndim == 4 else x).copy())
    with _masks_are_their_means():
        found = heads(module(image))
    outputs |= {f'logits{i or ""}': head.detach().numpy().copy() for i, head in enumerate(found)}
    tensors = {'output': outputs}
    if labels is not None:
        _check_labels(labels, [tuple(head.shape) for head in found])
        targets = torch.from_numpy(np.asarray(labels, np.int64))
        loss = sum(torch.nn.functional.cross_entropy(head, targets) for head in found)
        loss.backward()
        tensors['loss'] = {'loss': loss.detach().numpy()}
        # What the loss does not depend on has no gradient in torch and a zero one in jax.
        tensors['gradient'] = {
            name: (torch.zeros_like(p) if p.grad is None else p.grad).detach().numpy()
            for name, p in module.named_parameters()
        }
        tensors['statistic'] = {
            name: b.numpy() for name, b in module.named_buffers() if name.split('.')[-1].startswith('running')
        }
    return tensors


def randomise(module: Any, seed: int = 0) -> Any:
    """Draws what a fresh torch module has at 0 or 1: running statistics, affine terms, biases and an all-zero head.

    Without this a comparison proves little: fresh networks hide most mistakes. Changes `module` and returns it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Any, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            last = name.split('.')[-1]
            if last == 'running_var' or (last == 'weight' and tensor.ndim == 1):
                uniform(tensor, 0.5, 1.5)
            elif tensor.is_floating_point() and (last.endswith(('mean', 'bias')) or not tensor.any()):
                uniform(tensor, -0.2, 0.2)
    return module


def _listen(module: Any) -> dict[str, np.ndarray]:
    """Switches off what drops at random, and returns a dict that the outputs of all modules will fill."""
    import torch

    outputs: dict[str, np.ndarray] = {}
    calls: Counter[str] = Counter()

    def keep(name: str):
        def hook(_module, _args, out):
            first = out[0] if isinstance(out, (tuple, list)) and out else out
            if isinstance(first, torch.Tensor):
                outputs[call_name(name, calls[name])] = first.detach().numpy().copy()
                calls[name] += 1

        return hook

    for name, child in module.named_modules():
        if drops_at_random(child):
            child.eval()
        # timm's BatchNormAct2d is a norm and a ReLU in one; what its norm gives passes through its child `drop`.
        source = child.drop if type(child).__name__ == 'BatchNormAct2d' else child
        if name:
            source.register_forward_hook(keep(name))
    return outputs


def _masks_are_their_means() -> contextlib.AbstractContextManager:
    """In this context dropout that is no module, `F.dropout(x, training=True)` or within an attention, does nothing.

    It draws a mask of ones with probability 1 - p and divides by 1 - p; here the mask is 1 - p itself.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Means(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bernoulli_.float:
                return args[0].fill_(args[1] if len(args) > 1 else 0.5)
            return func(*args, **(kwargs or {}))

    return Means()


def _check_labels(labels: np.ndarray, shapes: list[tuple[int, ...]]) -> None:
    """Refuses what has no class indices, or labels that are none; `shapes` are those of the heads."""
    for shape in shapes:
        if len(shape) != 2:
            raise ValueError(f'a training step needs logits (N, classes), the torch module gives {shape}')
        if labels.min() < 0 or labels.max() >= shape[1]:
            raise ValueError(f'labels are class indices from 0 to {shape[1] - 1}, got {labels.min()} to {labels.max()}')
