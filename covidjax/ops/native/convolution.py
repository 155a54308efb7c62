"""Convolution in the shim: two formulations beside those of XLA, which hold what follows it in the same operation."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from covidjax.ops import winograd
from covidjax.ops.by_platform import Formulation, Geometry, Optional
from covidjax.ops.native.calls import LANES, NONE, call


def covers(geometry: Geometry, dtype: Any) -> bool:
    """Whether the shim has this convolution: float32, no dilation, nothing empty."""
    sizes = (*geometry.inputs, *geometry.kernel, *geometry.size)
    paddings = [part for pair in geometry.padding for part in pair]
    return dtype == jnp.float32 and geometry.dilation == (1, 1) and min(sizes) > 0 and min(paddings) >= 0


def _formulation(*, winograd: bool) -> Formulation:
    """Winograd's or the direct product; its outputs are `relu(convolution + bias + residual)`."""

    def run(name: str, shape: tuple[int, ...], *arrays: Any, geometry: Geometry, **options: Any) -> jax.Array:
        numbers = (*geometry.strides, *geometry.padding[0], *geometry.padding[1])
        return call(f"convolution{name}", shape, *arrays, geometry=numbers, winograd=winograd, **options)

    def outputs(
        inputs: jax.Array,
        kernel: jax.Array,
        geometry: Geometry,
        bias: Optional = None,
        residual: Optional = None,
        relu: bool = False,
    ) -> jax.Array:
        shape = (inputs.shape[0], *geometry.size, geometry.kernel[-1])
        terms = [NONE if term is None else term for term in (bias, residual)]
        parts = "bww" + ("w" if residual is None else "b"), "b"
        return run("", shape, inputs, kernel, *terms, by_example=parts, geometry=geometry, relu=relu)

    def input_gradient(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
        shape = (cotangent.shape[0], *geometry.inputs[1:])
        return run("_input_gradient", shape, cotangent, kernel, by_example=("bw", "b"), geometry=geometry)

    def kernel_gradient(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        return run("_kernel_gradient", geometry.kernel, cotangent, inputs, by_example=("bb", "+"), geometry=geometry)

    return Formulation(outputs, input_gradient, kernel_gradient, fuses=True)


NATIVE, NATIVE_WINOGRAD = _formulation(winograd=False), _formulation(winograd=True)


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
