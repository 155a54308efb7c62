"""Training data out of sets that `launch/prepare.py` wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax.data import sources
from covidjax.data.examples import SPLITS, Examples
from covidjax.errors import UserError

pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed: make setup installs it")
pytest.importorskip("nibabel", reason="nibabel is not installed: make setup installs it")
from covidjax.data.datasets.prepare import prepare
from tests.data import trees
from tests.data.images import dataset_config


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared miniatures by name."""
    base = tmp_path_factory.mktemp("prepared")
    names = ("chest_xray_pneumonia", "covid_ct", "csv/labels", "lgg_mri", "covid_ct_seg/slices", "sars_cov2_ct")
    return {name: prepare(name, trees.make(name, base / "manual" / name), base / "data") for name in names}


def config(root: Path, tmp_path: Path, **changes: object) -> ConfigDict:
    settings = {"name": "tfds", "cache_dir": str(tmp_path / "cache"), "mask_classes": ("background", "x")}
    return dataset_config(root, **{**settings, **changes})


def test_images_are_those_of_a_folder_and_an_eighth_of_train_is_held_out(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    manual = roots["chest_xray_pneumonia"].parents[2] / "manual" / "chest_xray_pneumonia" / "chest_xray"
    shutil.copytree(manual, tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "val")
    folder = sources.load(config(tmp_path / "folder", tmp_path, name="folder"), "test")
    found = sources.load(config(roots["chest_xray_pneumonia"], tmp_path), "test")
    np.testing.assert_array_equal(found.images, folder.images)
    np.testing.assert_array_equal(found.labels, folder.labels)
    assert found.names == folder.names
    assert found.classes == ("normal", "pneumonia")
    assert found.patients_known
    train, val = (sources.load(config(roots["chest_xray_pneumonia"], tmp_path), split) for split in SPLITS[:2])
    assert len(train) + len(val) == 19
    assert not set(train.patients) & set(val.patients)
    assert any("held out as val, by patient" in note for note in val.notes)


def test_folds_test_each_image_once_and_keep_patients_whole(roots: dict[str, Path], tmp_path: Path) -> None:
    tested: list[str] = []
    for fold in range(5):
        parts = {split: sources.load(config(roots["csv/labels"], tmp_path, fold=fold), split) for split in SPLITS}
        assert sum(map(len, parts.values())) == 20
        assert not set(parts["test"].patients) & (set(parts["train"].patients) | set(parts["val"].patients))
        tested += parts["test"].names
    assert len(tested) == len(set(tested)) == 20


def test_a_set_that_has_no_patients_or_tears_them_is_image_level(roots: dict[str, Path], tmp_path: Path) -> None:
    found = sources.load(config(roots["sars_cov2_ct"], tmp_path), "train")
    assert not found.patients_known
    assert found.patients == found.names
    assert any("image-level" in note for note in found.notes)
    torn = shutil.copytree(roots["covid_ct"], tmp_path / "torn") / "metadata.json"
    torn.write_text(json.dumps({**json.loads(torn.read_text()), "torn": ["COVID-Patient 0"]}))
    assert sources.load(config(roots["covid_ct"], tmp_path), "train").patients_known
    assert not sources.load(config(torn.parent, tmp_path), "train").patients_known
    assert sources.load(config(torn.parent, tmp_path, fold=0), "train").patients_known


def test_masks_and_classes_come_with_the_set_or_it_is_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    found = sources.load(config(roots["covid_ct_seg/slices"], tmp_path, image_size=16), "train", masks=True)
    assert found.classes == ("background", "ground_glass", "consolidation", "pleural_effusion")
    assert found.masks is not None
    assert set(np.unique(found.masks)) == {0, 1, 2, 3}
    assert found.images.shape == (7, 16, 16, 1)
    for name, masks in (("covid_ct", True), ("lgg_mri", False)):
        with pytest.raises(UserError, match="has the features .* choose"):
            sources.load(config(roots[name], tmp_path), "train", masks=masks)


def test_masks_are_those_of_the_same_files_in_a_folder(roots: dict[str, Path], tmp_path: Path) -> None:
    manual = roots["lgg_mri"].parents[2] / "manual" / "lgg_mri" / "kaggle_3m"
    settings = config(roots["lgg_mri"], tmp_path, channels=3)
    parts: list[Examples] = [sources.load(settings, split, masks=True) for split in SPLITS]
    expected: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split in SPLITS[:2]:
        own = sources.load(config(manual, tmp_path, channels=3, name="folder"), split, masks=True)
        expected |= dict(zip(own.names, zip(own.images, np.asarray(own.masks), strict=True), strict=True))
    assert sum(map(len, parts)) == len(expected) == 30
    assert any("masks are empty" in note for part in parts for note in part.notes)
    for part in parts:
        assert part.patients == tuple(Path(name).parent.name for name in part.names)
        for name, image, mask in zip(part.names, part.images, np.asarray(part.masks), strict=True):
            np.testing.assert_array_equal(image, expected[name][0])
            np.testing.assert_array_equal(mask, expected[name][1])


def test_the_folder_may_be_named_without_version(roots: dict[str, Path], tmp_path: Path) -> None:
    root = roots["covid_ct"]
    newer = shutil.copytree(root, root.parent / "1.10.0")
    try:
        listed = sources.listed(config(root.parent, tmp_path), "test")
        assert listed.root == newer
    finally:
        shutil.rmtree(newer)
    with pytest.raises(UserError, match="holds several: .*covid_ct"):
        sources.listed(config(root.parents[1], tmp_path), "test")
    with pytest.raises(UserError, match=r"is no prepared data set; launch/prepare\.py"):
        sources.listed(config(tmp_path, tmp_path), "test")


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "missing", "no JSON"])
def test_a_damaged_set_is_named(damage: str, roots: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(roots["covid_ct"], tmp_path / "covid_ct")
    (path,) = root.glob("*test*array_record*")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content) if damage == "flipped bit" else content[: len(content) // 3])
    if damage == "missing":
        path.unlink()
    if damage == "no JSON":
        (root / "dataset_info.json").write_text("{")
    else:
        assert len(sources.load(config(root, tmp_path), "train")) == 12
    with pytest.raises(UserError, match=f"{root}.* is damaged .*: prepare it again"):
        sources.load(config(root, tmp_path), "test")
