"""Exact evaluation: every example counted once, whatever the batch size and the number of devices."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jax.sharding import AxisType, Mesh

from covidjax import files, losses, metrics
from covidjax.data.examples import Examples
from covidjax.errors import UserError
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


def predict(forward: Forward, variables: Any, inputs: Any, batch_size: int, mesh: Mesh) -> np.ndarray:
    """Logits of all examples. inputs: what `forward` takes, of n examples -> [n, classes] float32 or float64."""
    parts = []
    for batch, count in _padded(inputs, _divisible(batch_size, mesh)):
        logits = forward(variables, jax.device_put(batch, by_example(mesh)))
        parts.append(np.asarray(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))[:count])
    return np.concatenate(parts)


def measure(
    forward: Forward, variables: Any, inputs: Any, labels: np.ndarray, batch_size: int, mesh: Mesh, loss: str
) -> dict[str, float]:
    """Mean loss, without class weights or label smoothing, and accuracy: {'loss', 'accuracy'}.

    inputs: what `forward` takes, of n examples; labels: [n] int32.
    """
    total = EvaluationMetrics.empty()
    for (batch, batch_labels), count in _padded((inputs, labels), _divisible(batch_size, mesh)):
        logits = forward(variables, jax.device_put(batch, by_example(mesh)))
        total = total.merge(_batch_metrics(logits, jax.device_put(batch_labels, by_example(mesh)), count, loss))
    return {name: float(value) for name, value in total.compute().items()}


@jax.jit(static_argnames="loss")
def _batch_metrics(logits: jax.Array, labels: jax.Array, count: jax.Array, loss: str) -> EvaluationMetrics:
    values = getattr(losses, loss)(logits, labels)
    mask = jnp.arange(len(labels)) < count
    return EvaluationMetrics.single_from_model_output(logits=logits, labels=labels, loss=values, mask=mask)


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
    workdir: Path, trained: Trained, examples: Examples, inputs: Any = None, start: str | None = None
) -> dict[str, Any]:
    """Evaluates the network of a run on a split; writes predictions_<split>.csv and evaluation_<split>.json.

    inputs, start: cached features of the split in place of its images, and the stage that takes them.
    Returns what the JSON holds. Raises UserError where the classes do not fit.
    """
    if examples.classes != trained.classes:
        raise UserError(
            f"the classes of the {examples.split} split are {', '.join(examples.classes)}; the network of {workdir} "
            f"knows {', '.join(trained.classes)}"
        )
    config, split = trained.config, examples.split
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,))
    forward = make_forward(trained.model, trained.preprocessing, mesh, start)
    inputs = examples.images if start is None else inputs
    logits = predict(forward, jax.device_put(trained.variables, replicated(mesh)), inputs, config.batch_size, mesh)
    probabilities = np.asarray(losses.probabilities(jnp.asarray(logits), config.loss.name))
    loss = float(np.mean(getattr(losses, config.loss.name)(jnp.asarray(logits), jnp.asarray(examples.labels))))
    result = metrics.classification_report(
        probabilities, examples.labels, examples.patients, examples.patients_known, examples.classes, loss, split
    )
    result["checkpoint"] = {"step": trained.step, "which": trained.which}
    path = workdir / f"predictions_{split}.csv"
    metrics.write_predictions(path, examples.names, examples.patients, examples.labels, probabilities, examples.classes)
    files.write_json(workdir / f"evaluation_{split}.json", result)
    return result
