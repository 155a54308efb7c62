"""The staircase: what a step costs under each freeze strategy, measured beside predicted."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks.records import Record

# Okabe and Ito's colours: distinct for every kind of sight
PREDICTED, MEASURED, MUTED, INK = "#dfe7ee", "#0072b2", "#66686d", "#1d1d1f"
PEERS = {
    "torch": ("#d55e00", "s"),
    "keras": ("#009e73", "^"),
    "flax": ("#cc79a7", "D"),
    "flax_norm_logged": ("#e69f00", "X"),
}
OTHER_PEER = ("#56b4e9", "v")
OFFSETS = (-0.3, -0.15, 0.15, 0.3)  # of the peers' markers, beside our own


def write(path: Path, records: Sequence[Record]) -> None:
    """Draws the steps of one model, precision and size, as PNG. Every ratio is to the same implementation's 'none'.

    The staircase is what the plan predicts. Raises UserError where matplotlib is missing or the file
    cannot be written.
    """
    figure, (axes,) = charts.new_figure(1, size=(8.4, 4.3))
    steps = [record for record in records if record["mode"] == "train" and record["time_ratio_vs_none"]]
    ours = [record for record in steps if record["impl"] == "covidjax"]
    names = [record["freeze"] for record in ours]
    positions = {name: place for place, name in enumerate(names)}
    predicted = [record["predicted_flops_ratio"] for record in ours]
    edges = [place - 0.5 for place in range(len(names) + 1)]
    axes.stairs(predicted, edges, fill=True, color=PREDICTED)
    axes.stairs(predicted, edges, baseline=None, color=MUTED, linewidth=1.2, label="predicted, FLOPs")
    peers = list(dict.fromkeys(record["impl"] for record in steps if record["impl"] != "covidjax"))
    for name, offset in (("covidjax", 0.0), *zip(peers, itertools.cycle(OFFSETS), strict=False)):
        own = [record for record in steps if record["impl"] == name and record["freeze"] in positions]
        _points(axes, own, [positions[record["freeze"]] + offset for record in own], name)
    for record in records:
        if record["impl"] == "covidjax" and record["mode"] == "inference" and record["time_ratio_vs_none"]:
            axes.axhline(record["time_ratio_vs_none"], color=MEASURED, linewidth=1, linestyle=":")
            axes.text(-0.48, record["time_ratio_vs_none"], "inference", va="bottom", fontsize=8, color=MEASURED)
    _finish(figure, axes, names, ours[0])
    charts.save(figure, path)


def _points(axes: Any, records: Sequence[Record], places: Sequence[float], name: str) -> None:
    """Medians with the span from p10 to p90; our own carry their number."""
    heights = [record["time_ratio_vs_none"] for record in records]
    spans = [
        [max(h - r["time_ratio_p10"], 0.0) for h, r in zip(heights, records, strict=True)],
        [max(r["time_ratio_p90"] - h, 0.0) for h, r in zip(heights, records, strict=True)],
    ]
    ours = name == "covidjax"
    color, marker = (MEASURED, "o") if ours else PEERS.get(name, OTHER_PEER)
    axes.errorbar(
        places,
        heights,
        yerr=spans,
        fmt=marker,
        color=color,
        markerfacecolor=color if ours else "white",
        markersize=7 if ours else 6,
        linewidth=1,
        zorder=4 if ours else 3,
        label=f"{name}, time",
    )
    for place, height, (_, above) in zip(places, heights, zip(*spans, strict=True), strict=True) if ours else ():
        top = (place, height + above)
        axes.annotate(f"{height:.2g}", top, (0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK)


def _finish(figure: Any, axes: Any, names: Sequence[str], record: Record) -> None:
    axes.set_xticks(range(len(names)), [name.replace(":", ":\n") for name in names], fontsize=9)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("a step, relative to the same\nimplementation's with nothing frozen")
    axes.set_title(
        f"{record['model']}, batch {record['batch_size']}, {record['image_size']} px, {record['precision']}, "
        f"{record['device']}",
        fontsize=10,
        loc="left",
    )
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=6)
