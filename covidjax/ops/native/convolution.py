"""Convolution in oneDNN, with what follows it, and its gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from covidjax.ops.by_platform import Formulation, Geometry
from covidjax.ops.epilogue import followed
from covidjax.ops.native.calls import NONE, call

Optional = jax.Array | None


def covers(geometry: Geometry, dtype: Any) -> bool:
    """Whether the shim has this convolution: float32, no dilation, nothing empty."""
    sizes = (*geometry.inputs, *geometry.kernel, *geometry.size)
    paddings = [part for pair in geometry.padding for part in pair]
    return dtype == jnp.float32 and geometry.dilation == (1, 1) and min(sizes) > 0 and min(paddings) >= 0


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: Optional,
    residual: Optional,
    geometry: Geometry,
    relu: bool,
    elsewhere: Formulation,
) -> jax.Array:
    """`relu(convolution + bias + residual)` in one operation where the program is for a CPU.

    inputs, kernel, outputs: see `ops.convolution`; bias: [features] or None; residual: as the outputs, or None.
    elsewhere: how other platforms compute the convolution.
    """

    def library(inputs: jax.Array, kernel: jax.Array, bias: Optional, residual: Optional) -> jax.Array:
        return followed(elsewhere.outputs(inputs, kernel, geometry), bias, residual, relu=relu)

    branches = {"cpu": partial(_outputs, geometry=geometry, relu=relu), "default": library}
    return lax.platform_dependent(inputs, kernel, bias, residual, **branches)


def _forward(
    inputs: Any, kernel: Any, bias: Any, residual: Any, geometry: Geometry, relu: bool, elsewhere: Formulation
) -> tuple[jax.Array, Any]:
    """Keeps what the gradients need that somebody wants, as `by_platform.product` does."""
    values = [None if each is None else each.value for each in (inputs, kernel, bias, residual)]
    outputs = convolution(*values, geometry, relu, elsewhere)
    wanted = tuple(None if each is None or not each.perturbed else True for each in (bias, residual))
    kept_inputs, kept_kernel = inputs.value if kernel.perturbed else None, kernel.value if inputs.perturbed else None
    return outputs, (kept_inputs, kept_kernel, outputs if relu else None, wanted)


def _backward(geometry: Geometry, relu: bool, elsewhere: Formulation, kept: Any, cotangent: Any) -> tuple[Any, ...]:
    inputs, kernel, outputs, (of_bias, of_residual) = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None, None, None
    if relu:
        cotangent = jnp.where(outputs > 0, cotangent, 0)
    of_inputs = kernel if kernel is None else input_gradient(cotangent, kernel, geometry, elsewhere)
    of_kernel = inputs if inputs is None else kernel_gradient(cotangent, inputs, geometry, elsewhere)
    bias = None if of_bias is None else jnp.sum(cotangent, (0, 1, 2))
    return of_inputs, of_kernel, bias, None if of_residual is None else cotangent


convolution.defvjp(_forward, _backward, symbolic_zeros=True)


def input_gradient(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry, elsewhere: Formulation) -> jax.Array:
    """[batch, out_height, out_width, features] -> of the shape of inputs."""
    library = partial(elsewhere.input_gradient, geometry=geometry)
    branches = {"cpu": partial(_input_gradient, geometry=geometry), "default": library}
    return lax.platform_dependent(cotangent, kernel, **branches)


def kernel_gradient(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry, elsewhere: Formulation) -> jax.Array:
    """[batch, out_height, out_width, features] -> of the shape of kernel."""
    library = partial(elsewhere.kernel_gradient, geometry=geometry)
    branches = {"cpu": partial(_kernel_gradient, geometry=geometry), "default": library}
    return lax.platform_dependent(cotangent, inputs, **branches)


def _outputs(
    inputs: jax.Array, kernel: jax.Array, bias: Optional, residual: Optional, *, geometry: Geometry, relu: bool
) -> jax.Array:
    shape = (inputs.shape[0], *geometry.size, geometry.kernel[-1])
    results = [jax.ShapeDtypeStruct(shape, inputs.dtype)]
    terms = [NONE if term is None else term for term in (bias, residual)]
    by_example = "bww" + ("w" if residual is None else "b"), "b"
    attributes = {"geometry": _numbers(geometry), "relu": relu}
    return call("convolution", results, inputs, kernel, *terms, by_example=by_example, **attributes)[0]


def _input_gradient(cotangent: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    results = [jax.ShapeDtypeStruct((cotangent.shape[0], *geometry.inputs[1:]), cotangent.dtype)]
    name, numbers = "convolution_input_gradient", _numbers(geometry)
    return call(name, results, cotangent, kernel, by_example=("bw", "b"), geometry=numbers)[0]


def _kernel_gradient(cotangent: jax.Array, inputs: jax.Array, *, geometry: Geometry) -> jax.Array:
    results = [jax.ShapeDtypeStruct(geometry.kernel, cotangent.dtype)]
    name, numbers = "convolution_kernel_gradient", _numbers(geometry)
    return call(name, results, cotangent, inputs, by_example=("bb", "+"), geometry=numbers)[0]


def _numbers(geometry: Geometry) -> tuple[int, ...]:
    return (*geometry.strides, *geometry.padding[0], *geometry.padding[1])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def transposed_convolution(
    inputs: jax.Array, kernel: jax.Array, geometry: Geometry, elsewhere: Formulation
) -> jax.Array:
    """The transpose of the convolution `geometry`: its input gradient, here as an operation of its own.

    inputs: [batch, height, width, in_features]; kernel: [rows, columns, features, in_features].
    """
    return input_gradient(inputs, kernel, geometry, elsewhere)


def _transposed_forward(inputs: Any, kernel: Any, geometry: Geometry, elsewhere: Formulation) -> tuple[jax.Array, Any]:
    outputs = input_gradient(inputs.value, kernel.value, geometry, elsewhere)
    return outputs, (inputs.value if kernel.perturbed else None, kernel.value if inputs.perturbed else None)


def _transposed_backward(geometry: Geometry, elsewhere: Formulation, kept: Any, cotangent: Any) -> tuple[Any, Any]:
    inputs, kernel = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None
    return (
        None if kernel is None else convolution(cotangent, kernel, None, None, geometry, False, elsewhere),
        None if inputs is None else kernel_gradient(inputs, cotangent, geometry, elsewhere),
    )


transposed_convolution.defvjp(_transposed_forward, _transposed_backward, symbolic_zeros=True)
