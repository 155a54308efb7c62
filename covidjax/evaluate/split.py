"""The evaluation of a trained network on a split, and the files that it leaves in the workdir."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covidjax import files, losses, models, tasks
from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.evaluate.network import Segmented, make_forward, predict, segment
from covidjax.mesh import local_mesh, replicated
from covidjax.metrics import classification, mask_files, segmentation
from covidjax.weights.workdir import Trained


def evaluate_split(
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
    mesh = local_mesh()
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
    result = classification.classification_report(
        table, labels, examples.patients, examples.patients_known, classes, loss, split
    )
    path = workdir / f"predictions_{split}.csv"
    classification.write_predictions(path, examples.names, examples.patients, labels, table, classes)
    return result


def _write_masks(workdir: Path, examples: Examples, found: Segmented, hausdorff: bool) -> dict[str, Any]:
    """Predicted masks and the table of their figures; returns the report."""
    names, patients, split, loss = examples.names, examples.patients, examples.split, float(np.mean(found.losses))
    known, classes, distances = examples.patients_known, examples.classes, None
    if hausdorff:
        masks = tasks.targets(examples, "segmentation")
        distances = segmentation.hausdorff95_of(found.predicted, masks, len(classes))
    result = segmentation.report_from_counts(
        found.counts, names, patients, known, classes, loss, split, distances=distances
    )
    mask_files.write_masks(workdir / f"masks_{split}", names, found.predicted)
    mask_files.write_predictions(workdir / f"predictions_{split}.csv", result["per_image"])
    return result
