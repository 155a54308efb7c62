"""One class for an image."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from ml_collections import ConfigDict

from covidjax import files, losses
from covidjax.data.examples import Examples
from covidjax.errors import UserError, some_of
from covidjax.losses import LossFunction, at_least_float32
from covidjax.metrics import classification, prediction_table, validated
from covidjax.metrics.comparison import Judged
from covidjax.metrics.prediction_table import Predictions
from covidjax.metrics.validated import Chosen
from covidjax.tasks.base import RESEARCH_USE, Answers, Comparison, Predicted, Prediction, Request, Task, with_interval
from covidjax.tasks.classification_page import classification_page, shown

COMPARED = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")  # of several networks on the same images


@flax.struct.dataclass
class Sums(clu_metrics.Collection):
    """Sums over batches; padded examples are masked out."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Accuracy


@jax.jit(static_argnames="loss")
def _batch_sums(logits: jax.Array, labels: jax.Array, count: jax.Array, loss: LossFunction) -> Sums:
    mask = jnp.arange(len(labels)) < count
    return Sums.single_from_model_output(logits=logits, labels=labels, loss=loss(logits, labels), mask=mask)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Classification(Task):
    """Labels [n] int32, an index into the classes; an answer is the probabilities of the classes."""

    def targets(self, examples: Examples) -> np.ndarray:
        if examples.findings is not None:
            raise UserError(
                f"the images of the {examples.split} split have several findings each, of {some_of(examples.classes)}: "
                f"choose one of their losses, {', '.join(losses.FINDING_LOSSES)}, as config.loss.name"
            )
        return examples.labels

    def label(self, target: np.ndarray, classes: Sequence[str]) -> str:
        return classes[int(target)]

    def split_notes(self, train: Examples, val: Examples) -> list[str]:
        counts, of_val = self.class_counts(train), self.class_counts(val)
        missing = [name for name, count in of_val.items() if not count]
        few = [name for name, count in counts.items() if count < 2]
        notes = []
        if missing:
            notes.append(
                f"no validation image is of class {some_of(missing)}: nothing tells how well the network knows it, and "
                "the macro figures are of the other classes"
            )
        if few:
            notes.append(f"one training image, or none, is of class {some_of(few)}: too few to learn it from")
        return notes

    def measure(self, answers: Answers, loss: LossFunction, loss_name: str) -> dict[str, float]:
        """Mean loss, accuracy, and the figures of `metrics.classification.validation_figures`."""
        total, batches = Sums.empty(), []
        for logits, labels, count in answers:
            total = total.merge(_batch_sums(logits, labels, count, loss))
            batches.append((losses.probabilities(logits, loss_name), labels, count))
        parts = [(np.asarray(table)[:count], np.asarray(labels)[:count]) for table, labels, count in batches]
        probabilities, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        sums = {name: float(value) for name, value in total.compute().items()}
        return {**sums, **classification.validation_figures(probabilities, targets)}

    def evaluate(
        self, answers: Answers, examples: Examples, loss: ConfigDict, workdir: Path, *, hausdorff: bool = False
    ) -> dict[str, Any]:
        rows = [np.asarray(at_least_float32(batch))[:count] for batch, _, count in answers]
        logits = jnp.asarray(np.concatenate(rows))
        mean_loss = float(np.mean(self.plain_loss(loss)(logits, jnp.asarray(examples.labels))))
        table = np.asarray(losses.probabilities(logits, loss.name))
        result = classification.classification_report(table, examples, mean_loss)
        prediction_table.write_predictions(workdir / f"predictions_{examples.split}.csv", examples, table)
        return result

    def summary(self, evaluation: Mapping[str, Any]) -> Iterator[str]:
        yield f"accuracy {with_interval(evaluation, 'accuracy')}"
        yield f"balanced accuracy {evaluation['balanced_accuracy']:.4f}, macro F1 {evaluation['macro_f1']:.4f}"

    def chosen(self, workdir: Path) -> Chosen:
        return validated.choose(prediction_table.read_predictions(workdir / "predictions_val.csv"))

    def by_validation(self, workdir: Path, examples: Examples, *, calibrated: bool = False) -> dict[str, Any]:
        chosen, split = self.chosen(workdir), examples.split
        table = prediction_table.read_predictions(workdir / f"predictions_{split}.csv").probabilities
        if calibrated:
            path = workdir / f"predictions_{split}_calibrated.csv"
            prediction_table.write_predictions(path, examples, chosen.calibrated(table))
        return validated.measured(chosen, table, examples)

    def judged(self, evaluation: Mapping[str, Any], workdir: Path) -> Judged:
        return _judged(self._read(evaluation, workdir))

    def pooled(self, evaluations: Sequence[Mapping[str, Any]], workdirs: Sequence[Path]) -> Judged:
        parts = [self._read(*pair) for pair in zip(evaluations, workdirs, strict=True)]
        if len({part.classes for part in parts}) > 1:
            raise UserError(f"the runs below {workdirs[0].parent} know different classes: train them on the same ones")
        names, patients = (tuple(one for part in parts for one in getattr(part, key)) for key in ("names", "patients"))
        labels, table = (np.concatenate([getattr(part, key) for part in parts]) for key in ("labels", "probabilities"))
        return _judged(Predictions(names, patients, labels, table, parts[0].classes))

    def _read(self, evaluation: Mapping[str, Any], workdir: Path) -> Predictions:
        """The table of an evaluation. Raises UserError where it is of another one."""
        found = prediction_table.read_predictions(workdir / f"predictions_{evaluation['split']}.csv")
        correct = found.predicted == found.labels
        if len(correct) != evaluation["num_examples"] or abs(correct.mean() - evaluation["accuracy"]) > 1e-9:
            raise UserError(
                f"{workdir}: the predictions of the {evaluation['split']} split are from another evaluation: run "
                "launch/evaluate.py again"
            )
        return found

    def respond(self, logits: jax.Array, loss: ConfigDict) -> jax.Array:
        return losses.probabilities(logits, loss.name)

    def pictured(self, workdir: Path, examples: Examples) -> list[tuple[str, int]]:
        found = prediction_table.read_predictions(workdir / f"predictions_{examples.split}.csv")
        rows = [row for _, chosen, _ in shown(found, examples) for row in chosen]
        return [(found.names[row], int(found.predicted[row])) for row in rows]

    def write_predictions(
        self, predictions: Iterable[Prediction], names: Sequence[str], classes: Sequence[str], request: Request
    ) -> Predicted:
        found = list(predictions)
        rows = [
            [
                *(one.name, classes[int(one.answer.argmax())], *one.answer.astype(np.float64).tolist()),
                *one.called.values(),
                *(request.facts[column][one.name] for column in request.facts),
                RESEARCH_USE,
            ]
            for one in found
        ]
        scores = (prediction_table.PROBABILITY + name for name in classes)
        header = ["file", "predicted", *scores, *found[0].called, *request.facts, "use"]
        files.write_csv(request.table, header, rows)
        counts = collections.Counter(row[1] for row in rows)
        return Predicted(
            len(rows), "images by predicted class", {name: counts[name] for name in classes}, {"table": request.table}
        )


