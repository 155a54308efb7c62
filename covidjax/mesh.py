"""The only maker of meshes and shardings: one named mesh over all devices of all processes, or over the local ones."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from covidjax.errors import UserError

ENGINES = ("jit", "pmap")  # of config.parallel
AXES = ("data", "fsdp")
DATA = (("data", -1),)  # the default of config.mesh


def make_mesh(batch_size: int, accumulation_steps: int = 1, axes: Sequence[tuple[str, int]] = DATA) -> Mesh:
    """A mesh over all devices of all processes, whose batches are divided over all of them.

    axes: see `mesh_of`. Raises UserError where the sizes are not those of the devices, or a batch (or a part of it,
    with accumulation) cannot be divided evenly over them.
    """
    count = jax.device_count()
    part = batch_size // accumulation_steps
    if part % count:
        raise UserError(
            f"config.batch_size {batch_size} in {accumulation_steps} part(s) does not divide over {count} devices: "
            f"choose a multiple of {count * accumulation_steps}"
        )
    return mesh_of(jax.devices(), axes)


def every_device() -> Mesh:
    """A mesh with one axis, 'data', over all devices of all processes."""
    return mesh_of(jax.devices())


def local_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with one axis, 'data', over the first local devices, all by default."""
    return mesh_of(jax.local_devices()[:num_devices])


def mesh_of(devices: Sequence[Any], axes: Sequence[tuple[str, int]] = DATA) -> Mesh:
    """A mesh over these devices, which may be those of a target that is not here; by default with one axis, 'data'.

    axes: `config.mesh`, names and sizes, of which one may be -1: what is left.
    Raises UserError where the sizes are not those of the devices.
    """
    sizes, count = dict(axes), len(devices)
    if len(sizes) < len(axes) or list(sizes.values()).count(-1) > 1 or 0 in sizes.values():
        raise UserError(f"config.mesh is {tuple(axes)!r}: allowed is each axis once, and one -1: what is left")
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: count // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != count:
        raise UserError(
            f"config.mesh is {tuple(axes)!r}, and there are {count} devices: choose sizes that multiply to it"
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices, axis_types=(AxisType.Auto,) * len(sizes))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The axis of the examples divided over the devices: the second one in batches of several steps."""
    every = mesh.axis_names if len(mesh.axis_names) > 1 else mesh.axis_names[0]
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, every))


def by_largest_axis(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The largest axis that the axis 'fsdp' of the mesh divides is divided over it; whole where there is none."""
    count = mesh.shape.get("fsdp", 1)
    able = [number for number, size in enumerate(shape) if size and size % count == 0]
    if count == 1 or not able:
        return replicated(mesh)
    largest = max(able, key=lambda number: (shape[number], number))
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))


def place(tree: Any, sharding: Any) -> Any:
    """Arrays that every process has, on the devices of the mesh: each process brings what its own devices hold.

    tree: of NumPy arrays, of arrays on a device of this process, or on all; sharding: one for all, or a tree of them.
    """
    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda leaf: _place(leaf, sharding), tree)
    return jax.tree.map(_place, tree, sharding)


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def own_copy(array: jax.Array) -> jax.Array:
    """An array that is whole on every device, as one of a single device of this process."""
    return array if array.is_fully_addressable else array.addressable_data(0)


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that devices of this process hold, ascending: int64."""
    spans = by_example(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[span] for span in spans]))


def divide(batches: Any, mesh: Mesh, engine: str, axis: int = 0) -> Any:
    """Batches from the host with their examples, along `axis`, divided over the devices as the engine takes them.

    batches: a tree of NumPy arrays, of the examples of `own_rows`; engine: 'jit' places them, 'pmap' gets a new axis of
    devices before `axis`.
    """
    if engine == "pmap":
        return jax.tree.map(partial(_by_device, mesh=mesh, axis=axis), batches)
    sharding = by_example(mesh, axis)
    if not mesh.is_multi_process:
        return jax.device_put(batches, sharding)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batches)


def divided_shapes(batches: Any, mesh: Mesh, engine: str, axis: int = 0) -> Any:
    """The shapes that `divide` gives. batches: a tree of `jax.ShapeDtypeStruct`."""
    if engine == "pmap":
        return jax.eval_shape(lambda tree: jax.tree.map(partial(_by_device, mesh=mesh, axis=axis), tree), batches)
    return batches


def _by_device(array: Any, mesh: Mesh, axis: int) -> Any:
    return array.reshape(*array.shape[:axis], mesh.size, -1, *array.shape[axis + 1 :])
