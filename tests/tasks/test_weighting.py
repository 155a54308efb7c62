"""The weights of classes: balanced ones from labels or pixels, given ones in the order of the labels."""

import math
from typing import Any

import numpy as np
import pytest

from covidjax.errors import UserError
from covidjax.tasks import weighting

MASKS = np.array([[[0, 0, 0], [0, 0, 1]], [[0, 2, 0], [0, 1, 0]]], np.uint8)


@pytest.mark.parametrize("labels", [np.repeat([0, 1, 2], (6, 3, 1)), np.repeat([0, 1, 2], (61, 5, 35)), MASKS])
def test_balanced_weights_average_to_one_over_the_examples_or_pixels_and_are_scikit_learns(labels: Any) -> None:
    module = pytest.importorskip("sklearn.utils.class_weight", reason="scikit-learn is not installed: no parity check")
    weights = weighting.class_weights("balanced", labels, "abc")
    expected = module.compute_class_weight("balanced", classes=np.arange(3), y=labels.ravel())
    assert weights == pytest.approx(tuple(expected))
    assert np.asarray(weights)[labels].mean() == pytest.approx(1.0)


def test_a_class_without_a_pixel_has_no_balanced_weight() -> None:
    np.testing.assert_array_equal(weighting.class_counts(MASKS, 4), [9, 2, 1, 0])
    with pytest.raises(UserError, match="class d has no training pixel"):
        weighting.class_weights("balanced", MASKS, "abcd")


def test_given_weights_are_passed_on_and_those_of_named_classes_find_their_labels() -> None:
    labels = np.array([0, 1, 2])
    assert weighting.class_weights("none", labels, "abc") is None
    assert weighting.class_weights((1, 2.5, 3), labels, "abc") == (1.0, 2.5, 3.0)
    for classes in ("abc", "cab", "bca"):
        weights = weighting.class_weights((("c", 12), ("a", 0.5)), labels, classes)
        assert weights is not None
        assert dict(zip(classes, weights, strict=True)) == {"a": 0.5, "b": 1.0, "c": 12.0}


NUMBERS = ((1.0, 2.0), (1.0, 2.0, -1.0), (1.0, 2.0, math.nan), (0, 0, 0))
PAIRS = ((("d", 1.0),), (("a", 1.0), ("a", 2.0)), (1.0, 2.0, ("c", 3.0)), (("a", -1.0),))


@pytest.mark.parametrize("spec", ["auto", "balanced", *NUMBERS, *PAIRS])
def test_bad_class_weights_are_refused_in_one_line(spec: Any) -> None:
    with pytest.raises(UserError, match=r"^loss\.class_weights is ") as caught:
        weighting.class_weights(spec, np.array([0, 0, 2]), "abc")
    assert "\n" not in str(caught.value)
