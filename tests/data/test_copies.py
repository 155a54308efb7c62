"""Images that are in two splits or two classes, byte for byte, are named."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from covidjax import losses
from covidjax.data import sources
from covidjax.data.copies import copies, seen
from covidjax.data.examples import SPLITS
from covidjax.tasks import weighting
from tests.data.images import dataset_config as config
from tests.data.images import opened_below, write_image
from tests.support import small_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """root/<split>/<class>/<number>.png, all different but for three copies."""
    for number, split in enumerate(SPLITS):
        for label, name in enumerate(("healthy", "ill")):
            for image in range(12):
                write_image(tmp_path / "root" / split / name / f"{image}.png", 100 * number + 50 * label + image)
    root = tmp_path / "root"
    shutil.copy(root / "train" / "ill" / "0.png", root / "train" / "healthy" / "copy.png")
    shutil.copy(root / "train" / "ill" / "1.png", root / "val" / "ill" / "copy.png")
    shutil.copy(root / "train" / "healthy" / "2.png", root / "test" / "ill" / "copy.png")
    return root


def test_copies_in_train_and_val_and_in_two_classes_are_named(root: Path) -> None:
    train, val = (sources.load(config(root), split) for split in ("train", "val"))
    splits, classes = copies([*seen(train), *seen(val)])
    assert splits.startswith(
        "1 images are in two splits, byte for byte: train/ill/1.png (train) = val/ill/copy.png (val);"
    )
    assert classes.startswith(
        "1 images are in two classes, byte for byte: train/healthy/copy.png (healthy) = train/ill/0"
    )
    assert copies(seen(val)) == []


def test_copies_of_test_images_are_looked_for_when_test_is_read_and_never_before(root: Path) -> None:
    for split, expected in (("test", "train/healthy/2.png (train)"), ("val", "train/ill/1.png (train)")):
        examples = sources.load(config(root), split)
        with opened_below(root) as opened:
            notes = sources.copies_elsewhere(config(root), examples)
        assert f"{split}/ill/copy.png ({split}) = {expected}" in notes[0]
        assert "test" not in {name.split("/")[0] for name in opened}
    (_, classes) = sources.copies_elsewhere(config(root), sources.load(config(root), "test"))
    assert "test/ill/copy.png (ill) = train/healthy/2.png (healthy)" in classes


def test_class_weights_are_told_with_their_classes() -> None:
    section = small_config("cnn", loss__class_weights=(1.0, 2.0, 0.5)).loss
    weights = weighting.class_weights(section.class_weights, np.zeros(0, int), ("0", "2", "10"))
    assert weighting.weight_notes(losses.loss_function(section, weights), ("0", "2", "10")) == [
        "class weights: 0 1, 2 2, 10 0.5"
    ]
    assert weighting.weight_notes(losses.loss_function(section, None), ("0", "2", "10")) == []
