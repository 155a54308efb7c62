"""Classes that a split has too few images of are named."""

from covidjax.tasks.classification import CLASSIFICATION
from tests.predictions import CLASSES, make_examples


def test_a_class_without_a_validation_image_or_with_one_training_image_is_named() -> None:
    full, without, one = (make_examples(labels, CLASSES) for labels in ([0, 1, 2] * 3, [0, 0, 1, 1], [0, 0, 1, 1, 2]))
    assert CLASSIFICATION.split_notes(full, full) == []
    (missing,) = CLASSIFICATION.split_notes(full, without)
    assert missing.startswith(f"no validation image is of class {CLASSES[2]}: ")
    (few,) = CLASSIFICATION.split_notes(one, full)
    assert few.startswith(f"one training image, or none, is of class {CLASSES[2]}: ")
