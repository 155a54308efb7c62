"""The table of a classification's predictions."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidjax.errors import UserError
from covidjax.metrics.prediction_table import read_predictions, write_predictions
from tests.commands import read_table
from tests.predictions import CLASSES, make_examples, make_report


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_read_back_bit_exactly(tmp_path: Path, dtype: Any) -> None:
    generator = np.random.default_rng(0)
    logits = 30 * generator.normal(size=(50, 3))
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(dtype)
    probabilities[0] = np.nextafter(dtype(0), dtype(1)), 1 - np.finfo(dtype).epsneg, 0.0
    labels = generator.integers(0, 3, 50).astype(np.int32)
    names = ('a,"b".png', "c\nd\r.png", "Röntgen/肺.png", *(f"{index}.png" for index in range(47)))
    patients = ("", " p ", *(f"p{index}" for index in range(48)))
    path = tmp_path / "predictions_test.csv"
    facts = {"view": ("AP",) * 50, "source": ("", "CR") * 25}
    examples = dataclasses.replace(make_examples(labels, names=names, patients=patients), facts=facts)
    write_predictions(path, examples, probabilities)
    assert [(row["view"], row["source"]) for row in read_table(path)] == list(zip(*facts.values(), strict=True))
    found = read_predictions(path)
    assert (found.names, found.patients, found.classes) == (names, patients, CLASSES)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.probabilities.astype(dtype).tobytes(), probabilities.tobytes())
    np.testing.assert_array_equal(found.predicted, probabilities.argmax(axis=1))
    known: dict[str, Any] = {"patients": patients, "classes": CLASSES}
    assert make_report(found.probabilities, found.labels, **known) == make_report(probabilities, labels, **known)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_predictions_have_the_agreed_columns(tmp_path: Path) -> None:
    path = tmp_path / "predictions_val.csv"
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5]])
    examples = make_examples([0, 0], ("no", "yes"), names=("a.png", "b.png"), patients=("1", "2"))
    write_predictions(path, examples, probabilities)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "patient", "label", "predicted", "correct", "probability_no", "probability_yes"],
            ["a.png", "1", "no", "yes", "0", "0.25", "0.75"],
            ["b.png", "2", "no", "no", "1", "0.5", "0.5"],
        ]


HEADER = "file,patient,label,predicted,correct,probability_no,probability_yes\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a table"),
        (b"\xff\xfe", "cannot be read as a table"),
        (b"file,patient,label,predicted,correct\n", "must have the columns"),
        (f"{HEADER}a,1,no,no,1,0.9\n".encode(), "example 1 is not a row"),
        (f"{HEADER}a,1,no,no,1,0.9,0.1\nb,1,maybe,no,1,0.9,0.1\n".encode(), "example 2 is not a row"),
        (f"{HEADER}a,1,no,yes,0,0.9,0.1\n".encode(), "contradict"),
        (f"{HEADER}a,1,no,no,1,inf,0.1\n".encode(), "not finite"),
    ],
)
def test_broken_table_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "predictions_val.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path)
    assert "\n" not in str(caught.value)


def test_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*launch/evaluate.py"):
        read_predictions(tmp_path / "predictions_val.csv")
