"""The figures of a study page, as SVG bytes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from covidjax.report.figures import FONT_SIZE, INK, MUTED, PALETTE, new_figure, style_axes, to_svg

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
GHOST = "#cfcdc6"
LOG_FROM = 8.0  # a scale is logarithmic where the greatest value is so many times the smallest


@dataclasses.dataclass(frozen=True)
class Point:
    """A condition in a plot against cost: its value with the interval, NaN where there is none, and its looks."""

    label: str
    value: float
    low: float
    high: float
    style: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One cost axis. costs: of the points in the unit of the title, NaN where unknown; front: indices of points."""

    title: str
    costs: tuple[float, ...]
    front: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SeedCurves:
    """The curves of a condition: label, index of its learning rate, and (epochs, values) of each seed."""

    label: str
    dash: int
    seeds: tuple[tuple[Sequence[float], Sequence[float]], ...]

    def mean(self) -> tuple[list[float], list[float]]:
        """Over the seeds, at the epochs that all of them have."""
        tables = [dict(zip(*seed, strict=True)) for seed in self.seeds]
        epochs = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
        return epochs, [float(np.mean([table[epoch] for table in tables])) for epoch in epochs]


def point_style(strategy: int, rate: int, share: float) -> dict[str, Any]:
    """The marker of the n-th strategy at the n-th rate; its area grows with the share of parameters that train."""
    marker, size = MARKERS[rate % len(MARKERS)], 5.0 + 6.0 * math.sqrt(share)
    return {"color": PALETTE[strategy % len(PALETTE)], "marker": marker, "markersize": size}


def cost_plot(points: Sequence[Point], panels: Sequence[Panel], ylabel: str) -> bytes:
    """Value against each cost, with intervals and the Pareto front."""
    figure, axes = new_figure(9.6, 3.5)
    axes.remove()
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for part, panel in zip(grid, panels, strict=True):
        style_axes(part)
        front = [panel.costs[index] for index in panel.front], [points[index].value for index in panel.front]
        part.plot(*front, color=GHOST, linewidth=4, drawstyle="steps-post", zorder=1)
        for point, cost in zip(points, panel.costs, strict=True):
            if math.isnan(cost):
                continue
            if not math.isnan(point.low):
                part.vlines(cost, point.low, point.high, color=point.style["color"], linewidth=1.2, zorder=2)
            part.plot(cost, point.value, zorder=3, **point.style)
        _scale(part, [cost for cost in panel.costs if not math.isnan(cost)])
        part.set_xlabel(panel.title, color=MUTED)
    grid[0].set_ylabel(ylabel, color=MUTED)
    handles = [Line2D([], [], linestyle="", label=_plain(point.label), **point.style) for point in points]
    handles.append(Line2D([], [], color=GHOST, linewidth=4, label="Pareto front"))
    figure.legend(handles=handles, loc="outside right center", fontsize=FONT_SIZE, frameon=False, labelcolor=INK)
    return to_svg(figure)


def seed_curves(
    own: Sequence[SeedCurves], others: Sequence[SeedCurves], color: int, limits: tuple[float, float]
) -> bytes:
    """The mean over seeds drawn bold, each seed thin, and the means of the other strategies in gray.

    limits: of the vertical axis, the same for every strategy.
    """
    figure, axes = new_figure(3.4, 2.3, "epoch")
    shade = PALETTE[color % len(PALETTE)]
    for other in others:
        _line(axes, *other.mean(), color=GHOST, linewidth=1.2, zorder=1)
    for curves in own:
        dash = DASHES[curves.dash % len(DASHES)]
        for epochs, values in curves.seeds:
            _line(axes, epochs, values, color=shade, linewidth=0.7, alpha=0.55, linestyle=dash, zorder=2)
        label = _plain(curves.label) if len(own) > 1 else None
        _line(axes, *curves.mean(), color=shade, linewidth=2.2, linestyle=dash, label=label, zorder=3)
    axes.set_ylim(*limits)
    if len(own) > 1:
        axes.legend(fontsize=FONT_SIZE - 1, handlelength=2.0, labelspacing=0.3, labelcolor=INK, frameon=False)
    return to_svg(figure)


def common_limits(every: Sequence[SeedCurves]) -> tuple[float, float]:
    """The range of all finite values, with a margin; of losses that run away, no more than most of it."""
    values = np.array([value for curves in every for _, seed in curves.seeds for value in seed], np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    usual = float(np.percentile(values, 98))
    if high - low > 3 * (usual - low) > 0:
        high = usual
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def _line(axes: Axes, epochs: Sequence[float], values: Sequence[float], **style: Any) -> None:
    # A single epoch draws no line: it needs a marker.
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, values, marker=marker, markersize=3, **style)


def _plain(label: str) -> str:
    """A pattern such as 'conv.*/kernel$' is no formula."""
    return label.replace("$", r"\$")


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
