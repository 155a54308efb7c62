"""The conditions of a study over their seeds, and the verdict on them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from covidjax.metrics.comparison import Estimate, mean_interval, paired_difference
from covidjax.report.formats import duration, signed
from covidjax.study.plan import Rate, Study, rate_text
from covidjax.study.results import Result
from covidjax.tasks.base import Comparison, Task


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


FEWEST_SEEDS = 3  # of which a difference by chance can be told


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """best: the condition with the best mean; chosen: the cheapest that is not significantly worse; or both None.

    differences: of each complete condition but the best to it, paired by seed. sentence: all of it in words.
    """

    best: Condition | None
    chosen: Condition | None
    differences: Mapping[Condition, Estimate]
    sentence: str


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
    if seeds < FEWEST_SEEDS:
        only = f"With {seeds} seed{'s' * (seeds > 1)} nothing can be said about significance: give at least three."
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
