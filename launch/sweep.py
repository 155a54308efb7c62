"""Trains many heads on the cached features of one frozen prefix in one program, and reports a table.

python launch/sweep.py --config=configs/X.py --workdir=DIR --learning_rates=1e-4,1e-3 [--weight_decays=0,0.05]
    [--class_weights=none,balanced] [--seeds=0,1,2] [--config.key=value ...]
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from covidjax import command, files, metrics
from covidjax import config as configs
from covidjax.errors import UserError
from covidjax.train import record
from covidjax.train.sweep import Outcome, Sweep, sweep

SHOWN = 10


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, trains the heads, writes sweep.csv and sweep.json, prints the best."""
    parser = command.Parser(prog="launch/sweep.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the results, made if missing")
    parser.add_argument("--learning_rates", default="", help="such as 1e-4,1e-3; default: that of the config")
    parser.add_argument("--weight_decays", default="", help="such as 0,0.05; default: that of the config")
    parser.add_argument("--class_weights", default="", help="none, balanced or both; default: that of the config")
    parser.add_argument("--seeds", default="", help="such as 0,1,2; default: that of the config")
    flags, config = command.parse_with_config(parser, arguments)
    command.prepare_process(config.precision)
    rate = config.optimizer.learning_rate
    asked: dict[str, Any] = {
        "learning_rates": _numbers("learning_rates", flags.learning_rates, float)
        or [rate if isinstance(rate, float) else rate[1]],
        "weight_decays": _numbers("weight_decays", flags.weight_decays, float) or [config.optimizer.weight_decay],
        "class_weights": flags.class_weights.split(",") if flags.class_weights else [config.loss.class_weights],
        "seeds": _numbers("seeds", flags.seeds, int) or [config.seed],
    }
    if any(not rate > 0 for rate in asked["learning_rates"]) or any(d < 0 for d in asked["weight_decays"]):
        raise UserError("--learning_rates must be above 0 and --weight_decays at least 0")
    with record.locked(flags.workdir):
        result = sweep(config, **asked, show=lambda line: print(line, flush=True))
        metric = config.checkpoint.best
        outcomes = sorted(result.outcomes, key=lambda o: o.loss if metric == "loss" else -o.accuracy)
        num_val = result.num_val
        rows = [_row(outcome, num_val) for outcome in outcomes]
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(flags.workdir / "sweep.csv", text.getvalue())
        files.write_json(
            flags.workdir / "sweep.json", {"config": configs.to_json(config), **_account(result), "heads": rows}
        )
    _print(result, rows, metric)


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(f"--{name} is {text!r}: allowed are numbers with commas between them") from error
    if len(set(values)) != len(values):
        raise UserError(f"--{name} is {text!r}: every value once")
    return values


def _row(outcome: Outcome, num_val: int) -> dict[str, Any]:
    low, high = metrics.wilson_interval(round(outcome.accuracy * num_val), num_val)
    return {
        **dataclasses.asdict(outcome.setting),
        "best_epoch": outcome.best_epoch,
        "val_loss": outcome.loss,
        "val_accuracy": outcome.accuracy,
        "val_accuracy_ci95_low": low,
        "val_accuracy_ci95_high": high,
        "last_val_loss": outcome.last_loss,
        "last_val_accuracy": outcome.last_accuracy,
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


def _print(result: Sweep, rows: list[dict[str, Any]], metric: str) -> None:
    print(*result.notes, sep="\n")
    print(
        f"{len(rows)} heads in {result.compile_seconds:.1f} s of compilation and {result.train_seconds:.1f} s of "
        f"training; the best {min(SHOWN, len(rows))} by validation {metric}:"
    )
    print("learning_rate  weight_decay  class_weights  seed  epoch  val loss  val accuracy (95 % interval)")
    for row in rows[:SHOWN]:
        print(
            f"{row['learning_rate']:<13.4g}  {row['weight_decay']:<12.4g}  {row['class_weights']!s:<13}  "
            f"{row['seed']:<4}  {row['best_epoch']:<5}  {row['val_loss']:<8.4f}  {row['val_accuracy']:.3f} "
            f"({row['val_accuracy_ci95_low']:.3f} to {row['val_accuracy_ci95_high']:.3f})"
        )
    best = rows[0]
    print(
        "the best of many on one validation split is flattered; a run of its own, for a checkpoint and a report:\n"
        f"python launch/train.py ... --config.optimizer.learning_rate={best['learning_rate']:g} "
        f"--config.optimizer.weight_decay={best['weight_decay']:g} --config.loss.class_weights={best['class_weights']} "
        f"--config.seed={best['seed']}"
    )


if __name__ == "__main__":
    command.run(main)
