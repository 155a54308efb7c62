"""The section of the report on one evaluated split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covidjax.data.examples import Examples
from covidjax.metrics.classification import Predictions
from covidjax.report import figures, page
from covidjax.report.page import Html, element, join

SUMMARY = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "loss": "Loss",
    "ece": "Calibration error (ECE)",
}
PER_CLASS = {"precision": "Precision", "recall": "Recall", "specificity": "Specificity", "f1": "F1", "auroc": "AUROC"}
MAX_WRONG, MAX_RIGHT = 12, 6
TINT = {True: "0, 114, 178", False: "213, 94, 0"}  # figures.COLORS as red, green, blue
MAX_CLASSES_ACROSS = 5  # with more, the names above a confusion matrix stand upright
DEEPEST_TINT = 0.6  # dark text stays readable on it
RELIABILITY_BINS = 15  # those of metrics.expected_calibration_error
PIXELATED_BELOW = 96


def split_section(
    evaluation: Mapping[str, Any], predictions: Predictions | None, examples: Examples | None
) -> list[Html]:
    """Figures with intervals, confusion matrix, reliability, per-class table and sample images of one split."""
    parts = [description(evaluation, _problem(evaluation, predictions))]
    blocks = [element("div", element("h3", "Summary"), _summary(evaluation))]
    if evaluation.get("confusion_matrix"):
        blocks.append(element("div", element("h3", "Confusion matrix"), confusion_matrix(evaluation)))
    if predictions is not None and len(predictions.names):
        blocks.append(
            element("div", element("h3", "Reliability"), _reliability(evaluation, predictions), class_="reliability")
        )
    parts += [element("div", *blocks, class_="row")]
    if evaluation.get("per_class"):
        parts += [element("h3", "Per class"), element("div", _per_class(evaluation), class_="wide")]
    if predictions is not None and examples is not None:
        parts += _samples(predictions, examples)
    else:
        parts.append(element("p", "This page was written without the images of this split.", class_="muted"))
    return parts


def wrong_first(predictions: Predictions) -> list[int]:
    """Indices of the wrong predictions, the most confident first."""
    confidence = predictions.probabilities.max(axis=-1)
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    return [int(index) for index in wrong[np.argsort(-confidence[wrong], kind="stable")]]


def right_by_class(predictions: Predictions) -> list[int]:
    """Indices of the right predictions: the most confident of each class in turn, then the next of each."""
    confidence = predictions.probabilities.max(axis=-1)
    right = np.flatnonzero(predictions.predicted == predictions.labels)
    order = right[np.argsort(-confidence[right], kind="stable")]
    seen: dict[int, int] = {}
    ranked = []
    for index in order:
        label = int(predictions.labels[index])
        ranked.append((seen.get(label, 0), label, int(index)))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, _, index in sorted(ranked)]


def confusion_matrix(evaluation: Mapping[str, Any]) -> Html:
    """Counts with the share of the true class below, right ones tinted blue and wrong ones orange."""
    classes: Sequence[str] = evaluation["classes"]
    head = element(
        "thead",
        element("tr", element("th"), element("th", "predicted", colspan=str(len(classes)))),
        element(
            "tr",
            element("th", "true", class_="l"),
            *(element("th", element("span", name), scope="col") for name in classes),
        ),
    )
    layout = "confusion dense" if len(classes) > MAX_CLASSES_ACROSS else "confusion"
    rows = []
    for true, (name, counts) in enumerate(zip(classes, evaluation["confusion_matrix"], strict=True)):
        cells = [element("th", name, class_="r", scope="row")]
        for predicted, count in enumerate(counts):
            share = count / sum(counts) if sum(counts) else 0.0
            tint = f"background: rgba({TINT[true == predicted]}, {DEEPEST_TINT * share:.3f})" if count else None
            shown = (
                element("b", page.integer(count)),
                element("span", f"{100 * share:.1f}\N{NO-BREAK SPACE}%"),
            )
            cells.append(element("td", *shown, class_=None if count else "zero", style=tint))
        rows.append(element("tr", *cells))
    return element("div", element("table", head, element("tbody", *rows), class_=layout), class_="scroll")


def description(evaluation: Mapping[str, Any], problem: str | None = None) -> Html:
    """How many examples, which checkpoint, how intervals were made, and a problem if there is one."""
    checkpoint = evaluation.get("checkpoint", {})
    sentences = [f"{page.integer(evaluation.get('num_examples'))} examples"]
    if checkpoint:
        sentences[0] += f", {checkpoint.get('which', '')} checkpoint (step {page.integer(checkpoint.get('step'))})"
    intervals = [f"for {what}: {how}" for what, how in evaluation.get("intervals", {}).items()]
    if intervals:
        sentences.append(f"Intervals {'; '.join(intervals)}")
    if problem:
        sentences.append(problem)
    return element("p", f"{'. '.join(sentences)}.", class_="muted")


def _problem(evaluation: Mapping[str, Any], predictions: Predictions | None) -> str | None:
    if predictions is None:
        return "There is no table of predictions, hence no reliability diagram"
    if len(predictions.names) != evaluation.get("num_examples"):
        return (
            f"The table of predictions holds {len(predictions.names)} examples and is from another evaluation: "
            "run launch/evaluate.py again"
        )
    return None


def _summary(evaluation: Mapping[str, Any]) -> Html:
    rows = [
        (title, page.decimal(evaluation[key]), page.interval(evaluation.get(f"{key}_ci95")) or "")
        for key, title in SUMMARY.items()
        if key in evaluation
    ]
    rows = [(title, shown, element("span", bounds, class_="interval")) for title, shown, bounds in rows]
    return page.table(("", "", "95 % interval"), rows, "lrr")


def _per_class(evaluation: Mapping[str, Any]) -> Html:
    per_class: Mapping[str, Mapping[str, Any]] = evaluation["per_class"]
    rows = [
        (name, page.integer(scores.get("support")), *(page.estimate(scores, key) for key in PER_CLASS))
        for name, scores in per_class.items()
    ]
    return page.table(("Class", "Support", *PER_CLASS.values()), rows, "lr" + "r" * len(PER_CLASS))


def _reliability(evaluation: Mapping[str, Any], predictions: Predictions) -> Html:
    svg = figures.reliability_diagram(
        predictions.probabilities.max(axis=-1),
        predictions.predicted == predictions.labels,
        np.linspace(0.0, 1.0, RELIABILITY_BINS + 1),
    )
    caption = f"ECE {page.decimal(evaluation.get('ece'))}. Bars: Wilson 95 % intervals; dashed: perfect calibration."
    shown = page.image(svg, "image/svg+xml", "Share of right predictions against stated probability", "plot")
    return element("figure", shown, element("figcaption", caption))


def _samples(predictions: Predictions, examples: Examples) -> list[Html]:
    position = {name: index for index, name in enumerate(examples.names)}
    wrong, right = (
        [index for index in order if predictions.names[index] in position]
        for order in (wrong_first(predictions), right_by_class(predictions))
    )

    def grid(indices: list[int]) -> Html:
        cells = (_sample(predictions, index, examples.images[position[predictions.names[index]]]) for index in indices)
        return element("div", *cells, class_="samples")

    parts = [
        element("h3", f"Wrong predictions, the most confident first ({min(len(wrong), MAX_WRONG)} of {len(wrong)})")
    ]
    parts += [grid(wrong[:MAX_WRONG])] if wrong else [element("p", "None.")]
    parts += [element("h3", f"Right predictions, each class in turn ({min(len(right), MAX_RIGHT)} of {len(right)})")]
    parts += [grid(right[:MAX_RIGHT])] if right else [element("p", "None.")]
    return parts


def _sample(predictions: Predictions, index: int, pixels: np.ndarray) -> Html:
    true, predicted = int(predictions.labels[index]), int(predictions.predicted[index])
    data, media_type = figures.picture(pixels)
    small = "small" if max(pixels.shape[:2]) < PIXELATED_BELOW else None
    verdict = "right" if true == predicted else "wrong"
    names = predictions.classes
    caption = join(
        [
            f"{names[true]} \N{RIGHTWARDS ARROW} ",
            element("span", names[predicted], class_=verdict),
            element("span", f"p = {predictions.probabilities[index, predicted]:.3f}", class_="probability"),
            element("small", predictions.names[index]),
        ]
    )
    shown = page.image(data, media_type, f"{names[true]}, predicted {names[predicted]}", small)
    return element("figure", shown, element("figcaption", caption))
