"""The native convolutions beside XLA's: values, gradients, what follows them, and where each is taken."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covidjax import ops
from covidjax.ops import native
from covidjax.ops.by_platform import Geometry
from covidjax.ops.choose import choose
from covidjax.ops.convolution import formulation_with_shim, plain
from covidjax.ops.epilogue import add_and_relu
from covidjax.ops.native import calls, pooling
from covidjax.ops.native.convolution import NATIVE_WINOGRAD
from tests.support import assert_close

CHOICE = choose("auto")
pytestmark = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def with_gradients(function: Any, *arguments: Any) -> Any:
    outputs, pullback = jax.vjp(function, *arguments)
    return outputs, pullback(jnp.asarray(normal(*outputs.shape, seed=9), outputs.dtype))


def in_float64(function: Any, *arguments: Any) -> Any:
    with jax.enable_x64(True):
        run = jax.jit(partial(with_gradients, function))
        return jax.device_get(run(*(jnp.asarray(each, jnp.float64) for each in arguments)))


def calls_of(function: Any, *arguments: Any) -> list[str]:
    """The native operations in a program, by name."""
    text = jax.jit(function).lower(*arguments).as_text()
    return [name for name in native.library.TARGETS if native.library.target(name) in text]


def draw_geometry(most: int, features: Any, kernel: Any, strides: Any) -> st.SearchStrategy[Geometry]:
    """Shapes of a convolution of maps of up to `most` positions; features: pairs of those of inputs and outputs."""
    sizes = st.tuples(st.integers(1, 4), st.integers(1, most), st.integers(1, most))
    pair = st.tuples(st.integers(0, 2), st.integers(0, 2))

    def make(size: Any, padding: Any, features: Any, kernel: Any, strides: Any) -> Geometry:
        return Geometry((*size, features[0]), (*kernel, *features), strides, padding, (1, 1))

    made = st.builds(make, sizes, st.tuples(pair, pair), features, kernel, strides)
    return made.filter(lambda drawn: min(drawn.size) > 0)


SMALL = st.tuples(st.sampled_from([1, 2, 3, 5, 16, 17, 33]), st.sampled_from([1, 3, 8, 16, 19, 64]))
MANY = st.tuples(st.sampled_from([16, 32, 48, 80, 128]), st.sampled_from([16, 32, 48, 112, 256]))
UP_TO_THREE = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(draw_geometry(12, SMALL, st.tuples(st.integers(1, 5), st.integers(1, 3)), UP_TO_THREE), st.booleans())
def test_convolution_and_its_gradients_are_those_of_float64(geometry: Geometry, followed: bool) -> None:
    convolve = partial(ops.convolution, strides=geometry.strides, padding=geometry.padding)
    arguments = [normal(*geometry.inputs), normal(*geometry.kernel, seed=1)]
    if followed:
        features = geometry.kernel[-1]
        arguments += [normal(features, seed=2), normal(geometry.inputs[0], *geometry.size, features, seed=3)]

    def run(*arguments: Any, native: bool) -> Any:
        terms = dict(zip(("bias", "residual"), arguments[2:], strict=False))
        if native:
            return convolve(*arguments[:2], native=True, relu=followed, **terms)
        outputs = convolve(*arguments[:2], native=False, **terms)
        return outputs * (outputs > 0) if followed else outputs

    expected = in_float64(partial(run, native=False), *arguments)
    found = jax.jit(partial(with_gradients, partial(run, native=True)))(*arguments)
    if not followed or np.abs(expected[0]).min(initial=1, where=expected[0] != 0) > 1e-4:  # else rounding decides
        assert_close(found, expected, 1e-5)
    assert_close(found[0], expected[0], 1e-5)


@given(draw_geometry(12, st.sampled_from([(1, 1), (3, 5), (16, 8), (33, 16)]), UP_TO_THREE, st.just((1, 1))))
def test_transposed_convolution_and_its_gradients_are_those_of_float64(geometry: Geometry) -> None:
    arguments = normal(*geometry.inputs), normal(*geometry.kernel, seed=1)
    found = jax.jit(partial(with_gradients, partial(ops.transposed_convolution, native=True)))(*arguments)
    assert_close(found, in_float64(ops.transposed_convolution, *arguments), 1e-5)


def test_what_is_no_number_stays_none() -> None:
    inputs = normal(2, 6, 6, 16)
    inputs[0, 2, 2, 3] = np.nan
    kernel = normal(3, 3, 16, 16, seed=1)
    convolve = partial(ops.convolution, strides=(1, 1), padding=((1, 1), (1, 1)), relu=True, native=True)
    assert np.isnan(convolve(jnp.asarray(inputs), jnp.asarray(kernel))[0, 2, 2]).all()


def network(inputs: Any, kernel: Any, scale: Any, square: Any, *, native: bool) -> Any:
    """A convolution with what follows it, a normalisation, one by Winograd's formulation, a strided one, maxima."""
    convolve = partial(ops.convolution, padding=((1, 1), (1, 1)), native=native)
    x = convolve(inputs, kernel, strides=(1, 1), bias=scale, relu=True)
    x = ops.batch_norm(x, scale, scale, scale, 1e-3, residual=x, relu=True, native=native)[0]
    x = convolve(x, square, strides=(1, 1))
    x = convolve(x, kernel.swapaxes(2, 3), strides=(2, 1))
    # Maxima of what is the same to the bit in both ways: of anything else rounding chooses who gets the gradient.
    maxima = ops.max_pool(jnp.tile(inputs, 7)[..., :32] * scale, window=(3, 3), strides=(2, 2), native=native)
    return jnp.concatenate([part.reshape(len(part), -1) for part in (x, maxima)], axis=1)


