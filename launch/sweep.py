"""Trains many heads on the cached features of one frozen prefix in one program, and reports a table.

python launch/sweep.py --config=configs/X.py --workdir=DIR --learning_rates=1e-4,1e-3 [--weight_decays=0,0.05]
    [--class_weights=none,balanced] [--seeds=0,1,2] [--config.key=value ...]
"""

import csv
import dataclasses
import io
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from covidjax import command, files
from covidjax import config as configs
from covidjax.config.checks import check_value
from covidjax.config.flags import parse_with_config
from covidjax.errors import UserError
from covidjax.metrics import classification
from covidjax.process import prepare_process
from covidjax.runs import record
from covidjax.runs.sweep import Outcome, Sweep, sweep

SHOWN = 10


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, trains the heads, writes sweep.csv and sweep.json, prints the best."""
    parser = command.Parser(prog="launch/sweep.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the results, made if missing")
    parser.add_argument("--learning_rates", default="", help="such as 1e-4,1e-3; default: that of the config")
    parser.add_argument("--weight_decays", default="", help="such as 0,0.05; default: that of the config")
    parser.add_argument("--class_weights", default="", help="none, balanced or both; default: that of the config")
    parser.add_argument("--seeds", default="", help="such as 0,1,2; default: that of the config")
    flags, config = parse_with_config(parser, arguments)
    prepare_process(config.precision)
    rate = config.optimizer.learning_rate
    asked: dict[str, Any] = {
        "learning_rates": _numbers("learning_rates", flags.learning_rates, "optimizer.learning_rate", 1e-3)
        or [float(rate[1]) if isinstance(rate, tuple | list) else float(rate)],
        "weight_decays": _numbers("weight_decays", flags.weight_decays, "optimizer.weight_decay", 0.0)
        or [config.optimizer.weight_decay],
        "class_weights": _names("class_weights", flags.class_weights, ("none", "balanced"))
        or [config.loss.class_weights],
        "seeds": _numbers("seeds", flags.seeds, "seed", 0) or [config.seed],
    }
    with record.locked(flags.workdir):
        result = sweep(config, **asked, show=lambda line: print(line, flush=True))
        metric = config.checkpoint.best
        by_loss = metric == "loss"
        outcomes = sorted(
            result.outcomes, key=lambda o: (not math.isfinite(o.loss), o.loss if by_loss else -o.accuracy)
        )
        rows = [_row(outcome, result.num_val) for outcome in outcomes]
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(flags.workdir / "sweep.csv", text.getvalue())
        files.write_json(
            flags.workdir / "sweep.json", {"config": configs.to_json(config), **_account(result), "heads": rows}
        )
    _print(config, result, rows)


def _numbers(name: str, text: str, key: str, default: Any) -> list[Any]:
    """The numbers of a flag, each as the key of the config may have it."""
    try:
        values = [type(default)(part) for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(f"--{name} is {text!r}: allowed are numbers with commas between them") from error
    for value in values:
        check_value(f"--{name}", key, value)
    return _each_once(name, text, values)


def _names(name: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    values = [part for part in text.split(",") if part]
    if any(value not in allowed for value in values):
        raise UserError(f"--{name} is {text!r}: allowed are {' and '.join(allowed)} with a comma between them")
    return _each_once(name, text, values)


def _each_once(name: str, text: str, values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise UserError(f"--{name} is {text!r}: every value once")
    return values


def _row(outcome: Outcome, num_val: int) -> dict[str, Any]:
    """A row of the table; figures of a loss that is not finite are None."""
    low, high = classification.wilson_interval(round(outcome.accuracy * num_val), num_val)
    best = {
        "best_epoch": outcome.best_epoch,
        "val_loss": outcome.loss,
        "val_accuracy": outcome.accuracy,
        "val_accuracy_ci95_low": low,
        "val_accuracy_ci95_high": high,
    }
    last = {"last_val_loss": outcome.last_loss, "last_val_accuracy": outcome.last_accuracy}
    return {
        **dataclasses.asdict(outcome.setting),
        **(best if math.isfinite(outcome.loss) else dict.fromkeys(best)),
        **(last if math.isfinite(outcome.last_loss) else dict.fromkeys(last)),
    }


def _account(result: Sweep) -> dict[str, Any]:
    return {
        "compile_seconds": round(result.compile_seconds, 2),
        "train_seconds": round(result.train_seconds, 2),
        "num_validation_examples": result.num_val,
        "notes": list(result.notes),
        "versions": record.versions(),
        "research_use_only": True,
    }


def _print(config: ConfigDict, result: Sweep, rows: list[dict[str, Any]]) -> None:
    print(*result.notes, sep="\n")
    found = [row for row in rows if row["val_loss"] is not None]
    diverged = f" ({len(rows) - len(found)} of them diverged)" if len(found) < len(rows) else ""
    print(
        f"{len(rows)} heads{diverged} in {result.compile_seconds:.1f} s of compilation and {result.train_seconds:.1f} "
        f"s of training; the best {min(SHOWN, len(found))} by validation {config.checkpoint.best}:"
    )
    print("learning_rate  weight_decay  class_weights  seed  epoch  val loss  val accuracy (95 % interval)")
    for row in found[:SHOWN]:
        print(
            f"{row['learning_rate']:<13.4g}  {row['weight_decay']:<12.4g}  {row['class_weights']!s:<13}  "
            f"{row['seed']:<4}  {row['best_epoch']:<5}  {row['val_loss']:<8.4f}  {row['val_accuracy']:.3f} "
            f"({row['val_accuracy_ci95_low']:.3f} to {row['val_accuracy_ci95_high']:.3f})"
        )
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


if __name__ == "__main__":
    command.run(main)
