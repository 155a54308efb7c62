"""Evaluation of an ensemble on a split: the mixture, each member, and the two compared image by image."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covidjax import files
from covidjax.data.examples import Examples
from covidjax.metrics import classification
from covidjax.metrics.comparison import paired_accuracy
from covidjax.models import mixture as ensemble
from covidjax.report import run as report
from covidjax.runs import record
from covidjax.runs.members import Mixture, load_mixture, read_split
from covidjax.weights.workdir import Which

LEAK = (
    "the weights were chosen on the test split, as in Wang et al. 2020: its figures are too good and say nothing about "
    "new images"
)
OPTIMISTIC = "the weights were chosen on this split, so the figures of the mixture are optimistic on it"
# What is told of a member beside its place in the table of figures.
FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "loss", "ece")


def evaluate_ensemble(workdir: Path, split: str, which: Which) -> dict[str, Any]:
    """Evaluates mixture and members on a split; writes predictions, evaluation, run.json and the report anew.

    A reading of the test split is recorded in run.json before it happens. Returns what evaluation_<split>.json holds.
    Raises UserError where the ensemble is not finished or a member is gone or another one, before the split is read,
    and where the images are not those that were recorded.
    """
    mixture = load_mixture(workdir, which)  # where this fails the test split is not touched
    run = record.begin_reading(workdir, split)
    examples = read_split(mixture.members, split)
    record.end_reading(workdir, run, examples[0], "classification")
    answers = [member.probabilities(each.images) for member, each in zip(mixture.members, examples, strict=True)]
    passes = run["ensemble"]["forward_passes"]
    passes[split] = passes.get(split, 0) + len(answers)
    files.write_json(workdir / "run.json", run)
    result = write_evaluation(workdir, mixture, examples[0], answers)
    shown = {split: examples[0]}
    if split != "val":
        shown["val"] = read_split(mixture.members[:1], "val")[0]
    report.write(workdir, shown)
    return result


def write_evaluation(
    workdir: Path, mixture: Mixture, examples: Examples, answers: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Writes predictions_<split>.csv of the mixture and evaluation_<split>.json, and returns what the latter holds.

    That is `metrics.classification_report` of the mixture, and: ensemble (how it was mixed), members (the figures of
    each, with its weight), comparison (mixture against each member: difference of accuracy, its interval, McNemar's
    test), optimistic or leak where they hold. answers: of each member, probabilities [n, classes].
    """
    mixed, settings = mixture.mix(answers), mixture.config.ensemble
    labels, split = examples.labels, examples.split

    def figures(probabilities: np.ndarray) -> dict[str, Any]:
        loss = float(ensemble.mean_loss(probabilities, labels))
        return classification.classification_report(
            probabilities, labels, examples.patients, examples.patients_known, examples.classes, loss, split
        )

    result = figures(mixed)
    result["ensemble"] = {"mix": settings.mix, "rule": settings.weights, "weights_from": settings.weights_from}
    result["members"], result["comparison"] = [], []
    clusters = np.unique(np.asarray(examples.patients), return_inverse=True)[1]
    right = mixed.argmax(axis=1) == labels
    for member, weight, answer in zip(mixture.members, mixture.weights, answers, strict=True):
        found = figures(answer)
        kept = {key: value for key, value in found.items() if key.removesuffix("_ci95") in FIGURES}
        result["members"].append({"name": member.name, "weight": float(weight), **kept})
        paired = paired_accuracy(right, answer.argmax(axis=1) == labels, clusters)
        result["comparison"].append(
            {
                "member": member.name,
                "difference": paired.difference,
                "difference_ci95": None if math.isnan(paired.low) else [paired.low, paired.high],
                "only_mixture_right": paired.only_first,
                "only_member_right": paired.only_second,
                "mcnemar_p": paired.p,
            }
        )
    unit = "by patient" if examples.patients_known else "by image"
    result["intervals"]["the difference to a member"] = f"bootstrap of pairs {unit}, 1000 resamples, 95 % percentile"
    if settings.weights_from == "test":
        result["leak"] = LEAK
    elif settings.weights != "equal" and split == settings.weights_from:
        result["optimistic"] = OPTIMISTIC
    classification.write_predictions(
        workdir / f"predictions_{split}.csv", examples.names, examples.patients, labels, mixed, examples.classes
    )
    files.write_json(workdir / f"evaluation_{split}.json", result)
    return result
