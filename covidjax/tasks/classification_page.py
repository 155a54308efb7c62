"""The page on a split whose images were labelled."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.data.examples import Examples
from covidjax.metrics.classification import Predictions, read_predictions
from covidjax.tasks.page import (
    WITHOUT_IMAGES,
    Block,
    Column,
    ConfusionMatrix,
    Heading,
    Picture,
    Pictures,
    Reliability,
    Row,
    Text,
    class_table,
    description,
    summary,
)

MAX_WRONG, MAX_RIGHT = 12, 6
SUMMARY = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "loss": "Loss",
    "ece": "Calibration error (ECE)",
}
PER_CLASS = (
    Column("Support", "support", "integer"),
    Column("Precision", "precision"),
    Column("Recall", "recall"),
    Column("Specificity", "specificity"),
    Column("F1", "f1"),
    Column("AUROC", "auroc"),
)


def classification_blocks(evaluation: Mapping[str, Any], workdir: Path, examples: Examples | None) -> list[Block]:
    """Figures with intervals, confusion matrix, reliability, a table of classes, and wrong and right images.

    Raises UserError where predictions_<split>.csv is damaged.
    """
    path = workdir / f"predictions_{evaluation['split']}.csv"
    predictions = read_predictions(path) if path.is_file() else None
    problem = None
    if predictions is None:
        problem = "There is no table of predictions, hence no reliability diagram"
    elif len(predictions.names) != evaluation.get("num_examples"):
        problem = (
            f"The table of predictions holds {len(predictions.names)} examples and is from another evaluation: "
            "run launch/evaluate.py again"
        )
    columns: list[tuple[Block, ...]] = [(Heading("Summary"), summary(evaluation, SUMMARY))]
    if evaluation.get("confusion_matrix"):
        matrix = ConfusionMatrix(evaluation["classes"], evaluation["confusion_matrix"])
        columns.append((Heading("Confusion matrix"), matrix))
    if predictions is not None and len(predictions.names):
        correct = predictions.predicted == predictions.labels
        diagram = Reliability(predictions.probabilities.max(axis=-1), correct, evaluation.get("ece"))
        columns.append((Heading("Reliability"), diagram))
    blocks: list[Block] = [description(evaluation, problem), Row(tuple(columns))]
    if evaluation.get("per_class"):
        blocks += [Heading("Per class"), class_table(evaluation, PER_CLASS)]
    if predictions is None or examples is None:
        return [*blocks, Text(WITHOUT_IMAGES, muted=True)]
    return blocks + _samples(predictions, examples)


def _samples(predictions: Predictions, examples: Examples) -> list[Block]:
    """Images by confidence: wrong ones, and right ones of each class in turn."""
    position = {name: index for index, name in enumerate(examples.names)}
    names, labels, predicted, classes = (
        predictions.names,
        predictions.labels,
        predictions.predicted,
        predictions.classes,
    )
    ranked = [
        int(i) for i in np.argsort(-predictions.probabilities.max(axis=-1), kind="stable") if names[i] in position
    ]
    wrong = [index for index in ranked if predicted[index] != labels[index]]
    turns: Counter[int] = Counter()
    right = []
    for index in ranked:
        label = int(labels[index])
        if predicted[index] == label:
            right.append((turns[label], label, index))
            turns[label] += 1

    def picture(index: int) -> Picture:
        true, shown = classes[labels[index]], classes[predicted[index]]
        caption = (
            (f"{true} \N{RIGHTWARDS ARROW} ", ""),
            (shown, "right" if predicted[index] == labels[index] else "wrong"),
            (f"p = {predictions.probabilities[index, predicted[index]]:.3f}", "probability"),
            (names[index], "small"),
        )
        return Picture(examples.images[position[names[index]]], f"{true}, predicted {shown}", caption)

    blocks: list[Block] = []
    for title, found, most in (
        ("Wrong predictions, the most confident first", wrong, MAX_WRONG),
        ("Right predictions, each class in turn", [index for *_, index in sorted(right)], MAX_RIGHT),
    ):
        pictures = [picture(index) for index in found[:most]]
        blocks.append(Heading(f"{title} ({len(pictures)} of {len(found)})"))
        blocks.append(Pictures(pictures) if pictures else Text("None."))
    return blocks
