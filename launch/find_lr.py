"""Finds a learning rate: the loss of each mini-batch while the rate rises from step to step, and what it suggests.

python launch/find_lr.py --config=configs/X.py[:arg] --workdir=DIR [--start=1e-7] [--end=10] [--steps=100]
    [--config.key=value ...]

Writes lr_finder.png and lr_finder.json. What is trained meanwhile is thrown away: a run in the workdir is left alone.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from covidjax import command, files
from covidjax import config as configs
from covidjax.config.flags import parse_with_config
from covidjax.console import Progress
from covidjax.process import prepare_process
from covidjax.runs import find_lr, record
from covidjax.runs.find_lr import Curve, Suggestions
from covidjax.train.setup import Job, prepare


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, sweeps, writes the curve, prints the suggestion and how to use it."""
    parser = command.Parser(prog="launch/find_lr.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the results, made if missing")
    parser.add_argument("--start", type=float, default=1e-7, help="the lowest rate (default 1e-7)")
    parser.add_argument("--end", type=float, default=10.0, help="the highest rate (default 10)")
    parser.add_argument("--steps", type=int, default=100, help="mini-batches from the one to the other (default 100)")
    flags, config = parse_with_config(parser, arguments)
    rates = find_lr.rates(flags.start, flags.end, flags.steps)
    prepare_process(config.precision)
    with record.locked(flags.workdir):
        job = prepare(config)
        notes = (*job.notes, job.caching[0].note, *_of_phases(job))
        print(*notes, sep="\n", flush=True)
        progress = Progress("learning rates", flags.steps)
        curve = find_lr.sweep(job, rates, progress.show)
        progress.finish(f"{len(curve.losses)} steps from a rate of {flags.start:g}: {curve.ending}")
        found = find_lr.suggest(curve, flags.steps)
        notes += (curve.ending, *filter(None, [found.note]))
        content = _record(job, flags.config, curve, found) | {"steps_asked": flags.steps, "notes": list(notes)}
        files.write_bytes(flags.workdir / "lr_finder.png", find_lr.draw(curve, found))
        files.write_json(flags.workdir / "lr_finder.json", content)
    _print(config, found, flags.workdir)


def _of_phases(job: Job) -> tuple[str, ...]:
    if len(job.phases) == 1:
        return ()
    return (f"the rate is looked for in phase 0 of {len(job.phases)}: freeze {job.phases[0].freeze!r}",)


def _record(job: Job, name: str, curve: Curve, found: Suggestions) -> dict[str, Any]:
    config, phase = job.config, job.phases[0]
    return {
        "suggestion": found.steepest,
        "steepest": found.steepest,
        "minimum_over_10": found.minimum_over_10,
        "override": _override(config, found.steepest),
        "config_name": name,
        "seed": config.seed,
        "freeze": phase.freeze,
        "optimizer": phase.optimizer.name,
        "batch_size": config.batch_size,
        "steps": len(curve.losses),
        "ending": curve.ending,
        **{key: list(values) for key, values in dataclasses.asdict(curve).items() if key != "ending"},
        "smoothing": find_lr.SMOOTHING,
        "device": jax.local_devices()[0].device_kind,
        "versions": record.versions(),
        "config": configs.to_json(config),
        "research_use_only": True,
    }


def _override(config: ConfigDict, rate: float | None) -> str | None:
    """The flag that trains with a rate; of a pair (low, high) the lower keeps its distance."""
    if rate is None:
        return None
    own = config.phases[0].get("optimizer", {}).get("learning_rate") if config.phases else None
    former = config.optimizer.learning_rate if own is None else own
    value = f"{rate:.2g}"
    if not isinstance(former, int | float):
        value = f"({rate * former[0] / former[1]:.2g},{rate:.2g})"
    if own is not None:
        return f"'learning_rate': {value} in the 'optimizer' of config.phases[0]"
    return f"--config.optimizer.learning_rate={value}"


def _print(config: ConfigDict, found: Suggestions, workdir: Path) -> None:
    if found.note:
        print(found.note)
    if found.steepest is not None and found.minimum_over_10 is not None:
        print(
            f"suggestion: {found.steepest:.2g}, where the smoothed loss falls fastest; a tenth of the rate of its "
            f"minimum is {found.minimum_over_10:.2g}"
        )
        print(f"to train with it: {_override(config, found.steepest)}")
    print(f"the curve: {workdir / 'lr_finder.png'}, {workdir / 'lr_finder.json'}")


if __name__ == "__main__":
    command.run(main)
