"""One self-contained page about a study: the verdict, the value against cost, curves, tables of strategies and runs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from covidjax import config as configs
from covidjax import files
from covidjax.report import page
from covidjax.report.page import Html, element
from covidjax.study import figures as study_figures
from covidjax.study import tables
from covidjax.study.figures import Panel, Point, SeedCurves
from covidjax.study.measures import Measure
from covidjax.study.plan import VARIED, Rate, Study, rate_text
from covidjax.study.results import Arm, Result, Verdict, pareto_front, quoted

LONGEST_LABEL = 24
COSTS = (("cost_seconds", "training time", "s", 1.0), ("peak_bytes", "memory of a step", "MiB", float(2**20)))


def write(study: Study, results: Sequence[Result], arms: Sequence[Arm], verdict: Verdict) -> Path:
    """Writes `study.html`. Raises UserError where that is not possible; an older page then stays as it is."""
    content = page.document(f"{_title(study)}: freeze study", _body(study, results, arms, verdict))
    target = study.workdir / "study.html"
    files.write_text(target, content)
    return target


def _body(study: Study, results: Sequence[Result], arms: Sequence[Arm], verdict: Verdict) -> list[Html]:
    measure = study.measure
    sections = [
        ("cost", f"{measure.title} against cost", _against_cost(study, arms)),
        ("strategies", "Strategies", tables.strategies(measure, arms, verdict)),
        ("curves", "Validation curves", _curves(study, results)),
        ("test", "Test split", tables.test_split(measure, results, verdict)),
        ("runs", "Runs", tables.runs(measure, results)),
        ("configuration", "Configuration", _configuration(study)),
    ]
    return [
        element("h1", _title(study)),
        element("p", f"Freeze study. {_origin(study)}", class_="subtitle"),
        element("p", "Research use only \N{EN DASH} not for clinical decisions.", class_="warning"),
        _headline(measure, results, verdict),
        element("p", verdict.sentence, class_="verdict"),
        element("nav", *(element("a", title, href=f"#{anchor}") for anchor, title, _ in sections)),
        *(element("section", element("h2", title), *parts, id=anchor) for anchor, title, parts in sections),
    ]


def _title(study: Study) -> str:
    dataset = study.config.dataset
    root = Path(dataset.root).name if dataset.name == "folder" else ""
    return f"{study.config.model.name} on {root or dataset.name}"


def _origin(study: Study) -> str:
    counts = [
        f"{len(values)} {noun if len(values) == 1 else plural}"
        for values, noun, plural in (
            (study.strategies, "strategy", "strategies"),
            (study.learning_rates, "learning rate", "learning rates"),
            (study.seeds, "seed", "seeds"),
        )
    ]
    start = study.config.pretrained or "random weights"
    return f"{' x '.join(counts)}, started from {start}, workdir {study.workdir.resolve().name}."


def _headline(measure: Measure, results: Sequence[Result], verdict: Verdict) -> Html:
    def cell(name: str, shown: str, below: str) -> Html:
        return element("div", element("dt", name), element("dd", shown, element("small", below)))

    finished = [result for result in results if result.status == "finished"]
    failed = sum(result.status == "failed" for result in results)
    seconds = sum(result.figures.get("cost_seconds", 0.0) for result in finished)
    cells = []
    for title, arm in (("Chosen", verdict.chosen), ("Best", verdict.best)):
        below = f"validation {measure.name} {tables.plain(tables.within(arm.reached))}" if arm else ""
        cells.append(cell(title, _short(arm.label) if arm else page.MISSING, below))
    if verdict.chosen and verdict.best:
        spent, full = verdict.chosen.cost("cost_seconds"), verdict.best.cost("cost_seconds")
        below = f"mean of a run; of the best {page.duration(full)}"
        cells.append(cell("Training time, chosen", page.duration(spent), below))
    cells.append(cell("Runs finished", f"{len(finished)} of {len(results)}", f"{failed} failed" if failed else ""))
    cells.append(cell("Training time, all runs", page.duration(seconds), "without compilation"))
    return element("dl", *cells, class_="headline")


def _short(label: str) -> str:
    """As much of a long pattern as the headline has room for."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"


