"""What every operation keeps, XLA's and native: its values and gradients under JAX's transformations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from covidjax import ops
from covidjax.ops.choose import choose
from tests.support import assert_close

CHOICE = choose("auto")
WAYS = [False, pytest.param(True, marks=pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note), id="native")]
in_all_ways = pytest.mark.parametrize("native", WAYS)

convolution = partial(ops.convolution, strides=(1, 1), padding=((1, 1), (1, 1)))
max_pool = partial(ops.max_pool, strides=(2, 2))


def batch_norm(inputs: jax.Array, scale: jax.Array, bias: jax.Array, *, native: bool) -> jax.Array:
    return ops.batch_norm(inputs, scale, bias, bias, 1e-3, residual=inputs, relu=True, native=native)[0]


# The operation, and the shapes of its inputs and its parameters.
CASES: dict[str, tuple[Callable[..., jax.Array], list[tuple[int, ...]]]] = {
    "convolution of gray images": (convolution, [(2, 9, 12, 1), (3, 3, 1, 8)]),
    "wide convolution": (convolution, [(4, 14, 17, 48), (3, 3, 48, 40)]),
    "convolution of small maps": (convolution, [(4, 2, 2, 8), (3, 3, 8, 8)]),
    "strided convolution": (partial(convolution, strides=(2, 1)), [(2, 16, 16, 32), (3, 3, 32, 5)]),
    "batch_norm": (batch_norm, [(4, 5, 5, 16), (16,), (16,)]),
    "max_pool 2x2": (partial(max_pool, window=(2, 2), padding=((0, 0), (0, 0))), [(2, 6, 8, 48)]),
    "max_pool 3x3": (partial(max_pool, window=(3, 3), padding=((1, 1), (1, 1))), [(2, 6, 8, 48)]),
}
SLOW = ("wide convolution", "convolution of small maps")


@in_all_ways
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_operation_passes_through_vmap_scan_and_remat(name: str, native: bool) -> None:
    function, (shape, *shapes) = CASES[name]
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.normal(size=(3, *shape)), jnp.float32)
    params = [jnp.asarray(random.normal(size=size), jnp.float32) for size in shapes]
    own, plain = partial(function, native=native), partial(function, native=False)
    cotangents = jnp.asarray(
        random.normal(size=jax.eval_shape(jax.vmap(plain, (0, *[None] * len(params))), inputs, *params).shape),
        jnp.float32,
    )

    def run(function: Any, cotangent: Any, *given: Any) -> Any:
        outputs, pullback = jax.vjp(function, *given)
        return outputs, *pullback(cotangent)

    of_part = jax.jit(partial(run, plain))
    parts = [of_part(*pair, *params) for pair in zip(cotangents, inputs, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    over_inputs = jax.vmap(partial(run, jax.checkpoint(own)), (0, 0, *[None] * len(params)))
    assert_close(jax.jit(over_inputs)(cotangents, inputs, *params), expected, 2e-5)

    def scanned(inputs: jax.Array, *params: jax.Array) -> jax.Array:
        return lax.scan(lambda _, part: (None, own(part, *params)), None, inputs)[1]

    outputs, of_inputs, *of_params = jax.jit(partial(run, scanned))(cotangents, inputs, *params)
    assert_close((outputs, of_inputs, *of_params), (*expected[:2], *(leaf.sum(0) for leaf in expected[2:])), 2e-5)
    for place in range(len(params)):
        doubled = [jnp.stack([leaf, 2 * leaf]) if place == number else leaf for number, leaf in enumerate(params)]
        axes = [0 if place == number else None for number in range(len(params))]
        found = jax.jit(jax.vmap(partial(run, own), (None, None, *axes)))(cotangents[0], inputs[0], *doubled)
        twice = [2 * leaf if place == number else leaf for number, leaf in enumerate(params)]
        again = [of_part(cotangents[0], inputs[0], *each) for each in (params, twice)]
        assert_close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *again), 2e-5)


def temporary_of_a_layer(layer: Callable[..., jax.Array], inputs: jax.Array, params: Any) -> float:
    """Bytes that one layer more adds to the temporary memory of a program with gradients of its parameters."""

    def temporary(depth: int) -> int:
        def loss(every: list[Any]) -> jax.Array:
            outputs = inputs
            for own in every:
                outputs = layer(outputs, own)
            return jnp.sum(outputs)

        found: Any = jax.jit(jax.grad(loss)).lower([params] * depth).compile().memory_analysis()
        return int(found.temp_size_in_bytes)

    return (temporary(4) - temporary(2)) / 2
