"""A sweep over the settings of heads on one frozen prefix: its values from the command line, its table."""

import dataclasses
import math
import operator
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import console, files, tasks
from covidjax.config.checks import check_value
from covidjax.errors import UserError
from covidjax.runs import record
from covidjax.runs.heads import Head, Heads, train_heads
from covidjax.tasks.base import Task

SHOWN = 10
# Flag: the field of `HeadSettings`, the key of the config, the kind of its values, and what is allowed in words.
FLAGS: dict[str, tuple[str, str, type, str]] = {
    "learning_rates": ("learning_rate", "optimizer.learning_rate", float, "numbers with commas between them"),
    "weight_decays": ("weight_decay", "optimizer.weight_decay", float, "numbers with commas between them"),
    "class_weights": ("class_weights", "loss.class_weights", str, "none and balanced with a comma between them"),
    "seeds": ("seed", "seed", int, "numbers with commas between them"),
}


def run(config: ConfigDict, values: Mapping[str, str], workdir: Path) -> None:
    """Trains a head for every combination of values, writes sweep.csv and sweep.json, prints the best.

    values: the text of the flags learning_rates, weight_decays, class_weights and seeds; '' stands for the config's.
    Raises UserError for values that the config may not have, and what `train_heads` raises.
    """
    asked = {flag: _values(config, flag, values[flag]) for flag in FLAGS}
    task, by = tasks.of(config.model.name, config.loss.name), config.checkpoint.best
    with record.locked(workdir):
        found = train_heads(config, **asked, show=lambda line: print(line, flush=True))
        heads = sorted(
            found.heads, key=lambda head: (not math.isfinite(head.best["loss"]), -task.best[by] * head.best[by])
        )
        rows = [_row(head, task.step_figure) for head in heads]
        files.write_csv(workdir / "sweep.csv", list(rows[0]), [list(row.values()) for row in rows])
        account = {
            "config": configs.to_json(config),
            "compile_seconds": round(found.compile_seconds, 2),
            "train_seconds": round(found.train_seconds, 2),
            "num_validation_examples": found.num_val,
            "notes": list(found.notes),
            "versions": record.versions(),
            "research_use_only": True,
            "heads": rows,
        }
        files.write_json(workdir / "sweep.json", account)
    _print(config, task, found, rows)


def _values(config: ConfigDict, flag: str, text: str) -> list[Any]:
    """The values of a flag, each as its key may have it and once; of none the config's, of a pair of rates the last."""
    _, key, kind, allowed = FLAGS[flag]
    try:
        values = [kind(part) for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(f"--{flag} is {text!r}: allowed are {allowed}") from error
    if kind is str and not set(values) <= {"none", "balanced"}:
        raise UserError(f"--{flag} is {text!r}: allowed are {allowed}")
    for value in values:
        check_value(f"--{flag}", key, value)
    if len(set(values)) != len(values):
        raise UserError(f"--{flag} is {text!r}: every value once")
    own = operator.attrgetter(key)(config)
    return values or [float(own[1] if isinstance(own, tuple | list) else own) if flag == "learning_rates" else own]


def _row(head: Head, figure: str) -> dict[str, Any]:
    """A row of the table; figures of a loss that is not finite are None. figure: a share of the examples."""
    low, high = head.interval or (None, None)  # of a single patient there is none
    best: dict[str, Any] = {f"val_{name}": value for name, value in head.best.items()}
    best |= {f"val_{figure}_ci95_low": low, f"val_{figure}_ci95_high": high}
    last = {f"last_val_{name}": value for name, value in head.last.items()}
    return {
        **dataclasses.asdict(head.settings),
        "best_epoch": head.best_epoch,
        **(best if math.isfinite(head.best["loss"]) else dict.fromkeys(best)),
        **(last if math.isfinite(head.last["loss"]) else dict.fromkeys(last)),
    }


def _print(config: ConfigDict, task: Task, result: Heads, rows: list[dict[str, Any]]) -> None:
    found = [row for row in rows if row["val_loss"] is not None]
    diverged = f" ({len(rows) - len(found)} of them diverged)" if len(found) < len(rows) else ""
    print(
        *result.notes,
        f"{len(rows)} heads{diverged} in {result.compile_seconds:.1f} s of compilation and {result.train_seconds:.1f} "
        f"s of training; the best {min(SHOWN, len(found))} by validation {config.checkpoint.best}:",
        sep="\n",
    )
    figure = task.step_figure
    settings = [name for name, *_ in FLAGS.values()]
    header = (*settings, "epoch", "val loss", f"val {figure} (95 % interval)")
    lines = [
        (
            f"{row['learning_rate']:.4g}",
            f"{row['weight_decay']:.4g}",
            str(row["class_weights"]),
            str(row["seed"]),
            str(row["best_epoch"]),
            f"{row['val_loss']:.4f}",
            _with_interval(row, f"val_{figure}"),
        )
        for row in found[:SHOWN]
    ]
    print(console.format_table((header, *lines), "<" * len(header)))
    if found:
        print(
            "the best of many on one validation split is flattered; a run of its own, for a checkpoint and a report:\n"
            f"python launch/train.py ... {' '.join(_flags(config.optimizer.learning_rate, found[0]))}"
        )


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_ci95_low"], row[f"{name}_ci95_high"]
    return f"{row[name]:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


def _flags(rate: float | Sequence[float], row: dict[str, Any]) -> list[str]:
    """The flags of the run of its own that a row stands for. rate: of the config."""
    if isinstance(rate, tuple | list):  # the first stage keeps its part of the last one's rate
        row = {**row, "learning_rate": (row["learning_rate"] * rate[0] / rate[1], row["learning_rate"])}
    return [shlex.quote(f"--config.{key}={row[name]}") for name, key, *_ in FLAGS.values()]
