"""Figures of findings: those of scikit-learn on the known labels, and what is left out is told."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.metrics import multilabel

GENERATOR = np.random.default_rng(0)
COUNT = 60
FINDINGS = GENERATOR.choice([1, 0, -1, -2], (COUNT, 3), p=[0.3, 0.4, 0.1, 0.2]).astype(np.int8)
# Rounded, so that there are ties.
PROBABILITIES = np.round(np.clip(0.3 * (FINDINGS == 1) + GENERATOR.random(FINDINGS.shape) * 0.7, 0, 1), 1)
NAMES = ("Edema", "Mass", "Nodule")


def made(findings: np.ndarray = FINDINGS, names: tuple[str, ...] = NAMES, split: str = "test") -> Examples:
    """Examples of two images a patient."""
    count = len(findings)
    return Examples(
        split,
        np.zeros((count, 2, 2, 1), np.uint8),
        np.zeros(count, np.int32),
        tuple(f"{number}.png" for number in range(count)),
        tuple(f"p{number // 2}" for number in range(count)),
        True,
        names,
        "",
        findings=findings,
    )


def test_figures_are_those_of_scikit_learn_on_the_known_labels() -> None:
    found = multilabel.multilabel_report(PROBABILITIES, made(), 0.5, resamples=50)
    known = FINDINGS >= 0
    for function, name in ((metrics.roc_auc_score, "auroc"), (metrics.average_precision_score, "average_precision")):
        each = [function(FINDINGS[own, f] == 1, PROBABILITIES[own, f]) for f, own in enumerate(known.T)]
        np.testing.assert_allclose([found["per_class"][key][name] for key in NAMES], each, rtol=1e-12)
        np.testing.assert_allclose(found[f"macro_{name}"], np.mean(each), rtol=1e-12)
        micro = function(FINDINGS[known] == 1, PROBABILITIES[known])
        np.testing.assert_allclose(found[f"micro_{name}"], micro, rtol=1e-12)
        low, high = found[f"macro_{name}_ci95"]
        assert low < found[f"macro_{name}"] < high
    counts = found["per_class"]["Mass"]
    assert counts["present"] + counts["absent"] + counts["unknown"] == COUNT
    assert found["intervals"]["all figures"].startswith("bootstrap by patient, 50")


def test_weights_count_an_example_as_often_as_they_say() -> None:
    weights = np.random.default_rng(1).integers(0, 4, (2, COUNT)).astype(float)
    found = multilabel.weighted_figures(PROBABILITIES, FINDINGS, weights)
    for row, own in enumerate(weights):
        again = np.repeat(np.arange(COUNT), own.astype(int))
        single = multilabel.weighted_figures(PROBABILITIES[again], FINDINGS[again], np.ones((1, len(again))))
        for name, values in single.items():
            np.testing.assert_allclose(found[name][row], values[0], rtol=1e-12, err_msg=name)


def test_an_empty_finding_is_told_and_left_out_of_means() -> None:
    findings = FINDINGS.copy()
    findings[:, 1] = np.where(findings[:, 1] == 1, -2, findings[:, 1])
    findings[:, 2] = -2
    found = multilabel.multilabel_report(PROBABILITIES, made(findings), 0.5, resamples=20)
    assert found["per_class"]["Mass"]["auroc"] is found["per_class"]["Nodule"]["auroc"] is None
    assert found["macro_auroc"] == found["per_class"]["Edema"]["auroc"]
    assert "Mass, Nodule present" in found["notes"][0]
    assert "Nodule absent" in found["notes"][1]
    blank = multilabel.multilabel_report(PROBABILITIES, made(np.full_like(FINDINGS, -2)), 0.0, resamples=5)
    assert blank["macro_auroc"] is blank["micro_auroc"] is blank["macro_auroc_ci95"] is None
    assert f"nothing is known of {COUNT} of {COUNT} images" in blank["notes"][-1]


def test_chexperts_five_are_measured_where_they_are_present() -> None:
    names = (*multilabel.FIVE, "Mass")
    generator = np.random.default_rng(2)
    findings, probabilities = generator.integers(0, 2, (COUNT, 6)).astype(np.int8), generator.random((COUNT, 6))
    found = multilabel.multilabel_report(probabilities, made(findings, names), 0.5, resamples=20)
    each = [found["per_class"][name]["auroc"] for name in multilabel.FIVE]
    np.testing.assert_allclose(found["chexpert5_auroc"], np.mean(each), rtol=1e-12)
    assert "chexpert5_auroc" not in multilabel.multilabel_report(PROBABILITIES, made(), 0.5, resamples=5)


def test_a_table_of_predictions_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "predictions_test.csv"
    examples = dataclasses.replace(made(), facts={"view": ("PA",) * COUNT})
    multilabel.write_predictions(path, examples, PROBABILITIES)
    found = multilabel.read_predictions(path)
    assert (found.names, found.patients, found.classes) == (examples.names, examples.patients, NAMES)
    np.testing.assert_array_equal(found.findings, np.where(FINDINGS < 0, -2, FINDINGS))
    np.testing.assert_array_equal(found.probabilities, PROBABILITIES)
    path.write_text(path.read_text().replace("label_Mass", "label_Ma"))
    with pytest.raises(UserError, match="write it again"):
        multilabel.read_predictions(path)


def test_operating_points_are_of_the_known_labels() -> None:
    val = multilabel.Predictions((), (), FINDINGS, PROBABILITIES, NAMES)
    points = multilabel.measured(multilabel.choose(val), PROBABILITIES, made())["operating_points"]
    for f, name in enumerate(NAMES):
        for point in points[name].values():
            called = PROBABILITIES[:, f] >= point["threshold"]
            np.testing.assert_allclose(point["sensitivity"], called[FINDINGS[:, f] == 1].mean())
            np.testing.assert_allclose(point["specificity"], (~called)[FINDINGS[:, f] == 0].mean())
        assert points[name]["sensitivity_0.95"]["sensitivity"] >= 0.95
    unknown = dataclasses.replace(val, findings=np.full_like(FINDINGS, -2))
    assert multilabel.choose(unknown).thresholds == dict.fromkeys(NAMES)
