"""Evaluation of a finished run on a split, with the record of every reading of the test split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covidjax import config as configs
from covidjax import models
from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.evaluate.split import evaluate_split
from covidjax.report import run as report
from covidjax.runs import ensemble, record
from covidjax.weights.workdir import Which, load_trained


def evaluate_run(workdir: Path, split: str, which: Which, *, hausdorff: bool = False) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on a split; writes predictions, evaluation, run.json and the report anew.

    Of an ensemble the mixture and each member. hausdorff: whether the distances between the borders of predicted and
    true masks are measured.
    A reading of the test split is recorded in run.json before it happens. Returns what evaluation_<split>.json holds.
    Raises UserError where there is no such run or checkpoint, before the split is read, and where the images are not
    those that the run recorded.
    """
    config = configs.of_workdir(workdir)
    task = models.task(config.model.name)
    if hausdorff and task == "classification":
        raise UserError(f"--hausdorff measures masks, and {config.model.name} labels whole images: leave it out")
    if config.model.name == models.ENSEMBLE:
        return ensemble.evaluate(workdir, split, which)
    trained = load_trained(workdir, which)  # where this fails the test split is not touched
    run = record.begin_reading(workdir, split)
    examples = sources.load(config.dataset, split, task)
    record.end_reading(workdir, run, examples, task)
    result = evaluate_split(workdir, trained, examples, hausdorff=hausdorff)
    shown = {split: examples}
    if split != "val" and (workdir / "predictions_val.csv").exists():
        shown["val"] = sources.load(config.dataset, "val", task)
    report.write(workdir, shown)
    return result


def describe(workdir: Path, split: str, result: dict[str, Any]) -> Iterator[str]:
    """The lines that tell what `evaluate_run` gave: of labels or of masks, and of a mixture also of its members."""
    origin = f"checkpoint of step {result['checkpoint']['step']}" if "checkpoint" in result else "mixture of networks"
    yield f"{split}: {result['num_examples']} examples, {origin}"
    if "dice" in result:
        yield f"Dice {_with_interval(result, 'dice')}"
        yield f"IoU {_with_interval(result, 'iou')}"
        if result.get("hausdorff95") is not None:
            yield f"Hausdorff 95: {result['hausdorff95']:.2f} pixels"
        for name, scores in result["per_class"].items():
            yield f"  {name}: Dice {_with_interval(scores, 'dice')}"
    else:
        yield f"accuracy {_with_interval(result, 'accuracy')}"
        yield f"balanced accuracy {result['balanced_accuracy']:.4f}, macro F1 {result['macro_f1']:.4f}"
    for member, paired in zip(result.get("members", ()), result.get("comparison", ()), strict=True):
        yield f"  {member['name']}, weight {member['weight']:.3f}: accuracy {_with_interval(member, 'accuracy')}"
        difference = _with_interval(paired, "difference")
        yield f"    mixture - {member['name']}: {difference}, McNemar's exact p {paired['mcnemar_p']:.2g}"
    for brand in ("leak", "optimistic"):
        if brand in result:
            yield f"{brand}: {result[brand]}"
    yield f"report: {workdir / 'report.html'}"


def _with_interval(scores: dict[str, Any], key: str) -> str:
    bounds = scores[f"{key}_ci95"]
    between = f" (95 % interval {bounds[0]:.4f} to {bounds[1]:.4f})" if bounds else ""
    return f"{scores[key]:.4f}{between}"
