"""The figures of a classification, and its report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from covidjax.errors import UserError
from covidjax.metrics import bootstrap, classification, prediction_table
from tests.predictions import CLASSES, make_examples, make_predictions, make_report


def test_wilson_interval_equals_published_values_and_ends_where_it_has_to() -> None:
    """Newcombe 1998, table I, method 3."""
    low, high = (0.2553, 0.0624, 0.0, 0.0061), (0.3662, 0.1605, 0.1611, 0.1718)
    for counts, *ends in zip(((81, 263), (15, 148), (0, 20), (1, 29)), low, high, strict=True):
        assert [round(end, 4) for end in classification.wilson_interval(*counts, 0.95)] == ends
    for total in (1, 7, 225, 10_000):
        assert classification.wilson_interval(0, total)[0] == 0.0
        assert classification.wilson_interval(total, total)[1] == 1.0
    assert classification.wilson_interval(0, 0) == (0.0, 1.0)  # of no trials, it is everything


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_auroc_of_repeated_data_equals_scikit_learn_with_ties(levels: int) -> None:
    generator = np.random.default_rng(levels)
    for _ in range(10):
        scores = generator.integers(0, levels, 50) / levels
        positive = generator.random(50) < 0.3
        positive[:2] = True, False
        counts = np.concatenate([np.ones((1, 50)), generator.integers(1, 4, (5, 50))])
        expected = [sklearn.metrics.roc_auc_score(positive, scores, sample_weight=row) for row in counts]
        assert classification.auroc(scores, positive, counts) == pytest.approx(expected, abs=1e-12)
    for positive in (np.zeros(50, bool), np.ones(50, bool)):  # without a class there is none
        assert np.isnan(classification.auroc(scores, positive, counts)).all()


def test_resampling_moves_all_images_of_a_patient_together() -> None:
    clusters = np.array([2, 0, 1, 2, 0, 2, 3])
    weights = bootstrap.resample_weights(clusters, np.random.default_rng(0), 500)
    multiplicity = np.stack([weights[:, np.flatnonzero(clusters == cluster)[0]] for cluster in range(4)], axis=1)
    np.testing.assert_array_equal(weights, multiplicity[:, clusters])
    np.testing.assert_array_equal(multiplicity.sum(axis=1), 4)
    # With replacement: a patient is missing in (3/4)^4 = 32 % of the resamples, and drawn once on average.
    np.testing.assert_allclose((multiplicity == 0).mean(axis=0), 0.75**4, atol=0.08)
    np.testing.assert_allclose(multiplicity.mean(axis=0), 1.0, atol=0.12)


def test_calibration_error_equals_its_definition() -> None:
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet(np.ones(3), 500), generator.integers(0, 3, 500)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for bins in (1, 10, 15):
        total = 0.0
        for index in range(bins):
            inside = (confidence > index / bins) & (confidence <= (index + 1) / bins)
            if inside.any():
                total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
        assert classification.expected_calibration_error(probabilities, labels, bins) == pytest.approx(total, abs=1e-12)


def test_calibration_bins_are_closed_on_the_right() -> None:
    probabilities = np.array([[0.5, 0.4], [0.4, 0.3], [0.75, 0.25]])
    # (0, 0.5] holds the first two, one right; (0.5, 1] the third, right.
    expected = (abs(1 - 0.9) + abs(1 - 0.75)) / 3
    assert classification.expected_calibration_error(probabilities, np.array([0, 1, 0]), 2) == pytest.approx(expected)


# ---- The report ----

PROPORTIONS = ("precision", "recall", "specificity")


@pytest.mark.parametrize("seed", range(5))
def test_report_equals_scikit_learn(seed: int) -> None:
    probabilities, labels = make_predictions(seed)
    predicted = probabilities.argmax(axis=1)
    report = make_report(probabilities, labels)
    assert report["confusion_matrix"] == sklearn.metrics.confusion_matrix(labels, predicted).tolist()
    areas = [sklearn.metrics.roc_auc_score(labels == index, probabilities[:, index]) for index in range(3)]
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": sklearn.metrics.f1_score(labels, predicted, average="macro"),
        "macro_auroc": np.mean(areas),
    }
    assert {key: report[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    for index, name in enumerate(CLASSES):
        true, guess = labels == index, predicted == index
        expected = {
            "precision": sklearn.metrics.precision_score(true, guess),
            "recall": sklearn.metrics.recall_score(true, guess),
            "specificity": sklearn.metrics.recall_score(~true, ~guess),
            "f1": sklearn.metrics.f1_score(true, guess),
            "auroc": areas[index],
            "support": true.sum(),
        }
        found = {key: report["per_class"][name][key] for key in expected}
        assert found == pytest.approx(expected, abs=1e-12)


def test_bootstrap_equals_figures_of_resampled_data() -> None:
    probabilities, labels = make_predictions(3, count=30)
    patients = tuple(f"p{index % 11}" for index in range(30))
    clusters = np.unique(patients, return_inverse=True)[1]
    counts = bootstrap.resample_weights(clusters, np.random.default_rng(7), 40).astype(int)
    f1, areas = [], []
    for row in counts:
        chosen, true = np.repeat(probabilities, row, axis=0), np.repeat(labels, row)
        present = [index for index in range(3) if (true == index).any()]
        scores = sklearn.metrics.f1_score(true, chosen.argmax(axis=1), average=None, labels=[0, 1, 2], zero_division=0)
        f1.append(scores[present].mean())
        areas.append(np.mean([sklearn.metrics.roc_auc_score(true == index, chosen[:, index]) for index in present]))
    report = make_report(probabilities, labels, patients=patients, seed=7, resamples=40)
    rarest = min(len(set(clusters[labels == index])) for index in range(3))
    assert report["macro_f1_ci95"] == pytest.approx(bootstrap.interval(np.array(f1), rarest), abs=1e-12)
    assert report["macro_auroc_ci95"] == pytest.approx(bootstrap.interval(np.array(areas), rarest), abs=1e-12)


def test_proportions_of_patients_with_several_images_are_drawn_by_patient() -> None:
    probabilities, labels = make_predictions(3, count=30)
    patients = tuple(f"p{index % 11}" for index in range(30))
    counts = bootstrap.resample_weights(
        np.unique(patients, return_inverse=True)[1], np.random.default_rng(7), 40
    ).astype(int)
    guess, expected = probabilities.argmax(axis=1), []
    for row in counts:
        true, own = np.repeat(labels, row), np.repeat(guess, row)
        expected.append([np.mean(true == own), np.mean(own[true == 1] == 1)])
    report = make_report(probabilities, labels, patients=patients, seed=7, resamples=40)
    recall = report["per_class"][CLASSES[1]]
    of_class = len({patients[index] for index in np.flatnonzero(labels == 1)})
    for figure, key, drawn, count in zip(
        (report, recall), ("accuracy", "recall"), np.transpose(expected), (11, of_class), strict=True
    ):
        assert figure[f"{key}_ci95"] == pytest.approx(bootstrap.interval(drawn, count), abs=1e-12)
    assert report["intervals"]["proportions"].startswith("bootstrap by patient, 40 resamples")
    examples = make_examples(labels, patients=patients)
    several = np.stack([labels == guess, np.ones(30, bool)])
    both = classification.accuracy_intervals(several, examples, seed=7, resamples=40)
    # What never fails is sure of its patients only, not of their images.
    assert both == [report["accuracy_ci95"], list(classification.wilson_interval(11, 11))]
    perfect = make_report(np.eye(3)[labels], labels, patients=patients)
    assert perfect["accuracy_ci95"] == list(classification.wilson_interval(11, 11))
    ill = {patients[index] for index in np.flatnonzero(labels == 1)}
    assert perfect["per_class"][CLASSES[1]]["recall_ci95"] == list(classification.wilson_interval(len(ill), len(ill)))


def test_unknown_patients_are_never_grouped() -> None:
    probabilities, labels = make_predictions(0)
    same = make_report(probabilities, labels, patients=("",) * len(labels), patients_known=False)
    own = make_report(probabilities, labels, patients_known=False)
    assert same == own


def test_report_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, labels = make_predictions(0)
    first = make_report(probabilities, labels, seed=1)
    assert make_report(probabilities, labels, seed=1) == first
    assert make_report(probabilities, labels, seed=2)["macro_f1_ci95"] != first["macro_f1_ci95"]
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 7 * len(labels))
    assert make_report(probabilities, labels, seed=1) == first


def test_report_has_the_agreed_keys_and_wilson_intervals() -> None:
    probabilities, labels = make_predictions(0)
    report = make_report(probabilities, labels)
    assert list(report) == [
        "split", "num_examples", "loss", "accuracy", "accuracy_ci95", "balanced_accuracy",
        "balanced_accuracy_ci95", "macro_f1", "macro_f1_ci95",
        "macro_auroc", "macro_auroc_ci95", "ece", "confusion_matrix", "classes", "per_class", "intervals",
        "research_use_only",
    ]  # fmt: skip
    figures = (*PROPORTIONS, "f1", "auroc", "average_precision")
    keys = {f"{name}{end}" for name in figures for end in ("", "_ci95")} | {"support"}
    matrix = np.array(report["confusion_matrix"])
    for index, name in enumerate(CLASSES):
        assert set(report["per_class"][name]) == keys
        hits, support, predicted = matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
        totals = {
            "precision": (hits, predicted),
            "recall": (hits, support),
            "specificity": (len(labels) - support - predicted + hits, len(labels) - support),
        }
        for key, (successes, total) in totals.items():
            assert report["per_class"][name][f"{key}_ci95"] == list(classification.wilson_interval(successes, total))
    assert report["accuracy_ci95"] == list(classification.wilson_interval(np.trace(matrix), len(labels)))
    assert report["research_use_only"] is True
    assert report["classes"] == list(CLASSES)


def test_absent_class_is_undefined_and_outside_the_macro_means() -> None:
    probabilities, labels = make_predictions(0)
    probabilities = np.column_stack([probabilities, np.zeros(len(labels))])
    whole = make_report(probabilities[:, :3], labels)
    report = make_report(probabilities, labels, classes=(*CLASSES, "other"))
    other = report["per_class"].pop("other")
    for key in ("precision", "recall", "f1", "auroc"):
        assert other[key] is None
        assert other[f"{key}_ci95"] is None
    assert (other["specificity"], other["support"]) == (1.0, 0)
    assert report["per_class"] == whole["per_class"]
    for key in ("balanced_accuracy", "balanced_accuracy_ci95", "macro_f1", "macro_f1_ci95", "macro_auroc"):
        assert report[key] == whole[key]


def test_class_without_hits_has_f1_of_zero_and_absent_but_predicted_class_stays_out_of_the_macro_means() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    report = make_report(probabilities, labels)
    missed, absent = report["per_class"]["pneumonia"], report["per_class"]["covid19"]
    assert (missed["precision"], missed["recall"], missed["f1"]) == (None, 0.0, 0.0)
    assert (absent["precision"], absent["recall"], absent["f1"], absent["auroc"]) == (0.0, None, 0.0, None)
    assert report["macro_f1"] == pytest.approx((0.8 + 0.0) / 2)
    assert report["balanced_accuracy"] == pytest.approx(0.5)


def test_single_patient_gives_no_bootstrap_interval() -> None:
    probabilities, labels = make_predictions(0)
    report = make_report(probabilities, labels, patients=("one",) * len(labels))
    assert report["macro_auroc"] > 0.5
    assert report["macro_auroc_ci95"] is None
    assert report["per_class"]["normal"]["f1_ci95"] is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_report_survives_json(dtype: Any) -> None:
    probabilities, labels = make_predictions(0)
    labels[labels == 2] = 1
    report = make_report(probabilities.astype(dtype), labels, loss=np.float32(math.inf))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["loss"] is None
    assert report["per_class"]["covid19"]["auroc"] is None


def test_diverged_predictions_and_empty_splits_are_refused(tmp_path: Path) -> None:
    probabilities, labels = make_predictions(0, count=5)
    with pytest.raises(UserError, match="'test' has no examples"):
        make_report(probabilities[:0], labels[:0])
    probabilities[3, 1] = np.nan
    with pytest.raises(UserError, match="1 of 5 predictions are not finite"):
        make_report(probabilities, labels)
    with pytest.raises(UserError, match="not finite"):
        prediction_table.write_predictions(tmp_path / "predictions_test.csv", make_examples(labels), probabilities)
    assert list(tmp_path.iterdir()) == []


def test_percentiles_are_expanded_for_few() -> None:
    assert bootstrap.percentiles(None) == (2.5, 97.5)
    assert bootstrap.percentiles(10_000) == pytest.approx((2.5, 97.5), abs=0.01)
    low, high = bootstrap.percentiles(30)
    assert low == pytest.approx(1.8754, abs=1e-4) and high == 100 - low
    clusters = np.array([0, 0, 1, 2, 3, 4])
    assert bootstrap.fewest(clusters, np.array([0, 0, 0, 1, 1, 1])) == 2
    findings = np.array([[1, 1, -1, 0, 0, 0], [1, 1, 1, 1, 1, -2]]).T  # of the second none is absent
    assert bootstrap.fewest(clusters, findings) == 1
    assert bootstrap.fewest(clusters, findings[:, 1:]) == 5
