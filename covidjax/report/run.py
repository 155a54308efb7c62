"""One self-contained page about a run: figures with intervals, errors, curves, costs, data and config."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covidjax import files, tasks
from covidjax.checkpoint import journal
from covidjax.data.examples import Examples
from covidjax.report import batch, checklist, ensemble, figures, page, workdir
from covidjax.report.formats import MISSING, duration, is_number, rate
from covidjax.report.workdir import Run
from covidjax.tasks.base import Task

SPLITS = {"test": "Test split", "val": "Validation split"}
TRAINING = {"curves": "Learning curves", "freezing": "Freezing and cost", "batch": "First batch"}
OTHERS = {"data": "Data", "configuration": "Configuration", "versions": "Versions and timings"}
SUMMED = ("parameters", "trainable", "optimizer_bytes", "forward_flops", "backward_flops")


def write(workdir_path: Path, examples: Mapping[str, Examples]) -> Path:
    """Writes `report.html` from what the workdir holds, and `checklist.html`; images only of the splits in `examples`.

    Raises UserError where the workdir has no config.json, holds a damaged record or cannot be written; an older
    report then stays as it is.
    """
    target = workdir_path / "report.html"
    with journal.locked(workdir_path):  # of two commands that end together the later one tells of both
        run = workdir.read(workdir_path)
        task = tasks.of(*(run.config.get(section, {}).get("name", "") for section in ("model", "loss")))
        files.write_text(target, _page(run, task, examples))
        files.write_text(workdir_path / checklist.NAME, checklist.page_of(run, task))
    return target


def _page(run: Run, task: Task, examples: Mapping[str, Examples]) -> str:
    mixed = ensemble.is_ensemble(run)
    others = [split for split in run.evaluations if split not in SPLITS]
    splits = SPLITS | {split: "Split train" if split == "train" else f"External test: {split}" for split in others}
    return page.render(
        "run.html",
        title=page.title(run.config),
        run=run,
        sections=splits | (ensemble.SECTION if mixed else TRAINING) | OTHERS,
        splits=splits,
        task=task,
        pages={split: task.page(found, run.folder, examples.get(split)) for split, found in run.evaluations.items()},
        data=_data(run),
        counted=f"{task.counted} of class",
        group_figures=[(title, key, "estimate") for key, title in task.comparison.titles.items() if key != "loss"],
        configuration=page.config_rows(run.config),
        versions=_versions(run),
        **(ensemble.context(run, task) if mixed else _training(run, task)),
    )


def _training(run: Run, task: Task) -> dict[str, Any]:
    """The variables of the sections on training."""
    return {
        "strategy": ", then ".join(workdir.strategies(run)),
        "pretrained": run.config.get("pretrained") or "random weights",
        "seed": run.config.get("seed", MISSING),
        "images_per_second": _images_per_second(run),
        "kept": run.config.get("checkpoint", {}).get("best", "loss"),
        "best_epoch": workdir.best_epoch(run),
        "gaps": sum(isinstance(x, float | None) and not is_number(x) for line in run.metrics for x in line.values()),
        "curves": _curves(run, task),
        "phases": _phases(run),
        "batch": batch.read_batch(run.folder),
    }


def _images_per_second(run: Run) -> float | None:
    """Of training: what was recorded, else the median over the epochs, which the first one's warm-up does not move."""
    recorded = run.run.get("timings", {}).get("images_per_second")
    if is_number(recorded):
        return float(recorded)
    rates = [each for each in workdir.values(run, "train", "images_per_second")[1] if is_number(each)]
    return statistics.median(rates) if rates else None


def _curves(run: Run, task: Task) -> list[tuple[str, str, bytes]]:
    """Title, description and plot of each figure that the metrics have."""
    spans, best = workdir.phase_spans(run), workdir.best_epoch(run)
    plots, averaged = [], bool(run.config.get("ema_decay") or run.config.get("ema_decays"))
    for key in ("loss", task.comparison.value, "learning_rate"):
        title = task.comparison.titles.get(key, "Learning rate")
        curves = {split: workdir.values(run, split, key) for split in figures.COLORS}
        curves = {split: curve for split, curve in curves.items() if curve[0]}
        log_scale = key == "learning_rate"
        if log_scale and "step" in curves:
            curves = {"step": curves["step"]}  # those of epochs are of their last steps
        if curves:
            svg = figures.learning_curve(curves, spans, best_epoch=best, log_scale=log_scale, averaged=averaged)
            plots.append((title, f"{title} against epoch", svg))
    return plots


def _phases(run: Run) -> list[dict[str, Any]]:
    """What run.json has of each phase: its freeze table with the total, and the memory of its program."""
    found = []
    for number, phase in enumerate(run.run.get("freeze", [])):
        rows, strategy = phase.get("rows", []), phase.get("strategy", MISSING)
        sums = {key: sum(row[key] for row in rows if is_number(row.get(key))) for key in SUMMED}
        found.append(
            {
                "strategy": strategy if isinstance(strategy, str) else ", ".join(strategy),
                "rows": rows,
                "total": {"stage": "all stages", "batch_norm": "", "learning_rates": [], **sums},
                "summary": phase.get("summary"),
                "features": phase.get("features", {}).get("note"),
                "memory": run.run.get("memory", {}).get(str(number)),
            }
        )
    return found


def _data(run: Run) -> dict[str, Any]:
    """The splits, the counts of their classes, and notes."""
    data: Mapping[str, Mapping[str, Any]] = run.run.get("data", {})
    rows = []
    for name, split in data.items():
        known = bool(split.get("patients_known"))
        patients = {"num_patients": split.get("num_patients")} if known else {"num_patients": "unknown"}
        by = "patient" if known else "image (no patient ids)"
        rows.append({**split, **patients, "name": name, "by": by, "fingerprint": split.get("fingerprint", "")[:12]})
    counts: dict[str, dict[str, Any]] = {}
    for name, split in data.items():
        for of_class, count in split.get("classes", {}).items():
            counts.setdefault(of_class, {"class": of_class, **dict.fromkeys(data, 0)})[name] = count
    placements = [split["note"] for split in data.values() if split.get("note")]
    evaluations = [note for evaluation in run.evaluations.values() for note in evaluation.get("notes", [])]
    return {
        "rows": rows,
        "counts": list(counts.values()),
        "count_columns": [(name, name, "integer") for name in data],
        "reads": run.run.get("test_reads", []),
        "notes": dict.fromkeys([*placements, *run.run.get("notes", []), *evaluations]),
    }


def _versions(run: Run) -> dict[str, list[dict[str, str]]]:
    """Of the packages, and of the run what it ran on and how long that took."""
    facts = {key: str(run.run[key]) for key in ("device", "platform", "num_devices", "git_revision") if key in run.run}
    timings = dict(run.run.get("timings", {}))
    wall = timings.pop("wall", {}).items()
    for key, value in timings.items():
        facts[key.removesuffix("_seconds")] = duration(value) if key.endswith("_seconds") else rate(value)
    packages = sorted(run.run.get("versions", {}).items())
    tables = {"Package": packages, "Run": [(key.replace("_", " "), value) for key, value in facts.items()]}
    tables["Wall time since the last start"] = [(part, duration(value)) for part, value in wall]
    return {title: [{"name": name, "value": value} for name, value in rows] for title, rows in tables.items() if rows}
