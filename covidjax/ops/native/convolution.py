"""Convolution in the shim: two formulations beside those of XLA, and one operation with what follows it in it."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from covidjax.ops import winograd
from covidjax.ops.by_platform import Formulation, Geometry, on_platform
from covidjax.ops.epilogue import add_and_relu
from covidjax.ops.native.calls import LANES, NONE, call

Optional = jax.Array | None


def covers(geometry: Geometry, dtype: Any) -> bool:
    """Whether the shim has this convolution: float32, no dilation, nothing empty."""
    sizes = (*geometry.inputs, *geometry.kernel, *geometry.size)
    paddings = [part for pair in geometry.padding for part in pair]
    return dtype == jnp.float32 and geometry.dilation == (1, 1) and min(sizes) > 0 and min(paddings) >= 0


def outputs(
    inputs: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    bias: Optional = None,
    residual: Optional = None,
    relu: bool = False,
    *,
    winograd: bool = False,
) -> jax.Array:
    """`relu(convolution + bias + residual)`."""
    shape = (inputs.shape[0], *geometry.size, geometry.kernel[-1])
    results = [jax.ShapeDtypeStruct(shape, inputs.dtype)]
    terms = [NONE if term is None else term for term in (bias, residual)]
    by_example = "bww" + ("w" if residual is None else "b"), "b"
    attributes = {"geometry": _numbers(geometry), "relu": relu, "winograd": winograd}
    return call("convolution", results, inputs, kernel, *terms, by_example=by_example, **attributes)[0]


def _input_gradient(
    cotangent: jax.Array, kernel: jax.Array, geometry: Geometry, *, winograd: bool = False
) -> jax.Array:
    results = [jax.ShapeDtypeStruct((cotangent.shape[0], *geometry.inputs[1:]), cotangent.dtype)]
    name, numbers = "convolution_input_gradient", _numbers(geometry)
    return call(name, results, cotangent, kernel, by_example=("bw", "b"), geometry=numbers, winograd=winograd)[0]


def _kernel_gradient(
    cotangent: jax.Array, inputs: jax.Array, geometry: Geometry, *, winograd: bool = False
) -> jax.Array:
    results = [jax.ShapeDtypeStruct(geometry.kernel, cotangent.dtype)]
    name, numbers = "convolution_kernel_gradient", _numbers(geometry)
    return call(name, results, cotangent, inputs, by_example=("bb", "+"), geometry=numbers, winograd=winograd)[0]


def _numbers(geometry: Geometry) -> tuple[int, ...]:
    return (*geometry.strides, *geometry.padding[0], *geometry.padding[1])


NATIVE = Formulation(outputs, _input_gradient, _kernel_gradient)
NATIVE_WINOGRAD = Formulation(*(partial(each, winograd=True) for each in (outputs, _input_gradient, _kernel_gradient)))


def fuses(formulation: Formulation) -> bool:
    """Whether what follows the convolution goes into the same operation."""
    return formulation.outputs in (NATIVE.outputs, NATIVE_WINOGRAD.outputs)


def winograd_is_faster(geometry: Geometry) -> bool:
    """Where benchmarks/ops.py found it so: 32 features and more, tiles enough, and not much of them outside.

    With strides of 2, which save less than half of the multiplications, 64 features and less outside.
    """
    if (geometry.kernel[:2], geometry.dilation) != ((3, 3), (1, 1)) or geometry.strides not in ((1, 1), (2, 2)):
        return False
    tiles = geometry.inputs[0] * math.prod(winograd.tile_counts(geometry))
    outside = 1 - geometry.inputs[0] * math.prod(geometry.size) / (winograd.TILE**2 * tiles)
    in_features, features = geometry.kernel[2:]
    whole = in_features % LANES == features % LANES == 0
    least, most = (16, 0.4) if geometry.strides == (1, 1) else (32, 0.25)
    return whole and winograd.gain(geometry) >= least and tiles >= 32 and outside <= most


def transposition(formulation: Formulation) -> Formulation:
    """The transposed convolution by the gradients of the convolution whose geometry is given.

    Its kernel: [rows, columns, in_features, features], where the convolution's has these two the other way round.
    """

    def outputs(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
        return formulation.input_gradient(inputs, kernel.swapaxes(2, 3), geometry)

    def input_gradient(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
        return formulation.outputs(cotangent, kernel.swapaxes(2, 3), geometry)

    def kernel_gradient(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        return formulation.kernel_gradient(inputs, cotangent, geometry).swapaxes(2, 3)

    return Formulation(outputs, input_gradient, kernel_gradient)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def fused(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: Optional,
    residual: Optional,
    geometry: Geometry,
    relu: bool,
    on_cpu: Formulation,
    elsewhere: Formulation,
) -> jax.Array:
    """`relu(convolution + bias + residual)` as one operation where the program is for a CPU.

    inputs, kernel, outputs: see `ops.convolution`; bias: [features] or None; residual: as the outputs, or None.
    on_cpu: one that `fuses`; elsewhere: how other platforms compute the convolution.
    """

    def here(inputs: jax.Array, kernel: jax.Array, bias: Optional, residual: Optional) -> jax.Array:
        return on_cpu.outputs(inputs, kernel, geometry, bias, residual, relu)  # type: ignore[call-arg]

    def library(inputs: jax.Array, kernel: jax.Array, bias: Optional, residual: Optional) -> jax.Array:
        return add_and_relu(elsewhere.outputs(inputs, kernel, geometry), bias, residual, relu=relu)

    return lax.platform_dependent(inputs, kernel, bias, residual, cpu=here, default=library)


def _fused_forward(
    inputs: Any,
    kernel: Any,
    bias: Any,
    residual: Any,
    geometry: Geometry,
    relu: bool,
    on_cpu: Formulation,
    elsewhere: Formulation,
) -> tuple[jax.Array, Any]:
    """Keeps what the gradients need that somebody wants, as `by_platform.product` does."""
    values = [None if each is None else each.value for each in (inputs, kernel, bias, residual)]
    found = fused(*values, geometry, relu, on_cpu, elsewhere)
    wanted = tuple(() if each is not None and each.perturbed else None for each in (bias, residual))
    kept_inputs, kept_kernel = inputs.value if kernel.perturbed else None, kernel.value if inputs.perturbed else None
    return found, (kept_inputs, kept_kernel, found if relu else None, wanted)


def _fused_backward(
    geometry: Geometry, relu: bool, on_cpu: Formulation, elsewhere: Formulation, kept: Any, cotangent: Any
) -> tuple[Any, ...]:
    inputs, kernel, found, (bias_wanted, residual_wanted) = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None, None, None
    if relu:
        cotangent = jnp.where(found > 0, cotangent, 0)
    gradient = partial(on_platform, geometry=geometry, on_cpu=on_cpu, elsewhere=elsewhere)
    return (
        None if kernel is None else gradient("input_gradient", cotangent, kernel),
        None if inputs is None else gradient("kernel_gradient", cotangent, inputs),
        None if bias_wanted is None else jnp.sum(cotangent, (0, 1, 2)),
        None if residual_wanted is None else cotangent,
    )


fused.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)
