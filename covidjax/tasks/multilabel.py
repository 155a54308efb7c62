"""Several findings of an image, each present, absent or unknown."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covidjax import files, losses
from covidjax.data.examples import Examples, present
from covidjax.errors import UserError, some_of
from covidjax.losses import LossFunction, Weights, at_least_float32
from covidjax.metrics import multilabel
from covidjax.metrics.comparison import Judged
from covidjax.metrics.prediction_table import PROBABILITY
from covidjax.metrics.validated import Chosen
from covidjax.tasks.base import RESEARCH_USE, Answers, Comparison, Predicted, Prediction, Request, Task, with_interval
from covidjax.tasks.multilabel_page import multilabel_page, shown
from covidjax.tasks.weighting import finding_weights

COMPARED = ("macro_auroc", "macro_average_precision", "micro_auroc", "micro_average_precision")


@functools.partial(jax.jit, static_argnames="loss")
def _losses(logits: jax.Array, findings: jax.Array, loss: LossFunction) -> jax.Array:
    return loss(logits, findings)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Multilabel(Task):
    """Labels [n, findings] int8, as `Examples.findings` has them; an answer is the probability of each finding."""

    def targets(self, examples: Examples) -> np.ndarray:
        if examples.findings is None:
            raise UserError(
                f"the images of the {examples.split} split have one class each, of {some_of(examples.classes)}, and "
                f"the losses {', '.join(self.losses)} are of several findings: choose another config.loss.name, or "
                "data with findings"
            )
        return examples.findings

    def label(self, target: np.ndarray, classes: Sequence[str]) -> str:
        return present(target, classes) or "none"

    def class_weights(self, spec: Any, examples: Examples) -> Weights:
        return finding_weights(spec, self.epoch_targets(examples), examples.classes)

    def check(self, model_name: str, dataset: Any, loss: Any) -> None:
        super().check(model_name, dataset, loss)
        if dataset.oversample:
            raise UserError(
                f"config.dataset.oversample repeats images of a class, and {loss.name} is a loss of several findings: "
                "leave it out, or set config.loss.class_weights"
            )

    def class_counts(self, examples: Examples) -> dict[str, int]:
        counts = (self.targets(examples) == 1).sum(axis=0)
        return {name: int(count) for name, count in zip(examples.classes, counts, strict=True)}

    def split_notes(self, train: Examples, val: Examples) -> list[str]:
        return [*multilabel.empty_notes(train), *multilabel.empty_notes(val)]

    def measure(self, answers: Answers, loss: LossFunction, loss_name: str) -> dict[str, float]:
        """Mean loss, and the figures of `metrics.multilabel.validation_figures`."""
        parts = [
            [np.asarray(part)[:count] for part in (at_least_float32(logits), _losses(logits, findings, loss), findings)]
            for logits, findings, count in answers
        ]
        scores, values, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        probabilities = np.asarray(jax.nn.sigmoid(scores))
        return {"loss": float(values.mean()), **multilabel.validation_figures(probabilities, targets)}

    def evaluate(
        self, answers: Answers, examples: Examples, loss: ConfigDict, workdir: Path, *, hausdorff: bool = False
    ) -> dict[str, Any]:
        rows = [np.asarray(at_least_float32(batch))[:count] for batch, _, count in answers]
        logits = jnp.asarray(np.concatenate(rows))
        mean_loss = float(np.mean(self.plain_loss(loss)(logits, jnp.asarray(examples.findings))))
        table = self.answer(np.asarray(logits), loss)
        result = multilabel.multilabel_report(table, examples, mean_loss)
        multilabel.write_predictions(workdir / f"predictions_{examples.split}.csv", examples, table)
        return result

    def summary(self, evaluation: Mapping[str, Any]) -> Iterator[str]:
        if evaluation["macro_auroc"] is None:
            yield "no finding has a present and an absent label: there are no figures"
            return
        yield f"macro AUROC {with_interval(evaluation, 'macro_auroc')}"
        yield f"macro average precision {with_interval(evaluation, 'macro_average_precision')}"
        if evaluation.get("chexpert5_auroc") is not None:
            yield f"AUROC of CheXpert's five {with_interval(evaluation, 'chexpert5_auroc')}"

    def chosen(self, workdir: Path) -> Chosen:
        return multilabel.choose(multilabel.read_predictions(workdir / "predictions_val.csv"))

    def by_validation(self, workdir: Path, examples: Examples, *, calibrated: bool = False) -> dict[str, Any]:
        table = multilabel.read_predictions(workdir / f"predictions_{examples.split}.csv")
        return multilabel.measured(self.chosen(workdir), table.probabilities, examples)

    def judged(self, evaluation: Mapping[str, Any], workdir: Path) -> Judged:
        return _judged(self._read(evaluation, workdir))

    def pooled(self, evaluations: Sequence[Mapping[str, Any]], workdirs: Sequence[Path]) -> Judged:
        parts = [self._read(*pair) for pair in zip(evaluations, workdirs, strict=True)]
        if len({part.classes for part in parts}) > 1:
            raise UserError(f"the runs below {workdirs[0].parent} know different findings: train them on the same ones")
        names, patients = (tuple(one for part in parts for one in getattr(part, key)) for key in ("names", "patients"))
        labels, table = (
            np.concatenate([getattr(part, key) for part in parts]) for key in ("findings", "probabilities")
        )
        return _judged(multilabel.Predictions(names, patients, labels, table, parts[0].classes))

    def _read(self, evaluation: Mapping[str, Any], workdir: Path) -> multilabel.Predictions:
        """The table of an evaluation. Raises UserError where it is of another one."""
        found = multilabel.read_predictions(workdir / f"predictions_{evaluation['split']}.csv")
        if len(found.names) != evaluation["num_examples"]:
            raise UserError(
                f"{workdir}: the predictions of the {evaluation['split']} split are from another evaluation: run "
                "launch/evaluate.py again"
            )
        return found

    def respond(self, logits: jax.Array, loss: ConfigDict) -> jax.Array:
        return jax.nn.sigmoid(at_least_float32(logits))

    def explained(self, answer: np.ndarray) -> tuple[int, ...]:
        """Those above 0.5, or the likeliest."""
        above = tuple(np.flatnonzero(answer > 0.5).tolist())
        return above or (int(answer.argmax()),)

    def pictured(self, workdir: Path, examples: Examples) -> list[tuple[str, int]]:
        found = multilabel.read_predictions(workdir / f"predictions_{examples.split}.csv")
        return [(found.names[row], f) for _, chosen in shown(found, examples) for row, f in chosen]

    def write_predictions(
        self, predictions: Iterable[Prediction], names: Sequence[str], classes: Sequence[str], request: Request
    ) -> Predicted:
        told, rows = np.zeros(len(classes), np.int64), []
        called: tuple[str, ...] = ()
        for one in predictions:
            facts = [request.facts[column][one.name] for column in request.facts]
            rows.append([one.name, *one.answer.astype(np.float64).tolist(), *one.called.values(), *facts, RESEARCH_USE])
            told += one.answer > 0.5
            called = tuple(one.called)
        header = ["file", *(PROBABILITY + name for name in classes), *called, *request.facts, "use"]
        files.write_csv(request.table, header, rows)
        counts = dict(zip(classes, told.tolist(), strict=True))
        return Predicted(len(rows), "images with a probability above 0.5", counts, {"table": request.table})


def _judged(found: multilabel.Predictions) -> Judged:
    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        drawn = multilabel.weighted_figures(found.probabilities, found.findings, weights)
        return {name: drawn[name] for name in COMPARED}

    truth = tuple(map(tuple, found.findings.tolist()))
    return Judged(found.names, found.patients, truth, None, figures)


MULTILABEL = Multilabel(
    name="multilabel",
    labels="images",
    words="labels several findings of an image",
    of="several findings",
    losses=losses.FINDING_LOSSES,
    best={"loss": -1, "macro_auroc": 1, "macro_average_precision": 1},
    offers=frozenset({"operating_points", "sweep", "explain", "findings"}),
    masks=False,
    correct=losses.known_share,
    template="multilabel.html",
    page=multilabel_page,
    counted="Present",
    headline=("macro_average_precision", "micro_auroc"),
    comparison=Comparison(
        value="macro_auroc",
        name="macro AUROC",
        beside="macro_average_precision",
        recorded=("macro_auroc", "loss", "macro_average_precision", "micro_auroc", "micro_average_precision"),
        with_interval=("macro_auroc", "macro_average_precision"),
        interval="bootstrap by patient where patients are known, else by image",
        titles={
            "macro_auroc": "Macro AUROC",
            "macro_average_precision": "Macro average precision",
            "micro_auroc": "Micro AUROC",
            "micro_average_precision": "Micro average precision",
            "loss": "Loss",
        },
    ),
)
