"""Which freeze strategy works, and what does each cost: strategies x seeds as runs of their own, compared on one page.

python launch/study.py --config=configs/quickstart.py --workdir=runs/study --strategies=none,until:block3,backbone
    --seeds=0,1,2 [--learning_rates=1e-3,1e-4] [--test] [--config.key=value ...]

The same command goes on where it was stopped and repeats no finished run; more strategies, seeds and learning rates may
be added to it. --test reads the test split for the chosen strategy alone.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from covidjax import command
from covidjax.config.flags import parse_with_config
from covidjax.errors import UserError
from covidjax.process import prepare_process
from covidjax.runs import record
from covidjax.runs.evaluate import evaluate_run
from covidjax.runs.train import train
from covidjax.study import page, plan
from covidjax.study import results as study_results
from covidjax.study.plan import Study, Trial
from covidjax.study.results import Result, Verdict
from covidjax.train import loop
from covidjax.train.programs import Programs


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, runs what is not finished, writes study.csv and study.html."""
    parser = command.Parser(prog="launch/study.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the study, made if missing")
    parser.add_argument("--strategies", required=True, type=_texts, help="values of config.freeze: none,backbone,...")
    parser.add_argument("--seeds", required=True, type=_seeds, help="values of config.seed: 0,1,2")
    parser.add_argument("--learning_rates", type=_rates, help="values of config.optimizer.learning_rate; default: one")
    parser.add_argument("--test", action="store_true", help="evaluate the chosen strategy on the test split")
    flags, config = parse_with_config(parser, arguments)
    _check_overrides(arguments, flags)
    rates = flags.learning_rates or (config.optimizer.learning_rate,)
    planned = Study(flags.workdir, config, flags.strategies, rates, flags.seeds)
    allocator = prepare_process(config.precision)
    plan.check(planned)
    try:
        with record.locked(flags.workdir), plan.stopped_by_sigterm():
            plan.open_workdir(planned)
            print(f"{len(planned.trials())} runs in {flags.workdir / 'runs'}", flush=True)
            _run(planned, flags.test, allocator)
    except loop.Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(command.STOPPED_BY_SIGTERM)


def _run(planned: Study, test: bool, allocator: str) -> None:
    table = planned.workdir / "study.csv"

    def write_table(failures: dict[Trial, str]) -> list[Result]:
        results = study_results.collect(planned, failures)
        study_results.write_csv(table, results, planned.comparison)
        return results

    programs = Programs()
    failures = plan.run(planned, lambda config, run: train(config, run, allocator, programs), write_table)
    results = write_table(failures)
    computed, reused = (
        sum(result.figures.get(key, 0) for result in results) for key in ("passes_made", "passes_reused")
    )
    print(
        f"\nprograms, of this command: {programs.compiled} compiled, {programs.reused} times one of them reused"
        f"\nfeature passes, of all runs: {computed:.0f} made, {reused:.0f} times one of them reused",
        flush=True,
    )
    conditions = study_results.make_conditions(planned, results)
    verdict = study_results.judge(conditions)
    if test and verdict.chosen:
        _read_test_split(planned, verdict)
        results = write_table(failures)
        conditions = study_results.make_conditions(planned, results)
        verdict = study_results.judge(conditions)
    path = page.write(planned, results, conditions, verdict)
    print(f"\n{verdict.sentence}\ntable: {table}\npage: {path}")
    empty = [strategy for strategy in planned.strategies if not _has_finished(strategy, conditions)]
    if empty:
        raise UserError(f"no run of {', '.join(empty)} finished: {next(iter(failures.values()))}")


def _read_test_split(planned: Study, verdict: Verdict) -> None:
    assert verdict.chosen is not None
    for result in verdict.chosen.finished:
        folder = planned.folder(result.trial)
        if not result.test:
            with record.locked(folder):
                evaluate_run(folder, "test", "best")
            print(f"{result.trial.name}: test split evaluated", flush=True)


def _has_finished(strategy: str, conditions: Sequence[study_results.Condition]) -> bool:
    return any(condition.finished for condition in conditions if condition.strategy == strategy)


def _check_overrides(arguments: Sequence[str], flags: argparse.Namespace) -> None:
    taken = {"seed": "--seeds", "freeze": "--strategies"}
    if flags.learning_rates:
        taken["optimizer.learning_rate"] = "--learning_rates"
    for key, flag in taken.items():
        if any(argument.startswith(f"--config.{key}=") for argument in arguments):
            raise UserError(f"--config.{key} is what {flag} sets for each run: give one of the two")


def _texts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty part: write names with a comma between them")
    return parts


def _seeds(text: str) -> tuple[int, ...]:
    parts = _texts(text)
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, such as 0,1,2")
    return tuple(int(part) for part in parts)


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in _texts(text))
    except ValueError:
        rates = (math.nan,)
    if not all(rate > 0 and math.isfinite(rate) for rate in rates):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers above 0, such as 1e-3,1e-4")
    return rates


if __name__ == "__main__":
    command.run(main)