def loss(arguments: Any, inputs: Any, *, native: bool) -> Any:
    return jnp.mean(jnp.square(network(inputs, *arguments, native=native)))


ARGUMENTS = normal(3, 3, 5, 32, seed=1), normal(32, seed=2), normal(3, 3, 32, 32, seed=3) / 17


def test_programs_for_a_cpu_call_what_their_gradients_need_and_no_more() -> None:
    inputs, kernel = normal(2, 8, 8, 5), ARGUMENTS[0]

    def loss_of(inputs: Any, kernel: Any, native: bool = True) -> Any:
        outputs = ops.convolution(inputs, kernel, strides=(1, 1), padding=((1, 1), (1, 1)), relu=True, native=native)
        return jnp.sum(outputs)

    assert calls_of(loss_of, inputs, kernel) == ["convolution"]
    assert calls_of(jax.grad(loss_of), inputs, kernel) == ["convolution", "convolution_input_gradient"]
    assert calls_of(jax.grad(loss_of, 1), inputs, kernel) == ["convolution", "convolution_kernel_gradient"]
    assert calls_of(jax.grad(partial(loss_of, native=False)), inputs, kernel) == []
    every = jax.value_and_grad(partial(loss, native=True), argnums=(0, 1))
    assert calls_of(every, ARGUMENTS, normal(2, 16, 16, 5)) == list(native.library.TARGETS)
    other = jax.jit(jax.grad(loss_of)).trace(inputs, kernel).lower(lowering_platforms=("cuda",)).as_text()
    assert "covidjax" not in other and "stablehlo.convolution" in other


def test_what_the_shim_has_not_got_runs_on_xla() -> None:
    inputs, kernel = normal(2, 8, 8, 5), normal(3, 3, 5, 4, seed=1)
    convolve = partial(ops.convolution, strides=(1, 1), padding=((2, 2), (2, 2)), native=True)
    assert calls_of(convolve, inputs, kernel) == ["convolution"]
    assert calls_of(partial(convolve, dilation=(2, 2)), inputs, kernel) == []
    assert calls_of(convolve, inputs.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == []
    assert calls_of(convolve, inputs[:0], kernel) == []
    pool = partial(ops.max_pool, window=(3, 3), strides=(2, 2), native=True)
    assert calls_of(pool, normal(2, 8, 8, 16)) == ["max_pool"]
    assert calls_of(pool, normal(2, 8, 8, 20)) == []
    assert calls_of(partial(pool, strides=(3, 3)), normal(2, 8, 8, 16)) == []


def test_batches_of_changing_size_and_the_same_again_give_the_same_bits() -> None:
    step = jax.jit(jax.value_and_grad(partial(loss, native=True)))
    plain = jax.jit(jax.value_and_grad(partial(loss, native=False)))
    before: dict[int, Any] = {}
    for size in (4, 1, 4, 1):
        found = jax.device_get(step(ARGUMENTS, normal(size, 16, 16, 5)))
        assert_close(found, plain(ARGUMENTS, normal(size, 16, 16, 5)), 1e-4)
        for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(before.setdefault(size, found)), strict=True):
            np.testing.assert_array_equal(own, other)


FORWARD: dict[str, Any] = {"by_example": ("bwww", "b"), "relu": False}
BACKWARD: dict[str, Any] = {"by_example": ("bb", "+"), "geometry": (0, 1, 1, 1, 1, 1)}
# What does not fit: the operation, the shapes of its result and its arrays, attributes, and what the error says.
MISFITS: list[tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...], dict[str, Any], str]] = [
    ("", (2, 9, 9, 4), ((2, 8, 8, 5), (3, 3, 5, 4), (0,), (0,)), FORWARD, r"native .*\[2, 8, 8, 5\], .*, \[2, 9, 9"),
    ("", (2, 8, 8, 4), ((2, 8, 8, 5), (3, 3, 5, 4), (3,), (0,)), FORWARD, "the bias does not fit the kernel"),
    ("_kernel_gradient", (3, 3, 5, 4), ((2, 8, 8, 4), (2, 8, 8, 5)), BACKWARD, "kernel gradient of .*: wrong strides"),
    (
        "_input_gradient",
        (2, 8, 8, 6),
        ((2, 8, 8, 4), (3, 3, 5, 4)),
        {"by_example": ("bw", "b")},
        "input gradient of a convolution of .*: features or batches",
    ),
]


