"""The native operations beside XLA's: values, gradients, and the transformations of JAX."""

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
from covidjax.ops.choose import choose
from covidjax.ops.native import calls, pooling

CHOICE = choose("auto")
pytestmark = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)
TOLERANCE = 1e-5  # of the largest value


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for own, other in (map(partial(np.asarray, dtype=np.float64), pair) for pair in pairs):
        assert own.shape == other.shape
        assert np.abs(own - other).max(initial=0) <= tolerance * max(np.abs(other).max(initial=0), 1e-30)


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


sizes = st.integers(1, 12)
pairs = st.tuples(st.integers(0, 2), st.integers(0, 2))


@given(
    batch=st.integers(1, 3),
    height=sizes,
    width=sizes,
    in_features=st.sampled_from([1, 2, 3, 5, 16, 17, 33]),
    features=st.sampled_from([1, 3, 8, 16, 19, 64]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 3),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(pairs, pairs),
    followed=st.booleans(),
)
def test_convolution_and_its_gradients_are_those_of_float64(
    batch: int,
    height: int,
    width: int,
    in_features: int,
    features: int,
    rows: int,
    columns: int,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    followed: bool,
) -> None:
    if height + sum(padding[0]) < rows or width + sum(padding[1]) < columns:
        return
    inputs, kernel = normal(batch, height, width, in_features), normal(rows, columns, in_features, features, seed=1)
    convolve = partial(ops.convolution, strides=strides, padding=padding)
    arguments = [inputs, kernel]
    if followed:
        shape = jax.eval_shape(convolve, inputs, kernel).shape
        arguments += [normal(features, seed=2), normal(*shape, seed=3)]

    def run(*arguments: Any, native: bool) -> Any:
        terms = dict(zip(("bias", "residual"), arguments[2:], strict=False))
        outputs = convolve(*arguments[:2], native=native, **terms)
        return outputs * (outputs > 0) if followed and not native else outputs

    def of_native(*arguments: Any) -> Any:
        terms = dict(zip(("bias", "residual"), arguments[2:], strict=False))
        return convolve(*arguments[:2], native=True, relu=followed, **terms)

    expected = in_float64(partial(run, native=False), *arguments)
    found = jax.jit(partial(with_gradients, of_native))(*arguments)
    if not followed or np.abs(expected[0]).min(initial=1, where=expected[0] != 0) > 1e-4:  # else rounding decides
        assert_close(found, expected)
    assert_close(found[0], expected[0])


@given(
    batch=st.integers(1, 3),
    size=st.tuples(sizes, sizes),
    features=st.sampled_from([(1, 1), (3, 5), (16, 8), (33, 16)]),
    taps=st.tuples(st.integers(1, 3), st.integers(1, 2)),
)
def test_transposed_convolution_and_its_gradients_are_those_of_float64(
    batch: int, size: tuple[int, int], features: tuple[int, int], taps: tuple[int, int]
) -> None:
    arguments = normal(batch, *size, features[0]), normal(*taps, *features, seed=1)
    found = jax.jit(partial(with_gradients, partial(ops.transposed_convolution, native=True)))(*arguments)
    assert_close(found, in_float64(ops.transposed_convolution, *arguments))


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
    x = ops.batch_norm(x, scale, scale, 1e-3, residual=x, relu=True, native=native)[0]
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


def test_scan_remat_donation_and_vmap() -> None:
    inputs = normal(3, 2, 16, 16, 5)
    expected = jax.jit(jax.vmap(jax.grad(partial(loss, native=False)), in_axes=(None, 0)))(ARGUMENTS, inputs)
    of_native = jax.grad(partial(loss, native=True))
    assert_close(jax.jit(jax.vmap(of_native, in_axes=(None, 0)))(ARGUMENTS, inputs), expected, 1e-4)
    rematerialised = jax.grad(jax.checkpoint(partial(loss, native=True)))
    _, scanned = jax.lax.scan(lambda carry, each: (carry, rematerialised(ARGUMENTS, each)), 0, inputs)
    assert_close(scanned, expected, 1e-4)

    def descend(arguments: Any, each: Any) -> Any:
        return jax.tree.map(lambda value, slope: value - 0 * slope, arguments, of_native(arguments, each))

    donated = jax.jit(descend, donate_argnums=0)(jax.tree.map(jnp.array, ARGUMENTS), inputs[0])
    assert_close(donated, ARGUMENTS, 0)


def test_shapes_that_do_not_fit_are_an_error_with_the_operations_name_and_shapes() -> None:
    def run(name: str, shape: tuple[int, ...], *arrays: Any, by_example: tuple[str, str], **attributes: Any) -> None:
        results = [jax.ShapeDtypeStruct(shape, np.float32)]
        attributes = {"geometry": (1, 1, 1, 1, 1, 1), "winograd": False, **attributes}
        jax.block_until_ready(calls.call(name, results, *arrays, by_example=by_example, **attributes))

    inputs, kernel, none = normal(2, 8, 8, 5), normal(3, 3, 5, 4), calls.NONE
    forward: Any = {"by_example": ("bwww", "b"), "relu": False}
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"native convolution of \[2, 8, 8, 5\], .*, \[2, 9, 9"):
        run("convolution", (2, 9, 9, 4), inputs, kernel, none, none, **forward)
    with pytest.raises(jax.errors.JaxRuntimeError, match="input gradient of a convolution of .*: features or batches"):
        run("convolution_input_gradient", (2, 8, 8, 6), normal(2, 8, 8, 4), kernel, by_example=("bw", "b"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="kernel gradient of a convolution of .*: wrong strides"):
        geometry = (0, 1, 1, 1, 1, 1)
        pair = normal(2, 8, 8, 4), inputs
        run("convolution_kernel_gradient", (3, 3, 5, 4), *pair, by_example=("bb", "+"), geometry=geometry)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"maxima of \[2, 8, 8, 5\], .*: maxima are for multiples of 16"
    ):
        pooling.max_pool(jnp.asarray(inputs), pooling.Windows((2, 2), (1, 1), ((0, 0), (0, 0)))).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="the bias does not fit the kernel"):
        run("convolution", (2, 8, 8, 4), inputs, kernel, normal(3), none, **forward)
