"""The tables of a study page: strategies, runs, and the test split of the chosen strategy."""

import dataclasses
import math
from collections.abc import Sequence

from covidjax.metrics.comparison import Estimate, mean_interval
from covidjax.report import page
from covidjax.report.page import Html, element, join
from covidjax.study.measures import TITLES, Measure
from covidjax.study.results import Arm, Result, Verdict, quoted, signed


def strategies(measure: Measure, arms: Sequence[Arm], verdict: Verdict) -> list[Html]:
    """What each strategy reached, how far it is from the best, and what it cost."""

    def deviation(arm: Arm) -> str:
        return page.decimal(arm.reached.deviation)

    def difference(arm: Arm) -> tuple[str | Html, str]:
        if arm is verdict.best:
            return "best", page.MISSING
        found = verdict.differences.get(arm)
        if found is None or math.isnan(found.low):
            return (signed(found.mean), page.MISSING) if found else (page.MISSING, page.MISSING)
        bounds = element("span", f"[{signed(found.low)}, {signed(found.high)}]", class_="interval")
        return join([f"{signed(found.mean)} ", bounds]), f"{found.p:.3f}" if found.p >= 0.001 else "< 0.001"

    figures = [
        (
            _named(arm, verdict),
            f"{len(arm.finished)} of {arm.planned}",
            _with_bounds(within(arm.reached)),
            deviation(arm),
            *difference(arm),
            page.decimal(arm.cost("val_loss")),
            page.decimal(arm.cost(f"val_{measure.beside}")),
        )
        for arm in arms
    ]
    last = ("SD", "Difference to the best", "p", "Loss", TITLES[measure.beside])
    head = ("Strategy", "Seeds", TITLES[measure.value], *last)
    slowest = max((arm.cost("cost_seconds") for arm in arms if arm.values("cost_seconds")), default=math.nan)
    costs = [
        (
            _named(arm, verdict),
            page.duration(arm.cost("cost_seconds")),
            _spread(arm.values("cost_seconds")),
            _percent(arm.cost("cost_seconds") / slowest if slowest else math.nan),
            page.duration(arm.cost("compile_seconds")),
            page.byte_size(arm.cost("peak_bytes")),
            page.byte_size(arm.cost("optimizer_bytes")),
            page.integer(arm.cost("trained_parameters")),
        )
        for arm in arms
    ]
    cost_head = (
        "Strategy", "Training", "Fastest to slowest", "Of the slowest strategy", "Compilation", "Memory of a step",
        "Optimizer state", "Trained parameters",
    )  # fmt: skip
    return [
        element(
            "p",
            "Validation split, the best checkpoint of each run, means over the seeds. Bold: the chosen strategy.",
            class_="muted",
        ),
        element("div", page.table(head, figures, "lrrrrrrr"), class_="wide"),
        element("p", _what_it_means(arms), class_="muted"),
        element("h3", "Cost of a run"),
        element("div", page.table(cost_head, costs, "lrrrrrrr"), class_="wide"),
        *_cost_notes(arms),
    ]


def _named(arm: Arm, verdict: Verdict) -> Html:
    return element("b", arm.label) if arm is verdict.chosen else join([arm.label])


def _percent(share: float) -> str:
    return page.MISSING if math.isnan(share) else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _spread(values: Sequence[float]) -> str:
    return f"{page.duration(min(values))} to {page.duration(max(values))}" if values else page.MISSING


def _what_it_means(arms: Sequence[Arm]) -> str:
    planned = max((arm.planned for arm in arms), default=0)
    if planned < 2:
        return "One seed: differences between strategies cannot be told from those between seeds."
    return (
        f"Intervals, 95 %, by Student's t over {planned} seeds, cut at 0 and 1; differences are paired by seed. "
        "SD: standard deviation over the seeds. They tell how training varies on these images, not how patients vary; "
        "they are not corrected for the number of strategies; and with few seeds a difference that is not significant "
        "is not an absent one."
    )


