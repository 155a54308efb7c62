"""The figures of the report, as SVG bytes, and sample images as bytes that a browser shows."""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from covidjax.metrics.classification import wilson_interval
from covidjax.metrics.curves import GRID, Curve
from covidjax.report.workdir import PhaseSpan
from covidjax.tasks import pictures

# Okabe and Ito's colours, which all kinds of sight tell apart, without the yellow that paper swallows.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1d1d1f")
COLORS = {"step": "#9cc4dd", "train": PALETTE[0], "val": PALETTE[1]}  # those of steps lie below the others
INK, MUTED, RULE = "#1d1d1f", "#66686d", "#d9d7d0"
FONT_SIZE = 9.0
AXES_POINTS = 190.0  # width of the axes of a learning curve
POINTS_PER_LETTER = 4.4  # of a phase label, at its font size
PNG_MAX_SIDE = 96  # above it a grid of lossless photographs would weigh megabytes
JPEG_MAX_SIDE = 320
RELIABILITY_BINS = 15  # those of metrics.classification.expected_calibration_error
PANEL_SIDE = 160  # least side of an enlarged image below its mask, so that borders stay thin


def learning_curve(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    phases: Sequence[PhaseSpan],
    *,
    best_epoch: float | None = None,
    log_scale: bool = False,
    averaged: bool = False,
) -> bytes:
    """A figure against the epoch, with a dashed line between phases and a ring on val at `best_epoch`.

    curves: of 'train', 'val' and 'step', which is of single steps, epochs and values of equal length; averaged: whether
    val is of the moving average. Values that are not finite are gaps, and so is what a log scale cannot show.
    Returns an SVG file.
    """
    figure, axes = new_figure(3.4, 2.55, "epoch")
    for split, (epochs, found) in curves.items():
        values = np.asarray(found, np.float64)
        shown = np.isfinite(values) & ((values > 0) if log_scale else True)
        # A single epoch draws no line: it needs a marker.
        marker = "o" if np.count_nonzero(shown) == 1 else None
        values = np.where(shown, values, np.nan)
        label = "val (moving average)" if averaged and split == "val" else split
        width = 0.7 if split == "step" and len(curves) > 1 else 1.5
        axes.plot(epochs, values, color=COLORS[split], label=label, linewidth=width, marker=marker, ms=4)
        if split == "val" and best_epoch is not None and best_epoch in epochs:
            height = values[list(epochs).index(best_epoch)]
            axes.plot(
                [best_epoch], [height], "o", ms=8, mfc="none", mec=INK, mew=1.3, label=f"best, epoch {best_epoch:g}"
            )
    if log_scale and any(np.any(np.asarray(values, np.float64) > 0) for _, values in curves.values()):
        axes.set_yscale("log")
    _draw_phases(axes, phases)
    if "val" in curves:
        legend = axes.legend(fontsize=FONT_SIZE, handlelength=1.3, labelspacing=0.3, labelcolor=INK, framealpha=0.8)
        legend.get_frame().set(facecolor="white", edgecolor="none")
    return to_svg(figure)


