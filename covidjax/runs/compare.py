"""Runs beside each other on the same images: figures with intervals, paired tests, what each run cost.

Nothing is evaluated here: all comes from what `launch/evaluate.py` left in the workdirs.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from covidjax import console, files, tasks
from covidjax.checkpoint import journal
from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.metrics import bootstrap, comparison
from covidjax.metrics.classification import number
from covidjax.report import comparison as page
from covidjax.report import workdir as workdirs
from covidjax.report.formats import duration, gigaflops, short_count, signed
from covidjax.tasks.base import Task

METHODS = {
    "difference": "first minus second on the same images",
    "p": "two-sided, of the paired bootstrap",
    "mcnemar_p": "McNemar's exact test, two-sided, which takes images as independent",
    "holm": "corrected by Holm's method for the number of pairs, each figure for itself",
    "gigaflops_per_image": "of a training step, of the phase that has most, counted",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """One run. name: as tables call it; evaluation: of the split; judged: its answers."""

    name: str
    read: workdirs.Run
    task: Task
    evaluation: Mapping[str, Any]
    judged: comparison.Judged


def compare(folders: Sequence[Path], split: str) -> dict[str, Any]:
    """The content of the JSON file: runs, comparisons of every pair, methods. split: 'test' or 'val'.

    Raises UserError for fewer than two runs or one twice, a run that was not evaluated on the split, and runs of other
    tasks, classes or images.
    """
    runs = _read(folders, split)
    first = runs[0]
    known = all(each.read.run.get("data", {}).get(split, {}).get("patients_known") for each in runs)
    clusters = bootstrap.patient_clusters(first.judged.patients, known=known)
    judged = [each.judged for each in runs]
    comparisons = [_described(each, runs) for each in comparison.paired_figures(judged, clusters)]
    _add_mcnemar(comparisons, runs)
    return {
        "split": split,
        "num_examples": len(first.judged.names),
        "num_patients": int(clusters.max()) + 1 if known else None,
        "classes": list(first.evaluation["classes"]),
        "titles": dict(first.task.comparison.titles),
        "runs": [_row(each, split) for each in runs],
        "comparisons": comparisons,
        "methods": METHODS | {"interval": bootstrap.described(comparison.RESAMPLES, known=known)},
        "research_use_only": True,
    }


def write(path: Path, result: Mapping[str, Any]) -> Path:
    """Writes the JSON and, beside it, the page, whose path is given back."""
    if path.suffix == page.SUFFIX:
        raise UserError(f"--json={path}: that is where the page goes: give a name that ends with .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, result)
    return page.write(path.with_suffix(page.SUFFIX), result)


def describe(result: Mapping[str, Any]) -> Iterator[str]:
    """The tables for a terminal."""
    titles, patients = result["titles"], result["num_patients"]
    of = f" of {patients} patients" if patients is not None else ", patients unknown"
    yield f"{result['split']} split, {result['num_examples']} examples{of}; 95 % intervals"
    rows = [
        (
            run["name"],
            *(_with_interval(run.get(key), run.get(f"{key}_ci95")) for key in titles),
            duration(run["train_seconds"]),
            short_count(run["trained_parameters"]) if run["trained_parameters"] is not None else "-",
            gigaflops(run["flops_per_image"]),
        )
        for run in result["runs"]
    ]
    header = ("run", *titles.values(), "training", "trained", "GFLOP an image")
    yield console.format_table([header, *rows], "<" * len(header))
    yield ""
    header = ("first - second", "figure", "difference", "p", "Holm", "McNemar", "Holm")
    lines = [
        (
            f"{each['first']} - {each['second']}",
            titles.get(each["figure"], each["figure"]),
            _with_interval(each["difference"], each["difference_ci95"], sign=True),
            *(_p(each.get(key)) for key in ("p", "p_holm", "mcnemar_p", "mcnemar_p_holm")),
        )
        for each in result["comparisons"]
    ]
    yield console.format_table([header, *lines], "<" * len(header))
    yield from (f"{run['name']}: {note}" for run in result["runs"] for note in run["notes"])


def _read(folders: Sequence[Path], split: str) -> list[Compared]:
    if len(folders) < 2:
        raise UserError("one run alone is not compared: give two workdirs or more")
    places = [folder.resolve() for folder in folders]
    if twice := [str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"{twice[0]} is there twice: give each workdir once")
    short = collections.Counter(place.name for place in places)
    runs: list[Compared] = []
    for folder, place in zip(folders, places, strict=True):
        read = workdirs.read(folder)
        if split not in read.evaluations:
            raise UserError(
                f"{folder} was not evaluated on the {split} split: run launch/evaluate.py --workdir={folder} "
                f"--split={split} first"
            )
        evaluation = read.evaluations[split]
        task = tasks.of(*(read.config.get(section, {}).get("name", "") for section in ("model", "loss")))
        name = files.printable(place.name if short[place.name] == 1 else str(folder))
        one = Compared(name, read, task, evaluation, task.judged(evaluation, folder))
        if runs:
            _check_same(runs[0], one, split)
        runs.append(one)
    return runs


def _check_same(first: Compared, other: Compared, split: str) -> None:
    """Raises UserError where two runs were not asked the same."""
    if other.task is not first.task:
        raise UserError(f"{other.name} {other.task.words} and {first.name} {first.task.words}: compare runs of a kind")
    if other.evaluation["classes"] != first.evaluation["classes"]:
        lists = [", ".join(each.evaluation["classes"]) for each in (other, first)]
        raise UserError(
            f"{other.name} has the classes {lists[0]}, {first.name} has {lists[1]}: compare runs of the same"
        )
    if _asked(other) != _asked(first):
        raise UserError(
            f"the {split} examples of {other.name} are not those of {first.name}: compare runs on the same data set, "
            "split in the same way"
        )


def _asked(run: Compared) -> tuple[Any, ...]:
    """What is equal where the examples are, whatever their size in pixels; phantoms differ in nothing but the seed."""
    dataset = run.read.config["dataset"]
    return dataset.get("seed") if dataset.get("name") in sources.DRAWN else None, *dataclasses.astuple(run.judged)[:3]


def _row(run: Compared, split: str) -> dict[str, Any]:
    """A run in the JSON: figures with their intervals, costs (None where unrecorded), what has to be known of it."""
    titles, read, evaluation = run.task.comparison.titles, run.read, run.evaluation
    phases, batch = read.run.get("freeze", []), read.config.get("batch_size")
    flops = max((phase["step_flops"] for phase in phases), default=None)
    reads = len(read.run.get(journal.READINGS, []))
    notes = [*evaluation.get("notes", ()), *(evaluation[key] for key in ("leak", "optimistic") if key in evaluation)]
    if split == "test" and reads > 1:
        notes.append(f"its test split was read {reads} times")
    return {
        "name": run.name,
        "workdir": files.printable(str(read.folder)),
        "model": read.config.get("model", {}).get("name"),
        "freeze": ", then ".join(workdirs.strategies(read)),
        "seed": read.config.get("seed"),
        "step": evaluation.get("checkpoint", {}).get("step"),
        **{key: evaluation.get(key) for name in titles for key in (name, f"{name}_ci95") if key in evaluation},
        "train_seconds": workdirs.cost_seconds(read),
        "device": read.run.get("device"),
        "trained_parameters": workdirs.most(read, "trainable"),
        "flops_per_image": flops / batch if flops is not None and batch else None,
        "test_reads": reads,
        "notes": notes,
    }


def _described(one: comparison.Difference, runs: Sequence[Compared]) -> dict[str, Any]:
    return {
        "first": runs[one.first].name,
        "second": runs[one.second].name,
        "figure": one.figure,
        "difference": number(one.value),
        "difference_ci95": None if math.isnan(one.low) else [one.low, one.high],
        "p": number(one.p),
        "p_holm": number(one.p_holm),
    }


def _add_mcnemar(comparisons: Sequence[dict[str, Any]], runs: Sequence[Compared]) -> None:
    """Adds to the comparisons of accuracy what each pair alone has right, and McNemar's test."""
    of_accuracy = [each for each in comparisons if each["figure"] == "accuracy"]
    rights = [run.judged.correct for run in runs]
    for each, (first, second) in zip(of_accuracy, itertools.combinations(rights, 2), strict=bool(of_accuracy)):
        assert first is not None and second is not None
        only_first, only_second, p = comparison.mcnemar(first, second)
        each |= {"only_first_right": only_first, "only_second_right": only_second, "mcnemar_p": p}
    for each, p in zip(of_accuracy, comparison.holm([each["mcnemar_p"] for each in of_accuracy]), strict=True):
        each["mcnemar_p_holm"] = p


def _with_interval(value: Any, bounds: Any, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    shown = signed if sign else "{:.3f}".format
    return shown(value) + (f" ({shown(bounds[0])} to {shown(bounds[1])})" if bounds else "")


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
