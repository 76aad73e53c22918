"""What a network costs: parameters and multiply-adds, without computing anything."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.analysis.jaxprs import Jaxpr, JaxprEqn, inner
from flaxzoo.weights.convert import template

# Our convolutions: (image, kernel (kh, kw, C // groups, O)).
CONVOLUTIONS = ('conv2d', 'differentiated_conv2d')


@dataclass(frozen=True)
class Summary:
    """`parameters` counts the leaves of 'params'; `macs` the multiply-adds of one image's evaluation.

    Multiply-adds are those of convolutions and matrix products, attention's included, which torchvision publishes as
    GFLOPS (x 1e-9).
    """

    parameters: int
    macs: int


def summarize(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> Summary:
    """Costs of `model` on one image of `input_shape`, (1, H, W, C); the default has the model's `image_size`."""
    shape = input_shape or (1, model.image_size, model.image_size, 3)
    variables = template(model, shape)
    traced = jax.make_jaxpr(model.apply)(variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    return Summary(sum(leaf.size for leaf in jax.tree.leaves(variables['params'])), _macs(traced.jaxpr))


def _macs(jaxpr: Jaxpr) -> int:
    return sum(map(_macs_of, jaxpr.eqns))


def _macs_of(equation: JaxprEqn) -> int:
    """Every value of a convolution or product takes one multiply-add for each element that it sums over."""
    name, params = equation.primitive.name, equation.params
    if name in CONVOLUTIONS:
        return _size(equation.outvars[0]) * math.prod(equation.invars[1].aval.shape[:-1])
    if name == 'conv_general_dilated':
        kernel = list(equation.invars[1].aval.shape)
        del kernel[params['dimension_numbers'].rhs_spec[0]]  # the output channels
        return _size(equation.outvars[0]) * math.prod(kernel)
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        return _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)
    macs = [_macs(each) for each in inner(equation)]
    if name == 'cond':  # one of its branches runs: a platform's, for example
        return max(macs)
    return sum(macs) * params.get('length', 1) if name == 'scan' else sum(macs)


def _size(value: Any) -> int:
    return math.prod(value.aval.shape)
