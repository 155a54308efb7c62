"""The operations of a network, each in XLA's plain formulation and in the one that covidjax takes on this device."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import work
from benchmarks.case import Case
from benchmarks.peers import flax_plain
from covidjax import ops
from covidjax.ops import pooling
from covidjax.ops.by_platform import Geometry
from covidjax.ops.convolution import COLUMNS, PLAIN, SIDE_BY_SIDE, formulation_on_cpu, formulation_with_shim
from covidjax.ops.native.convolution import NATIVE, NATIVE_WINOGRAD
from covidjax.ops.winograd import WINOGRAD

FORMULATIONS = {
    "plain": PLAIN,
    "columns": COLUMNS,
    "side by side": SIDE_BY_SIDE,
    "winograd": WINOGRAD,
    "native": NATIVE,
    "native winograd": NATIVE_WINOGRAD,
}
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One direction of an operation in two formulations, which give the same.

    count: how often the network has it; arrays: what both take; chosen: the name of the second formulation.
    """

    operation: str
    shape: str
    direction: str
    count: int
    arrays: tuple[jax.Array, ...]
    plain: Function
    ours: Function
    chosen: str


def pairs(case: Case) -> Iterator[Pair]:
    """Those of all operations of the plain Flax network of a case, in the order of their first layer.

    case.ops: 'xla', or 'native' for convolutions in oneDNN where covidjax has them.
    """
    kinds: dict[str, Callable[..., Iterator[Pair]]] = {
        "convolution": _convolution,
        "transposed_convolution": _transposed_convolution,
        "max_pool": _max_pool,
        "batch_norm": _batch_norm,
    }
    for (name, *shape), count in layers(case).items():
        native = (case.ops == "native",) if "convolution" in name else ()
        yield from kinds[name](*shape, count, *native)


def layers(case: Case) -> Counter[tuple[Any, ...]]:
    """How often each operation with its shape stands in the forward pass in training."""
    network, images = flax_plain.make_network(case), jnp.asarray(work.batch(case)[0])
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), flax_plain.normalise(images), False))

    def forward(variables: Any, images: jax.Array) -> Any:
        return network.apply(variables, flax_plain.normalise(images), True, mutable=["batch_stats"])

    found: Counter[tuple[Any, ...]] = Counter()
    maps: tuple[int, ...] = ()  # of the last convolution, which is what comes to a BatchNorm
    for equation in _equations(jax.make_jaxpr(forward)(variables, images).jaxpr):
        arrays, options = [tuple(each.aval.shape) for each in equation.invars], equation.params
        match equation.primitive.name:
            case "conv_general_dilated":
                maps = tuple(equation.outvars[0].aval.shape)
                window = map(_tuples, (options["window_strides"], options["padding"], options["rhs_dilation"]))
                if max(options["lhs_dilation"]) == 1:
                    found["convolution", Geometry(arrays[0], arrays[1], *window)] += 1
                else:
                    found["transposed_convolution", arrays[0], arrays[1]] += 1
            case "reduce_window_max":
                names = ("window_dimensions", "window_strides", "padding")
                found["max_pool", arrays[0], *(_tuples(options[name][1:3]) for name in names)] += 1
            case "rsqrt":
                found["batch_norm", maps] += 1
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, tuple | list) else value


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of inner functions in the place of their call."""
    for equation in jaxpr.eqns:
        inner = [each for each in equation.params.values() if hasattr(each, "jaxpr") or hasattr(each, "eqns")]
        if inner:
            yield from itertools.chain.from_iterable(_equations(getattr(each, "jaxpr", each)) for each in inner)
        else:
            yield equation


def _random(*shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    generator = np.random.default_rng(0)
    return tuple(jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes)


def _by(*sizes: int) -> str:
    return "x".join(map(str, sizes))


def _convolution(geometry: Geometry, count: int, native: bool) -> Iterator[Pair]:
    chosen = (formulation_with_shim if native else formulation_on_cpu)(geometry, jnp.float32)
    outputs = (geometry.inputs[0], *geometry.size, geometry.kernel[3])
    inputs, kernel, cotangent = _random(geometry.inputs, geometry.kernel, outputs)
    given = {"outputs": (inputs, kernel), "input_gradient": (cotangent, kernel), "kernel_gradient": (cotangent, inputs)}
    shape = f"{_by(*geometry.inputs)} kernel {_by(*geometry.kernel)} stride {geometry.strides[0]}"
    for direction, arrays in given.items():
        ways = [getattr(way, direction) for way in (PLAIN, chosen)]
        plain, ours = (jax.jit(lambda one, other, way=way: way(one, other, geometry)) for way in ways)
        name = next(name for name, way in FORMULATIONS.items() if getattr(way, direction) is ways[1])
        yield Pair("convolution", shape, direction, count, arrays, plain, ours, name)


def _both_directions(operation: str, shape: str, count: int, plain: Function, ours: Function, *inputs: Any) -> Any:
    """The outputs, and outputs with the gradients of all inputs, of two functions."""
    (cotangent,) = _random(jax.eval_shape(plain, *inputs).shape)

    def with_gradients(function: Function) -> Function:
        def computed(cotangent: jax.Array, *inputs: jax.Array) -> Any:
            outputs, pullback = jax.vjp(function, *inputs)
            return outputs, pullback(cotangent)

        return computed

    yield Pair(operation, shape, "outputs", count, inputs, jax.jit(plain), jax.jit(ours), "own")
    plain, ours = (jax.jit(with_gradients(function)) for function in (plain, ours))
    yield Pair(operation, shape, "with gradients", count, (cotangent, *inputs), plain, ours, "own")


def _transposed_convolution(shape: Any, kernel: Any, count: int, native: bool) -> Iterator[Pair]:
    def plain(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        turned = kernel[::-1, ::-1]  # as JAX takes it
        return lax.conv_transpose(inputs, turned, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    name = f"{_by(*shape)} kernel {_by(*kernel)}"
    inputs = _random(shape, kernel)
    ours = partial(ops.transposed_convolution, native=native)
    return _both_directions("transposed_convolution", name, count, plain, ours, *inputs)


def _max_pool(shape: Any, window: Any, strides: Any, padding: Any, count: int) -> Iterator[Pair]:
    name = f"{_by(*shape)} window {_by(*window)} stride {strides[0]}"

    def plain(inputs: jax.Array) -> jax.Array:
        return pooling.plain(inputs, pooling.Windows(window, strides, padding))

    def ours(inputs: jax.Array) -> jax.Array:
        return ops.max_pool(inputs, window=window, strides=strides, padding=padding)

    return _both_directions("max_pool", name, count, plain, ours, *_random(shape))


def _batch_norm(shape: Any, count: int) -> Iterator[Pair]:
    def plain(inputs: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        """As in linen: the mean of squares less the square of the mean; what JAX derives."""
        axes = tuple(range(inputs.ndim - 1))
        mean = jnp.mean(inputs, axes)
        variance = jnp.maximum(jnp.mean(lax.square(inputs), axes) - lax.square(mean), 0)
        return (inputs - mean) * (scale * lax.rsqrt(variance + work.EPSILON)) + bias

    def ours(inputs: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return ops.batch_norm(inputs, scale, bias, jnp.zeros_like(bias), work.EPSILON)[0]

    inputs = _random(shape, shape[-1:], shape[-1:])
    return _both_directions("batch_norm", _by(*shape), count, plain, ours, *inputs)
