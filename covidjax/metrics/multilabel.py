"""Figures of a network that finds several things in an image, of the labels that are known, and their table."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covidjax import files
from covidjax.data.examples import FACTS, Examples
from covidjax.data.findings import UNKNOWN
from covidjax.errors import UserError, some_of
from covidjax.metrics import bootstrap
from covidjax.metrics.classification import auroc, average_precision, number
from covidjax.metrics.prediction_table import AGAIN, PROBABILITY, require_finite, rows_of
from covidjax.metrics.validated import Chosen, shares, thresholds

LABEL = "label_"
AREAS = {"auroc": auroc, "average_precision": average_precision}
# Irvin et al. 2019, section 5: the findings that CheXpert is judged by.
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
CONVENTIONS = {
    "labels": "unknown and uncertain labels are left out of every figure",
    "macro": "mean over the findings that have a present and an absent label; in a resample over those that have both "
    "there",
    "micro": "of all known labels together",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The content of predictions_<split>.csv.

    names, patients: n identifiers; findings: [n, findings] int8, as `Examples.findings` has them, of which uncertain
    ones are unknown; probabilities: [n, findings] float64; classes: the findings
    """

    names: tuple[str, ...]
    patients: tuple[str, ...]
    findings: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]


def weighted_figures(probabilities: np.ndarray, findings: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of a split under many weightings of its examples at once.

    probabilities: [n, findings] float64, finite; findings: [n, findings] int, below 0 not known; weights: [resamples,
    n] float64, how often each example counts -> by name: 'auroc' and 'average_precision' [resamples, findings], and
    with 'macro_' and 'micro_' before them [resamples], as `CONVENTIONS` has them; NaN where there is none.
    """
    known, found = findings >= 0, dict[str, np.ndarray]()
    rows = np.nonzero(known)[0]
    for name, area in AREAS.items():
        each = [
            area(probabilities[own, f], findings[own, f] == 1, weights[:, own]) if own.any() else np.nan
            for f, own in enumerate(known.T)
        ]
        found[name] = np.stack([np.broadcast_to(values, len(weights)) for values in each], axis=1)
        has_both = np.isfinite(found["auroc"])
        total = np.where(has_both, found[name], 0.0).sum(axis=1)
        found[f"macro_{name}"] = np.divide(
            total, has_both.sum(axis=1), out=np.full(len(weights), np.nan), where=has_both.any(axis=1)
        )
        found[f"micro_{name}"] = (
            area(probabilities[known], findings[known] == 1, weights[:, rows])
            if len(rows)
            else np.full(len(weights), np.nan)
        )
    return found


def validation_figures(probabilities: np.ndarray, findings: np.ndarray) -> dict[str, float]:
    """'macro_auroc' and 'macro_average_precision', NaN where undefined or a probability is not finite."""
    names = ("macro_auroc", "macro_average_precision")
    if not np.isfinite(probabilities).all():
        return dict.fromkeys(names, np.nan)
    found = weighted_figures(probabilities.astype(np.float64), findings, np.ones((1, len(findings))))
    return {name: float(found[name][0]) for name in names}


def multilabel_report(
    probabilities: np.ndarray, examples: Examples, loss: float, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """The content of evaluation_<split>.json but for `checkpoint`, of Python numbers that are finite, or None.

    probabilities: [n, findings] float, of the examples; loss: mean over them.
    Of each finding AUROC, average precision, and how often it is present, absent and not known. A figure of a finding
    without a present or an absent label is undefined, and a note names such findings.
    Where CheXpert's five are among the findings, 'chexpert5_auroc' is the mean of their AUROC, if all are defined.
    Intervals, 95 %: percentiles of a bootstrap that draws whole patients or, where they are unknown, images, widened by
    the number of those with the rarer label; of means and of all labels together by that of the rarest one.
    Raises UserError where there are no examples or probabilities are not finite.
    """
    findings, names = examples.findings, examples.classes
    assert findings is not None
    if len(findings) == 0:
        raise UserError(f"split {examples.split!r} has no examples to evaluate: choose a split that has some")
    require_finite(probabilities, f"split {examples.split!r}")
    figures = functools.partial(_with_five, probabilities.astype(np.float64), findings, names)
    found = {key: values[0] for key, values in figures(np.ones((1, len(findings)))).items()}
    clusters, known = bootstrap.clusters_of(examples), findings >= 0
    samples = bootstrap.resampled(figures, clusters, seed, resamples)
    per_class, fewest = {}, []  # patients with the rarer label of a finding
    for f, name in enumerate(names):
        own = findings[:, f]
        count = bootstrap.fewest(clusters[known[:, f]], own[known[:, f]]) if known[:, f].any() else None
        fewest += [count] if count is not None and np.isfinite(found["auroc"][f]) else []
        per_class[name] = {
            **_with_intervals({key: (found[key][f], samples[key][:, f]) for key in AREAS}, count),
            "present": int((own == 1).sum()),
            "absent": int((own == 0).sum()),
            "unknown": int((own < 0).sum()),
        }
    overall = {key: (found[key], samples[key]) for key in found if key not in AREAS}
    return {
        "split": examples.split,
        "num_examples": len(findings),
        "loss": number(loss),
        **_with_intervals(overall, min(fewest, default=None)),
        "classes": list(names),
        "per_class": per_class,
        "conventions": dict(CONVENTIONS),
        "intervals": {"all figures": bootstrap.method(examples, resamples)},
        "notes": empty_notes(examples),
        "research_use_only": True,
    }


def empty_notes(examples: Examples) -> list[str]:
    """Notes on findings of a split that have no present or no absent label, and on images of which nothing is known."""
    findings = examples.findings
    assert findings is not None
    notes = []
    for value, words in ((1, "present"), (0, "absent")):
        if empty := [name for name, own in zip(examples.classes, findings.T, strict=True) if not (own == value).any()]:
            notes.append(
                f"{examples.split}: no image is known to have {some_of(empty)} {words}: such findings have no figures, "
                "and are left out of means"
            )
    if blank := [name for name, own in zip(examples.names, findings, strict=True) if (own < 0).all()]:
        notes.append(
            f"{examples.split}: nothing is known of {len(blank)} of {len(findings)} images, which count in no figure: "
            f"{some_of(blank)}"
        )
    return notes


def choose(val: Predictions) -> Chosen:
    """The operating points of predictions of the validation split, by the labels that are known."""
    found = {}
    for f, name in enumerate(val.classes):
        known = val.findings[:, f] >= 0
        found[name] = thresholds(val.probabilities[known, f], val.findings[known, f] == 1) if known.any() else None
    return Chosen(None, found)


def measured(chosen: Chosen, probabilities: np.ndarray, examples: Examples) -> dict[str, Any]:
    """'operating_points' of evaluation_<split>.json, by finding and by name of the point.

    chosen: by the same checkpoint; probabilities: [n, findings], of the examples, which are others.
    Each has the threshold, and sensitivity and specificity of the known labels with their intervals.
    """
    called, points = chosen.called(probabilities), dict[str, Any]()
    assert examples.findings is not None
    for f, (name, of_finding) in enumerate(chosen.thresholds.items()):
        own = examples.findings[:, f]
        points[name] = of_finding and {
            point: {"threshold": least, **shares(called[f"{point}_{name}"], own == 1, own == 0, examples)}
            for point, least in of_finding.items()
        }
    return {"operating_points": points}


def write_predictions(path: Path, examples: Examples, probabilities: np.ndarray) -> None:
    """Writes predictions_<split>.csv: of each finding label_, 1, 0 or empty where it is not known, and probability_.

    probabilities: [n, findings] float32 or float64. What files tell of the images stands behind. Raises UserError where
    probabilities are not finite or the file cannot be written.
    """
    require_finite(probabilities, str(path))
    assert examples.findings is not None
    header = ["file", "patient", *(LABEL + name for name in examples.classes)]
    header += [*(PROBABILITY + name for name in examples.classes), *examples.facts]
    labels = [["" if label < 0 else label for label in row] for row in examples.findings.tolist()]
    scores = probabilities.astype(np.float64).tolist()
    named = zip(examples.names, examples.patients, labels, scores, *examples.facts.values(), strict=True)
    files.write_csv(path, header, ([name, patient, *own, *row, *told] for name, patient, own, row, *told in named))


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote. Raises UserError where it is missing or in another form."""
    header, *rows = rows_of(path)
    columns = [name for name in header[2:] if name not in FACTS]
    names = tuple(name.removeprefix(LABEL) for name in columns[: len(columns) // 2])
    if header[:2] != ["file", "patient"] or columns != [
        before + name for before in (LABEL, PROBABILITY) for name in names
    ]:
        raise UserError(f"{path} must have the columns file, patient, {LABEL}<finding>..., {PROBABILITY}...: {AGAIN}")
    try:
        told = [[{"1": 1, "0": 0, "": UNKNOWN}[text] for text in row[2 : 2 + len(names)]] for row in rows]
        scores = [[float(text) for text in row[2 + len(names) : 2 + len(columns)]] for row in rows]
        findings, probabilities = (np.array(part).reshape(len(rows), len(names)) for part in (told, scores))
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} has rows that are none of predictions: {AGAIN}") from error
    require_finite(probabilities, str(path))
    files_named, patients = (tuple(row[column] for row in rows) for column in (0, 1))
    return Predictions(files_named, patients, findings.astype(np.int8), probabilities.astype(np.float64), names)


def _with_five(
    probabilities: np.ndarray, findings: np.ndarray, names: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    found = weighted_figures(probabilities, findings, weights)
    places = {name.lower(): f for f, name in enumerate(names)}
    five = [places[name.lower()] for name in FIVE if name.lower() in places]
    if len(five) == len(FIVE):
        found["chexpert5_auroc"] = found["auroc"][:, five].mean(axis=1)
    return found


def _with_intervals(figures: dict[str, tuple[Any, np.ndarray]], count: int | None) -> dict[str, Any]:
    """Each figure and the interval of its samples, side by side. count: see `bootstrap.percentiles`."""
    report: dict[str, Any] = {}
    for key, (value, samples) in figures.items():
        report[key] = number(value)
        report[f"{key}_ci95"] = bootstrap.interval(samples, count) if np.isfinite(value) else None
    return report
