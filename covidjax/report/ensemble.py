"""What the report of an ensemble says in place of a network's training: members, weights, paired comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from covidjax.models import ENSEMBLE
from covidjax.report import figures, page, workdir
from covidjax.report.figures import PALETTE
from covidjax.report.page import Html, element
from covidjax.report.workdir import Run

FIGURES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "loss": "Loss",
}
RULES = {
    "accuracy": "Each round multiplies a member's weight by the exponential of its accuracy on a batch of the {split} "
    "split, times a constant, and divides by the sum.",
    "gradient": "Each round takes one step down the gradient of the mixture's loss on the {split} split.",
}
CHOICE = "Of all rounds and of each member alone the best was chosen, by accuracy, then by loss."
MIXES = {"probabilities": "weighted mean of their probabilities", "logits": "softmax of their weighted logits"}


def is_ensemble(run: Run) -> bool:
    """Whether the run mixes trained networks."""
    return run.config.get("model", {}).get("name") == ENSEMBLE


def subtitle(run: Run) -> str:
    """What is mixed, in a sentence."""
    members = ", ".join(member["name"] for member in _recorded(run).get("members", ()))
    return f"Mixture of {members or 'nothing yet'}, all frozen. Workdir {run.name}."


def banner(run: Run) -> Html | None:
    """The warning that the weights were chosen on the test split, where they were."""
    leak = _recorded(run).get("leak")
    return element("p", f"Leak: {leak}.", class_="warning") if leak else None


def headline(run: Run, evaluation: Mapping[str, Any]) -> list[tuple[str, str, str | None]]:
    """Name, value and note of the headline's figures that only an ensemble has."""
    recorded = _recorded(run)
    better = recorded.get("better_member")
    paired = next((row for row in evaluation.get("comparison", ()) if row["member"] == better), None)
    names = [member["name"] for member in recorded.get("members", ())]
    weights = recorded.get("weights") or [None] * len(names)
    shares = ", ".join(f"{name} {page.decimal(weight)}" for name, weight in zip(names, weights, strict=True))
    cells: list[tuple[str, str, str | None]] = [("Members", str(len(names)), shares)]
    if paired is not None:
        bounds = page.interval(paired["difference_ci95"]) or ""
        cells.append((f"Mixture \N{MINUS SIGN} {better}", _signed(paired["difference"]), f"accuracy {bounds}"))
        cells.append(("McNemar's exact p", _p(paired["mcnemar_p"]), f"against {better}"))
    return cells


def comparison(run: Run, evaluation: Mapping[str, Any]) -> list[Html]:
    """Mixture and members on one split: their figures, and the paired test of each difference."""
    better = _recorded(run).get("better_member")
    mixture = ("mixture", "", *(page.estimate(evaluation, key) for key in FIGURES))
    rows = [
        (member["name"], page.decimal(member["weight"]), *(page.estimate(member, key) for key in FIGURES))
        for member in evaluation["members"]
    ]
    pairs = [
        (
            f"mixture \N{MINUS SIGN} {row['member']}",
            _signed(row["difference"]),
            page.interval(row["difference_ci95"]) or page.MISSING,
            page.integer(row["only_mixture_right"]),
            page.integer(row["only_member_right"]),
            _p(row["mcnemar_p"]),
        )
        for row in evaluation["comparison"]
    ]
    columns = ("", "Weight", *FIGURES.values())
    head = ("Image by image", "Difference of accuracy", "95 % interval", "Only mixture right", "Only member right", "p")
    notes = f"On the validation split {better} is the better member. " if better else ""
    notes += "p: McNemar's exact test, two-sided, which takes images as independent; the interval draws whole patients."
    warning = evaluation.get("leak") or evaluation.get("optimistic")
    return [
        element("h3", "Members and mixture"),
        element("p", f"{warning[0].upper()}{warning[1:]}.", class_="warning") if warning else Html(),
        element("div", page.table(columns, rows, "lr" + "r" * len(FIGURES), mixture), class_="wide"),
        element("div", page.table(head, pairs, "lrrrrr"), class_="wide"),
        element("p", notes, class_="muted"),
    ]