def reliability_diagram(confidences: np.ndarray, correct: np.ndarray) -> bytes:
    """Share of right predictions against stated probability, with Wilson 95 % intervals, over a histogram.

    confidences: [n] probability of the predicted class, n above 0; correct: [n] bool. Each bin is closed on the right,
    as in the expected calibration error. Returns an SVG file.
    """
    bin_edges = np.linspace(0.0, 1.0, RELIABILITY_BINS + 1)
    figure, (upper, lower) = new_figure(3.2, 3.7, nrows=2, sharex=True, height_ratios=(3.2, 1))
    bins = np.clip(np.digitize(confidences, bin_edges[1:-1], right=True), 0, len(bin_edges) - 2)
    counts = np.bincount(bins, minlength=len(bin_edges) - 1)
    filled = np.flatnonzero(counts)
    means = np.array([confidences[bins == index].mean() for index in filled])
    hits = np.array([np.count_nonzero(correct[bins == index]) for index in filled])
    low, high = np.transpose([wilson_interval(*pair) for pair in zip(hits, counts[filled], strict=True)])
    upper.plot([0, 1], [0, 1], linestyle=(0, (4, 3)), color=MUTED, linewidth=1)
    upper.vlines(means, low, high, color=COLORS["train"], linewidth=1.3)
    upper.plot(means, hits / counts[filled], "o", color=COLORS["train"], markersize=5, clip_on=False)
    upper.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.set_ylabel("share that is right", color=MUTED)
    lower.bar(
        bin_edges[:-1], counts, np.diff(bin_edges), align="edge", color="#9cc4dd", edgecolor="white", linewidth=0.8
    )
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    lower.set_xlabel("probability of the predicted class", color=MUTED)
    lower.set_ylabel("examples", color=MUTED)
    figure.align_ylabels([upper, lower])
    return to_svg(figure)


