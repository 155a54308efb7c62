"""Evaluation of a finished run on a split or on another set of images, with the record of every reading."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from covidjax import config as configs
from covidjax import models, tasks
from covidjax.checkpoint.checkpoint import Which
from covidjax.command import prepare_process
from covidjax.data import external, sources
from covidjax.data.examples import Examples
from covidjax.data.table import column_of
from covidjax.errors import UserError, some_of
from covidjax.evaluate.split import chosen_by_validation, evaluate_split
from covidjax.evaluate.views import views_of
from covidjax.metrics import subgroups
from covidjax.process import path_of
from covidjax.report import run as report
from covidjax.runs import ensemble, record
from covidjax.runs import explain as explanations
from covidjax.tasks.base import with_interval
from covidjax.weights.workdir import Trained, load_trained


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What an evaluation does beside its figures.

    hausdorff: the distances between the borders of predicted and true masks; explain: where a classifier looks, on the
    page; calibrated: predictions_<split>_calibrated.csv, with the temperature that validation chose; by: columns of the
    data set's table, or of DICOM headers, each of whose values has figures of its own; views: of each image, see
    `evaluate.views.Views`.
    """

    hausdorff: bool = False
    explain: bool = False
    calibrated: bool = False
    by: tuple[str, ...] = ()
    views: int = 1


def run(
    workdir: Path,
    split: str | None,
    root: Path | None,
    name: str | None,
    classes: Mapping[str, str],
    checkpoint: Which | None,
    **wanted: Any,
) -> None:
    """Evaluates as the flags of launch/evaluate.py say, and prints what was found. wanted: of `Wanted`.

    Raises UserError as `evaluate_run` and `evaluate_external` do, and for flags that do not belong together.
    """
    prepare_process(configs.of_workdir(workdir).precision)
    if split is not None:
        if name is not None or classes:
            raise UserError("--name and --classes are of another set: give its --root and no --split")
        result = evaluate_run(workdir, split, checkpoint, Wanted(**wanted), root)
    elif root is not None:
        result = evaluate_external(workdir, root, name or root.stem, checkpoint, classes, Wanted(**wanted))
    else:
        raise UserError("give --split of the run's own data, or --root of another labelled set")
    print(*describe(workdir, result), sep="\n")


def evaluate_run(
    workdir: Path, split: str, which: Which | None, wanted: Wanted = Wanted(), root: Path | None = None
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on a split; writes predictions, evaluation, run.json and the report anew.

    which: None is the checkpoint that `config.checkpoint.evaluate` names. Of an ensemble the mixture and each member.
    root: where the run's data are now, if they have moved.
    A reading of the test split is recorded in run.json before it happens. Returns what evaluation_<split>.json holds.
    Raises UserError where there is no such run or checkpoint, before the split is read, and where the images are not
    those that the run recorded.
    """
    config = configs.of_workdir(workdir)
    if root is not None:
        with config.unlocked():
            config.dataset.root = str(root)
    if wanted.calibrated and split != "test":
        raise UserError("--calibrated is of images that neither trained nor chose the temperature: leave it out")
    if config.model.name == models.ENSEMBLE:
        if root is not None or wanted != Wanted():
            raise UserError(
                "an ensemble is evaluated on its members' data alone: give --workdir, --split and --checkpoint"
            )
        return ensemble.evaluate(workdir, split, which)
    trained = _load(workdir, which, wanted)  # where this fails the test split is not touched
    record.begin_reading(workdir, split)
    recorded = record.split_of(workdir)
    examples = sources.load(config.dataset, split, masks=trained.task.masks, recorded=recorded)
    record.end_reading(workdir, examples, trained.task)
    copies = sources.copies_elsewhere(config.dataset, examples, recorded)
    examples = dataclasses.replace(examples, notes=(*examples.notes, *copies))
    table_name = "splits.csv" if trained.task.masks else "folds.csv"
    table = path_of(config.dataset.root) / table_name if config.dataset.name == "folder" else None
    result = _evaluate(workdir, trained, examples, wanted, table)
    shown = {split: examples}
    if split != "val" and (workdir / "predictions_val.csv").exists():
        shown["val"] = sources.load(config.dataset, "val", masks=trained.task.masks, recorded=recorded)
    report.write(workdir, shown)
    return result


def evaluate_external(
    workdir: Path, root: Path, name: str, which: Which | None, renamed: Mapping[str, str], wanted: Wanted = Wanted()
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on a labelled set of other images, as `evaluate_run` does on a split.

    root, renamed: see `data.external.listed`; name: of the set, in the names of files, run.json and the report.
    Raises UserError for a name of a split, one that is no part of a file's name, and one under which the run has
    recorded other images; and as `evaluate_run` and `data.external.listed` do.
    """
    if name in sources.SPLITS or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"--name is {name!r}: allowed are letters, digits, '_', '.' and '-', and no name of a split; give one"
        )
    if not root.exists():
        raise UserError(f"--root: there is no {root}; {external.LAYOUT}")
    if configs.of_workdir(workdir).model.name == models.ENSEMBLE:
        raise UserError("--root is for one network, and this is an ensemble: give the workdir of a member")
    trained = _load(workdir, which, wanted)
    dataset, masks = trained.config.dataset, trained.task.masks
    several = "findings" in trained.task.offers
    files = external.listed(root, name, trained.classes, renamed, masks=masks, findings=several)
    examples = external.load(files, dataset)
    record.add_external(workdir, examples, trained.task, root)
    copies = sources.copies_elsewhere(dataset, examples, record.split_of(workdir), files)
    examples = dataclasses.replace(examples, notes=(*examples.notes, *copies))
    table = root if root.is_file() else root / ("splits.csv" if masks else "folds.csv")
    result = _evaluate(workdir, trained, examples, wanted, table)
    report.write(workdir, {name: examples})
    return result


