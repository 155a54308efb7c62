"""Exact evaluation: every example counted once, whatever the batch size and the number of devices."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jax.sharding import Mesh

from covidjax.losses import LossFunction
from covidjax.mesh import by_example, local_mesh, replicated
from covidjax.metrics import segmentation
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing

Forward = Callable[[Any, Any], jax.Array]


@flax.struct.dataclass
class EvaluationMetrics(clu_metrics.Collection):
    """Sums over batches; padded examples are masked out."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Accuracy


def make_forward(model: Staged, preprocessing: Preprocessing, mesh: Mesh, start: str | None = None) -> Forward:
    """The compiled network in inference: (variables, images [batch, height, width, channels] uint8) -> logits.

    start: the stage that takes cached features in place of images.
    """

    def forward(variables: Any, inputs: Any) -> jax.Array:
        if start is None:
            inputs = preprocessing(inputs.astype(model.numerics.param_dtype))
        logits: jax.Array = model.apply(variables, inputs, start=start)  # type: ignore[assignment]
        return logits

    whole, parts = replicated(mesh), by_example(mesh)
    return jax.jit(forward, in_shardings=(whole, parts), out_shardings=parts)


def inference(
    model: Staged, preprocessing: Preprocessing, variables: Any, batch_size: int, num_devices: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Images [n, height, width, channels] uint8 -> logits [n, ...] of at least float32, over a number of devices."""
    mesh = local_mesh(num_devices)
    forward = make_forward(model, preprocessing, mesh)
    variables = jax.device_put(variables, replicated(mesh))
    return lambda images: predict(forward, variables, images, batch_size, mesh)


def predict(forward: Forward, variables: Any, inputs: Any, batch_size: int, mesh: Mesh) -> np.ndarray:
    """Logits of all examples. inputs: what `forward` takes, of n examples -> [n, classes] float32 or float64."""
    parts = []
    for batch, count in _padded(inputs, _divisible(batch_size, mesh)):
        logits = forward(variables, jax.device_put(batch, by_example(mesh)))
        parts.append(np.asarray(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))[:count])
    return np.concatenate(parts)


def measure(
    forward: Forward,
    variables: Any,
    inputs: Any,
    targets: np.ndarray,
    batch_size: int,
    mesh: Mesh,
    loss: LossFunction,
) -> dict[str, float]:
    """Mean loss and accuracy: {'loss', 'accuracy'}; of masks also {'dice', 'iou'}, see `segmentation_metrics`.

    inputs: what `forward` takes, of n examples; targets: labels [n] int32 or masks [n, height, width] uint8, whose
    accuracy is that of the pixels; loss: (logits, targets) -> [batch], the same object in every call.
    """
    if targets.ndim > 1:
        found = segment(forward, variables, inputs, targets, batch_size, mesh, loss)
        shared, _, true = np.moveaxis(found.counts, -1, 0)
        foreground = found.counts[:, 1:]
        return {
            "loss": float(np.mean(found.losses)),
            "accuracy": float(shared.sum() / true.sum()),
            "dice": float(segmentation.dice(foreground).mean()),
            "iou": float(segmentation.iou(foreground).mean()),
        }
    total = EvaluationMetrics.empty()
    for (batch, labels), count in _padded((inputs, targets), _divisible(batch_size, mesh)):
        logits = forward(variables, jax.device_put(batch, by_example(mesh)))
        total = total.merge(_batch_metrics(logits, jax.device_put(labels, by_example(mesh)), count, loss))
    return {name: float(value) for name, value in total.compute().items()}


@jax.jit(static_argnames="loss")
def _batch_metrics(logits: jax.Array, labels: jax.Array, count: jax.Array, loss: LossFunction) -> EvaluationMetrics:
    mask = jnp.arange(len(labels)) < count
    return EvaluationMetrics.single_from_model_output(
        logits=logits, labels=labels, loss=loss(logits, labels), mask=mask
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Segmented:
    """What a network answers to n images, held against their masks.

    predicted: [n, height, width] uint8 class ids; counts: [n, classes, 3] int64, see
    `segmentation_metrics.overlap_counts`; losses: [n] float64.
    """

    predicted: np.ndarray
    counts: np.ndarray
    losses: np.ndarray


def segment(
    forward: Forward, variables: Any, inputs: Any, masks: np.ndarray, batch_size: int, mesh: Mesh, loss: LossFunction
) -> Segmented:
    """Predicted masks of all examples with their figures. The arguments are those of `measure`."""
    parts = []
    for (batch, batch_masks), count in _padded((inputs, masks), _divisible(batch_size, mesh)):
        logits = forward(variables, jax.device_put(batch, by_example(mesh)))
        figures = _mask_figures(logits, jax.device_put(batch_masks, by_example(mesh)), loss)
        parts.append([np.asarray(array)[:count] for array in figures])
    predicted, counts, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Segmented(predicted, counts.astype(np.int64), values.astype(np.float64))


@jax.jit(static_argnames="loss")
def _mask_figures(logits: jax.Array, masks: jax.Array, loss: LossFunction) -> tuple[jax.Array, jax.Array, jax.Array]:
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
    return predicted, segmentation.overlap_counts(logits, masks), loss(logits, masks)


def _padded(rows: Any, batch_size: int) -> Iterator[tuple[Any, int]]:
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
