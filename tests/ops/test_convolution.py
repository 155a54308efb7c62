"""Every formulation of a convolution against XLA's own, in value and gradient."""

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import ops
from covidjax.ops.by_platform import Formulation, Geometry
from covidjax.ops.winograd import WINOGRAD
from tests.ops.test_contract import temporary_of_a_layer
from tests.train.programs import compiled_products, lowered_products

convolution = importlib.import_module("covidjax.ops.convolution")  # the package has a function of that name
PLAIN, COLUMNS, SIDE_BY_SIDE = convolution.PLAIN, convolution.COLUMNS, convolution.SIDE_BY_SIDE
TOLERANCE = 1e-5  # of the largest value, in float32
Arrays = tuple[jax.Array, jax.Array, jax.Array]


def geometry(inputs: Any, kernel: Any, padding: Any = 1, strides: Any = (1, 1), dilation: Any = (1, 1)) -> Geometry:
    """padding: as many positions on all sides, or the pairs."""
    return Geometry(inputs, kernel, strides, ((padding,) * 2,) * 2 if isinstance(padding, int) else padding, dilation)


def arrays(shape: Geometry, dtype: Any = jnp.float32) -> Arrays:
    """Inputs, kernel and cotangent."""
    random = np.random.default_rng(0)
    shapes = (shape.inputs, shape.kernel, (shape.inputs[0], *shape.size, shape.kernel[-1]))
    inputs, kernel, cotangent = (jnp.asarray(random.normal(size=size), dtype) for size in shapes)
    return inputs, kernel, cotangent


def error(found: Any, expected: Any) -> float:
    """The largest, in units of the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


@partial(jax.jit, static_argnums=(0, 1))
def directions(way: Formulation, shape: Geometry, inputs: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
    return (
        way.outputs(inputs, kernel, shape),
        way.input_gradient(cotangent, kernel, shape),
        way.kernel_gradient(cotangent, inputs, shape),
    )


THREE_BY_THREE = [
    geometry((2, 8, 8, 5), (3, 3, 5, 7)),
    geometry((3, 13, 10, 4), (3, 3, 4, 2)),
    geometry((1, 3, 4, 2), (3, 3, 2, 3), padding=0),
    geometry((2, 9, 6, 3), (3, 3, 3, 3), padding=((0, 2), (3, 1))),
    geometry((2, 1, 2, 3), (3, 3, 3, 3)),
]
OTHERS = [
    geometry((2, 7, 9, 4), (1, 1, 4, 6), padding=0),
    geometry((2, 7, 8, 6), (1, 1, 6, 4), padding=0, strides=(2, 2)),
    geometry((2, 9, 8, 3), (3, 3, 3, 4), strides=(2, 2)),
    geometry((2, 11, 14, 2), (7, 7, 2, 5), padding=3, strides=(2, 2)),
    geometry((2, 6, 7, 3), (3, 3, 3, 2), padding=4, dilation=(4, 4)),
    geometry((1, 5, 8, 2), (2, 4, 2, 3), padding=((0, 2), (1, 0)), strides=(3, 1), dilation=(2, 1)),
]
FEW_FEATURES = [
    geometry((2, 9, 8, 1), (3, 3, 1, 4)),
    geometry((2, 5, 10, 3), (5, 3, 3, 2), padding=((0, 2), (3, 1))),
    geometry((1, 6, 7, 2), (2, 4, 2, 3), padding=0),
]
# Of each way those that are tried every day, and the others.
CASES = {
    WINOGRAD: ([*THREE_BY_THREE[:1], *THREE_BY_THREE[3:]], THREE_BY_THREE[1:3]),
    COLUMNS: (OTHERS[1::2], [*THREE_BY_THREE[3:], *OTHERS[::2]]),
    SIDE_BY_SIDE: ([THREE_BY_THREE[4], *FEW_FEATURES[:2]], [THREE_BY_THREE[3], FEW_FEATURES[2]]),
}
EVERY_DAY = [(way, shape) for way, (shapes, _) in CASES.items() for shape in shapes]
OTHER_DAYS = [pytest.param(way, shape, marks=pytest.mark.slow) for way, (_, rest) in CASES.items() for shape in rest]


@pytest.mark.parametrize(("way", "shape"), [*EVERY_DAY, *OTHER_DAYS])
def test_formulation_equals_the_plain_one(way: Formulation, shape: Geometry) -> None:
    with jax.enable_x64(True):
        given = arrays(shape, jnp.float64)
        for found, expected in zip(directions(way, shape, *given), directions(PLAIN, shape, *given), strict=True):
            assert error(found, expected) < 1e-14


def test_winograd_keeps_its_error_over_many_features() -> None:
    """A sum over 9 * 512 terms, and kernel gradients over 6 * 24 * 24: the usual points 0, 1, 2 fail this."""
    wide = geometry((1, 8, 8, 512), (3, 3, 512, 16))
    for shape in (wide, geometry((6, 24, 24, 8), (3, 3, 8, 8))):
        given = arrays(shape)
        with jax.enable_x64(True):
            exact = directions(PLAIN, shape, *(array.astype(jnp.float64) for array in given))
        for found, expected in zip(directions(WINOGRAD, shape, *given), exact, strict=True):
            assert error(found, expected) < 5e-6


# What a CPU does, by shape: the outputs and the two gradients.
CHOICES = {
    "1x1": (geometry((2, 9, 9, 8), (1, 1, 8, 16), padding=0), (COLUMNS,) * 3),
    "1x1 strided": (geometry((2, 9, 9, 16), (1, 1, 16, 8), padding=0, strides=(2, 2)), (COLUMNS,) * 3),
    "3x3 wide": (geometry((4, 14, 17, 48), (3, 3, 48, 40)), (WINOGRAD,) * 3),
    "3x3 narrow": (geometry((4, 17, 14, 24), (3, 3, 24, 20)), (PLAIN,) * 3),
    "3x3 of gray images": (geometry((2, 9, 12, 1), (3, 3, 1, 8)), (SIDE_BY_SIDE,) * 3),
    "3x3 few tiles": (geometry((2, 9, 9, 48), (3, 3, 48, 48)), (PLAIN,) * 3),
    "3x3 few tiles, many features": (geometry((2, 7, 6, 32), (3, 3, 32, 256)), (COLUMNS,) * 3),
    "3x3 strided": (geometry((2, 15, 12, 8), (3, 3, 8, 16), strides=(2, 2)), (PLAIN, PLAIN, COLUMNS)),
    "3x3 dilated": (geometry((2, 15, 12, 64), (3, 3, 64, 4), padding=2, dilation=(2, 2)), (PLAIN,) * 3),
    "map smaller than the kernel": (geometry((4, 2, 2, 8), (3, 3, 8, 8)), (COLUMNS,) * 3),
    "7x7 strided": (geometry((2, 33, 30, 3), (7, 7, 3, 32), padding=3, strides=(2, 2)), (PLAIN, PLAIN, COLUMNS)),
}


def some(*names: str, of: Iterable[str] = CHOICES) -> list[Any]:
    """The cases of these names; the others are slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in names)) for name in of]


