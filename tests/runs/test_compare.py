"""Runs are compared on the same images, by pairs, with what each cost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from covidjax import config as configs
from covidjax import files
from covidjax.errors import UserError
from covidjax.metrics import segmentation
from covidjax.metrics.prediction_table import read_predictions
from covidjax.runs import compare
from launch import compare as launch_compare
from tests.commands import call, refusal
from tests.predictions import mask_counts
from tests.report.made_workdir import (
    CLASSES,
    assert_self_contained,
    make_examples,
    write_config,
    write_evaluation,
    write_run,
)
from tests.support import small_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three workdirs that were evaluated on the same 90 images of 45 patients; the last has no record of its cost."""
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("a", "b", "c")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        write_config(folder)
        write_run(folder)
        write_evaluation(folder, make_examples("test"), seed)
    record = files.read_json(folders[2] / "run.json")
    files.write_json(folders[2] / "run.json", {"data": record["data"]})
    return folders


@pytest.fixture(scope="module")
def result(runs: list[Path]) -> dict[str, Any]:
    return compare.compare(runs, "test")


def test_every_pair_is_compared_by_every_figure(result: dict[str, Any], runs: list[Path]) -> None:
    pairs = {(each["first"], each["second"]) for each in result["comparisons"]}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")}
    assert len(result["comparisons"]) == 3 * 4
    tables = {folder.name: read_predictions(folder / "predictions_test.csv") for folder in runs}
    for each in result["comparisons"]:
        if each["figure"] != "accuracy":
            continue
        first, second = (tables[each[key]].predicted == tables[each[key]].labels for key in ("first", "second"))
        assert each["difference"] == pytest.approx(first.mean() - second.mean())
        assert each["only_first_right"] == np.sum(first & ~second)
        expected = stats.binomtest(int(np.sum(first & ~second)), int(np.sum(first != second))).pvalue
        assert each["mcnemar_p"] == pytest.approx(expected)
        assert each["difference_ci95"][0] <= each["difference"] <= each["difference_ci95"][1]
    assert result["num_patients"] == 45


def test_figures_and_costs_are_those_of_the_runs(result: dict[str, Any], runs: list[Path]) -> None:
    rows = {run["name"]: run for run in result["runs"]}
    for folder in runs:
        evaluation = files.read_json(folder / "evaluation_test.json")
        for key in ("accuracy", "accuracy_ci95", "balanced_accuracy", "balanced_accuracy_ci95", "macro_auroc", "loss"):
            assert rows[folder.name][key] == evaluation[key]
    record = files.read_json(runs[0] / "run.json")
    sums = [sum(row["trainable"] for row in phase["rows"]) for phase in record["freeze"]]
    assert rows["a"]["trained_parameters"] == max(sums)
    assert rows["a"]["train_seconds"] == 754.2
    batch = files.read_json(runs[0] / "config.json")["batch_size"]
    assert rows["a"]["flops_per_image"] == max(phase["step_flops"] for phase in record["freeze"]) / batch
    assert [rows["c"][key] for key in ("trained_parameters", "train_seconds", "flops_per_image")] == [None] * 3


def test_command_prints_tables_and_writes_json_and_a_page(
    runs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(launch_compare.main, *runs, f"--json={tmp_path}/new/compare.json") == 0
    printed, found = capfd.readouterr().out, files.read_json(tmp_path / "new" / "compare.json")
    assert "b - c" in printed and "McNemar" in printed and "754" not in printed
    assert "12 min 34 s" in printed
    read = assert_self_contained((tmp_path / "new" / "compare.html").read_text(encoding="utf-8"))
    accuracy = read.table("McNemar's p")
    assert accuracy[1][0] == "a \N{MINUS SIGN} b"
    assert accuracy[1][4] == str(found["comparisons"][0]["only_first_right"])
    assert {row[0] for row in read.table("GFLOP an image")[1:]} == {"a", "b", "c"}


def copied(folder: Path, examples: Any, seed: int = 4) -> Path:
    folder.mkdir()
    write_config(folder)
    write_run(folder)
    write_evaluation(folder, examples, seed)
    return folder


def test_runs_that_were_not_asked_the_same_are_refused(
    runs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = np.zeros((30, 24, 24, 1), np.uint8)
    other_split = copied(tmp_path / "split", make_examples("test", small))
    other_classes = copied(tmp_path / "classes", make_examples("test", classes=(*CLASSES[:2], "other")))
    not_evaluated = copied(tmp_path / "val", make_examples("val"))
    for folders, expected in (
        ([runs[0], other_split], "the test examples of split are not those of a"),
        (
            [runs[0], other_classes],
            "classes has the classes normal, pneumonia, other, a has normal, pneumonia, covid19",
        ),
        ([runs[0], not_evaluated], f"run launch/evaluate.py --workdir={not_evaluated} --split=test first"),
        ([runs[0]], "one run alone is not compared"),
        ([runs[0], runs[1], runs[0]], f"{runs[0]} is there twice"),
        ([runs[0], tmp_path / "gone"], "gone/config.json"),
    ):
        assert expected in refusal(capfd, launch_compare.main, *folders)


def test_predictions_of_another_evaluation_are_refused(runs: list[Path], tmp_path: Path) -> None:
    folder = copied(tmp_path / "run", make_examples("test"))
    table = folder / "evaluation_test.json"
    files.write_json(table, files.read_json(table) | {"accuracy": 0.123})
    with pytest.raises(UserError, match="from another evaluation"):
        compare.compare([runs[0], folder], "test")


def test_mask_networks_are_compared_by_the_dice_of_each_image(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 2, (12, 8, 8))
    examples = make_examples("test", np.zeros((12, 8, 8, 1), np.uint8), classes=("background", "lung"))
    for name, flips in (("good", 0.05), ("bad", 0.3)):
        folder = tmp_path / name
        folder.mkdir()
        guess = np.where(generator.random(masks.shape) < flips, 1 - masks, masks)
        found = segmentation.report_from_counts(mask_counts(guess, masks, 2), examples, 0.3, resamples=20)
        (folder / "evaluation_test.json").write_text(json.dumps(found))
        config = small_config("unet", loss__name="dice", dataset__name="folder", dataset__root="/data/lungs")
        (folder / "config.json").write_text(json.dumps(configs.to_json(config)))
    found = compare.compare([tmp_path / "good", tmp_path / "bad"], "test")
    dice = next(each for each in found["comparisons"] if each["figure"] == "dice")
    per_image = [files.read_json(tmp_path / name / "evaluation_test.json")["per_image"] for name in ("good", "bad")]
    means = [np.mean([image["dice"] for image in images]) for images in per_image]
    assert dice["difference"] == pytest.approx(means[0] - means[1])
    assert dice["difference_ci95"][0] > 0 and dice["p"] == pytest.approx(2 / 5001)
    assert "mcnemar_p" not in dice
