"""The convolution and its two gradients as primitives, so that a platform can have its own code for each of them.

A convolution is bilinear in the image and the kernel, and so are its gradients: with the cotangent they are the three
partial derivatives of one trilinear form, and transposing one of them gives another. All of jax's transformations
work: forward and reverse mode of any order, vmap, jit, pmap, shard_map, export. What each primitive is compiled to
is chosen in `cpu/conv.py` and `gpu/conv.py`; TPUs get XLA's native convolution.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxzoo.ops.cpu import conv as conv_cpu
from flaxzoo.ops.gpu import conv as conv_gpu
from flaxzoo.ops.native import (
    Geometry,
    native_conv,
    native_input_gradient,
    native_kernel_gradient,
)


def conv2d(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolves `x: (N, H, W, C)` with `kernel: (kh, kw, C // groups, O)` of the same dtype, giving (N, H', W', O)."""
    return value_p.bind(*_vary_alike(x, kernel), geometry=geometry)


def _primitive(name: str, native: Callable, **lowerings: Callable) -> Primitive:
    """A bilinear primitive that computes `native`, and on a platform of `lowerings` an equal of it."""
    primitive = Primitive(name)

    @cache
    def compiled(**params) -> Callable:
        return jax.jit(partial(primitive.bind, **params))

    @cache
    def result(*avals, **params):
        return jax.make_jaxpr(partial(native, **params))(*avals).out_avals[0]

    def implicit(lowering, *args, **params):
        # With explicit sharding the reshapes of a lowering would need to be told how their results are sharded.
        explicit = any(any(jax.typeof(arg).sharding.spec) for arg in args)
        return (native if explicit else lowering)(*args, **params)

    lowerings = {platform: partial(implicit, lowering) for platform, lowering in lowerings.items()}

    def batch(args, axes, **params):
        chosen = {platform: partial(lowering, **params) for platform, lowering in lowerings.items()}

        def choose(*args):
            return lax.platform_dependent(*args, **chosen, default=partial(native, **params))

        return jax.vmap(choose, axes)(*args), 0

    primitive.def_impl(lambda *args, **params: compiled(**params)(*args))
    primitive.def_abstract_eval(result)
    mlir.register_lowering(primitive, mlir.lower_fun(native, multiple_results=False))
    for platform, lowering in lowerings.items():
        mlir.register_lowering(primitive, mlir.lower_fun(lowering, multiple_results=False), platform=platform)
    batching.primitive_batchers[primitive] = batch
    return primitive


value_p = _primitive('conv2d', native_conv, cpu=conv_cpu.conv, cuda=conv_gpu.conv)
# In its place when it is differentiated.
differentiated_p = _primitive(
    'differentiated_conv2d', native_conv, cpu=conv_cpu.differentiated_conv, cuda=conv_gpu.conv
)
input_gradient_p = _primitive(
    'conv2d_input_gradient', native_input_gradient, cpu=conv_cpu.input_gradient, cuda=conv_gpu.input_gradient
)
kernel_gradient_p = _primitive(
    'conv2d_kernel_gradient', native_kernel_gradient, cpu=conv_cpu.kernel_gradient, cuda=conv_gpu.kernel_gradient
)


def _input_gradient(cotangent, x, kernel, geometry):
    return input_gradient_p.bind(cotangent, kernel, like=x.aval, geometry=geometry)


def _kernel_gradient(cotangent, x, kernel, geometry):
    return kernel_gradient_p.bind(x, cotangent, like=kernel.aval, geometry=geometry)


ad.defbilinear(differentiated_p, _input_gradient, _kernel_gradient)
ad.primitive_jvps[value_p] = ad.primitive_jvps[differentiated_p]
ad.primitive_transposes[value_p] = ad.primitive_transposes[differentiated_p]
# In what follows the result of `transpose(ct, a, b)` is like the operand that it is the gradient of.
ad.defbilinear(
    input_gradient_p,
    lambda ct, cotangent, kernel, geometry, like: differentiated_p.bind(ct, kernel, geometry=geometry),
    lambda ct, cotangent, kernel, geometry, like: _kernel_gradient(cotangent, ct, kernel, geometry),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda ct, x, cotangent, geometry, like: _input_gradient(cotangent, x, ct, geometry),
    lambda ct, x, cotangent, geometry, like: differentiated_p.bind(x, ct, geometry=geometry),
)


def _vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Marks arrays that are the same on all devices of a shard_map as varying where another one of them does.

    The transpose of the mark sums the gradient over the devices.
    """
    axes = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset().union(*axes)
    return [
        lax.pcast(a, tuple(union - own), to='varying') if union - own else a
        for a, own in zip(arrays, axes, strict=True)
    ]
