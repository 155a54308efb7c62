"""Sets with several findings, and lungs, each in miniature as it is published: prepared, and what is amiss is told."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covidjax import files, train
from covidjax.errors import UserError
from launch import evaluate
from tests.commands import call
from tests.data.images import write_image
from tests.support import TINY, small_config

pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed: make setup installs it")
from covidjax.data import sources
from covidjax.data.datasets import findings_sets
from covidjax.data.datasets.prepare import prepare
from tests.data.images import dataset_config
from tests.data.test_dicom import file

NIH_HEADER = [
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position",
    "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]",
]  # fmt: skip
NIH_LABELS = ("No Finding", "Effusion|Mass", "Mass|Effusion", "Cardiomegaly", "Pleural_Thickening|Hernia")
CHEXPERT_HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *findings_sets.CheXpert.FINDINGS]


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])


def nih(root: Path, labels: Sequence[str] = NIH_LABELS, separator: str = ",") -> Path:
    """Four images of each of five patients: two for test."""
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}  # type: ignore[var-annotated]
    for patient in range(1, 21):
        for follow_up in range(2):
            name = f"{patient:08d}_{follow_up:03d}.png"
            write_image(root / f"images_{patient % 3 + 1:03d}" / "images" / name, 10 * patient + follow_up)
            label = labels[patient % len(labels)]
            rows.append([name, label, follow_up, patient, "058Y", "M", "PA", 2682, 2749, 0.143, 0.143])
            lists["test_list.txt" if patient > 16 else "train_val_list.txt"].append(name)
    write_table(root / "Data_Entry_2017.csv", NIH_HEADER, rows, separator)
    for name, names in lists.items():
        (root / name).write_text("\n".join(names))
    return root


def chexpert(root: Path) -> Path:
    """Twelve patients for train, four for valid; one row tells nothing, and one is uncertain of edema."""
    for table, patients in (("train", range(1, 25)), ("valid", range(25, 30))):
        rows = []
        for patient in patients:
            path = f"CheXpert-v1.0-small/{table}/patient{patient:05d}/study1/view1_frontal.jpg"
            write_image(root / path, patient)
            own: dict[str, Any] = {"Edema": (1.0, 0.0)[patient % 2], "Fracture": 0.0, "Pleural Effusion": 1.0}
            own = {1: {}, 2: {"Edema": -1.0}}.get(patient, own)
            cells = [own.get(name, "") for name in findings_sets.CheXpert.FINDINGS]
            rows.append([path, "Male", 60, "Frontal", "AP", *cells])
        write_table(root / "CheXpert-v1.0-small" / f"{table}.csv", CHEXPERT_HEADER, rows)
    return root


def padchest(root: Path) -> Path:
    rows = []
    for number in range(30):
        name = f"{1000 + number}_a.png"
        write_image(root / str(number % 3) / name, number)
        labels = ("['normal']", "['cardiomegaly', 'pleural effusion']", "[' cardiomegaly', '']")[number % 3]
        labels = "['rare']" if number == 4 else labels  # which leaves nine effusions
        rows.append([number, name, number % 3, number // 2, "PA", labels])
    header = ["", "ImageID", "ImageDir", "PatientID", "Projection", "Labels"]
    write_table(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", header, rows)
    return root


def vindr(root: Path) -> Path:
    votes = {0: ((1, 1, 0),) * 3, 1: ((1, 0, 0), (1, 1, 0), (0, 0, 0)), 2: ((0, 0, 1),) * 3}
    for split, count, readers in (("train", 12, 3), ("test", 3, 1)):
        rows = []
        for number in range(count):
            name = f"{split}{number:04x}"
            path = root / split / f"{name}.dicom"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file(np.full((8, 8), number, np.uint8), 8, PatientID=name))
            for reader in range(readers):
                rows.append([name, *([f"R{reader}"] if split == "train" else []), *votes[number % 3][reader]])
        header = ["image_id", *(["rad_id"] if split == "train" else []), "Nodule/Mass", "Cardiomegaly", "No finding"]
        write_table(root / "annotations" / f"image_labels_{split}.csv", header, rows)
    return root


def medmnist(root: Path, name: str = "chestmnist_64", labels: int = 14) -> Path:
    generator, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 16, 16), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count * labels).reshape(count, labels).astype(np.uint8) % 2
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    return root


def loaded(folder: Path, split: str, tmp_path: Path, **changes: object) -> Any:
    return sources.load(dataset_config(folder, name="tfds", cache_dir=str(tmp_path / "cache"), **changes), split)


@pytest.mark.parametrize("separator", [",", ";"])
def test_chestxray14_has_its_official_split_and_findings_in_any_order(tmp_path: Path, separator: str) -> None:
    folder = prepare("chestxray14", nih(tmp_path / "set", separator=separator), tmp_path / "data")
    splits = {split: loaded(folder, split, tmp_path) for split in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == 40
    assert {name[:8] for name in splits["test"].names} == {f"{number:08d}" for number in range(17, 21)}
    patients = [set(own.patients) for own in splits.values()]
    assert not (patients[0] & patients[1] or patients[0] & patients[2])
    test = splits["test"]
    assert test.classes == findings_sets.ChestXray14.FINDINGS
    assert test.label_names[:4] == ("Effusion|Mass",) * 2 + ("Cardiomegaly",) * 2
    assert set(np.unique(test.findings)) == {0, 1}
    assert test.facts["view"][0] == "PA"


def test_a_label_of_another_spelling_is_refused_with_the_nearest(tmp_path: Path) -> None:
    root = nih(tmp_path / "set", ["No Finding", "Pleural Thickening"])
    with pytest.raises(
        UserError, match=r"line \d+: 'Pleural Thickening' is no finding.*mean 'Pleural_Thickening'"
    ) as e:
        prepare("chestxray14", root, tmp_path / "data")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="write 'No Finding' alone"):
        prepare("chestxray14", nih(tmp_path / "other", ["No Finding|Mass"]), tmp_path / "data")


def test_a_patient_in_two_official_lists_is_told(tmp_path: Path) -> None:
    root = nih(tmp_path / "set")
    lists = [(root / name) for name in ("train_val_list.txt", "test_list.txt")]
    lists[1].write_text(lists[1].read_text() + "\n00000001_000.png")
    folder = prepare("chestxray14", root, tmp_path / "data")
    notes = loaded(folder, "train", tmp_path).notes
    assert any("1 patients on two sides (nih-1): as it stands it is image-level" in note for note in notes)


def test_chexpert_keeps_uncertain_and_unknown_apart_and_tells_of_empty_rows(tmp_path: Path) -> None:
    folder = prepare("chexpert/unknown", chexpert(tmp_path / "set"), tmp_path / "data")
    train = loaded(folder, "train", tmp_path)
    both = [train, loaded(folder, "val", tmp_path)]
    assert sum(map(len, both)) == 24
    assert any("nothing is known of 1 of 29 images: train/patient00001" in note for note in train.notes)
    edema = {name: own[5] for part in both for name, own in zip(part.names, part.findings, strict=True)}
    assert edema["train/patient00001/study1/view1_frontal.jpg"] == -2
    assert edema["train/patient00002/study1/view1_frontal.jpg"] in (-1, -2)  # of train it is settled, of val kept
    assert set(loaded(folder, "test", tmp_path).patients) == {f"patient{number:05d}" for number in range(25, 30)}
    absent = prepare("chexpert/absent", tmp_path / "set", tmp_path / "data")
    assert set(np.unique(loaded(absent, "test", tmp_path).findings)) == {0, 1}


@pytest.mark.parametrize(("policy", "label"), [("ignore", -2), ("zeros", 0), ("ones", 1), ((("Edema", "ones"),), 1)])
def test_uncertain_labels_are_settled_in_training_images_alone(tmp_path: Path, policy: Any, label: int) -> None:
    splits = ["train"] * 10 + ["val", "test"]
    rows = [[f"{number}.png", "-1", number % 2, split] for number, split in enumerate(splits)]
    for number in range(len(rows)):
        write_image(tmp_path / "set" / f"{number}.png", number)
    write_table(tmp_path / "set" / "images.csv", ["path", "finding:Edema", "finding:Mass", "split"], rows)
    folder = prepare("csv/findings", tmp_path / "set", tmp_path / "data")
    if not isinstance(policy, str):
        policy = (("edema", "ones"),)
        with pytest.raises(UserError, match="names Oedema; the findings are edema, mass"):
            loaded(folder, "train", tmp_path, uncertain=(("Oedema", "ones"),))
    assert set(loaded(folder, "train", tmp_path, uncertain=policy).findings[:, 0]) == {label}
    assert set(loaded(folder, "test", tmp_path, uncertain=policy).findings[:, 0]) == {-1}


@pytest.mark.parametrize(
    ("cell", "message"), [("present", "a finding is 'present': allowed are 1, 0, -1"), ("2", "a finding is '2'")]
)
def test_a_cell_that_is_no_label_is_refused(tmp_path: Path, cell: str, message: str) -> None:
    write_image(tmp_path / "set" / "0.png")
    write_table(tmp_path / "set" / "images.csv", ["path", "finding:mass"], [["0.png", cell]])
    with pytest.raises(UserError, match=message):
        prepare("csv/findings", tmp_path / "set", tmp_path / "data")


def test_padchest_takes_common_labels_and_tells_of_rare_ones(tmp_path: Path) -> None:
    folder = prepare("padchest", padchest(tmp_path / "set"), tmp_path / "data")
    train = loaded(folder, "train", tmp_path)
    assert train.classes == ("cardiomegaly",)
    assert any("labels that fewer than 10 images have are left out: pleural effusion, rare" in n for n in train.notes)


def test_vindr_is_voted_by_its_readers(tmp_path: Path) -> None:
    folder = prepare("vindr_cxr", vindr(tmp_path / "set"), tmp_path / "data")
    test, train = loaded(folder, "test", tmp_path), loaded(folder, "train", tmp_path, uncertain="ones")
    assert test.classes == ("nodule/mass", "cardiomegaly")
    assert test.findings.tolist() == [[1, 1], [1, 0], [0, 0]]
    own = dict(zip(train.names, train.findings.tolist(), strict=True))
    assert all(own[name] == [1, 1] for name in own if int(name[-4:], 16) % 3 == 1)


@pytest.mark.parametrize(("name", "labels"), [("chestmnist_64", 14), ("pneumoniamnist", 1)])
def test_medmnist_is_read_with_one_label_or_several(tmp_path: Path, name: str, labels: int) -> None:
    root, variants = medmnist(tmp_path / "set", name, labels), ["medmnist/labels", "medmnist/findings"]
    folder = prepare(variants.pop(labels > 1), root, tmp_path / "data")
    with pytest.raises(UserError, match=f"has {labels} labels an image: prepare medmnist"):
        prepare(variants[0], root, tmp_path / "data")
    test = loaded(folder, "test", tmp_path, image_size=16)
    arrays = np.load(tmp_path / "set" / f"{name}.npz")
    np.testing.assert_array_equal(test.images[..., 0], arrays["test_images"])
    if labels > 1:
        np.testing.assert_array_equal(test.findings, arrays["test_labels"])
        assert test.classes[0] == "atelectasis"
    else:
        np.testing.assert_array_equal(test.labels, arrays["test_labels"][:, 0])
        assert test.classes == ("normal", "pneumonia")
    (tmp_path / "set" / f"{name}.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"is no file of MedMNIST\+"):
        prepare("medmnist/labels", root, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("chestxray14", nih),
        ("chexpert/unknown", chexpert),
        ("padchest", padchest),
        ("vindr_cxr", vindr),
        ("medmnist/findings", medmnist),
    ],
)
def test_every_layout_is_prepared_trained_and_evaluated(
    tmp_path: Path, name: str, make: Callable[[Path], Path]
) -> None:
    folder = prepare(name, make(tmp_path / "set"), tmp_path / "data")
    data = {"dataset__name": "tfds", "dataset__root": str(folder), "dataset__cache_dir": str(tmp_path / "cache")}
    config = small_config("cnn", **TINY, **data, loss__name="asymmetric", epochs=1, ops="xla")
    train(config, tmp_path / "run")  # type: ignore[operator]
    assert call(evaluate.main, f"--workdir={tmp_path / 'run'}", "--split=test") == 0
    found = files.read_json(tmp_path / "run" / "evaluation_test.json")
    test = loaded(folder, "test", tmp_path)
    assert found["num_examples"] == len(test)
    counts = [[own[key] for key in ("present", "absent", "unknown")] for own in found["per_class"].values()]
    assert test.findings is not None
    parts = [(test.findings == 1), (test.findings == 0), (test.findings < 0)]
    assert counts == np.stack([part.sum(axis=0) for part in parts], axis=1).tolist()


def write_mask(path: Path, left: int, size: int = 20) -> None:
    mask = np.zeros((size, size), np.uint8)
    mask[5:15, left : left + 4] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def montgomery(root: Path) -> None:
    for number in range(20):
        name = f"MCUCXR_{number:04d}_0.png"
        write_image(root / "MontgomerySet" / "CXR_png" / name, number, (20, 20))
        for side, left in (("left", 2), ("right", 12)):
            write_mask(root / "MontgomerySet" / "ManualMask" / f"{side}Mask" / name, left)


def shenzhen(root: Path) -> None:
    for number in range(20):
        name = f"CHNCXR_{number:04d}_0"
        write_image(root / "ChinaSet_AllFiles" / "CXR_png" / f"{name}.png", number, (20, 20))
        if number:
            write_mask(root / "ChinaSet_AllFiles" / "mask" / f"{name}_mask.png", 4)


def jsrt(root: Path) -> None:
    for number in range(20):
        name = f"JPC{'LN' if number % 2 else 'NN'}{number:03d}"
        (root / "All247images").mkdir(parents=True, exist_ok=True)
        np.full((4, 4), number, ">u2").tofile(root / "All247images" / f"{name}.IMG")
        for side, left in (("left", 0), ("right", 1)):
            mask = np.zeros((2, 2), np.uint8)
            mask[0, left] = 255
            path = root / f"fold{number % 2 + 1}" / "masks" / f"{side} lung" / f"{name}.gif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


@pytest.mark.parametrize(("name", "make", "count"), [("montgomery", montgomery, 20), ("shenzhen", shenzhen, 19)])
def test_lungs_are_joined_and_images_without_masks_told(
    tmp_path: Path, name: str, make: Callable[[Path], None], count: int
) -> None:
    make(tmp_path / "set")
    folder = prepare(name, tmp_path / "set", tmp_path / "data")
    config = dataset_config(folder, name="tfds", cache_dir=str(tmp_path / "cache"), image_size=20)
    parts = [sources.load(config, split, masks=True) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == count
    assert parts[0].classes == ("background", "lung")
    assert set(np.asarray(parts[0].masks).sum(axis=(1, 2))) == {80 if name == "montgomery" else 40}
    if name == "shenzhen":
        assert any("1 images have no mask, and are left out: CHNCXR_0000_0.png" in note for note in parts[0].notes)


def test_jsrt_is_turned_and_its_masks_are_enlarged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covidjax.data.datasets.lungs.JSRT_SIDE", 4)
    jsrt(tmp_path / "set")
    folder = prepare("jsrt", tmp_path / "set", tmp_path / "data")
    config = dataset_config(folder, name="tfds", cache_dir=str(tmp_path / "cache"), image_size=4)
    train = sources.load(config, "train", masks=True)
    assert np.asarray(train.masks)[0].tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]
    assert (np.asarray(train.images) > 250).all()
    (tmp_path / "set" / "All247images" / "JPCLN001.IMG").write_bytes(b"1234")
    with pytest.raises(UserError, match="4 bytes are not those of"):
        prepare("jsrt", tmp_path / "set", tmp_path / "other")
