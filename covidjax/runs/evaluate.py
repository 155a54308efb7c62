"""Evaluation of a finished run on a split, with the record of every reading of the test split."""

from pathlib import Path
from typing import Any

from covidjax import config as configs
from covidjax import files, models
from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.evaluate.split import evaluate_split
from covidjax.report import run as report
from covidjax.runs import evaluate_ensemble, record
from covidjax.weights.workdir import Which, load_trained


def evaluate_run(workdir: Path, split: str, which: Which, *, hausdorff: bool = False) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on a split; writes predictions, evaluation, run.json and the report anew.

    Of an ensemble the mixture and each member. hausdorff: whether the distances between the borders of predicted and
    true masks are measured.
    A reading of the test split is recorded in run.json before it happens. Returns what evaluation_<split>.json holds.
    Raises UserError where there is no such run or checkpoint, before the split is read, and where the images are not
    those that the run recorded.
    """
    config = configs.from_json(files.read_json(workdir / "config.json"))
    task = models.task(config.model.name)
    if hausdorff and task == "classification":
        raise UserError(f"--hausdorff measures masks, and {config.model.name} labels whole images: leave it out")
    if config.model.name == models.ENSEMBLE:
        return evaluate_ensemble.evaluate_ensemble(workdir, split, which)
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
