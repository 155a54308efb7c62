"""A study from its runs to its table and its page."""

from collections.abc import Sequence

from covidjax.errors import UserError
from covidjax.runs import record
from covidjax.runs.evaluate import evaluate_run
from covidjax.runs.train import train
from covidjax.study import page, plan, results
from covidjax.study.conditions import Condition, judge, make_conditions
from covidjax.study.plan import Study, Trial
from covidjax.study.results import Result
from covidjax.train.programs import Programs


def check_overrides(arguments: Sequence[str], *, rates: bool) -> None:
    """Raises UserError where the arguments change a key of the config that the study sets for each run itself."""
    taken = {"seed": "--seeds", "freeze": "--strategies"}
    if rates:
        taken["optimizer.learning_rate"] = "--learning_rates"
    for key, flag in taken.items():
        if any(argument.startswith(f"--config.{key}=") for argument in arguments):
            raise UserError(f"--config.{key} is what {flag} sets for each run: give one of the two")


def run(study: Study, allocator: str, *, test: bool) -> None:
    """Trains what is not finished, writes study.json, study.csv and study.html, and prints the verdict.

    allocator: see `covidjax.runs.train.train`. test: whether the chosen strategy is evaluated on the test split.
    Raises UserError for a study that does not fit its workdir, or a strategy of which no run finished, and Interrupted
    after SIGTERM.
    """
    plan.check(study)
    with record.locked(study.workdir), plan.stopped_by_sigterm():
        plan.open_workdir(study)
        print(f"{len(study.trials())} runs in {study.workdir / 'runs'}", flush=True)
        _run(study, allocator, test)


def _run(study: Study, allocator: str, test: bool) -> None:
    table = study.workdir / "study.csv"

    def write_table(failures: dict[Trial, str]) -> list[Result]:
        found = results.collect(study, failures)
        results.write_csv(table, found, study.comparison)
        return found

    programs = Programs()
    failures = plan.run(study, lambda config, folder: train(config, folder, allocator, programs), write_table)
    found = write_table(failures)
    made, reused = (sum(each.figures.get(key, 0) for each in found) for key in ("passes_made", "passes_reused"))
    print(
        f"\nprograms, of this command: {programs.compiled} compiled, {programs.reused} times one of them reused"
        f"\nfeature passes, of all runs: {made:.0f} made, {reused:.0f} times one of them reused",
        flush=True,
    )
    conditions = make_conditions(study, found)
    verdict = judge(conditions)
    if test and verdict.chosen:
        _read_test_split(study, verdict.chosen)
        found = write_table(failures)
        conditions = make_conditions(study, found)
        verdict = judge(conditions)
    path = page.write(study, found, conditions, verdict)
    print(f"\n{verdict.sentence}\ntable: {table}\npage: {path}")
    finished = {each.strategy for each in conditions if each.finished}
    if empty := [strategy for strategy in study.strategies if strategy not in finished]:
        raise UserError(f"no run of {', '.join(empty)} finished: {next(iter(failures.values()))}")


def _read_test_split(study: Study, chosen: Condition) -> None:
    for result in chosen.finished:
        if not result.test:
            folder = study.folder(result.trial)
            with record.locked(folder):
                evaluate_run(folder, "test", None)
            print(f"{result.trial.name}: test split evaluated", flush=True)
