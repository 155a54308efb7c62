"""Convolution, in the formulation that is fastest on the platform."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from covidjax.ops import winograd
from covidjax.ops.by_platform import Formulation, Geometry, Work, after, product, transpose, transposed
from covidjax.ops.depthwise import SHIFTED
from covidjax.ops.epilogue import add_and_relu
from covidjax.ops.native.convolution import NATIVE, NATIVE_WINOGRAD, covers, transposition, winograd_is_faster
from covidjax.ops.winograd import WINOGRAD


def convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
    bias: jax.Array | None = None,
    residual: jax.Array | None = None,
    relu: bool = False,
    native: bool = False,
) -> jax.Array:
    """Two-dimensional cross-correlation with explicit padding, and what follows it: `relu(outputs + bias + residual)`.

    inputs: [batch, height, width, in_features]; kernel: [kernel_height, kernel_width, in_features,
    features], same dtype, or [kernel_height, kernel_width, 1, in_features] for a depthwise one of stride 1; bias:
    [features]; residual: as the outputs.
    Padding is explicit because 'SAME' pads strided convolutions differently from PyTorch and Caffe.
    dilation: the distance of neighbouring taps of the kernel in the input.
    native: in oneDNN on a CPU, as one operation, where it covers the work.
    Returns [batch, out_height, out_width, features].
    """
    geometry = Geometry(inputs.shape, kernel.shape, strides, padding, dilation)  # type: ignore[arg-type]
    choose = formulation_with_shim if native else formulation_on_cpu
    on_cpu = SHIFTED if geometry.depthwise and not native else choose(geometry, inputs.dtype)
    work = Work(geometry, on_cpu, PLAIN)
    if work.on_cpu.fuses:
        return checkpoint_name(product(inputs, kernel, work, bias, residual, relu), "convolution")
    return checkpoint_name(add_and_relu(product(inputs, kernel, work), bias, residual, relu=relu), "convolution")


def dense(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    residual: jax.Array | None = None,
    native: bool = False,
) -> jax.Array:
    """`inputs @ kernel + bias + residual` over the last axis.

    inputs: [batch, ..., in_features]; kernel: [in_features, features], same dtype; bias: [features]; residual: as the
    outputs. native: in oneDNN on a CPU, as one operation, where it covers the work.
    Returns [batch, ..., features].
    """
    shape = (inputs.shape[0], 1, math.prod(inputs.shape[1:-1]), inputs.shape[-1])
    geometry = Geometry(shape, (1, 1, *kernel.shape), (1, 1), ((0, 0), (0, 0)), (1, 1))  # type: ignore[arg-type]
    if not (native and covers(geometry, inputs.dtype)):
        return checkpoint_name(add_and_relu(inputs @ kernel, bias, residual, relu=False), "convolution")
    outputs = (*inputs.shape[:-1], kernel.shape[-1])
    terms = bias, None if residual is None else residual.reshape(*shape[:3], -1)
    found = product(inputs.reshape(shape), kernel[None, None], Work(geometry, NATIVE, MATRIX), *terms)
    return checkpoint_name(found.reshape(outputs), "convolution")


def transposed_convolution(inputs: jax.Array, kernel: jax.Array, *, native: bool = False) -> jax.Array:
    """Transposed convolution whose stride is the size of its kernel, so that outputs have one tap each.

    inputs: [batch, height, width, in_features]; kernel: [rows, columns, in_features, features], not turned round.
    native: in oneDNN on a CPU.
    Returns [batch, rows * height, columns * width, features]. In XLA it is one matrix product, whose outputs are then
    put in their places; on a TPU, which would copy them for that, the gradient of a convolution.
    """
    (batch, height, width, in_features), (rows, columns, _, features) = inputs.shape, kernel.shape
    transpose = (batch, rows * height, columns * width, features), (rows, columns, features, in_features)
    geometry = Geometry(*transpose, (rows, columns), ((0, 0), (0, 0)), (1, 1))
    on_cpu = transposition(NATIVE) if native and covers(geometry, inputs.dtype) else IN_PLACES
    return product(inputs, kernel, Work(geometry, on_cpu, IN_PLACES, transposition(PLAIN)))


def in_places(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The transposition of the convolution of a geometry whose outputs have one tap each."""
    return jnp.einsum("bhwc,ijco->bhiwjo", inputs, kernel).reshape(geometry.inputs)


