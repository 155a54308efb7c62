"""The records that a run left in its workdir, read back."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from covidjax import files, tasks
from covidjax.checkpoint import journal
from covidjax.errors import UserError
from covidjax.report.formats import is_number

FIRST_SPLITS = ("test", "val")


@dataclasses.dataclass(frozen=True)
class Run:
    """The records of one run; what it has not written (yet) is empty.

    metrics: lines of metrics.jsonl in epoch order, the last one written of each split, or 'step' of single steps, and
        epoch (a resumed run writes an epoch twice), where an epoch that is no int is a place within one
    unreadable_lines: how many lines were left out because they were cut or had no epoch
    evaluations: by split, test and val first
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    unreadable_lines: int
    run: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]


class PhaseSpan(NamedTuple):
    """The finished epochs of one phase, both ends included, and what it froze."""

    number: int
    strategy: str
    first_epoch: float
    last_epoch: float


def read(workdir: Path) -> Run:
    """Reads the records of a run. Raises UserError where there is no config.json, or a record is no JSON object."""
    found = {path.stem.removeprefix("evaluation_") for path in workdir.glob("evaluation_*.json")}
    splits = [split for split in FIRST_SPLITS if split in found] + sorted(found.difference(FIRST_SPLITS))
    metrics, unreadable_lines = _read_metrics(workdir / "metrics.jsonl")
    return Run(
        folder=workdir,
        name=workdir.resolve().name,
        config=_read_object(workdir / "config.json"),
        metrics=metrics,
        unreadable_lines=unreadable_lines,
        run=journal.read(workdir),
        evaluations={split: _read_object(workdir / f"evaluation_{split}.json") for split in splits},
    )


def values(run: Run, split: str, key: str) -> tuple[list[float], list[float]]:
    """The epochs of a split whose line has `key`, and the values there; what is no number is NaN."""
    lines = [line for line in run.metrics if line["split"] == split and key in line]
    return [line["epoch"] for line in lines], [_number(line[key]) for line in lines]


def best_epoch(run: Run) -> int | None:
    """The epoch of the checkpoint that was evaluated as the best, else the one with the best validation figure.

    That figure is `config.checkpoint.best`. None before the first validation.
    """
    val = [line for line in run.metrics if line["split"] == "val" and isinstance(line["epoch"], int)]
    for split in ("val", "test"):
        checkpoint = run.evaluations.get(split, {}).get("checkpoint", {})
        if checkpoint.get("which") == "best":
            for line in val:
                if line.get("step") == checkpoint.get("step"):
                    return line["epoch"]
    key = run.config.get("checkpoint", {}).get("best", "loss")
    names = (run.config.get(section, {}).get("name", "") for section in ("model", "loss"))
    sign = -tasks.of(*names).best.get(key, -1)
    ranked = [(sign * _number(line.get(key)), -line["epoch"]) for line in val]  # of equal ones the last, as in training
    ranked = [pair for pair in ranked if math.isfinite(pair[0])]
    return -min(ranked)[1] if ranked else None


def strategies(run: Run) -> list[str]:
    """The freeze strategy of each phase, as text."""
    common = run.config.get("freeze", "none")
    planned = [phase.get("freeze", common) for phase in run.config.get("phases") or [{}]]
    return [value if isinstance(value, str) else ", ".join(value) for value in planned]


def most(run: Run, key: str) -> float | None:
    """A sum over the stages of the freeze table, of the phase that has most; None where no table was recorded."""
    return max((sum(row[key] for row in phase["rows"]) for phase in run.run.get("freeze", [])), default=None)


def cost_seconds(run: Run) -> float | None:
    """Of training, and of the pass that makes cached features where this run made them; None before its end."""
    train, features = (run.run.get(part, {}) for part in ("timings", "features"))
    return None if "train_seconds" not in train else train["train_seconds"] + (features.get("seconds") or 0.0)


def _read_object(path: Path) -> dict[str, Any]:
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: write it again or remove it")
    return content


def _read_metrics(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    lines, unreadable = files.read_json_lines(path)
    known = [line for line in lines if isinstance(line.get("split"), str) and is_number(line.get("epoch"))]
    last = {(line["split"], line["epoch"]): line for line in known}
    return tuple(sorted(last.values(), key=lambda line: line["epoch"])), unreadable + len(lines) - len(known)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def phase_spans(run: Run) -> list[PhaseSpan]:
    """Of every phase whose lines are there."""
    epochs: dict[int, list[float]] = {}
    for line in run.metrics:
        epochs.setdefault(line.get("phase", 0), []).append(line["epoch"])
    names = dict(enumerate(strategies(run)))
    return [PhaseSpan(phase, names.get(phase, ""), min(found), max(found)) for phase, found in sorted(epochs.items())]