def _judged(found: Predictions) -> Judged:
    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        drawn = classification.weighted_figures(found.probabilities, found.labels, weights)
        return {name: drawn[name] for name in COMPARED}

    truth = tuple(found.classes[label] for label in found.labels)
    return Judged(found.names, found.patients, truth, found.predicted == found.labels, figures)


CLASSIFICATION = Classification(
    name="classification",
    labels="images",
    words="labels whole images",
    of="whole images",
    losses=losses.LOSSES,
    best={"loss": -1, "accuracy": 1, "auroc": 1, "macro_f1": 1, "balanced_accuracy": 1},
    shown=("loss", "accuracy", "auroc"),
    offers=frozenset({"operating_points", "oversample", "mix", "ensemble", "sweep", "explain"}),
    masks=False,
    template="classification.html",
    page=classification_page,
    counted="Examples",
    headline=("balanced_accuracy", "macro_auroc"),
    comparison=Comparison(
        value="accuracy",
        name="accuracy",
        beside="macro_auroc",
        recorded=("accuracy", "loss", "balanced_accuracy", "macro_f1", "macro_auroc", "ece"),
        with_interval=("accuracy", "macro_f1", "macro_auroc"),
        interval="bootstrap by patient where patients are known to have several images, else Wilson",
        titles={
            "accuracy": "Accuracy",
            "balanced_accuracy": "Balanced accuracy",
            "macro_f1": "Macro F1",
            "macro_auroc": "Macro AUROC",
            "loss": "Loss",
        },
    ),
)
