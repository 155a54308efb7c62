"""A finished run is scored on another labelled set, under its own name, and on its own data where they have moved."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from covidjax import files
from covidjax.metrics.prediction_table import read_predictions
from launch import evaluate, train
from tests.commands import call, images_of, read_table, refusal, write_image, write_images

CLASSES = ("covid19", "normal", "pneumonia")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, whose data are phantoms."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Two classes of twelve images, one of them under another name, one more class, patients and a view."""
    rows = []
    for label, name in enumerate(("COVID", "normal", "tumour")):
        for number in range(12):
            write_image(tmp_path / "other" / name / f"{number}.png", seed=50 * label + number)
            rows.append((f"{number}.png", name, f"{name}{number // 2}", "AP" if number < 4 else "PA"))
    with (tmp_path / "other" / "folds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient", "view"), *rows])
    return tmp_path / "other"


def test_another_set_is_counted_exactly_and_recorded_under_its_name(run: Path, other: Path) -> None:
    flags = (f"--workdir={run}", f"--root={other}", "--name=hospital", "--classes=COVID=covid19,tumour=", "--by=view")
    for _ in range(2):
        assert call(evaluate.main, *flags) == 0
    found, record = files.read_json(run / "evaluation_hospital.json"), files.read_json(run / "run.json")
    assert found["num_examples"] == 24
    table = read_predictions(run / "predictions_hospital.csv")
    assert np.bincount(table.labels, minlength=3).tolist() == [12, 12, 0]
    assert table.classes == CLASSES and len(set(table.patients)) == 12
    assert [found["per_class"][name]["support"] for name in CLASSES] == [12, 12, 0]
    assert found["per_class"]["pneumonia"]["recall"] is None
    notes = " ".join(found["notes"])
    assert "12 images of tumour are left out" in notes and "has no image of pneumonia" in notes
    assert found["calibrated"]["temperature"] > 0  # validation chose it: the set is another
    told = record["data"]["hospital"]
    assert told["num_examples"] == 24 and told["num_patients"] == 12 and len(told["reads"]) == 2
    assert told["root"] == str(other) and record["test_reads"] == []
    page = (run / "report.html").read_text()
    assert "External test: hospital" in page and "By view" in page and "AP (small)" in page

    groups = {row["group"]: row for row in found["subgroups"]["view"]}
    assert {name: (row["num_examples"], row["num_clusters"], row["small"]) for name, row in groups.items()} == {
        "AP": (8, 4, True),
        "PA": (16, 8, True),
    }
    inside = np.array([int(name.rpartition("/")[2].removesuffix(".png")) < 4 for name in table.names])
    right = table.predicted == table.labels
    assert groups["AP"]["accuracy"] == right[inside].mean() and groups["PA"]["accuracy"] == right[~inside].mean()
    assert groups["PA"]["accuracy_ci95"][0] <= groups["PA"]["accuracy"] <= groups["PA"]["accuracy_ci95"][1]


def test_a_table_names_images_and_labels(run: Path, other: Path) -> None:
    table = other / "some.csv"
    table.write_text("file,label\nCOVID/0.png,covid19\nnormal/1.png,normal\n")
    assert call(evaluate.main, f"--workdir={run}", f"--root={table}") == 0
    rows = read_table(run / "predictions_some.csv")
    assert [(row["file"], row["label"]) for row in rows] == [("COVID/0.png", "covid19"), ("normal/1.png", "normal")]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "give --split of the run's own data, or --root"),
        (("--root={other}",), "has classes that the network does not know: COVID, tumour; it knows covid19, normal"),
        (("--root={other}", "--classes=COVID=flu,tumour="), "classes that the network does not know: COVID"),
        (("--root={other}", "--classes=COVID=covid19,tumour=,x="), "--classes names x, of which"),
        (("--root={other}", "--name=test", "--classes=COVID=covid19,tumour="), "no name of a split"),
        (("--root={other}", "--name=a/b", "--classes=COVID=covid19,tumour="), "allowed are letters, digits"),
        (("--root={other}", "--by=age", "--classes=COVID=covid19,tumour="), "lacks the columns age"),
        (("--root={other}/missing",), "there is no {other}/missing"),
        (("--root={other}/COVID",), "holds no folders of classes"),
        (("--split=val", "--name=x"), "--name and --classes are of another set"),
        (("--split=val", "--by=view"), "there is no table"),
        (("--root={other}", "--classes=COVID"), "is not of the form theirs=ours,unused="),
    ],
)
def test_what_is_no_labelled_set_is_refused_in_a_line(
    run: Path, other: Path, capfd: pytest.CaptureFixture[str], flags: tuple[str, ...], expected: str
) -> None:
    told = refusal(capfd, evaluate.main, f"--workdir={run}", *(flag.format(other=other) for flag in flags))
    assert expected.format(other=other) in told
    assert not [*run.glob("evaluation_other*"), *run.glob("evaluation_hospital*")]


def test_other_images_under_a_name_that_was_used_are_refused(
    run: Path, other: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = (f"--workdir={run}", f"--root={other}", "--classes=COVID=covid19,tumour=")
    assert call(evaluate.main, *flags) == 0
    before = (run / "evaluation_other.json").read_bytes()
    write_image(other / "normal" / "0.png", seed=999)
    assert "has other images, or other labels of them, as 'other'" in refusal(capfd, evaluate.main, *flags)
    assert (run / "evaluation_other.json").read_bytes() == before


def test_data_that_have_moved_give_the_same_figures_and_copies_of_training_images_are_told(
    tmp_path: Path, config: str
) -> None:
    data, run = write_images(tmp_path / "data"), tmp_path / "run"
    assert call(train.main, config, f"--workdir={run}", *images_of(data)) == 0
    assert call(evaluate.main, f"--workdir={run}", "--split=test") == 0
    before = files.read_json(run / "evaluation_test.json")
    other = tmp_path / "other"
    shutil.copytree(data / "test", other)
    shutil.copy(data / "train" / "ill" / "0.png", other / "ill" / "again.png")
    assert call(evaluate.main, f"--workdir={run}", f"--root={other}") == 0
    found = files.read_json(run / "evaluation_other.json")
    assert any("1 images are in two splits, byte for byte" in note for note in found["notes"])
    data.rename(tmp_path / "moved")
    assert call(evaluate.main, f"--workdir={run}", "--split=test", f"--root={tmp_path}/moved") == 0
    assert files.read_json(run / "evaluation_test.json") == before
