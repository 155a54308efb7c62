"""Exact evaluation: every example counted once, whatever the batch size and the number of devices."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from covidjax.evaluate.views import Views
from covidjax.losses import at_least_float32
from covidjax.mesh import by_example, local_mesh, own_copy, place, replicated
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing

Forward = Callable[[Any, Any], jax.Array]


def make_forward(
    model: Staged, preprocessing: Preprocessing, mesh: Mesh, start: str | None = None, views: Views | None = None
) -> Forward:
    """The compiled network in inference: (variables, images [batch, height, width, channels] uint8) -> logits.

    start: the stage that takes cached features in place of images; views: of images, over which logits are averaged.
    """

    def forward(variables: Any, inputs: Any) -> jax.Array:
        def answer(images: jax.Array) -> jax.Array:
            return model.apply(variables, preprocessing(images))  # type: ignore[return-value]

        if start is not None:
            return model.apply(variables, inputs, start=start)  # type: ignore[return-value]
        images = inputs.astype(model.numerics.param_dtype)
        return answer(images) if views is None else views.mean_logits(answer, images)

    parts = by_example(mesh)
    return jax.jit(
        forward, in_shardings=(None, parts), out_shardings=replicated(mesh) if mesh.is_multi_process else parts
    )


def inference(
    model: Staged,
    preprocessing: Preprocessing,
    variables: Any,
    batch_size: int,
    num_devices: int,
    views: Views | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """Images [n, height, width, channels] uint8 -> logits [n, ...] of at least float32, over a number of devices."""
    mesh = local_mesh(num_devices)
    forward = make_forward(model, preprocessing, mesh, views=views)
    variables = jax.device_put(variables, replicated(mesh))
    return lambda images: predict(forward, variables, images, batch_size, mesh)


def predict(forward: Forward, variables: Any, inputs: Any, batch_size: int, mesh: Mesh) -> np.ndarray:
    """Logits of all examples. inputs: what `forward` takes, of n examples -> [n, classes] float32 or float64."""
    parts = []
    for batch, count in padded_batches(inputs, _divisible(batch_size, mesh)):
        logits = own_copy(forward(variables, place(batch, by_example(mesh))))
        parts.append(np.asarray(at_least_float32(logits))[:count])
    return np.concatenate(parts)


def answers(
    forward: Forward, variables: Any, inputs: Any, targets: np.ndarray, batch_size: int, mesh: Mesh
) -> Iterator[tuple[jax.Array, jax.Array, int]]:
    """Logits and targets of each batch, on the devices, and how many examples of it are real.

    Of several processes each gets all of them, on a device of its own: what is made of them is no matter of the others.

    inputs: what `forward` takes, of n examples; targets: [n, ...].
    """
    parts = by_example(mesh)
    for (batch, own), count in padded_batches((inputs, targets), _divisible(batch_size, mesh)):
        logits = own_copy(forward(variables, place(batch, parts)))
        yield logits, jax.device_put(own, logits.sharding if mesh.is_multi_process else parts), count


def padded_batches(rows: Any, batch_size: int) -> Iterator[tuple[Any, int]]:
    """Batches of one size, the last filled up with zeros, and how many examples of each are real.

    rows: a tree of arrays [n, ...].
    """
    num_examples = len(jax.tree.leaves(rows)[0])
    for start in range(0, num_examples, batch_size):
        count = min(batch_size, num_examples - start)

        def part(array: np.ndarray, start: int = start, count: int = count) -> np.ndarray:
            filling = np.zeros((batch_size - count, *array.shape[1:]), array.dtype)
            return np.concatenate([array[start : start + count], filling])

        yield jax.tree.map(part, rows), count


def _divisible(batch_size: int, mesh: Mesh) -> int:
    return -(-batch_size // mesh.size) * mesh.size