def threshold_curves(curves: Mapping[str, tuple[Curve, Curve]], kind: str) -> bytes:
    """Curves of classes against the rest with their bands and areas. kind: 'roc' or 'precision_recall'. An SVG file."""
    figure, axes = new_figure(3.4, 3.4)
    for (name, pair), color in zip(curves.items(), PALETTE, strict=False):
        one, style = (pair[0], "default") if kind == "roc" else (pair[1], "steps-post")
        axes.fill_between(GRID, one.low, one.high, color=color, alpha=0.15, linewidth=0)
        axes.plot(one.x, one.y, color=color, linewidth=1.5, drawstyle=style, label=f"{plain(name)} {one.area:.3f}")
    if kind == "roc":
        axes.plot([0, 1], [0, 1], linestyle=(0, (4, 3)), color=MUTED, linewidth=1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    names = ("false positive rate", "sensitivity") if kind == "roc" else ("recall", "precision")
    axes.set_xlabel(names[0], color=MUTED)
    axes.set_ylabel(names[1], color=MUTED)
    legend = axes.legend(
        fontsize=FONT_SIZE, handlelength=1.3, labelspacing=0.3, labelcolor=INK, loc="lower right", framealpha=0.8
    )
    legend.get_frame().set(facecolor="white", edgecolor="none")
    return to_svg(figure)


def histogram(values: np.ndarray, name: str, unit: str) -> bytes:
    """How many of n values lie where, with a line at the median. Returns an SVG file.

    values: [n] float, finite, n above 0; name: of the values, unit: what is counted. The axis of shares, which lie
    between 0 and 1, begins at the tenth below all and ends at 1; any other has the range of the values.
    """
    figure, axes = new_figure(3.4, 2.2)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        low, high = min(np.floor(10 * low) / 10, 0.9), 1.0
    axes.hist(values, bins=20, range=(low, high), color="#9cc4dd", edgecolor="white", linewidth=0.8)
    median = float(np.median(values))
    axes.axvline(median, color=INK, linewidth=1.2)
    side, shift = ("right", -4) if median > (low + high) / 2 else ("left", 4)
    axes.annotate(
        f"median {median:.3f}",
        (median, 1.0),
        xytext=(shift, -2),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha=side,
        va="top",
        fontsize=FONT_SIZE,
        color=INK,
    )
    axes.set(xlim=(low, high) if high > low else None)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.set_xlabel(name, color=MUTED)
    axes.set_ylabel(unit, color=MUTED)
    return to_svg(figure)


def picture(image: np.ndarray, max_side: int = JPEG_MAX_SIDE) -> bytes:
    """An image as the bytes of a file: PNG while it is small, else JPEG.

    image: [height, width, channels] uint8 with 1 or 3 channels. max_side: a longer JPEG is reduced.
    """
    decoded = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
    buffer = io.BytesIO()
    if max(decoded.size) <= PNG_MAX_SIDE:
        decoded.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()
    decoded.thumbnail((max_side, max_side))
    decoded.save(buffer, "JPEG", quality=88, optimize=True)
    return buffer.getvalue()


def mask_pair(image: np.ndarray, masks: Sequence[np.ndarray]) -> bytes:
    """An image below its mask, below the prediction, and with what differs, side by side, as the bytes of a file.

    image: [height, width, 1 or 3] uint8; masks: the true and the predicted one, [height, width] uint8 class ids.
    """
    below, *large = (pictures.enlarge(array, PANEL_SIDE) for array in (image, *masks))
    panels = [*(pictures.paint(below, mask) for mask in large), pictures.disagreement(below, *large)]
    return picture(pictures.side_by_side(*panels), max_side=len(panels) * JPEG_MAX_SIDE)


def new_figure(width: float, height: float, counted: str = "", **grid: Any) -> tuple[Figure, Any]:
    """An empty figure of a width and height in inches, and its axes, the horizontal one of whole numbers if `counted`.

    counted: what these numbers are, such as 'epoch'; grid: of `Figure.subplots`, which then gives an array of axes.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    found = figure.subplots(**grid)
    for axes in np.atleast_1d(found).flat:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(RULE)
        axes.tick_params(which="both", color=RULE, labelcolor=INK, labelsize=FONT_SIZE)
        axes.grid(visible=True, axis="y", color="#eceae4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.label.set_fontsize(FONT_SIZE)
        axes.yaxis.label.set_fontsize(FONT_SIZE)
        if counted:
            axes.set_xlabel(counted, color=MUTED)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10], min_n_ticks=1))
    return figure, found


def line(axes: Axes, epochs: Sequence[float], values: Sequence[float], **style: Any) -> None:
    """Draws values against epochs; a single one draws no line: it needs a marker."""
    axes.plot(epochs, values, **{"marker": "o" if len(epochs) == 1 else None, "markersize": 3} | style)


def plain(label: str) -> str:
    """A label that matplotlib takes as it is: a pattern such as 'conv.*/kernel$' is no formula."""
    return label.replace("$", r"\$")


def _draw_phases(axes: Axes, phases: Sequence[PhaseSpan]) -> None:
    if len(phases) < 2:
        return
    for before, after in itertools.pairwise(phases):
        axes.axvline((before.last_epoch + after.first_epoch) / 2, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    for phase, label in zip(phases, _phase_labels(phases), strict=True):
        axes.annotate(
            label,
            ((phase.first_epoch + phase.last_epoch) / 2, 1.0),
            xytext=(0, 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=FONT_SIZE - 1,
            color=MUTED,
            parse_math=False,  # a pattern such as 'conv.*/kernel$' is no formula
        )


def _phase_labels(phases: Sequence[PhaseSpan]) -> list[str]:
    """Number and strategy of each phase if all of them fit above the axes, else less, down to nothing."""
    epochs = phases[-1].last_epoch - phases[0].first_epoch
    centers = [AXES_POINTS * (phase.first_epoch + phase.last_epoch) / 2 / epochs for phase in phases]
    wordings: tuple[Callable[[PhaseSpan], str], ...] = (
        lambda phase: f"phase {phase.number}: {phase.strategy}",
        lambda phase: f"phase {phase.number}",
        lambda phase: str(phase.number),
    )
    for wording in wordings:
        labels = [wording(phase) for phase in phases]
        widths = [POINTS_PER_LETTER * (len(label) + 2) for label in labels]
        pairs = itertools.pairwise(zip(centers, widths, strict=True))
        if all((left[1] + right[1]) / 2 < right[0] - left[0] for left, right in pairs):
            return labels
    return [""] * len(phases)


def to_svg(figure: Figure) -> bytes:
    """The figure as an SVG file, the same bytes whenever it is drawn."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    if (layout := figure.get_layout_engine()) is not None:  # once: savefig would draw the figure for it a first time
        layout.execute(figure)
        figure.set_layout_engine(None)
    with matplotlib.rc_context({"svg.hashsalt": "covidjax"}):  # else names within the file are random
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