def _load(workdir: Path, which: Which | None, wanted: Wanted) -> Trained:
    """The network. Raises UserError for what is wanted and cannot be had of it."""
    config = configs.of_workdir(workdir)
    task = tasks.of(config.model.name, config.loss.name)
    if wanted.hausdorff and "hausdorff" not in task.offers:
        raise UserError(f"--hausdorff measures masks, and {config.model.name} {task.words}: leave it out")
    if wanted.explain and "explain" not in task.offers:
        raise UserError(f"--explain is of one classifier, and {config.model.name} is none: leave it out")
    trained = load_trained(workdir, which)
    views_of(trained, wanted.views)
    if wanted.calibrated and chosen_by_validation(workdir, trained, wanted.views).temperature is None:
        raise UserError("--calibrated: findings have no temperature, and operating points need no flag: leave it out")
    return trained


def _evaluate(
    workdir: Path, trained: Trained, examples: Examples, wanted: Wanted, table: Path | None
) -> dict[str, Any]:
    """The figures, with all that is wanted. table: where that of the data set would be; None of one without tables."""
    by = {column: subgroups.groups_of(column, _column(examples, table, column)) for column in wanted.by}
    result = evaluate_split(
        workdir,
        trained,
        examples,
        hausdorff=wanted.hausdorff,
        calibrated=wanted.calibrated,
        by=by,
        views=views_of(trained, wanted.views),
    )
    if wanted.explain:
        explanations.write_maps(workdir, trained, examples, result["checkpoint"])
    return result


def _column(examples: Examples, table: Path | None, column: str) -> Sequence[str]:
    """The texts of a column for the examples. Raises UserError where nothing tells of it."""
    if column in examples.facts:
        return examples.facts[column]
    if table is None or not table.is_file():
        told, there = (
            some_of(examples.facts) or "nothing",
            f"there is no table {table}" if table else "there is no table",
        )
        raise UserError(f"--by={column}: {there} with that column, and DICOM headers tell {told}")
    return column_of(table, column, examples.names)


def describe(workdir: Path, result: dict[str, Any]) -> Iterator[str]:
    """The lines that tell what `evaluate_run` gave: of labels or of masks, and of a mixture also of its members."""
    origin = f"checkpoint of step {result['checkpoint']['step']}" if "checkpoint" in result else "mixture of networks"
    yield f"{result['split']}: {result['num_examples']} examples, {origin}"
    yield from result.get("notes", ())
    config = configs.of_workdir(workdir)
    yield from tasks.of(config.model.name, config.loss.name).summary(result)
    task = tasks.of(config.model.name, config.loss.name)
    for column, groups in result.get("subgroups", {}).items():
        figure = task.comparison.value
        for row in groups:
            few = ", small" if row["small"] else ""
            shown = with_interval(row, figure) if row[figure] is not None else "undefined"
            yield f"  {column} {row['group']}: {row['num_examples']} images{few}, {task.comparison.name} {shown}"
    for member, paired in zip(result.get("members", ()), result.get("comparison", ()), strict=True):
        yield f"  {member['name']}, weight {member['weight']:.3f}: accuracy {with_interval(member, 'accuracy')}"
        difference = with_interval(paired, "difference")
        yield f"    mixture - {member['name']}: {difference}, McNemar's exact p {paired['mcnemar_p']:.2g}"
    for brand in ("leak", "optimistic"):
        if brand in result:
            yield f"{brand}: {result[brand]}"
    yield f"report: {workdir / 'report.html'}"
