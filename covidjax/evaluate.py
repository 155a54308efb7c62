"""Exact evaluation: every example counted once, whatever the batch size and the number of devices."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jax.sharding import AxisType, Mesh

from covidjax import files, losses, metrics, models, segmentation_files, segmentation_metrics, tasks
from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.losses import LossFunction
from covidjax.models.layers import Staged
from covidjax.preprocessing import Preprocessing
from covidjax.train.parallel import by_example, replicated
from covidjax.trained import Trained

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
            inputs = preprocessing(inputs.astype(model.param_dtype))
        logits: jax.Array = model.apply(variables, inputs, start=start)  # type: ignore[assignment]
        return logits

    whole, parts = replicated(mesh), by_example(mesh)
    return jax.jit(forward, in_shardings=(whole, parts), out_shardings=parts)


def network(trained: Trained, batch_size: int, num_devices: int) -> Callable[[np.ndarray], np.ndarray]:
    """Images [n, height, width, channels] uint8 -> logits [n, ...] of at least float32, over a number of devices."""
    devices = jax.local_devices()[:num_devices]
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    forward = make_forward(trained.model, trained.preprocessing, mesh)
    variables = jax.device_put(trained.variables, replicated(mesh))
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
            "dice": float(segmentation_metrics.dice(foreground).mean()),
            "iou": float(segmentation_metrics.iou(foreground).mean()),
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
    return predicted, segmentation_metrics.overlap_counts(logits, masks), loss(logits, masks)


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


def evaluate_workdir(
    workdir: Path,
    trained: Trained,
    examples: Examples,
    inputs: Any = None,
    start: str | None = None,
    *,
    hausdorff: bool = False,
) -> dict[str, Any]:
    """Evaluates the network of a run on a split; writes predictions_<split>.csv and evaluation_<split>.json.

    Of masks also the predicted ones, see `segmentation_files`. inputs, start: cached features of the split in place of
    its images, and the stage that takes them. hausdorff: whether distances between the borders of masks are measured.
    Returns what the JSON holds. Raises UserError where the classes do not fit.
    """
    if examples.classes != trained.classes:
        raise UserError(
            f"the classes of the {examples.split} split are {', '.join(examples.classes)}; the network of {workdir} "
            f"knows {', '.join(trained.classes)}"
        )
    config, task = trained.config, models.task(trained.config.model.name)
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,))
    forward = make_forward(trained.model, trained.preprocessing, mesh, start)
    inputs = examples.images if start is None else inputs
    variables = jax.device_put(trained.variables, replicated(mesh))
    loss = tasks.plain_loss(config.loss, task)
    if task == "segmentation":
        masks = tasks.targets(examples, task)
        found = segment(forward, variables, inputs, masks, config.batch_size, mesh, loss)
        result = _write_masks(workdir, examples, found, hausdorff)
    else:
        logits = jnp.asarray(predict(forward, variables, inputs, config.batch_size, mesh))
        mean_loss = float(np.mean(loss(logits, jnp.asarray(examples.labels))))
        result = _write_labels(workdir, examples, losses.probabilities(logits, config.loss.name), mean_loss)
    result["checkpoint"] = {"step": trained.step, "which": trained.which}
    files.write_json(workdir / f"evaluation_{examples.split}.json", result)
    return result


def _write_labels(workdir: Path, examples: Examples, probabilities: jax.Array, loss: float) -> dict[str, Any]:
    """The table of predictions; returns the report."""
    table, labels, split, classes = np.asarray(probabilities), examples.labels, examples.split, examples.classes
    result = metrics.classification_report(
        table, labels, examples.patients, examples.patients_known, classes, loss, split
    )
    path = workdir / f"predictions_{split}.csv"
    metrics.write_predictions(path, examples.names, examples.patients, labels, table, classes)
    return result


def _write_masks(workdir: Path, examples: Examples, found: Segmented, hausdorff: bool) -> dict[str, Any]:
    """Predicted masks and the table of their figures; returns the report."""
    names, patients, split, loss = examples.names, examples.patients, examples.split, float(np.mean(found.losses))
    known, classes, distances = examples.patients_known, examples.classes, None
    if hausdorff:
        masks = tasks.targets(examples, "segmentation")
        distances = segmentation_metrics.hausdorff95_of(found.predicted, masks, len(classes))
    result = segmentation_metrics.report_from_counts(
        found.counts, names, patients, known, classes, loss, split, distances=distances
    )
    segmentation_files.write_masks(workdir / f"masks_{split}", names, found.predicted)
    segmentation_files.write_predictions(workdir / f"predictions_{split}.csv", result["per_image"])
    return result
