"""The table of a classifier's predictions: predictions_<split>.csv."""

import csv
import dataclasses
from pathlib import Path

import numpy as np

from covidjax import files
from covidjax.data.examples import FACTS, Examples
from covidjax.errors import UserError

COLUMNS = ("file", "patient", "label", "predicted", "correct")
PROBABILITY = "probability_"
AGAIN = "write it again with launch/evaluate.py"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The content of predictions_<split>.csv.

    names, patients: n identifiers; labels: [n] int32, an index into `classes`
    probabilities: [n, classes] float64, columns in the order of `classes`
    """

    names: tuple[str, ...]
    patients: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        """[n] int64: the class of the greatest probability, the first of equal ones."""
        return self.probabilities.argmax(axis=1)


def write_predictions(path: Path, examples: Examples, probabilities: np.ndarray) -> None:
    """Writes predictions_<split>.csv: label and predicted as class names, probabilities with all their digits.

    What the files tell of the images (`Examples.facts`) stands behind.

    probabilities: [n, classes] float32 or float64, of the examples.
    Raises UserError where probabilities are not finite or the file cannot be written; an old file stays then.
    """
    require_finite(probabilities, str(path))
    classes, scores = examples.classes, probabilities.astype(np.float64).tolist()
    answers = zip(examples.labels, probabilities.argmax(axis=1), scores, strict=True)
    rows = [[classes[label], classes[guess], int(label == guess), *row] for label, guess, row in answers]
    header = [*COLUMNS, *(PROBABILITY + name for name in classes), *examples.facts]
    named = zip(examples.names, examples.patients, rows, *examples.facts.values(), strict=True)
    files.write_csv(path, header, ([name, patient, *row, *told] for name, patient, row, *told in named))


def rows_of(path: Path) -> list[list[str]]:
    """The header and the rows of a table of predictions. Raises UserError where there is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, strict=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}: {AGAIN}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {error}: {AGAIN}") from error
    return [header, *rows]


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote. Raises UserError where it is missing, in another form or in contradiction."""
    header, *rows = rows_of(path)
    end = len(header)
    while end and header[end - 1] in FACTS:
        end -= 1
    scores = header[len(COLUMNS) : end]
    if header[: len(COLUMNS)] != [*COLUMNS] or not scores or not all(name.startswith(PROBABILITY) for name in scores):
        raise UserError(f"{path} must have the columns {', '.join(COLUMNS)}, {PROBABILITY}<class>...: {AGAIN}")
    classes = tuple(name.removeprefix(PROBABILITY) for name in scores)
    labels = np.empty(len(rows), np.int32)
    probabilities = np.empty((len(rows), len(classes)))
    for index, row in enumerate(rows):
        try:
            if len(row) != len(header):
                raise ValueError("a row is as long as the header")
            labels[index] = classes.index(row[2])
            probabilities[index] = [float(text) for text in row[len(COLUMNS) : end]]
            guess = int(probabilities[index].argmax())
            consistent = row[3] == classes[guess] and row[4] == str(int(guess == labels[index]))
        except ValueError as error:
            raise UserError(f"{path}: example {index + 1} is not a row of predictions: {AGAIN}") from error
        if not consistent:
            raise UserError(f"{path}: example {index + 1}: predicted or correct contradict the probabilities: {AGAIN}")
    require_finite(probabilities, str(path))
    names, patients = (tuple(row[column] for row in rows) for column in (0, 1))
    return Predictions(names, patients, labels, probabilities, classes)


def require_finite(probabilities: np.ndarray, where: str) -> None:
    """Raises UserError where a row of probabilities [n, classes] is not finite. where: what they belong to."""
    broken = int(np.count_nonzero(~np.isfinite(probabilities).all(axis=1)))
    if broken:
        advice = "the network has diverged: take an earlier checkpoint or train with a lower learning rate"
        raise UserError(f"{where}: {broken} of {len(probabilities)} predictions are not finite: {advice}")
