"""Cross-validation: each fold trained and evaluated once, as a run of its own, and what all of them say together."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import console, files, models, tasks
from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.metrics import bootstrap, comparison
from covidjax.report import folds as page
from covidjax.runs import record
from covidjax.runs.evaluate import evaluate_run
from covidjax.runs.train import train
from covidjax.tasks.base import Task, with_interval
from covidjax.train.programs import Programs

RESAMPLES = 1000
METHODS = {
    "pooled": "all images together, each by the one network that did not learn from it",
    "mean": "of the figures of the folds, each by its own network",
    "spread": "standard deviation over the folds (n - 1). It is no standard error: the networks learnt from mostly the "
    "same images, so folds are not independent, and no interval is made of it",
    "what the intervals hold": "how patients vary, for the networks as they were trained; how training varies is what "
    "seeds tell (launch/study.py)",
    "rankings": "a pooled AUROC mixes the probabilities of different networks; its mean over the folds does not",
}


def run(config: ConfigDict, workdir: Path, allocator: str) -> Path:
    """Trains and evaluates every fold of the data set in workdir/fold<k>, and writes folds.json, folds.csv, folds.html.

    The same call again goes on where it was stopped, and repeats nothing that is finished. Each evaluation is a reading
    of that run's test split, which is the fold, and recorded there. Returns the path of the page.
    Raises UserError for data without folds, a config with a fold of its own, an ensemble, and what `train` raises.
    """
    if config.dataset.fold != -1:
        raise UserError(f"config.dataset.fold is {config.dataset.fold}, and all folds are run here: leave it out")
    if config.model.name == models.ENSEMBLE:
        raise UserError("an ensemble has the folds of its members: run them, and name one fold's members each time")
    task = tasks.of(config.model.name, config.loss.name)
    numbers = sources.folds(config.dataset, masks=task.masks)
    programs = Programs()
    with record.locked(workdir):
        for fold in numbers:
            print(f"\nfold {fold} of {', '.join(map(str, numbers))}", flush=True)
            _run_fold(_of_fold(config, fold), folder_of(workdir, fold), allocator, programs)
        return write(config, workdir, numbers)


def folder_of(workdir: Path, fold: int) -> Path:
    """The workdir of a fold's run."""
    return workdir / f"fold{fold}"


def write(config: ConfigDict, workdir: Path, numbers: Sequence[int]) -> Path:
    """Writes what evaluated folds say together, prints it, and returns the path of the page."""
    task = tasks.of(config.model.name, config.loss.name)
    folders = [folder_of(workdir, fold) for fold in numbers]
    evaluations = [files.read_json(folder / "evaluation_test.json") for folder in folders]
    known = all(files.entry(folder / "run.json", "data", "test", "patients_known") for folder in folders)
    result = summary(task, evaluations, folders, numbers, known=known)
    result["config"] = configs.to_json(config)
    files.write_json(workdir / "folds.json", result)
    _write_table(workdir / "folds.csv", folders, numbers)
    print("", *describe(result, task), sep="\n")
    return page.write(workdir / "folds.html", result)


def summary(
    task: Task,
    evaluations: Sequence[Mapping[str, Any]],
    folders: Sequence[Path],
    numbers: Sequence[int],
    *,
    known: bool,
) -> dict[str, Any]:
    """The content of folds.json but for the config. known: whether patients are, or stand for single images.

    Raises UserError where predictions and evaluation of a fold do not belong together.
    """
    each = [task.judged(evaluation, folder) for evaluation, folder in zip(evaluations, folders, strict=True)]
    pooled = task.pooled(evaluations, folders)
    if len(set(pooled.names)) < len(pooled.names):
        raise UserError(f"an image is in the test split of several folds below {folders[0].parent}: mend the folds")
    rows = [
        {"fold": fold, "num_examples": len(own.names), **figures(own, known=known)}
        for fold, own in zip(numbers, each, strict=True)
    ]
    together = figures(pooled, known=known)
    names = [name for name in together if not name.endswith("_ci95")]
    found = {}
    for name in names:
        values = [row[name] for row in rows]
        defined = [value for value in values if value is not None]
        whole = len(defined) == len(values)
        found[name] = {
            "pooled": together[name],
            "pooled_ci95": together[f"{name}_ci95"],
            "mean": float(np.mean(defined)) if whole else None,
            "spread": float(np.std(defined, ddof=1)) if whole and len(defined) > 1 else None,
        }
    return {
        "num_folds": len(rows),
        "num_examples": len(pooled.names),
        "num_patients": len(set(pooled.patients)) if known else None,
        "titles": {name: task.comparison.titles[name] for name in names},
        "figures": found,
        "folds": rows,
        "methods": METHODS | {"interval": bootstrap.described(RESAMPLES, known=known)},
        "research_use_only": True,
    }


def figures(judged: comparison.Judged, *, known: bool, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The figures of some answers and their intervals. known: whether patients are, or stand for single images."""
    return judged.with_intervals(bootstrap.patient_clusters(judged.patients, known=known), resamples=resamples)


def describe(result: Mapping[str, Any], task: Task) -> Iterator[str]:
    """The tables for a terminal."""
    titles = result["titles"]
    patients = f" of {result['num_patients']} patients" if result["num_patients"] is not None else ""
    yield f"{result['num_examples']} examples{patients} in {result['num_folds']} folds, 95 % intervals"
    rows = [
        (str(row["fold"]), str(row["num_examples"]), *(_shown(row, name) for name in titles)) for row in result["folds"]
    ]
    yield console.format_table((("fold", "examples", *titles.values()), *rows), "<" * (len(titles) + 2))
    for name, title in titles.items():
        own = result["figures"][name]
        if own["pooled"] is None:
            yield f"{title}: undefined"
            continue
        spread = f", spread {own['spread']:.4f}" if own["spread"] is not None else ""
        mean = f"; mean of the folds {own['mean']:.4f}{spread}" if own["mean"] is not None else ""
        yield f"{title}, pooled: {with_interval(own, 'pooled')}{mean}"


def _shown(row: Mapping[str, Any], name: str) -> str:
    bounds = row[f"{name}_ci95"]
    between = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else ""
    return "-" if row[name] is None else f"{row[name]:.3f}{between}"


def _of_fold(config: ConfigDict, fold: int) -> ConfigDict:
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.dataset.fold = fold
    return own


def _run_fold(config: ConfigDict, folder: Path, allocator: str, programs: Programs) -> None:
    """Trains a fold and evaluates it, each only where that is not done."""
    with record.locked(folder):
        train(config, folder, allocator, programs)
        done, val = folder / "evaluation_test.json", folder / "evaluation_val.json"
        if not done.exists() or files.entry(done, "checkpoint") != files.entry(val, "checkpoint"):
            evaluate_run(folder, "test", None)


def _write_table(path: Path, folders: Sequence[Path], numbers: Sequence[int]) -> None:
    """folds.csv: the rows of predictions_test.csv of all folds behind the number of the fold."""
    tables = []
    for folder in folders:
        with (folder / "predictions_test.csv").open(newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    header = list(dict.fromkeys(column for rows in tables for column in rows[0]))
    rows = [
        [fold, *(row.get(column, "") for column in header)]
        for fold, own in zip(numbers, tables, strict=True)
        for row in own
    ]
    files.write_csv(path, ["fold", *header], rows)
