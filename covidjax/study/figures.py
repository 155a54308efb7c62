"""The figures of a study page, as SVG bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from covidjax.report.figures import FONT_SIZE, INK, MUTED, PALETTE, line, new_figure, plain, to_svg
from covidjax.report.formats import short_count
from covidjax.study.conditions import Condition
from covidjax.study.plan import Study, rate_text

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
GHOST = "#cfcdc6"
LOG_FROM = 8.0  # a scale is logarithmic where the greatest value is so many times the smallest

Curve = tuple[Sequence[float], Sequence[float]]  # epochs and values


def cost_plot(
    study: Study,
    conditions: Sequence[Condition],
    costs: Sequence[tuple[str, str, str, float]],
    fronts: Mapping[str, Sequence[Condition]],
) -> bytes:
    """Value against each cost, with intervals and the Pareto front.

    costs: column of study.csv, title, unit and how much that is; fronts: the conditions on the front of each cost.
    A marker's area grows with the share of parameters that train. With one seed the interval is that of the run.
    """
    figure, grid = new_figure(9.6, 3.5, ncols=len(costs), sharey=True, squeeze=False)
    styles = {condition: _marker(study, condition) for condition in conditions}
    for axes, (name, title, unit, size) in zip(grid[0], costs, strict=True):
        front = [(condition.cost(name) / size, condition.reached.mean) for condition in fronts[name]]
        axes.plot(*np.reshape(front, (-1, 2)).T, color=GHOST, linewidth=4, drawstyle="steps-post", zorder=1)
        known = [condition for condition in conditions if not math.isnan(condition.cost(name))]
        for condition in known:
            cost, (low, high) = condition.cost(name) / size, condition.bounds
            if condition.reached.n == 1:
                low, high = (condition.cost(f"{study.comparison.column}_{bound}") for bound in ("low", "high"))
            if not math.isnan(low):
                axes.vlines(cost, low, high, color=styles[condition]["color"], linewidth=1.2, zorder=2)
            axes.plot(cost, condition.reached.mean, zorder=3, **styles[condition])
        _scale(axes, [condition.cost(name) / size for condition in known])
        axes.set_xlabel(f"{title}, {unit}", color=MUTED)
    grid[0, 0].set_ylabel(f"validation {study.comparison.name}", color=MUTED)
    handles = [Line2D([], [], linestyle="", label=_described(each), **style) for each, style in styles.items()]
    handles.append(Line2D([], [], color=GHOST, linewidth=4, label="Pareto front"))
    figure.legend(handles=handles, loc="outside right center", fontsize=FONT_SIZE, frameon=False, labelcolor=INK)
    return to_svg(figure)


def seed_curves(study: Study, curves: Mapping[Condition, Sequence[Curve]], strategy: str) -> bytes:
    """The mean over seeds of a strategy drawn bold, each seed thin, and the means of the other strategies in gray.

    curves: those of the seeds of each condition that has some; the axes are the same for every strategy.
    """
    figure, axes = new_figure(3.4, 2.3, "epoch")
    color = PALETTE[study.strategies.index(strategy) % len(PALETTE)]
    own = [condition for condition in curves if condition.strategy == strategy]
    for condition in curves:
        if condition not in own:
            line(axes, *_mean(curves[condition]), color=GHOST, linewidth=1.2, zorder=1)
    for condition in own:
        dash = DASHES[study.learning_rates.index(condition.learning_rate) % len(DASHES)]
        for seed in curves[condition]:
            line(axes, *seed, color=color, linewidth=0.7, alpha=0.55, linestyle=dash, zorder=2)
        label = plain(f"rate {rate_text(condition.learning_rate)}") if len(own) > 1 else None
        line(axes, *_mean(curves[condition]), color=color, linewidth=2.2, linestyle=dash, label=label, zorder=3)
    axes.set_ylim(*_common_limits([value for seeds in curves.values() for _, values in seeds for value in values]))
    if len(own) > 1:
        axes.legend(fontsize=FONT_SIZE - 1, handlelength=2.0, labelspacing=0.3, labelcolor=INK, frameon=False)
    return to_svg(figure)


def _marker(study: Study, condition: Condition) -> dict[str, Any]:
    strategy, rate = study.strategies.index(condition.strategy), study.learning_rates.index(condition.learning_rate)
    trained, total = condition.cost("trained_parameters"), condition.cost("total_parameters")
    size = 5.0 + 6.0 * math.sqrt(trained / total if total else 0.0)
    return {"color": PALETTE[strategy % len(PALETTE)], "marker": MARKERS[rate % len(MARKERS)], "markersize": size}


def _described(condition: Condition) -> str:
    seeds = "" if condition.is_complete else f", {len(condition.finished)} of {len(condition.results)} seeds"
    return plain(f"{condition.label}: {short_count(condition.cost('trained_parameters'))} trained{seeds}")


def _mean(seeds: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """Over the seeds, at the epochs that all of them have."""
    tables = [dict(zip(*seed, strict=True)) for seed in seeds]
    epochs = sorted(set.intersection(*map(set, tables)))
    return epochs, [float(np.mean([table[epoch] for table in tables])) for epoch in epochs]


def _common_limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of all finite values, with a margin; of losses that run away, no more than most of it."""
    finite = np.array(values)[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high, usual = float(finite.min()), float(finite.max()), float(np.percentile(finite, 98))
    if high - low > 3 * (usual - low) > 0:
        high = usual
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    if not costs:
        return
    if min(costs) > 0 and max(costs) > LOG_FROM * min(costs):
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
        wide = max(costs) > 100 * min(costs)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, max(costs) * 1.08 or 1)
