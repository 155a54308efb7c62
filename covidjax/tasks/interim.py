"""The parts of a task that pages and studies use, until `tasks.base.Task` holds them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covidjax import models
from covidjax.data.examples import Examples
from covidjax.tasks.classification_page import classification_blocks
from covidjax.tasks.page import Block
from covidjax.tasks.segmentation_page import segmentation_blocks


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Keys of metrics.jsonl and evaluation_<split>.json, and words, by which a study compares runs."""

    value: str
    name: str
    beside: str
    tested: tuple[str, ...]
    recorded: tuple[str, ...]
    with_interval: tuple[str, ...]
    interval: str
    titles: Mapping[str, str]

    @property
    def title(self) -> str:
        """The value at the head of a column."""
        return self.titles[self.value]

    @property
    def column(self) -> str:
        """Where study.csv has the value."""
        return f"val_{self.value}"


@dataclasses.dataclass(frozen=True)
class Task:
    """What pages and studies use of a task."""

    page: Callable[[Mapping[str, Any], Path, Examples | None], Sequence[Block]]
    counted: str
    headline: tuple[tuple[str, str], ...]
    curves: tuple[tuple[str, str], ...]
    comparison: Comparison


TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "dice": "Dice",
    "iou": "IoU",
    "dice_pooled": "Dice, pooled",
    "iou_pooled": "IoU, pooled",
    "loss": "Loss",
}
CLASSIFICATION = Task(
    page=classification_blocks,
    counted="Examples",
    headline=(("accuracy", "accuracy"), ("Balanced accuracy", "balanced_accuracy"), ("Macro AUROC", "macro_auroc")),
    curves=(("loss", "Loss"), ("accuracy", "Accuracy")),
    comparison=Comparison(
        "accuracy",
        "accuracy",
        "macro_auroc",
        ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "loss"),
        ("accuracy", "loss", "balanced_accuracy", "macro_f1", "macro_auroc", "ece"),
        ("accuracy", "macro_f1", "macro_auroc"),
        "Wilson",
        TITLES,
    ),
)
SEGMENTATION = Task(
    page=segmentation_blocks,
    counted="Pixels",
    headline=(("Dice", "dice"), ("IoU", "iou"), ("Dice, pooled", "dice_pooled")),
    curves=(("loss", "Loss"), ("dice", "Dice")),
    comparison=Comparison(
        "dice",
        "Dice",
        "iou",
        ("dice", "iou", "dice_pooled", "iou_pooled", "loss"),
        ("dice", "loss", "iou", "dice_pooled", "iou_pooled"),
        ("dice", "iou", "dice_pooled", "iou_pooled"),
        "bootstrap by patient, or by image where patients are unknown",
        TITLES,
    ),
)


def of(model_name: str) -> Task:
    """The task of a network of this name."""
    return SEGMENTATION if models.task(model_name) == "segmentation" else CLASSIFICATION
