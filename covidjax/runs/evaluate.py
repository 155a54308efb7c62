"""Evaluation of a finished run on a split, with the record of every reading of the test split."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covidjax import config as configs
from covidjax import models, tasks
from covidjax.checkpoint.checkpoint import Which
from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.evaluate.split import evaluate_split
from covidjax.report import run as report
from covidjax.runs import ensemble, record
from covidjax.runs import explain as explanations
from covidjax.tasks.base import with_interval
from covidjax.weights.workdir import load_trained


def evaluate_run(
    workdir: Path, split: str, which: Which | None, *, hausdorff: bool = False, explain: bool = False
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on a split; writes predictions, evaluation, run.json and the report anew.

    which: None is the checkpoint that `config.checkpoint.evaluate` names. Of an ensemble the mixture and each member.
    hausdorff: whether the distances between the borders of predicted and true masks are measured.
    explain: whether the page shows where a classifier looks.
    A reading of the test split is recorded in run.json before it happens. Returns what evaluation_<split>.json holds.
    Raises UserError where there is no such run or checkpoint, before the split is read, and where the images are not
    those that the run recorded.
    """
    config = configs.of_workdir(workdir)
    task = tasks.of(config.model.name, config.loss.name)
    if hausdorff and "hausdorff" not in task.offers:
        raise UserError(f"--hausdorff measures masks, and {config.model.name} {task.words}: leave it out")
    if explain and ("explain" not in task.offers or config.model.name == models.ENSEMBLE):
        raise UserError(f"--explain is of one classifier, and {config.model.name} is none: leave it out")
    if config.model.name == models.ENSEMBLE:
        return ensemble.evaluate(workdir, split, which)
    trained = load_trained(workdir, which)  # where this fails the test split is not touched
    record.begin_reading(workdir, split)
    recorded = record.split_of(workdir)
    examples = sources.load(config.dataset, split, masks=task.masks, recorded=recorded)
    record.end_reading(workdir, examples, task)
    copies = sources.copies_elsewhere(config.dataset, examples, recorded)
    examples = dataclasses.replace(examples, notes=(*examples.notes, *copies))
    result = evaluate_split(workdir, trained, examples, hausdorff=hausdorff)
    if explain:
        explanations.write_maps(workdir, trained, examples, result["checkpoint"])
    shown = {split: examples}
    if split != "val" and (workdir / "predictions_val.csv").exists():
        shown["val"] = sources.load(config.dataset, "val", masks=task.masks, recorded=recorded)
    report.write(workdir, shown)
    return result


def describe(workdir: Path, split: str, result: dict[str, Any]) -> Iterator[str]:
    """The lines that tell what `evaluate_run` gave: of labels or of masks, and of a mixture also of its members."""
    origin = f"checkpoint of step {result['checkpoint']['step']}" if "checkpoint" in result else "mixture of networks"
    yield f"{split}: {result['num_examples']} examples, {origin}"
    yield from result.get("notes", ())
    config = configs.of_workdir(workdir)
    yield from tasks.of(config.model.name, config.loss.name).summary(result)
    for member, paired in zip(result.get("members", ()), result.get("comparison", ()), strict=True):
        yield f"  {member['name']}, weight {member['weight']:.3f}: accuracy {with_interval(member, 'accuracy')}"
        difference = with_interval(paired, "difference")
        yield f"    mixture - {member['name']}: {difference}, McNemar's exact p {paired['mcnemar_p']:.2g}"
    for brand in ("leak", "optimistic"):
        if brand in result:
            yield f"{brand}: {result[brand]}"
    yield f"report: {workdir / 'report.html'}"
