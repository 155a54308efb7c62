"""A sweep over the settings of heads on one frozen prefix: its values from the command line, its table."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import console, files
from covidjax.config.checks import check_value
from covidjax.errors import UserError
from covidjax.metrics import classification
from covidjax.runs import record
from covidjax.runs.heads import Head, Heads, train_heads

SHOWN = 10
COLUMNS = (
    "learning_rate",
    "weight_decay",
    "class_weights",
    "seed",
    "epoch",
    "val loss",
    "val accuracy (95 % interval)",
)


def run(config: ConfigDict, values: Mapping[str, str], workdir: Path) -> None:
    """Trains a head for every combination of values, writes sweep.csv and sweep.json, prints the best.

    values: the text of the flags learning_rates, weight_decays, class_weights and seeds; '' stands for the config's.
    Raises UserError for values that the config may not have, and what `train_heads` raises.
    """
    rate = config.optimizer.learning_rate
    asked: dict[str, Any] = {
        "learning_rates": _numbers("learning_rates", values, "optimizer.learning_rate", 1e-3)
        or [float(rate[1]) if isinstance(rate, tuple | list) else float(rate)],
        "weight_decays": _numbers("weight_decays", values, "optimizer.weight_decay", 0.0)
        or [config.optimizer.weight_decay],
        "class_weights": _names("class_weights", values, ("none", "balanced")) or [config.loss.class_weights],
        "seeds": _numbers("seeds", values, "seed", 0) or [config.seed],
    }
    with record.locked(workdir):
        found = train_heads(config, **asked, show=lambda line: print(line, flush=True))
        by_loss = config.checkpoint.best == "loss"
        heads = sorted(
            found.heads, key=lambda head: (not math.isfinite(head.loss), head.loss if by_loss else -head.accuracy)
        )
        rows = [_row(head, found.num_val) for head in heads]
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
    _print(config, found, rows)


def _numbers(name: str, given: Mapping[str, str], key: str, default: Any) -> list[Any]:
    """The numbers of a flag, each as the key of the config may have it."""
    text = given[name]
    try:
        values = [type(default)(part) for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(f"--{name} is {text!r}: allowed are numbers with commas between them") from error
    for value in values:
        check_value(f"--{name}", key, value)
    return _each_once(name, text, values)


def _names(name: str, given: Mapping[str, str], allowed: tuple[str, ...]) -> list[str]:
    text = given[name]
    values = [part for part in text.split(",") if part]
    if any(value not in allowed for value in values):
        raise UserError(f"--{name} is {text!r}: allowed are {' and '.join(allowed)} with a comma between them")
    return _each_once(name, text, values)


def _each_once(name: str, text: str, values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise UserError(f"--{name} is {text!r}: every value once")
    return values


def _row(head: Head, num_val: int) -> dict[str, Any]:
    """A row of the table; figures of a loss that is not finite are None."""
    low, high = classification.wilson_interval(round(head.accuracy * num_val), num_val)
    best = {
        "best_epoch": head.best_epoch,
        "val_loss": head.loss,
        "val_accuracy": head.accuracy,
        "val_accuracy_ci95_low": low,
        "val_accuracy_ci95_high": high,
    }
    last = {"last_val_loss": head.last_loss, "last_val_accuracy": head.last_accuracy}
    return {
        **dataclasses.asdict(head.settings),
        **(best if math.isfinite(head.loss) else dict.fromkeys(best)),
        **(last if math.isfinite(head.last_loss) else dict.fromkeys(last)),
    }


def _print(config: ConfigDict, result: Heads, rows: list[dict[str, Any]]) -> None:
    print(*result.notes, sep="\n")
    found = [row for row in rows if row["val_loss"] is not None]
    diverged = f" ({len(rows) - len(found)} of them diverged)" if len(found) < len(rows) else ""
    print(
        f"{len(rows)} heads{diverged} in {result.compile_seconds:.1f} s of compilation and {result.train_seconds:.1f} "
        f"s of training; the best {min(SHOWN, len(found))} by validation {config.checkpoint.best}:"
    )
    lines = [
        (
            f"{row['learning_rate']:.4g}",
            f"{row['weight_decay']:.4g}",
            str(row["class_weights"]),
            str(row["seed"]),
            str(row["best_epoch"]),
            f"{row['val_loss']:.4f}",
            f"{row['val_accuracy']:.3f} ({row['val_accuracy_ci95_low']:.3f} to {row['val_accuracy_ci95_high']:.3f})",
        )
        for row in found[:SHOWN]
    ]
    print(console.format_table((COLUMNS, *lines), "<" * len(COLUMNS)))
    if found:
        print(
            "the best of many on one validation split is flattered; a run of its own, for a checkpoint and a report:\n"
            f"python launch/train.py ... {' '.join(_flags(config, found[0]))}"
        )


def _flags(config: ConfigDict, row: dict[str, Any]) -> list[str]:
    """The flags of the run of its own that a row stands for."""
    rate = config.optimizer.learning_rate
    if isinstance(rate, tuple | list):  # the first stage keeps its part of the last one's rate
        row = {**row, "learning_rate": (row["learning_rate"] * rate[0] / rate[1], row["learning_rate"])}
    keys = {
        "optimizer.learning_rate": "learning_rate",
        "optimizer.weight_decay": "weight_decay",
        "loss.class_weights": "class_weights",
        "seed": "seed",
    }
    return [shlex.quote(f"--config.{key}={row[name]}") for key, name in keys.items()]