def _against_cost(study: Study, arms: Sequence[Arm]) -> list[Html]:
    shown, measure = [arm for arm in arms if arm.finished], study.measure
    if not shown:
        return [element("p", "No run has finished yet.")]
    costs = [cost for cost in COSTS if any(arm.values(cost[0]) for arm in shown)]
    points = [_point(study, arm, [name for name, *_ in costs]) for arm in shown]
    panels = [
        Panel(f"{title}, {unit}", size, tuple(shown.index(arm) for arm in pareto_front(shown, name)))
        for name, title, unit, size in costs
    ]
    svg = study_figures.cost_plot(points, panels, f"validation {measure.name}")
    fronts = [
        f"by {title}: {', '.join(quoted(arm) for arm in pareto_front(shown, name))}" for name, title, _, _ in costs
    ]
    explained = (
        f"Mean over the seeds of the best checkpoint's validation {measure.name}, with its 95 % t-interval over the "
        f"seeds (with one seed: the interval of the run, {measure.interval}). A marker is the larger, the more of the "
        "parameters train. "
        f"On the Pareto front, cheapest first, {'; '.join(fronts)}."
    )
    plot = page.image(svg, "image/svg+xml", f"Validation {measure.name} against cost", "plot")
    missing = [title for name, title, _, _ in COSTS if name not in [cost[0] for cost in costs]]
    notes = [element("p", f"Not recorded by these runs: {', '.join(missing)}.", class_="muted")] if missing else []
    return [element("figure", plot, element("figcaption", explained)), *notes]


def _point(study: Study, arm: Arm, costs: Sequence[str]) -> Point:
    value, column = tables.within(arm.reached), study.measure.column
    low, high = value.low, value.high
    if value.n == 1:
        figures = arm.finished[0].figures
        low, high = figures.get(f"{column}_low", math.nan), figures.get(f"{column}_high", math.nan)
    trained, total = arm.cost("trained_parameters"), arm.cost("total_parameters")
    seeds = "" if arm.is_complete else f", {len(arm.finished)} of {arm.planned} seeds"
    return Point(
        label=f"{arm.label}: {page.short_count(trained)} trained{seeds}",
        color=study.strategies.index(arm.strategy),
        marker=study.learning_rates.index(arm.learning_rate),
        value=value.mean,
        low=low,
        high=high,
        share=trained / total if total else 0.0,
        costs=tuple(arm.cost(name) for name in costs),
    )


def _curves(study: Study, results: Sequence[Result]) -> list[Html]:
    blocks: list[Html] = []
    for name, words in ((study.measure.value, study.measure.name), ("loss", "loss")):
        of_strategy = {
            strategy: [
                curves for rate in study.learning_rates if (curves := _of_arm(study, results, strategy, rate, name))
            ]
            for strategy in study.strategies
        }
        every = [curves for arms in of_strategy.values() for curves in arms]
        if not every:
            continue
        limits = study_figures.common_limits(every)
        plots = []
        for index, (strategy, arms) in enumerate(of_strategy.items()):
            others = [curves for other, found in of_strategy.items() if other != strategy for curves in found]
            svg = study_figures.seed_curves(arms, others, index, limits)
            image = page.image(svg, "image/svg+xml", f"Validation {words} of {strategy} against epoch", "plot")
            plots.append(element("figure", element("figcaption", strategy), image))
        blocks += [element("h3", f"Validation {words}"), element("div", *plots, class_="curves")]
    note = (
        "Bold: the mean over the seeds; thin: each seed; gray: the means of the other strategies. All panels of a "
        "figure have the same axes. After every epoch, of the weights as they were then."
    )
    return [element("p", note, class_="muted"), *blocks] if blocks else [element("p", "No epoch has finished yet.")]


def _of_arm(study: Study, results: Sequence[Result], strategy: str, rate: Rate, name: str) -> SeedCurves | None:
    own = [result for result in results if (result.trial.strategy, result.trial.learning_rate) == (strategy, rate)]
    seeds = tuple(result.curves[name] for result in own if result.curves and result.curves[name][0])
    return SeedCurves(f"rate {rate_text(rate)}", study.learning_rates.index(rate), seeds) if seeds else None


def _configuration(study: Study) -> list[Html]:
    shared = configs.flatten(configs.to_json(study.config))
    rows = [
        (element("code", key), element("code", json.dumps(value, ensure_ascii=False)))
        for key, value in shared
        if key not in VARIED
    ]
    listing = page.table(("Key", "Value"), rows, "ll")
    return [element("details", element("summary", f"All {len(rows)} keys that the runs share"), listing)]
