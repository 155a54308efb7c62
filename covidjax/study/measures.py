"""What the runs of a study are compared by, and which other figures it tells: of labelled images, and of masks."""

import dataclasses

from covidjax.data.sources import Task

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


@dataclasses.dataclass(frozen=True)
class Measure:
    """Keys of metrics.jsonl and evaluation_<split>.json, and words.

    value: what strategies are compared by, a share that is best at 1; name: it within a sentence
    beside: another figure that tables show; tested: the figures of the test split
    recorded: those of the validation split in study.csv; with_interval: of these, the ones whose bounds are there too
    interval: how the interval of a single run's value is made
    """

    value: str
    name: str
    beside: str
    tested: tuple[str, ...]
    recorded: tuple[str, ...]
    with_interval: tuple[str, ...]
    interval: str

    @property
    def title(self) -> str:
        """The value at the head of a column."""
        return TITLES[self.value]

    @property
    def column(self) -> str:
        """Where study.csv has the value."""
        return f"val_{self.value}"


MEASURES: dict[Task, Measure] = {
    "classification": Measure(
        "accuracy",
        "accuracy",
        "macro_auroc",
        ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "loss"),
        ("accuracy", "loss", "balanced_accuracy", "macro_f1", "macro_auroc", "ece"),
        ("accuracy", "macro_f1", "macro_auroc"),
        "Wilson",
    ),
    "segmentation": Measure(
        "dice",
        "Dice",
        "iou",
        ("dice", "iou", "dice_pooled", "iou_pooled", "loss"),
        ("dice", "loss", "iou", "dice_pooled", "iou_pooled"),
        ("dice", "iou", "dice_pooled", "iou_pooled"),
        "bootstrap by patient, or by image where patients are unknown",
    ),
}