def _cost_notes(arms: Sequence[Arm]) -> list[Html]:
    devices = sorted({result.device for arm in arms for result in arm.finished if result.device})
    said = [
        "Training: with the pass that makes cached features, in the run that makes them; features that an earlier run "
        "left on disk cost the later one nothing. A program that several runs share is compiled by the first of them. "
        "Memory of a step: all that the compiled program takes in, the data of a resident split included, and its "
        "temporaries."
    ]
    if len(devices) > 1:
        said.append(f"The runs were made on different devices, so their times do not compare: {', '.join(devices)}.")
    elif devices:
        said.append(f"Device: {devices[0]}.")
    with_note: dict[str, dict[str, None]] = {}
    for arm in arms:
        for result in arm.finished:
            if result.features:
                with_note.setdefault(result.features.rstrip("."), {})[quoted(arm)] = None
    features = [element("li", f"{', '.join(names)}: {note}.") for note, names in with_note.items()]
    listed = [element("p", "Cached features:", class_="muted"), element("ul", *features)] if features else []
    return [element("p", " ".join(said), class_="muted"), *listed]


def test_split(measure: Measure, results: Sequence[Result], verdict: Verdict) -> list[Html]:
    """The figures of the chosen strategy on the test split, and every other reading of it."""
    chosen = verdict.chosen.finished if verdict.chosen else ()
    evaluated = [result for result in chosen if result.test]
    others = [result for result in results if result.test_reads and result not in evaluated]
    parts: list[Html] = []
    if evaluated:
        rows = [
            (
                f"seed {result.trial.seed}",
                *(page.estimate(result.test, key) for key in measure.tested),
                ", ".join(result.test_reads),
            )
            for result in evaluated
        ]
        means = {
            key: mean_interval([r.test[key] for r in evaluated if page.is_number(r.test.get(key))])
            for key in measure.tested
        }
        shown = [_with_bounds(mean if key == "loss" else within(mean)) for key, mean in means.items()]
        total = ("mean, over seeds", *shown, "")
        head = ("Run", *(TITLES[key] for key in measure.tested), "Read at")
        parts += [
            element("p", f"{quoted(verdict.chosen)}, chosen by the validation split alone." if verdict.chosen else ""),
            element("div", page.table(head, rows, "lrrrrrl", total), class_="wide"),
        ]
    else:
        parts.append(
            element("p", "Not read for the chosen strategy: run the same command with --test, once the choice stands.")
        )
    if others:
        names = ", ".join(result.trial.name for result in others)
        parts.append(element("p", f"The test split was also read for other runs: {names}.", class_="warning"))
    return parts


def runs(measure: Measure, results: Sequence[Result]) -> list[Html]:
    """One row a run, in the order in which they ran; the messages of those that failed."""
    figures = (TITLES[key] for key in (measure.value, "loss", measure.beside))
    head = ("Run", "Status", "Best epoch", *figures, "Training", "Compilation")
    rows = []
    for result in results:
        found = result.figures
        mean, low, high = (found.get(f"{measure.column}{bound}", math.nan) for bound in ("", "_low", "_high"))
        rows.append(
            (
                element("a", result.trial.name, href=f"{result.workdir}/report.html")
                if result.status == "finished"
                else result.trial.name,
                result.status,
                page.integer(found.get("best_epoch")),
                _with_bounds(Estimate(mean, low, high, math.nan, 1, math.nan)),
                page.decimal(found.get("val_loss")),
                page.decimal(found.get(f"val_{measure.beside}")),
                page.duration(found.get("cost_seconds")),
                page.duration(found.get("compile_seconds")),
            )
        )
    failed = [element("li", f"{r.trial.name} failed: {r.message}") for r in results if r.status == "failed"]
    return [
        element("p", f"Intervals of {measure.name}: {measure.interval}, 95 %.", class_="muted"),
        element("div", page.table(head, rows, "llrrrrrr"), class_="wide"),
        element("ul", *failed) if failed else Html(),
    ]


def within(estimate: Estimate) -> Estimate:
    """The same with its interval cut at 0 and 1: that of a share by Student's t knows no bounds."""
    if math.isnan(estimate.low):
        return estimate
    return dataclasses.replace(estimate, low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))


def plain(estimate: Estimate) -> str:
    """The mean and its interval as text."""
    bounds = page.interval([estimate.low, estimate.high])
    return f"{page.decimal(estimate.mean)} {bounds}" if bounds else page.decimal(estimate.mean)


def _with_bounds(estimate: Estimate) -> Html:
    bounds = page.interval([estimate.low, estimate.high])
    shown = page.decimal(estimate.mean)
    return join([shown, " ", element("span", bounds, class_="interval")]) if bounds else join([shown])
