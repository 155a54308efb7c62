"""The evaluation of a trained network on a split, and the files that it leaves in the workdir."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from covidjax import config as configs
from covidjax import files
from covidjax.data.examples import Examples
from covidjax.errors import UserError, some_of
from covidjax.evaluate.network import answers, inference, make_forward
from covidjax.evaluate.views import Views, price, told
from covidjax.mesh import every_device, place, replicated
from covidjax.metrics import bootstrap, subgroups
from covidjax.metrics.validated import Chosen
from covidjax.weights.workdir import Trained


def evaluate_split(
    workdir: Path,
    trained: Trained,
    examples: Examples,
    inputs: Any = None,
    start: str | None = None,
    *,
    hausdorff: bool = False,
    calibrated: bool = False,
    by: Mapping[str, Sequence[str]] | None = None,
    views: Views | None = None,
) -> dict[str, Any]:
    """Evaluates the network of a run on a split; writes predictions_<split>.csv and evaluation_<split>.json.

    Of masks also the predicted ones, see `metrics.mask_files`. inputs, start: cached features of the split in place of
    its images, and the stage that takes them. hausdorff: whether distances between the borders of masks are measured.
    calibrated: whether a table with the temperature applied is written too, see `Task.by_validation`. by: groups of
    the examples, n each, by the column that they come from: each has figures of its own. views: over which logits are
    averaged; the result then has their number and their price.
    Of several processes, which all call this, the first one writes, and the others get {}.
    Returns what the JSON holds. Raises UserError where the classes do not fit.
    """
    if examples.classes != trained.classes:
        raise UserError(
            f"the classes of the {examples.split} split are {some_of(examples.classes)}; the network of {workdir} "
            f"knows {some_of(trained.classes)}"
        )
    config, task, mesh = trained.config, trained.task, every_device()
    forward = make_forward(trained.model, trained.preprocessing, mesh, start, views)
    inputs = examples.images if start is None else inputs
    variables = place(trained.variables, replicated(mesh))
    found = answers(forward, variables, inputs, task.targets(examples), config.batch_size, mesh)
    if jax.process_index() > 0:
        collections.deque(found, maxlen=0)  # this process computes its part, another one writes
        return {}
    result = task.evaluate(found, examples, config.loss, workdir, hausdorff=hausdorff)
    result["checkpoint"] = {"step": trained.step, "which": trained.which}
    result["notes"] = [*trained.notes, *examples.notes, *result.get("notes", ())]
    if views is not None:
        batch = np.asarray(examples.images[: config.batch_size])
        one = inference(*trained.network, len(batch), 1)
        cost = price(one, inference(*trained.network, len(batch), 1, views), batch)
        result["views"] = {"count": views.count, **cost}
        result["notes"].append(f"{examples.split}: {told(views.count, cost)}")
    if examples.split == "val" and configs.trains_on_val(config):
        result["notes"].append("val: the run trained on these images too: the figures say nothing of new ones")
    if examples.split not in ("train", "val"):
        _add_chosen(workdir, trained, examples, result, calibrated)
    if by:
        judged, clusters = task.judged(result, workdir), bootstrap.clusters_of(examples)
        result["subgroups"] = {column: subgroups.figures(judged, clusters, groups) for column, groups in by.items()}
    files.write_json(workdir / f"evaluation_{examples.split}.json", result)
    return result


def chosen_by_validation(workdir: Path, trained: Trained, num_views: int = 1) -> Chosen:
    """The temperature and the operating points of a network. Raises UserError where validation decided none.

    num_views: over which logits are averaged: those of validation were of as many.
    """
    if reason := _undecided(workdir, trained, num_views):
        flags = f"--split=val --checkpoint={trained.step}{f' --views={num_views}' * (num_views > 1)}"
        mend = f"evaluate that of step {trained.step} with launch/evaluate.py {flags}"
        raise UserError(f"--calibrated: no temperature is fitted, as {reason}: {mend}, or leave the flag out")
    return trained.task.chosen(workdir)


def _undecided(workdir: Path, trained: Trained, num_views: int) -> str:
    """Why the validation split decides nothing for a network; '' where it does."""
    path, name = workdir / "evaluation_val.json", trained.config.model.name
    if "operating_points" not in trained.task.offers:
        return f"{name} {trained.task.words}"
    if configs.trains_on_val(trained.config):
        return "the run trained on the validation images"
    if not path.exists():
        return "the validation split was not evaluated"
    of_val = files.read_json(path)
    if of_val.get("checkpoint", {}).get("step") != trained.step:
        return "the validation split was evaluated at another step"
    if (there := of_val.get("views", {}).get("count", 1)) != num_views:
        return f"the validation split was evaluated with --views={there}"
    return "" if path.with_name("predictions_val.csv").exists() else "predictions_val.csv is gone"


def _add_chosen(
    workdir: Path, trained: Trained, examples: Examples, result: dict[str, Any], calibrated: bool = False
) -> None:
    """Adds to an evaluation what the validation split chose, where it can choose, or a note on why it cannot."""
    if "operating_points" not in trained.task.offers:
        return
    if reason := _undecided(workdir, trained, result.get("views", {}).get("count", 1)):
        result["notes"].append(f"{examples.split}: nothing is chosen by validation, as {reason}")
    else:
        result |= trained.task.by_validation(workdir, examples, calibrated=calibrated)
