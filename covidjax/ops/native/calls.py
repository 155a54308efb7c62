"""Calls of the shim from JAX programs, on one device or on several that share a batch."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from covidjax.ops.native.library import target

NONE = np.zeros(0, np.float32)  # an array that an operation has not got
LANES = 16  # features that the loops of the shim take at a time, or a divisor of it on narrower processors


def call(
    name: str, shape: tuple[int, ...], *arguments: Any, by_example: tuple[str, str], **attributes: Any
) -> jax.Array:
    """The result [*shape] of an operation of the shim, in the dtype of its first argument.

    by_example: for each argument and for the result whether its first axis is the batch ('b'), whether devices that
    share a batch all have it whole ('w'), or, of the result, whether what they find is added up ('+').
    attributes: bools, floats and tuples of ints.
    """
    result = jax.ShapeDtypeStruct(shape, arguments[0].dtype)
    if jax.device_count() == 1:
        return local_call(name, [result], *arguments, **attributes)[0]
    function = custom_partitioning(lambda *arguments: local_call(name, [result], *arguments, **attributes)[0])
    numbers = itertools.count()

    def axes(kind: str, array: Any) -> str:
        own = [f"own{next(numbers)}" for _ in array.shape]
        return " ".join(["batch", *own[1:]] if kind == "b" else own)

    rule = f"{', '.join(map(axes, by_example[0], arguments))} -> {axes(by_example[1], result)}"
    function.def_partition(partition=partial(_partition, name, attributes, by_example), sharding_rule=rule)
    return sequential_vmap(function)(*arguments)


def local_call(name: str, results: Sequence[Any], *arguments: Any, **attributes: Any) -> tuple[jax.Array, ...]:
    """The results of an operation of the shim on one device, which has all arrays whole."""
    values = {key: _attribute(value) for key, value in attributes.items()}
    return tuple(jax.ffi.ffi_call(target(name), tuple(results), vmap_method="sequential")(*arguments, **values))


def _attribute(value: bool | float | tuple[int, ...]) -> Any:
    """As the shim binds it."""
    if isinstance(value, tuple):
        return np.array(value, np.int64)
    return np.float32(value) if isinstance(value, float) else value


def _partition(
    name: str, attributes: dict[str, Any], by_example: tuple[str, str], mesh: Mesh, arguments: Any, result: Any
) -> Any:
    """The work of each device on its part of the batch, for `custom_partitioning`."""
    inwards, outward = by_example
    devices = _devices(inwards, arguments)
    count = math.prod(mesh.shape[axis] for axis in devices) if outward == "b" else 1
    part = jax.ShapeDtypeStruct((result.shape[0] // count, *result.shape[1:]), result.dtype)

    def lower(*arguments: Any) -> jax.Array:
        (found,) = local_call(name, [part], *arguments, **attributes)
        return lax.psum(found, devices) if outward == "+" and devices else found

    whole, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(devices or None))
    outwards, *others = (divided if kind == "b" else whole for kind in (outward, *inwards))
    return mesh, lower, outwards, tuple(others)


def _devices(inwards: str, arguments: Any) -> tuple[str, ...]:
    """The axes of the mesh over which the batch lies."""
    for kind, argument in zip(inwards, arguments, strict=True):
        if kind == "b":
            spec = argument.sharding.spec
            axes = spec[0] if len(spec) else None
            return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    return ()
