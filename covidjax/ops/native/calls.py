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
    name: str, results: Sequence[Any], *arguments: Any, by_example: tuple[str, str], **attributes: Any
) -> tuple[jax.Array, ...]:
    """The results of an operation of the shim.

    results: jax.ShapeDtypeStruct of each. by_example: for each argument and each result whether its first axis is the
    batch ('b'), whether devices that share a batch all have it whole ('w'), or, of results, whether what they find is
    added up ('+'). attributes: bools, floats and tuples of ints.
    """
    if jax.device_count() == 1:
        return local_call(name, results, *arguments, **attributes)
    function = custom_partitioning(partial(local_call, name, results, **attributes))
    numbers = itertools.count()

    def axes(kind: str, array: Any) -> str:
        own = [f"own{next(numbers)}" for _ in array.shape]
        return " ".join(["batch", *own[1:]] if kind == "b" else own)

    inwards, outwards = by_example
    rule = f"{', '.join(map(axes, inwards, arguments))} -> {', '.join(map(axes, outwards, results))}"
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
    name: str, attributes: dict[str, Any], by_example: tuple[str, str], mesh: Mesh, arguments: Any, results: Any
) -> Any:
    """The work of each device on its part of the batch, for `custom_partitioning`."""
    inwards, outwards = by_example
    devices = _devices(inwards, arguments)
    count = math.prod(mesh.shape[axis] for axis in devices)

    def part(kind: str, result: Any) -> Any:
        shape = (result.shape[0] // count, *result.shape[1:]) if kind == "b" else result.shape
        return jax.ShapeDtypeStruct(shape, result.dtype)

    def lower(*arguments: Any) -> tuple[jax.Array, ...]:
        found = local_call(name, tuple(map(part, outwards, results)), *arguments, **attributes)
        return tuple(
            lax.psum(array, devices) if kind == "+" and devices else array
            for kind, array in zip(outwards, found, strict=True)
        )

    whole, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(devices or None))
    sharding = {"b": divided, "w": whole, "+": whole}
    return mesh, lower, tuple(sharding[kind] for kind in outwards), tuple(sharding[kind] for kind in inwards)


def _devices(inwards: str, arguments: Any) -> tuple[str, ...]:
    """The axes of the mesh over which the batch lies."""
    for kind, argument in zip(inwards, arguments, strict=True):
        if kind == "b":
            spec = argument.sharding.spec
            axes = spec[0] if len(spec) else None
            return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    return ()