def _input_gradient_in_places(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    shape = (geometry.inputs[0], *geometry.size, geometry.kernel[3])
    return transpose(lambda inputs: in_places(inputs, kernel, geometry), shape, cotangent)


def _kernel_gradient_in_places(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    rows, columns, features, in_features = geometry.kernel
    return transpose(
        lambda kernel: in_places(inputs, kernel, geometry), (rows, columns, in_features, features), cotangent
    )


IN_PLACES = Formulation(in_places, _input_gradient_in_places, _kernel_gradient_in_places)


def plain(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The convolution of the platform's library."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.inputs[-1] if geometry.depthwise else 1,
    )


def _columns(inputs: jax.Array, geometry: Geometry, taps: Iterable[tuple[int, int]]) -> jax.Array:
    """The inputs of each output through the taps, side by side (im2col): [outputs of the batch, taps * in_features]."""
    padded = jnp.pad(inputs, ((0, 0), *geometry.padding, (0, 0)))
    (height, width), (batch, *_, in_features) = geometry.size, geometry.inputs

    def seen(row: int, column: int) -> jax.Array:
        """Through one tap of the kernel: [batch, out_height, out_width, in_features]."""
        first = (row * geometry.dilation[0], column * geometry.dilation[1])
        stop = tuple(f + s * (n - 1) + 1 for f, s, n in zip(first, geometry.strides, (height, width), strict=True))
        return lax.slice(padded, (0, *first, 0), (batch, *stop, in_features), (1, *geometry.strides, 1))

    matrix, *others = (seen(*tap) for tap in taps)
    matrix = jnp.concatenate([matrix, *others], axis=-1) if others else matrix
    return matrix.reshape(batch * height * width, -1)


def product_of_columns(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The convolution as one matrix product. For a 1x1 kernel that is all it is."""
    rows, columns, *_ = geometry.kernel
    taps = itertools.product(range(rows), range(columns))
    outputs = _columns(inputs, geometry, taps) @ kernel.reshape(-1, geometry.kernel[-1])
    return outputs.reshape(geometry.inputs[0], *geometry.size, -1)


def _input_gradient_of_columns(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The terms of the taps are added up in float32 also where arrays are half-precision."""
    wide = jnp.promote_types(cotangent.dtype, jnp.float32)
    transposition = transposed(product_of_columns).input_gradient
    return transposition(cotangent.astype(wide), kernel.astype(wide), geometry).astype(cotangent.dtype)


def _kernel_gradient_of_columns(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """The taps run down the columns of the kernel: else XLA would keep the matrix of the forward pass until here.

    The wider matrix stands on the right, where XLA's product takes up to half the time.
    """
    rows, columns, in_features, features = geometry.kernel
    taps = ((row, column) for column in range(columns) for row in range(rows))
    if rows * columns > 1:
        inputs = after(cotangent, inputs)
    matrix, cotangent = _columns(inputs, geometry, taps), cotangent.reshape(-1, features)
    if matrix.shape[1] <= features:
        gradient = _contract_rows(matrix, cotangent)
    else:  # the barrier keeps XLA from exchanging the two to save the transposition
        gradient = lax.optimization_barrier(_contract_rows(cotangent, matrix)).T
    return gradient.reshape(columns, rows, in_features, features).swapaxes(0, 1)


def _beside(geometry: Geometry, positions: int) -> tuple[Geometry, Callable[[jax.Array], jax.Array]]:
    """The convolution that makes outputs beside one another as features of one output, and its kernel of the kernel.

    positions: how many; fewer where they do not divide the width of the outputs. Strides and dilation are 1.
    """
    rows, columns, in_features, features = geometry.kernel
    positions = math.gcd(positions, geometry.size[1])
    seen = columns + positions - 1

    def widened(kernel: jax.Array) -> jax.Array:
        """[rows, columns, in_features, features] -> [rows, seen, in_features, positions * features]."""
        places = [(0, 0), (0, seen - columns), (0, 0), (0, 0)]
        kernels = [jnp.roll(jnp.pad(kernel, places), position, axis=1) for position in range(positions)]
        return jnp.stack(kernels, axis=3).reshape(rows, seen, in_features, -1)

    kernel = (rows, seen, in_features, positions * features)
    return dataclasses.replace(geometry, kernel=kernel, strides=(1, positions)), widened


def _outputs_side_by_side(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Of few input features a product of columns is so narrow that it waits for memory: here it is four times as wide.

    Neighbouring outputs share most of what they see, so that columns are fewer; half of the product is with zeros.
    """
    wide, widened = _beside(geometry, positions=4)
    return product_of_columns(inputs, widened(kernel), wide).reshape(geometry.inputs[0], *geometry.size, -1)


def _kernel_gradient_side_by_side(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Where there are several devices, the plain one: they would exchange the gradient of the wide kernel."""
    if jax.device_count() > 1:
        return PLAIN.kernel_gradient(cotangent, inputs, geometry)
    wide, widened = _beside(geometry, positions=2)
    of_wide = _kernel_gradient_of_columns(cotangent, inputs, wide)
    return transpose(widened, geometry.kernel, of_wide)


def _contract_rows(first: jax.Array, second: jax.Array) -> jax.Array:
    return lax.dot_general(first, second, (((0,), (0,)), ((), ())))


PLAIN = transposed(plain)
MATRIX = transposed(product_of_columns)
COLUMNS = Formulation(product_of_columns, _input_gradient_of_columns, _kernel_gradient_of_columns)
SIDE_BY_SIDE = Formulation(_outputs_side_by_side, PLAIN.input_gradient, _kernel_gradient_side_by_side)


def formulation_on_cpu(geometry: Geometry, dtype: jax.typing.DTypeLike) -> Formulation:
    """The fastest of XLA's operations on a CPU, as far as `benchmarks/ops.py` has measured it."""
    in_features, features = geometry.kernel[2:]
    (height, width), maps = geometry.size, (*geometry.inputs[1:3], *geometry.size)
    extent = max(d * (k - 1) + 1 for d, k in zip(geometry.dilation, geometry.kernel[:2], strict=True))
    # Where the kernel is larger than the map, XLA has loops of its own in place of its library.
    if min(maps) > 0 and (extent == 1 or extent > min(maps)):
        return COLUMNS
    if dtype == jnp.float32 and winograd.gain(geometry) >= 20 and winograd.applies(geometry):
        return WINOGRAD
    if features >= 256 and height * width <= 49:
        return COLUMNS
    if geometry.strides == (1, 1):
        return SIDE_BY_SIDE if in_features <= 4 and geometry.dilation == (1, 1) else PLAIN
    taps = math.prod(geometry.kernel[:2])
    held = math.prod(geometry.inputs[1:]) + height * width * features
    if taps * in_features * height * width <= 5 * held:
        return dataclasses.replace(PLAIN, kernel_gradient=COLUMNS.kernel_gradient)
    return PLAIN


def formulation_with_shim(geometry: Geometry, dtype: jax.typing.DTypeLike) -> Formulation:
    """The shim's: Winograd's where it is faster than oneDNN's direct product; XLA's where the shim has none."""
    if not covers(geometry, dtype):
        return SHIFTED if geometry.depthwise else formulation_on_cpu(geometry, dtype)
    in_features, features = geometry.kernel[2:]
    if geometry.depthwise:
        return NATIVE
    if winograd_is_faster(geometry):
        return NATIVE_WINOGRAD
    if in_features <= 2 and features < 32 and geometry.strides == (1, 1):
        return dataclasses.replace(NATIVE, outputs=SIDE_BY_SIDE.outputs, fuses=False)
    return NATIVE
