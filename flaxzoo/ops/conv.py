"""The convolution and its two gradients as primitives, so that a platform can have its own code for each of them.

A convolution is bilinear in the image and the kernel, and so are its gradients: with the cotangent they are the three
partial derivatives of one trilinear form, and transposing one of them gives another. All of jax's transformations
work: forward and reverse mode of any order, vmap, jit, pmap, shard_map, export. What each primitive is compiled to
is a table in `cpu/conv.py` and `gpu/conv.py`; TPUs get XLA's native convolution.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax

from flaxzoo.ops._jax import bilinear, differentiate_like, on_mesh_of, primitive, varying_axes
from flaxzoo.ops.cpu import conv as cpu
from flaxzoo.ops.gpu import conv as gpu
from flaxzoo.ops.lowering import by_platform, native_only
from flaxzoo.ops.native import Geometry, native_conv, native_input_gradient, native_kernel_gradient


def conv2d(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolves `x: (N, H, W, C)` with `kernel: (kh, kw, C // groups, O)` of the same dtype, giving (N, H', W', O)."""
    if native_only(x, kernel):
        return native_conv(x, on_mesh_of(x, kernel), geometry=geometry)
    return value_p.bind(*_vary_alike(x, kernel), geometry=geometry)


def _primitive(name: str, native: Callable, **lowerings: Callable) -> Any:
    def portable(*arrays, **params):
        chosen = {platform: partial(lowering, **params) for platform, lowering in lowerings.items()}
        return by_platform(partial(native, **params), *arrays, **chosen)

    return primitive(name, native, portable, **lowerings)


value_p = _primitive('conv2d', native_conv, cpu=cpu.conv, cuda=gpu.conv)
# In its place when it is differentiated.
differentiated_p = _primitive('differentiated_conv2d', native_conv, cpu=cpu.differentiated_conv, cuda=gpu.conv)
input_gradient_p = _primitive(
    'conv2d_input_gradient', native_input_gradient, cpu=cpu.input_gradient, cuda=gpu.input_gradient
)
kernel_gradient_p = _primitive(
    'conv2d_kernel_gradient', native_kernel_gradient, cpu=cpu.kernel_gradient, cuda=gpu.kernel_gradient
)


def _input_gradient(cotangent, x, kernel, geometry):
    return input_gradient_p.bind(cotangent, kernel, aval=x.aval, geometry=geometry)


def _kernel_gradient(cotangent, x, kernel, geometry):
    return kernel_gradient_p.bind(x, cotangent, aval=kernel.aval, geometry=geometry)


bilinear(differentiated_p, _input_gradient, _kernel_gradient)
differentiate_like(value_p, differentiated_p)
# In what follows the result of `transpose(ct, a, b)` is shaped as the operand that it is the gradient of.
bilinear(
    input_gradient_p,
    lambda ct, cotangent, kernel, geometry, aval: differentiated_p.bind(ct, kernel, geometry=geometry),
    lambda ct, cotangent, kernel, geometry, aval: _kernel_gradient(cotangent, ct, kernel, geometry),
)
bilinear(
    kernel_gradient_p,
    lambda ct, x, cotangent, geometry, aval: _input_gradient(cotangent, x, ct, geometry),
    lambda ct, x, cotangent, geometry, aval: differentiated_p.bind(x, ct, geometry=geometry),
)


def _vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Marks arrays that are the same on all devices of a shard_map as varying where another one of them does.

    The transpose of the mark sums the gradient over the devices.
    """
    axes = [varying_axes(array) for array in arrays]
    union = frozenset().union(*axes)
    return [
        lax.pcast(array, tuple(union - own), to='varying') if union - own else array
        for array, own in zip(arrays, axes, strict=True)
    ]