@pytest.mark.parametrize("name", CHOICES)
def test_shape_decides_the_formulation(name: str) -> None:
    shape, expected = CHOICES[name]
    found = convolution.formulation_on_cpu(shape, jnp.float32)
    outputs, input_gradient, kernel_gradient = expected
    assert found == Formulation(outputs.outputs, input_gradient.input_gradient, kernel_gradient.kernel_gradient)
    half = convolution.formulation_on_cpu(shape, jnp.bfloat16)
    assert WINOGRAD.outputs is not half.outputs
    assert WINOGRAD.kernel_gradient is not half.kernel_gradient


def apply(shape: Geometry) -> Callable[..., jax.Array]:
    return partial(ops.convolution, strides=shape.strides, padding=shape.padding, dilation=shape.dilation)


def value_and_gradients(function: Callable[..., jax.Array], inputs: Any, kernel: Any, cotangent: Any) -> Any:
    outputs, pullback = jax.vjp(function, inputs, kernel)
    return outputs, *pullback(cotangent)


@pytest.mark.parametrize("name", some("1x1 strided", "3x3 of gray images", "3x3 few tiles, many features", "3x3 wide"))
def test_convolution_equals_the_plain_one(name: str) -> None:
    """bfloat16 against float32 on the same rounded arrays: one rounding of the result, 2**-9, and of partial sums."""
    shape, _ = CHOICES[name]
    given = arrays(shape, jnp.bfloat16)
    exact = [array.astype(jnp.float32) for array in given]
    run = partial(value_and_gradients, apply(shape))
    half, single = jax.jit(lambda given, exact: (run(*given), run(*exact)))(given, exact)
    for one, two, expected in zip(half, single, directions(PLAIN, shape, *exact), strict=True):
        assert (one.dtype, two.dtype) == (jnp.bfloat16, jnp.float32)
        assert error(one, expected) < 2**-7
        assert error(two, expected) < TOLERANCE


