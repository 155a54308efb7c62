"""What the runs of a study gave, and study.csv."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from covidjax import files
from covidjax.errors import UserError
from covidjax.report import workdir
from covidjax.report.formats import is_number
from covidjax.study.plan import Study, Trial, is_finished
from covidjax.tasks.base import Comparison
from covidjax.train.effects import NO_EFFECT, WARNING


def _most(key: str) -> Callable[[workdir.Run], Any]:
    return lambda read: workdir.most(read, key)


def _recorded(section: str, key: str, default: Any = None) -> Callable[[workdir.Run], Any]:
    return lambda read: read.run.get(section, {}).get(key, default)


def _memory(*kinds: str) -> Callable[[workdir.Run], Any]:
    """Of the program that takes most."""
    return lambda read: max(
        (sum(each[kind] for kind in kinds) for each in read.run.get("memory", {}).values() if each), default=None
    )


def _predicted_share(read: workdir.Run) -> float | None:
    """FLOPs of the steps as a part of those of steps that train everything, over the epochs of all phases."""
    paid = full = before = 0.0
    for span, phase in zip(workdir.phase_spans(read), read.run.get("freeze", []), strict=False):
        epochs, before = span.last_epoch - before, span.last_epoch
        paid += epochs * phase["step_flops"]
        full += epochs * sum(row["forward_flops"] + row["full_backward_flops"] for row in phase["rows"])
    return paid / full if full else None


# Columns of study.csv, as far as a run has recorded them. cost_seconds: of training, and of the pass that makes cached
# features where this run made them; total_seconds: that and compilation; peak_bytes: what the compiled step takes in
# and its temporaries.
COSTS: dict[str, Callable[[workdir.Run], Any]] = {
    "trained_parameters": _most("trainable"),
    "total_parameters": _most("parameters"),
    "cost_seconds": workdir.cost_seconds,
    "total_seconds": lambda read: (
        (workdir.cost_seconds(read) or 0.0) + _recorded("timings", "compile_seconds", 0.0)(read)
    ),
    "predicted_share": _predicted_share,
    "train_seconds": _recorded("timings", "train_seconds"),
    "feature_seconds": _recorded("features", "seconds"),
    "passes_made": _recorded("features", "computed"),
    "passes_reused": _recorded("features", "reused"),
    "compile_seconds": _recorded("timings", "compile_seconds"),
    "peak_bytes": _memory("arguments", "temporary"),
    "temporary_bytes": _memory("temporary"),
    "optimizer_bytes": _most("optimizer_bytes"),
    "best_epoch": workdir.best_epoch,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One trial. status: 'finished', 'failed' with a message, or 'unfinished'.

    notes: its warnings, and the keys that had no effect
    figures: by column of study.csv, finite; curves: (epochs, values) on the validation split, of the value and 'loss'
    test: what evaluation_test.json holds, where the test split was evaluated; test_reads: when it was read
    """

    trial: Trial
    status: str
    message: str
    workdir: str
    device: str
    features: str
    notes: tuple[str, ...]
    figures: Mapping[str, float]
    curves: Mapping[str, tuple[list[float], list[float]]]
    test: Mapping[str, Any]
    test_reads: tuple[str, ...]


def collect(study: Study, failures: Mapping[Trial, str]) -> list[Result]:
    """What the workdirs hold, in the order in which they ran. Raises UserError where runs had different images."""
    results = [_collect(study, trial, failures.get(trial, "")) for trial in study.trials()]
    fingerprints: dict[str, dict[str, str]] = {"train": {}, "val": {}}
    for trial in study.trials():
        if is_finished(study.folder(trial)):
            for split, known in fingerprints.items():
                path = study.folder(trial) / "run.json"
                known.setdefault(files.entry(path, "data", split, "fingerprint"), trial.name)
    for split, known in fingerprints.items():
        if len(known) > 1:
            raise UserError(
                f"the {split} images of the runs {' and '.join(list(known.values())[:2])} differ: put the former ones "
                "back and remove the runs on the others, or use another --workdir"
            )
    return results


def columns(comparison: Comparison) -> tuple[str, ...]:
    """The columns of study.csv."""
    figures = [
        f"val_{key}{bound}"
        for key in comparison.recorded
        for bound in (("", "_low", "_high") if key in comparison.with_interval else ("",))
    ]
    return ("strategy", "learning_rate", "seed", "status", *COSTS, *figures, "features", "device", "workdir", "message")


def write_csv(path: Path, results: Iterable[Result], comparison: Comparison) -> None:
    """Writes study.csv: one row a run, an empty cell where a figure is unknown."""
    header = columns(comparison)
    named = [{**vars(result.trial), **vars(result), **result.figures} for result in results]
    files.write_csv(path, header, ([row.get(name, "") for name in header] for row in named))


def _collect(study: Study, trial: Trial, failure: str) -> Result:
    folder = study.folder(trial)
    read = workdir.read(folder) if (folder / "config.json").exists() else None
    done = read is not None and is_finished(folder) and not failure
    status = "failed" if failure else "finished" if done else "unfinished"
    record: Mapping[str, Any] = read.run if read else {}
    return Result(
        trial=trial,
        status=status,
        message=failure,
        workdir=str(folder.relative_to(study.workdir)),
        device=record.get("device", ""),
        features=_feature_notes(record),
        notes=tuple(note for note in record.get("notes", ()) if note.startswith((NO_EFFECT, WARNING))),
        figures=_figures(read, study.comparison) if read and done else {},
        curves={name: workdir.values(read, "val", name) for name in (study.comparison.value, "loss")} if read else {},
        test=read.evaluations.get("test", {}) if read else {},
        test_reads=tuple(record.get("test_reads", ())),
    )


def _feature_notes(record: Mapping[str, Any]) -> str:
    notes = dict.fromkeys(phase.get("features", {}).get("note", "") for phase in record.get("freeze", []))
    return "; then ".join(note.removeprefix("features: ") for note in notes if note)


def _figures(read: workdir.Run, comparison: Comparison) -> dict[str, float]:
    found = {name: cost(read) for name, cost in COSTS.items()}
    evaluation = read.evaluations.get("val", {})
    for key in comparison.recorded:
        found[f"val_{key}"] = evaluation.get(key)
        found[f"val_{key}_low"], found[f"val_{key}_high"] = evaluation.get(f"{key}_ci95") or (None, None)
    return {key: found[key] for key in columns(comparison) if is_number(found.get(key))}
