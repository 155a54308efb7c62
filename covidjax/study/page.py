"""One self-contained page about a study: the verdict, the value against cost, curves, tables of conditions and runs."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from covidjax import config as configs
from covidjax import files
from covidjax.metrics.comparison import mean_interval
from covidjax.report import page
from covidjax.report.formats import MISSING, duration, is_number
from covidjax.study import figures
from covidjax.study.conditions import Condition, Verdict, bounds, pareto_front, quoted
from covidjax.study.plan import VARIED, Study
from covidjax.study.results import Result

COSTS = (("cost_seconds", "training time", "s", 1.0), ("peak_bytes", "memory of a step", "MiB", float(2**20)))


def write(study: Study, results: Sequence[Result], conditions: Sequence[Condition], verdict: Verdict) -> Path:
    """Writes `study.html`. Raises UserError where that is not possible; an older page then stays as it is."""
    comparison, config = study.comparison, configs.to_json(study.config)
    content = page.render(
        "study.html",
        title=page.title(config),
        study=study,
        sections={
            "cost": f"{comparison.titles[comparison.value]} against cost",
            "strategies": "Strategies",
            "curves": "Validation curves",
            "test": "Test split",
            "runs": "Runs",
            "configuration": "Configuration",
        },
        comparison=comparison,
        verdict=verdict,
        results=results,
        seconds=sum(result.figures.get("cost_seconds", 0.0) for result in results if result.status == "finished"),
        cost=_against_cost(study, [condition for condition in conditions if condition.finished]),
        strategies=_strategies(study, conditions, verdict),
        devices=sorted({each.device for condition in conditions for each in condition.finished if each.device}),
        features=_said(conditions, lambda result: (result.features.rstrip("."),)),
        notes=_said(conditions, lambda result: result.notes),
        curves=_curves(study, conditions),
        test=_test_split(study, results, verdict),
        runs=_runs(study, results),
        configuration=page.config_rows(config, VARIED),
    )
    target = study.workdir / "study.html"
    files.write_text(target, content)
    return target


def _against_cost(study: Study, shown: Sequence[Condition]) -> dict[str, Any]:
    """The plot of the conditions that have results, the Pareto fronts in words, and the costs that no run recorded."""
    if not shown:
        return {}
    costs = [cost for cost in COSTS if any(condition.values(cost[0]) for condition in shown)]
    fronts = {name: pareto_front(shown, name) for name, *_ in costs}
    return {
        "plot": figures.cost_plot(study, shown, costs, fronts),
        "fronts": [f"by {title}: {', '.join(map(quoted, fronts[name]))}" for name, title, *_ in costs],
        "missing": [title for name, title, *_ in COSTS if name not in fronts],
    }


def _strategies(study: Study, conditions: Sequence[Condition], verdict: Verdict) -> list[dict[str, Any]]:
    """Of each condition what it reached, how far it is from the best, and what it cost."""
    slowest = max((each.cost("cost_seconds") for each in conditions if each.values("cost_seconds")), default=math.nan)
    rows = []
    for condition in conditions:
        seconds = condition.values("cost_seconds")
        difference = verdict.differences.get(condition)
        rows.append(
            {
                "strategy": condition.label,
                "bold": "strategy" if condition is verdict.chosen else None,
                "seeds": f"{len(condition.finished)} of {len(condition.results)}",
                "value": condition.reached.mean,
                "value_ci95": condition.bounds,
                "deviation": condition.reached.deviation,
                "difference": "best" if condition is verdict.best else difference.mean if difference else None,
                "difference_ci95": (difference.low, difference.high) if difference else None,
                "p": difference.p if difference else None,
                "spread": f"{duration(min(seconds))} to {duration(max(seconds))}" if seconds else MISSING,
                "first_seconds": condition.first_seconds,
                "next_seconds": condition.next_seconds,
                "share": condition.cost("cost_seconds") / slowest if slowest else math.nan,
                **{
                    key: condition.cost(key)
                    for key in (
                        "val_loss", f"val_{study.comparison.beside}", "cost_seconds", "predicted_share",
                        "compile_seconds", "peak_bytes", "optimizer_bytes", "trained_parameters",
                    )
                },
            }
        )  # fmt: skip
    return rows


def _said(conditions: Sequence[Condition], told: Callable[[Result], Sequence[str]]) -> dict[str, str]:
    """The conditions by what their finished runs tell of themselves."""
    found: dict[str, dict[str, None]] = {}
    for condition in conditions:
        for result in condition.finished:
            for note in filter(None, told(result)):
                found.setdefault(note, {})[quoted(condition)] = None
    return {note: ", ".join(labels) for note, labels in found.items()}


def _curves(study: Study, conditions: Sequence[Condition]) -> list[tuple[str, list[tuple[str, str, bytes]]]]:
    """What is drawn, and title, description and plot of each strategy."""
    sections = []
    for name, words in ((study.comparison.value, study.comparison.name), ("loss", "loss")):
        seeds = {each: [result.curves[name] for result in each.results if result.curves] for each in conditions}
        curves = {each: found for each, own in seeds.items() if (found := [curve for curve in own if curve[0]])}
        plots = [
            (one, f"Validation {words} of {one} against epoch", figures.seed_curves(study, curves, one))
            for one in study.strategies
        ]
        if curves:
            sections.append((f"Validation {words}", plots))
    return sections


def _test_split(study: Study, results: Sequence[Result], verdict: Verdict) -> dict[str, Any]:
    """The rows of the chosen condition on the test split with their mean, and the other runs for which it was read."""
    evaluated = [result for result in verdict.chosen.finished if result.test] if verdict.chosen else []
    total: dict[str, Any] = {"run": "mean, over seeds", "read": ""}
    for key in study.comparison.titles:
        mean = mean_interval([result.test[key] for result in evaluated if is_number(result.test.get(key))])
        total |= {
            key: mean.mean,
            f"{key}_ci95": (mean.low, mean.high) if key == "loss" else bounds(mean, study.comparison),
        }
    return {
        "chosen": quoted(verdict.chosen) if verdict.chosen else "",
        "rows": [
            {**each.test, "run": f"seed {each.trial.seed}", "read": ", ".join(each.test_reads)} for each in evaluated
        ],
        "columns": [
            ("Run", "run", "text"),
            *((title, key, "estimate") for key, title in study.comparison.titles.items()),
            ("Read at", "read", "text"),
        ],
        "total": total,
        "others": [result.trial.name for result in results if result.test_reads and result not in evaluated],
    }


def _runs(study: Study, results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a run, in the order in which they ran."""
    column = study.comparison.column
    rows = []
    for result in results:
        link = {"text": result.trial.name, "href": f"{result.workdir}/report.html"}
        own = tuple(result.figures.get(f"{column}_{bound}") for bound in ("low", "high"))
        run = link if result.status == "finished" else result.trial.name
        rows.append({**result.figures, "run": run, "status": result.status, f"{column}_ci95": own})
    return rows