@pytest.mark.parametrize(
    "name",
    some("1x1", "3x3 wide", of=["1x1", "3x3 wide", "3x3 of gray images", "3x3 strided", "map smaller than the kernel"]),
)
def test_a_gradient_that_nobody_wants_is_not_in_the_program(name: str) -> None:
    shape, _ = CHOICES[name]
    inputs, kernel, cotangent = arrays(shape)
    plain = apply(shape)

    programs: dict[Callable[..., Any], int] = {
        lambda inputs, kernel, cotangent: plain(inputs, kernel): 1,
        lambda inputs, kernel, cotangent: jax.vjp(lambda inputs: plain(inputs, kernel), inputs)[1](cotangent): 1,
        lambda inputs, kernel, cotangent: jax.vjp(lambda kernel: plain(inputs, kernel), kernel)[1](cotangent): 1,
        lambda inputs, kernel, cotangent: jax.vjp(plain, inputs, kernel)[1](cotangent): 2,
    }
    for function, expected in programs.items():
        lowered = jax.jit(function).lower(inputs, kernel, cotangent)
        assert lowered_products(lowered) == compiled_products(lowered.compile()) == expected


def test_a_frozen_kernel_keeps_no_inputs_and_a_frozen_input_no_kernel() -> None:
    shape, _ = CHOICES["3x3 wide"]
    inputs, kernel, _ = arrays(shape)
    plain = apply(shape)
    kept_by_inputs = jax.tree.leaves(jax.vjp(lambda inputs: plain(inputs, kernel), inputs)[1])
    kept_by_kernel = jax.tree.leaves(jax.vjp(lambda kernel: plain(inputs, kernel), kernel)[1])
    assert {leaf.shape for leaf in kept_by_inputs if jnp.ndim(leaf)} == {kernel.shape}
    assert {leaf.shape for leaf in kept_by_kernel if jnp.ndim(leaf)} == {inputs.shape}


@pytest.mark.parametrize(
    "shape",
    [
        geometry((4, 48, 52, 40), (3, 3, 40, 40)),
        pytest.param(geometry((64, 2, 2, 64), (3, 3, 64, 64)), marks=pytest.mark.slow),
    ],
)
def test_backward_pass_keeps_no_transformed_inputs(shape: Geometry) -> None:
    """What a layer adds to the memory of a program is its outputs; those transformed are twice and nine times those."""
    inputs, kernel, _ = arrays(shape)
    added = temporary_of_a_layer(lambda x, kernel: jnp.tanh(apply(shape)(x, kernel)), inputs, kernel)
    assert added < 1.5 * inputs.nbytes


@pytest.mark.parametrize("name", CHOICES)
def test_program_for_a_gpu_holds_convolutions_as_they_are(name: str) -> None:
    shape, expected = CHOICES[name]
    traced = jax.jit(partial(value_and_gradients, apply(shape))).trace(*arrays(shape))
    gpu, tpu, cpu = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "tpu", "cpu"))
    for program in (gpu, tpu):
        assert program.count("stablehlo.convolution") == 3
        assert "dot_general" not in program
    assert ("dot_general" in cpu) == (expected != (PLAIN,) * 3)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2), (1, 4)])
def test_transposed_convolution_puts_one_tap_in_each_place(kernel: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    inputs, taps = random.normal(size=(2, 3, 5, 4)), random.normal(size=(*kernel, 4, 3))
    found = ops.transposed_convolution(jnp.asarray(inputs, jnp.float32), jnp.asarray(taps, jnp.float32))
    expected = np.zeros((2, 3 * kernel[0], 5 * kernel[1], 3))
    for row, column in np.ndindex(*kernel):
        expected[:, row :: kernel[0], column :: kernel[1]] = inputs @ taps[row, column]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_transposed_convolution_is_a_matrix_product_but_on_a_tpu_where_its_outputs_would_be_copied() -> None:
    arrays = jnp.ones((2, 3, 5, 4)), jnp.ones((2, 2, 4, 3)), jnp.ones((2, 6, 10, 3))
    traced = jax.jit(partial(value_and_gradients, ops.transposed_convolution)).trace(*arrays)
    programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "tpu", "cpu")}
    found = {name: (text.count("dot_general"), text.count("stablehlo.convolution")) for name, text in programs.items()}
    assert found == {"cuda": (3, 0), "cpu": (3, 0), "tpu": (0, 3)}
