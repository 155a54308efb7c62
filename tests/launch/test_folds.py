"""All folds by one command: each image is predicted once, by a network that did not learn from it."""

from pathlib import Path

import numpy as np
import pytest

from covidjax import files
from launch import folds
from tests.commands import call, contents, images_of, read_table, refusal, write_image
from tests.report.made_workdir import assert_self_contained

CLASSES = ("healthy", "ill")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of four patients of each class, two images each."""
    root, rows = tmp_path_factory.mktemp("data"), ["file,label,patient,fold"]
    for label, name in enumerate(CLASSES):
        for number in range(24):
            write_image(root / name / f"{number}.png", seed=100 * label + number)
            rows.append(f"{number}.png,{name},{name}{number // 2},{number // 2 % 3}")
    (root / "folds.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, data: Path, config: str) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    assert call(folds.main, config, f"--workdir={folder}", *images_of(data)) == 0
    return folder


def test_every_image_is_predicted_once_by_the_fold_that_it_is_in(workdir: Path, data: Path) -> None:
    rows = read_table(workdir / "folds.csv")
    assert len(rows) == 48 and len({row["file"] for row in rows}) == 48
    for fold in range(3):
        own = [row for row in rows if row["fold"] == str(fold)]
        assert {int(row["file"].rpartition("/")[2].removesuffix(".png")) // 2 % 3 for row in own} == {fold}
        record = files.read_json(workdir / f"fold{fold}" / "run.json")
        assert len(record["test_reads"]) == 1 and record["data"]["test"]["num_examples"] == 16


def test_figures_together_are_those_of_all_images_and_the_spread_that_of_the_folds(workdir: Path) -> None:
    found, rows = files.read_json(workdir / "folds.json"), read_table(workdir / "folds.csv")
    right = np.array([row["label"] == row["predicted"] for row in rows])
    told = found["figures"]["accuracy"]
    assert told["pooled"] == right.mean() and found["num_patients"] == 24 and found["num_examples"] == 48
    each = [right[np.array([row["fold"] == str(fold) for row in rows])].mean() for fold in range(3)]
    assert [row["accuracy"] for row in found["folds"]] == pytest.approx(each)
    assert told["mean"] == pytest.approx(np.mean(each)) and told["spread"] == pytest.approx(np.std(each, ddof=1))
    if 0 < right.mean() < 1:  # the interval draws patients, of two images each
        generator = np.random.default_rng(1)
        patients = np.array([row["patient"] for row in rows])
        by_patient = [right[patients == one].mean() for one in sorted(set(patients))]
        drawn = generator.choice(by_patient, (4000, 24)).mean(axis=1)
        assert told["pooled_ci95"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.04)
    assert_self_contained((workdir / "folds.html").read_text())


def test_the_same_command_again_repeats_nothing_and_goes_on_with_what_is_missing(
    workdir: Path, data: Path, config: str
) -> None:
    told = ("run.json", "events")  # of the last start, and what TensorBoard is written
    before = {name: held for name, held in contents(workdir / "fold0").items() if not any(one in name for one in told)}
    (workdir / "fold2" / "evaluation_test.json").unlink()
    summary = files.read_json(workdir / "folds.json")
    (workdir / "folds.json").unlink()
    assert call(folds.main, config, f"--workdir={workdir}", *images_of(data)) == 0
    after = contents(workdir / "fold0")
    assert {name: after[name] for name in before} == before
    assert len(files.read_json(workdir / "fold0" / "run.json")["test_reads"]) == 1
    assert files.read_json(workdir / "folds.json") == summary
    assert len(files.read_json(workdir / "fold2" / "run.json")["test_reads"]) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "which has no folds: choose a folder"),
        (
            ("--config.dataset.name=folder", "--config.dataset.root={data}", "--config.dataset.fold=1"),
            "all folds are run",
        ),
    ],
)
def test_what_has_no_folds_is_refused_before_anything_is_made(
    tmp_path: Path, data: Path, config: str, capfd: pytest.CaptureFixture[str], flags: tuple[str, ...], expected: str
) -> None:
    workdir = tmp_path / "folds"
    own = [flag.format(data=data) for flag in flags]
    assert expected in refusal(capfd, folds.main, config, f"--workdir={workdir}", *own)
    assert not workdir.exists()