def section(run: Run) -> list[Html]:
    """The members, how the weights came about, and their course."""
    recorded = _recorded(run)
    members: Sequence[Mapping[str, Any]] = recorded.get("members", ())
    if not members:
        return [element("p", "Nothing was mixed yet.")]
    weights = recorded.get("weights") or [None] * len(members)
    head = ("Member", "Weight", "Network", "Input", "Parameters, all frozen", "Checkpoint", "Workdir")
    rows = [
        (
            member["name"],
            page.decimal(weight),
            member["model"],
            f"{member['image_size']} x {member['image_size']} x {member['channels']}",
            page.short_count(member["parameters"]),
            f"{member['which']}, step {page.integer(member['step'])}",
            element("code", member["workdir"]),
        )
        for member, weight in zip(members, weights, strict=True)
    ]
    passes = ", ".join(f"{split} {count}" for split, count in recorded.get("forward_passes", {}).items())
    counted = f"Forward passes so far, each of one member over one split: {passes or 'none'}."
    return [
        element("div", page.table(head, rows, "lrllrll"), class_="wide"),
        element("p", " ".join(_how(recorded))),
        element("p", counted, class_="muted"),
        *_course(run, [member["name"] for member in members]),
    ]


def _recorded(run: Run) -> Mapping[str, Any]:
    return run.run.get("ensemble", {})


def _how(recorded: Mapping[str, Any]) -> list[str]:
    said = [f"The mixture is the {MIXES[recorded['mix']]}."]
    if recorded["rule"] == "equal":
        return [*said, "The weights are equal; no split decided them."]
    said += [RULES[recorded["rule"]].format(split=recorded["weights_from"]), CHOICE]
    if "weights" in recorded:
        number = recorded["chosen_round"]
        chosen = f"round {number} of {recorded['rounds']}" if number is not None else "a member alone"
        said.append(f"That is {chosen}.")
    if recorded["weights_from"] == "val":
        said.append("The test split had no part in it.")
    return said


def _course(run: Run, names: Sequence[str]) -> list[Html]:
    """Weights, accuracy and loss against the round."""
    split = _recorded(run)["weights_from"]
    if len(workdir.values(run, split, "loss")[0]) < 2:
        return []
    chosen = _recorded(run).get("chosen_round")
    weights = [(name, *workdir.values(run, split, f"weight_{index}")) for index, name in enumerate(names)]
    plots = [("Weights", _plot(weights, chosen))]
    for key, title in (("accuracy", "Accuracy of the mixture"), ("loss", "Loss of the mixture")):
        plots.append((f"{title}, {split} split", _plot([("", *workdir.values(run, split, key))], chosen)))
    shown = [
        element("figure", element("figcaption", title), page.image(svg, "image/svg+xml", f"{title} by round", "plot"))
        for title, svg in plots
    ]
    return [element("div", *shown, class_="curves")]


def _plot(lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], chosen: int | None) -> bytes:
    """Lines (name, rounds, values) against the round, with a dashed one at the round that was chosen. An SVG file."""
    figure, axes = figures.new_figure(3.4, 2.55)
    for number, (name, rounds, values) in enumerate(lines):
        label = name.replace("$", r"\$") or None
        axes.plot(rounds, values, color=PALETTE[number % len(PALETTE)], linewidth=1.5, label=label)
    if chosen is not None:
        axes.axvline(chosen, color=figures.MUTED, linestyle=(0, (4, 3)), linewidth=1)
    axes.set_xlabel("round", color=figures.MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10], min_n_ticks=1))
    if len(lines) > 1:
        axes.legend(fontsize=figures.FONT_SIZE, labelcolor=figures.INK, frameon=False)
    return figures.to_svg(figure)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
