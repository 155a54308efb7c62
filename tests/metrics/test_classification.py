import numpy as np
import pytest
import sklearn.metrics

from covidjax.metrics import bootstrap, classification


def test_wilson_interval_equals_the_values_that_newcombe_publishes() -> None:
    """Newcombe 1998, table I, method 3."""
    low, high = (0.2553, 0.0624, 0.0, 0.0061), (0.3662, 0.1605, 0.1611, 0.1718)
    for counts, *ends in zip(((81, 263), (15, 148), (0, 20), (1, 29)), low, high, strict=True):
        assert [round(end, 4) for end in classification.wilson_interval(*counts, 0.95)] == ends


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_interval_holds_its_estimate_and_mirrors_exactly_at_the_ends(confidence: float) -> None:
    for total in (1, 2, 7, 225, 10_000):
        for successes in {0, 1, total // 3, total - 1, total}:
            low, high = classification.wilson_interval(successes, total, confidence)
            assert 0 <= low <= successes / total <= high <= 1
            mirrored = classification.wilson_interval(total - successes, total, confidence)
            np.testing.assert_allclose((low, high), (1 - mirrored[1], 1 - mirrored[0]), atol=1e-12)
        assert classification.wilson_interval(0, total)[0] == 0.0
        assert classification.wilson_interval(total, total)[1] == 1.0
    assert classification.wilson_interval(0, 0) == (0.0, 1.0)  # of no trials, it is everything


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_auroc_equals_scikit_learn_with_ties(levels: int) -> None:
    generator = np.random.default_rng(levels)
    for _ in range(10):
        scores = generator.integers(0, levels, 50) / levels
        positive = generator.random(50) < 0.3
        positive[:2] = True, False
        expected = sklearn.metrics.roc_auc_score(positive, scores)
        assert classification.auroc(scores, positive, np.ones((1, 50))) == pytest.approx(expected, abs=1e-12)


def test_auroc_without_a_class_is_nan() -> None:
    scores = np.arange(4) / 4
    for positive in (np.zeros(4, bool), np.ones(4, bool)):
        assert np.isnan(classification.auroc(scores, positive, np.ones((2, 4)))).all()


def test_weighted_auroc_equals_auroc_of_repeated_data() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 8, 40) / 8
    positive = generator.random(40) < 0.4
    counts = generator.integers(0, 4, (25, 40))
    counts[0] = 1
    repeated = [
        classification.auroc(np.repeat(scores, row), np.repeat(positive, row), np.ones((1, row.sum())))[0]
        for row in counts
    ]
    np.testing.assert_array_equal(classification.auroc(scores, positive, counts.astype(np.float64)), repeated)


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
