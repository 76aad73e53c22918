"""What a network costs: parameters and multiply-adds, without computing anything."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxzoo.layers import Conv2d, Linear
from flaxzoo.weights.convert import template


@dataclass(frozen=True)
class Summary:
    """`parameters` counts the leaves of 'params'; `macs` the multiply-adds of one image's evaluation.

    Multiply-adds are those of convolutions and linear layers, which torchvision publishes as GFLOPS (x 1e-9).
    """

    parameters: int
    macs: int


def summarize(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> Summary:
    """Costs of `model` on one image of `input_shape`, (1, H, W, C); the default has the model's `image_size`."""
    shape = input_shape or (1, model.image_size, model.image_size, 3)
    variables = template(model, shape)
    macs = 0

    def count(call, args, kwargs, context):
        nonlocal macs
        out = call(*args, **kwargs)
        if isinstance(context.module, (Conv2d, Linear)) and context.method_name == '__call__':
            # Every output value takes one multiply-add for each weight of its channel.
            kernel = context.module.get_variable('params', 'kernel')
            macs += out.size * int(np.prod(kernel.shape[:-1]))
        return out

    with nn.intercept_methods(count):
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    return Summary(sum(leaf.size for leaf in jax.tree.leaves(variables['params'])), macs)
