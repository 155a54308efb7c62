"""The blocks of a page on an evaluated split. They hold data: `report` draws them and writes them as HTML."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

WITHOUT_IMAGES = "This page was written without the images of this split."


@dataclasses.dataclass(frozen=True)
class Heading:
    """The title of what follows."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    muted: bool = False


@dataclasses.dataclass(frozen=True)
class Items:
    """A list, one text an item."""

    texts: tuple[str, ...]


class Column(NamedTuple):
    """A column of a table: where its rows have the value, and the format in which it is shown (`report.formats`)."""

    title: str
    key: str
    format: str = "estimate"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows by the keys of the columns; wide: as wide as the page. 'estimate' shows a value with its `<key>_ci95`."""

    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class ConfusionMatrix:
    """counts[true][predicted], in the order of the classes."""

    classes: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Probabilities of the predicted classes, [n] float, whether they were right, [n] bool, and the calibration error.

    n is above 0.
    """

    confidences: np.ndarray
    correct: np.ndarray
    ece: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """How many of n values, [n] float, lie where. name: of the values; unit: what is counted; alt: in words."""

    values: np.ndarray
    name: str
    unit: str
    alt: str


@dataclasses.dataclass(frozen=True)
class Legend:
    """The classes in the colours of their masks; the first is the background, which has none."""

    text: str
    classes: Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image, [height, width, 1 or 3] uint8, or it once below each of its masks, [height, width] uint8 class ids.

    caption: (text, style); a style is '', 'strong', 'small', 'probability', 'right' or 'wrong'.
    """

    image: np.ndarray
    alt: str
    caption: tuple[tuple[str, str], ...]
    masks: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A grid of pictures, all of them with masks or none."""

    pictures: Sequence[Picture]


@dataclasses.dataclass(frozen=True)
class Row:
    """Columns of blocks side by side."""

    columns: tuple[tuple["Block", ...], ...]


Block = Heading | Text | Items | Table | ConfusionMatrix | Reliability | Histogram | Legend | Pictures | Row


def description(evaluation: Mapping[str, Any], problem: str | None = None) -> Text:
    """How many examples, which checkpoint, how intervals were made, and a problem if there is one."""
    sentences = [f"{evaluation['num_examples']:,} examples"]
    if checkpoint := evaluation.get("checkpoint"):
        sentences[0] += f", {checkpoint['which']} checkpoint (step {checkpoint['step']:,})"
    intervals = [f"for {what}: {how}" for what, how in evaluation.get("intervals", {}).items()]
    if intervals:
        sentences.append(f"Intervals {'; '.join(intervals)}")
    return Text(f"{'. '.join([*sentences, *([problem] if problem else [])])}.", muted=True)


def summary(evaluation: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
    """The figures of a split under their titles, as far as the evaluation has them."""
    rows = [
        {"title": title, "value": evaluation[key], "interval": evaluation.get(f"{key}_ci95")}
        for key, title in titles.items()
        if key in evaluation
    ]
    columns = (
        Column("", "title", "text"),
        Column("", "value", "decimal"),
        Column("95 % interval", "interval", "interval"),
    )
    return Table(columns, rows)


def class_table(evaluation: Mapping[str, Any], columns: Sequence[Column]) -> Table:
    """One row a class."""
    rows = [{"class": name, **scores} for name, scores in evaluation["per_class"].items()]
    return Table((Column("Class", "class", "text"), *columns), rows, wide=True)
