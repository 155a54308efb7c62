"""The only maker of meshes and shardings: one named mesh over the local devices."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from covidjax.errors import UserError

ENGINES = ("jit", "pmap")  # of config.parallel


def make_mesh(batch_size: int, accumulation_steps: int = 1) -> Mesh:
    """A mesh with one axis, 'data', over all local devices.

    Raises UserError where a batch (or a part of it, with accumulation) cannot be divided evenly over them.
    """
    count = jax.local_device_count()
    part = batch_size // accumulation_steps
    if part % count:
        raise UserError(
            f"config.batch_size {batch_size} in {accumulation_steps} part(s) does not divide over {count} devices: "
            f"choose a multiple of {count * accumulation_steps}"
        )
    return local_mesh()


def local_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with one axis, 'data', over the first local devices, all by default."""
    return mesh_of(jax.local_devices()[:num_devices])


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """A mesh with one axis, 'data', over these devices, which may be those of a target that is not here."""
    return jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def by_second_axis(mesh: Mesh) -> NamedSharding:
    """The second axis divided over the devices: batches of several steps."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def divide(batches: Any, mesh: Mesh, engine: str, axis: int = 0) -> Any:
    """Batches from the host with their examples, along `axis`, divided over the devices as the engine takes them.

    batches: a tree of NumPy arrays; engine: 'jit' places them, 'pmap' gets a new axis of devices before `axis`.
    """
    if engine == "pmap":
        return jax.tree.map(partial(_by_device, mesh=mesh, axis=axis), batches)
    return jax.device_put(batches, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))


def divided_shapes(batches: Any, mesh: Mesh, engine: str, axis: int = 0) -> Any:
    """The shapes that `divide` gives. batches: a tree of `jax.ShapeDtypeStruct`."""
    if engine == "pmap":
        return jax.eval_shape(lambda tree: jax.tree.map(partial(_by_device, mesh=mesh, axis=axis), tree), batches)
    return batches


def _by_device(array: Any, mesh: Mesh, axis: int) -> Any:
    return array.reshape(*array.shape[:axis], mesh.size, -1, *array.shape[axis + 1 :])
