"""Charts of records."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Record
from covidjax.errors import UserError

OURS, THEIRS = "#1f6f8b", "#b8b8b8"
WORK = ("model", "mode", "freeze", "precision", "batch_size", "image_size")


def bars(path: Path, records: Sequence[Record]) -> None:
    """Images per second by implementation, a panel for each piece of work; lines reach from p10 to p90.

    Raises UserError where matplotlib is missing or the file cannot be written.
    """
    panels: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record["step_ms_median"] is not None:
            panels.setdefault(tuple(record[name] for name in WORK), []).append(record)
    if not panels:
        return
    figure, axes = new_figure(len(panels))
    for axis, (key, rows) in zip(axes, panels.items(), strict=True):
        _panel(axis, key, rows)
    figure.suptitle(f"{records[0]['device']}, {records[0]['cpu']}, {records[0]['date'][:10]}", fontsize=9)
    save(figure, path)


def _panel(axis: Any, key: tuple[Any, ...], rows: Sequence[Record]) -> None:
    model, mode, freeze, precision, batch_size, image_size = key
    rows = sorted(rows, key=lambda row: row["images_per_s"])
    values = [row["images_per_s"] for row in rows]
    low, high = ([row["batch_size"] / row[name] * 1e3 for row in rows] for name in ("step_ms_p90", "step_ms_p10"))
    reach = [  # recorded figures are rounded, so that of one sample an end may lie on the wrong side
        [max(value - end, 0.0) for value, end in zip(values, low, strict=True)],
        [max(end - value, 0.0) for value, end in zip(values, high, strict=True)],
    ]
    names = [row["impl"] + (f" ({row['ops']})" if row["ops"] else "") for row in rows]
    colours = [OURS if row["impl"] == "covidjax" else THEIRS for row in rows]
    axis.barh(names, values, color=colours, xerr=reach, error_kw={"elinewidth": 1, "capsize": 2})
    for place, (value, end) in enumerate(zip(values, high, strict=True)):
        axis.text(max(value, end) + 0.02 * max(high), place, f"{value:,.4g}", va="center", fontsize=8)
    axis.set_xlim(0, 1.18 * max(high))
    frozen = "" if freeze == "none" else f", freeze {freeze}"
    title = f"{model}, {mode}{frozen}\n{precision}, batch {batch_size}, {image_size} px"
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("images per second", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def scaling(path: Path, records: Sequence[Record]) -> None:
    """Speed-up over the number of devices, a panel for each kind, a line for each engine; grey is the ideal."""
    kinds = list(dict.fromkeys(record["kind"] for record in records))
    figure, axes = new_figure(len(kinds), size=(4.2, 3.6))
    for axis, kind in zip(axes, kinds, strict=True):
        rows = [record for record in records if record["kind"] == kind and record["speedup"]]
        counts = sorted({row["devices"] for row in rows})
        axis.plot(counts, counts, color=THEIRS, linestyle="--", label="ideal")
        for engine in dict.fromkeys(row["engine"] for row in rows):
            line = [(row["devices"], row["speedup"]) for row in rows if row["engine"] == engine]
            axis.plot(*zip(*line, strict=True), marker="o", label=engine)
        axis.set_title(f"{records[0]['model']}, {kind} scaling", fontsize=9)
        axis.set_xlabel("devices", fontsize=8)
        axis.set_ylabel("times the images/s of one", fontsize=8)
        axis.set_xticks(counts)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    notes = [record["note"] for record in records if record["note"]]
    lines = [f"{records[0]['device']}, {records[0]['date'][:10]}", *textwrap.wrap("".join(notes[:1]), 60 * len(kinds))]
    figure.suptitle("\n".join(lines), fontsize=9)
    save(figure, path)


def compiled(path: Path, records: Sequence[Record]) -> None:
    """Bytes moved and temporary memory by strategy, a bar for each implementation; two panels a network and target."""
    panels = list(dict.fromkeys((record["model"], record["target"]) for record in records))
    measures = (("bytes_accessed", "GB through memory"), ("temp_bytes", "GB of temporary memory"))
    names = list(dict.fromkeys(record["impl"] for record in records))
    width = 0.8 / len(names)
    figure, axes = new_figure(2 * len(panels), columns=2, size=(4.6, 2.8))
    wanted = [(panel, measure) for panel in panels for measure in measures]
    for axis, (panel, (field, label)) in zip(axes, wanted, strict=True):
        rows = [record for record in records if (record["model"], record["target"]) == panel]
        strategies = list(dict.fromkeys(row["freeze"] for row in rows))
        for number, name in enumerate(names):
            own = [row for row in rows if row["impl"] == name and row[field]]
            places = [strategies.index(row["freeze"]) + (number - (len(names) - 1) / 2) * width for row in own]
            colour = OURS if name == "covidjax" else str(0.85 - 0.2 * number)
            axis.bar(places, [row[field] / 1e9 for row in own], width, label=name, color=colour)
        axis.set_xticks(range(len(strategies)), strategies)
        axis.set_title(f"{panel[0]}, {panel[1]}, batch {rows[0]['batch_per_device']} a device", fontsize=9)
        axis.set_ylabel(label, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    legend = {"loc": "outside lower center", "ncols": len(names), "fontsize": 8, "frameon": False}
    figure.legend(*axes[0].get_legend_handles_labels(), **legend)
    figure.suptitle(f"compiled programs, {records[0]['precision']}, {records[0]['date'][:10]}", fontsize=9)
    save(figure, path)


def new_figure(panels: int, columns: int = 3, size: tuple[float, float] = (4.2, 2.6)) -> tuple[Any, list[Any]]:
    """A figure with so many axes. Raises UserError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: PLC0415 - only who asks for a chart needs it

        matplotlib.use("Agg")
        from matplotlib import pyplot  # noqa: PLC0415
    except ImportError as error:
        raise UserError("--plot needs matplotlib, not installed here: pip install matplotlib") from error
    columns = min(columns, panels)
    rows = -(-panels // columns)
    shape = (size[0] * columns, size[1] * rows + 0.3)
    figure, grid = pyplot.subplots(rows, columns, figsize=shape, layout="constrained", squeeze=False)
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def save(figure: Any, path: Path) -> None:
    """Writes to a temporary name, then renames."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}") from error
