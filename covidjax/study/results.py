"""What the runs of a study gave: the results of runs, of conditions, and the verdict."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covidjax import files
from covidjax.errors import UserError
from covidjax.metrics.comparison import Estimate, mean_interval, paired_difference
from covidjax.report import workdir
from covidjax.report.formats import duration, is_number, signed
from covidjax.study.plan import Rate, Study, Trial, is_finished, rate_text
from covidjax.tasks.base import Comparison, Task
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


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """A strategy at a learning rate, over its seeds.

    label: the strategy, with the rate where there are several; task: of the study; results: in the order of the seeds
    """

    strategy: str
    learning_rate: Rate
    label: str
    task: Task
    results: tuple[Result, ...]

    @property
    def finished(self) -> tuple[Result, ...]:
        """The results that have figures."""
        return tuple(result for result in self.results if self.task.comparison.column in result.figures)

    @property
    def is_complete(self) -> bool:
        """Whether every seed has finished: what only the lucky seeds gave is not compared."""
        return len(self.finished) == len(self.results)

    def values(self, name: str) -> list[float]:
        """A figure of the finished runs that have it, in the order of the seeds."""
        return [result.figures[name] for result in self.finished if name in result.figures]

    @property
    def reached(self) -> Estimate:
        """The mean over the seeds of what conditions are compared by."""
        return self.over_seeds(self.task.comparison.column)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval of what was reached, within the limits of the figure."""
        return bounds(self.reached, self.task.comparison)

    @property
    def rank(self) -> float:
        """What it reached, or its negative where a lower figure is better: the best is the greatest."""
        return self.task.direction * self.reached.mean

    def over_seeds(self, name: str) -> Estimate:
        """The mean of a figure over the seeds."""
        return mean_interval(self.values(name))

    @property
    def first_seconds(self) -> float | None:
        """What the run took that came first, and so compiled the program and made the features."""
        return self.results[0].figures.get("total_seconds")

    @property
    def next_seconds(self) -> float | None:
        """What the runs after it took, the mean; None without any."""
        found = [each.figures["total_seconds"] for each in self.results[1:] if "total_seconds" in each.figures]
        return sum(found) / len(found) if found else None

    def cost(self, name: str) -> float:
        """The mean of a cost over the seeds, NaN where none recorded it."""
        return self.over_seeds(name).mean


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """best: the condition with the best mean; chosen: the cheapest that is not significantly worse; or both None.

    differences: of each complete condition but the best to it, paired by seed. sentence: all of it in words.
    """

    best: Condition | None
    chosen: Condition | None
    differences: Mapping[Condition, Estimate]
    sentence: str


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


def make_conditions(study: Study, results: Sequence[Result]) -> list[Condition]:
    """The conditions of a study, in the order in which its command names them."""
    conditions = []
    for strategy in study.strategies:
        for rate in study.learning_rates:
            own = [r for r in results if (r.trial.strategy, r.trial.learning_rate) == (strategy, rate)]
            own.sort(key=lambda result: study.seeds.index(result.trial.seed))
            label = f"{strategy}, rate {rate_text(rate)}" if len(study.learning_rates) > 1 else strategy
            conditions.append(Condition(strategy, rate, label, study.task, tuple(own)))
    return conditions


def judge(conditions: Sequence[Condition]) -> Verdict:
    """Compares the complete conditions by what their evaluated checkpoints reach on the validation split."""
    seconds = "cost_seconds"
    complete = [condition for condition in conditions if condition.is_complete]
    if not complete:
        return Verdict(None, None, {}, "No strategy has finished all its runs, so there is nothing to compare yet.")
    best = max(complete, key=lambda condition: (condition.rank, -condition.cost(seconds)))
    comparison, direction = best.task.comparison, best.task.direction
    differences = {
        each: paired_difference(each.values(comparison.column), best.values(comparison.column))
        for each in complete
        if each is not best
    }
    most, seeds = "highest" if direction > 0 else "lowest", len(best.results)
    reached = f"{quoted(best)} has the {most} mean validation {comparison.name}, {best.reached.mean:.3f}"
    left_out = [quoted(condition) for condition in conditions if not condition.is_complete]
    ending = f" Left out, as not every run finished: {', '.join(left_out)}." if left_out else ""
    if seeds < 2:
        only = "With one seed nothing can be said about significance: give at least three."
        return Verdict(best, best, differences, f"{reached}. {only}{ending}")
    chosen = min(
        (each for each in complete if each is best or not differences[each].is_worse(direction)),
        key=lambda condition: (condition.cost(seconds), condition is not best),
    )
    if chosen is best:
        cheaper = [condition for condition in complete if condition.cost(seconds) < best.cost(seconds)]
        why = "every cheaper strategy is significantly worse" if cheaper else "and it is the cheapest as well"
        return Verdict(best, best, differences, f"{reached} over {seeds} seeds; {why}.{ending}")
    difference = differences[chosen]
    spent, full = chosen.cost(seconds), best.cost(seconds)
    sentence = (
        f"The cheapest strategy that is not significantly worse than the best is {quoted(chosen)}: validation "
        f"{comparison.name} {chosen.reached.mean:.3f} in {duration(spent)} of training, against "
        f"{best.reached.mean:.3f} in {duration(full)} of {quoted(best)}, the best. "
        f"Difference {signed(difference.mean)}, 95 % interval [{signed(difference.low)}, {signed(difference.high)}], "
        f"paired over {difference.n} seeds.{ending}"
    )
    return Verdict(best, chosen, differences, sentence)


def pareto_front(conditions: Sequence[Condition], cost: str) -> list[Condition]:
    """The complete conditions, cheapest first, that no other surpasses in its mean at no more cost."""
    front: list[Condition] = []
    known = [condition for condition in conditions if condition.is_complete and not math.isnan(condition.cost(cost))]
    for condition in sorted(known, key=lambda condition: (condition.cost(cost), -condition.rank)):
        if not front or condition.rank > front[-1].rank:
            front.append(condition)
    return front


def bounds(estimate: Estimate, comparison: Comparison) -> tuple[float, float]:
    """The interval of a figure, cut at its limits: that by Student's t knows none."""
    low, high = np.clip((estimate.low, estimate.high), *comparison.limits)
    return float(low), float(high)


def quoted(condition: Condition) -> str:
    """The label as a sentence can hold it: 'none' is a strategy."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{condition.label}\N{RIGHT DOUBLE QUOTATION MARK}"


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