@pytest.mark.parametrize(("name", "result", "shapes", "attributes", "message"), MISFITS)
def test_shapes_that_do_not_fit_are_an_error_with_the_operations_name_and_shapes(
    name: str, result: tuple[int, ...], shapes: Any, attributes: dict[str, Any], message: str
) -> None:
    attributes = {"geometry": (1, 1, 1, 1, 1, 1), "winograd": False, **attributes}
    given = [calls.NONE if shape == (0,) else normal(*shape) for shape in shapes]
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(calls.call(f"convolution{name}", result, *given, **attributes))


def test_maxima_of_features_that_do_not_fit_are_an_error() -> None:
    windows = pooling.Windows((2, 2), (1, 1), ((0, 0), (0, 0)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"maxima of \[2, 8, 8, 5\], .*: .* for multiples of 16"):
        pooling.max_pool(jnp.asarray(normal(2, 8, 8, 5)), windows).block_until_ready()


# ---- Winograd's formulation ----


@given(draw_geometry(21, MANY, st.just((3, 3)), st.sampled_from([(1, 1), (2, 2)])))
def test_winograds_and_its_gradients_are_those_of_float64(geometry: Geometry) -> None:
    inputs, kernel = jnp.asarray(normal(*geometry.inputs)), jnp.asarray(normal(*geometry.kernel, seed=1))
    cotangent = jnp.asarray(normal(geometry.inputs[0], *geometry.size, geometry.kernel[-1], seed=9))
    values, (of_inputs, of_kernel) = in_float64(partial(plain, geometry=geometry), inputs, kernel)
    assert_close(NATIVE_WINOGRAD.outputs(inputs, kernel, geometry), values, 1e-5)
    assert_close(NATIVE_WINOGRAD.input_gradient(cotangent, kernel, geometry), of_inputs, 1e-5)
    assert_close(NATIVE_WINOGRAD.kernel_gradient(cotangent, inputs, geometry), of_kernel, 1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "features"), [(9, (48, 144)), (40, (48, 144)), (33, (272, 272))], ids=["few tiles", "many tiles", "parts"]
)
def test_winograds_with_what_follows(size: int, features: tuple[int, int], stride: int) -> None:
    """Few tiles go through another loop than many; both of more blocks than one; a large kernel part by part."""
    inputs_shape, strides = (3, stride * size, stride * size, features[0]), (stride, stride)
    geometry = Geometry(inputs_shape, (3, 3, *features), strides, ((1, 1), (1, 1)), (1, 1))
    shapes: list[tuple[int, ...]] = [geometry.inputs, geometry.kernel, features[1:], (3, size, size, features[1])]
    inputs, kernel, bias, residual = (jnp.asarray(normal(*shape, seed=i)) for i, shape in enumerate(shapes))
    for terms in itertools.product((None, bias), (None, residual), (False, True)):
        expected = add_and_relu(plain(inputs, kernel, geometry), *terms[:2], relu=terms[2])
        assert_close(NATIVE_WINOGRAD.outputs(inputs, kernel, geometry, *terms), expected, 1e-5)


def test_winograds_is_taken_where_it_is_faster() -> None:
    def taken(batch: int, size: int, features: int, taps: int = 3, strides: tuple[int, int] = (1, 1)) -> bool:
        inputs, kernel = (batch, size, size, features), (taps, taps, features, 64)
        geometry = Geometry(inputs, kernel, strides, ((1, 1), (1, 1)), (1, 1))
        return formulation_with_shim(geometry, jnp.float32) is NATIVE_WINOGRAD

    assert taken(8, 56, 64) and taken(8, 7, 512) and taken(2, 256, 32)
    assert taken(8, 56, 64, strides=(2, 2)) and taken(8, 28, 256, strides=(2, 2))
    assert not taken(8, 56, 64, strides=(2, 1)) and not taken(8, 56, 64, strides=(3, 3))
    assert not taken(8, 56, 32, strides=(2, 2)) and not taken(8, 9, 64, strides=(2, 2))
    assert not taken(8, 56, 64, taps=5)
    assert not taken(8, 56, 16)
    assert not taken(8, 56, 60)
    assert not taken(1, 14, 64)
    assert not taken(8, 9, 64)


@pytest.mark.parametrize(
    ("features", "strides", "message"), [(16, (2, 1), "Winograd's is for 3x3"), (20, (1, 1), "Winograd's is for .* 16")]
)
def test_winograds_of_the_wrong_shape_is_an_error(features: int, strides: tuple[int, int], message: str) -> None:
    geometry = Geometry((2, 8, 8, features), (3, 3, features, 16), strides, ((1, 1), (1, 1)), (1, 1))
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"native convolution of .*: {message}"):
        NATIVE_WINOGRAD.outputs(jnp.zeros(geometry.inputs), jnp.zeros(geometry.kernel), geometry).block_until_ready()
