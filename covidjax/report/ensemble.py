"""The parts of a report on an ensemble, in place of a network's training: members, weights, paired comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from covidjax.models import ENSEMBLE
from covidjax.report import figures, workdir
from covidjax.report.formats import integer
from covidjax.report.workdir import Run
from covidjax.tasks.base import Task

SECTION = {"ensemble": "Ensemble"}


def is_ensemble(run: Run) -> bool:
    """Whether the run mixes trained networks."""
    return run.config.get("model", {}).get("name") == ENSEMBLE


def context(run: Run, task: Task) -> dict[str, Any]:
    """The variables of ensemble.html and comparison.html."""
    record: Mapping[str, Any] = run.run.get("ensemble", {})
    found: Sequence[Mapping[str, Any]] = record.get("members", ())
    members = [
        {
            **member,
            "weight": weight,
            "input": f"{member['image_size']} x {member['image_size']} x {member['channels']}",
            "checkpoint": f"{member['which']}, step {integer(member['step'])}",
        }
        for member, weight in zip(found, record.get("weights") or [None] * len(found), strict=True)
    ]
    return {
        "record": record,
        "member_figures": [(title, key, "estimate") for key, title in task.comparison.titles.items()],
        "members": members,
        "course": _course(run, record) if members else [],
    }


def _course(run: Run, record: Mapping[str, Any]) -> list[tuple[str, str, bytes]]:
    """Title, description and plot of weights, accuracy and loss against the round."""
    split = record["weights_from"]
    if len(workdir.values(run, split, "loss")[0]) < 2:
        return []
    names = [member["name"] for member in record["members"]]
    lines = {"Weights": [(name, *workdir.values(run, split, f"weight_{index}")) for index, name in enumerate(names)]}
    for key in ("accuracy", "loss"):
        lines[f"{key.capitalize()} of the mixture, {split} split"] = [("", *workdir.values(run, split, key))]
    chosen = record.get("chosen_round")
    return [(title, f"{title} by round", _plot(drawn, chosen)) for title, drawn in lines.items()]


def _plot(lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], chosen: int | None) -> bytes:
    """Lines (name, rounds, values) against the round, with a dashed one at the round that was chosen. An SVG file."""
    figure, axes = figures.new_figure(3.4, 2.55, "round")
    for number, (name, rounds, values) in enumerate(lines):
        label = figures.plain(name) or None
        axes.plot(rounds, values, color=figures.PALETTE[number % len(figures.PALETTE)], linewidth=1.5, label=label)
    if chosen is not None:
        axes.axvline(chosen, color=figures.MUTED, linestyle=(0, (4, 3)), linewidth=1)
    if len(lines) > 1:
        axes.legend(fontsize=figures.FONT_SIZE, labelcolor=figures.INK, frameon=False)
    return figures.to_svg(figure)
