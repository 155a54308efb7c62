import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.metrics import validated
from covidjax.metrics.prediction_table import read_predictions
from covidjax.report import formats, run, workdir
from tests.report import made_workdir
from tests.report.made_workdir import CLASSES, Page, make_examples, write_evaluation, write_report


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run without its learning curves, which take the longest to draw."""
    made_workdir.write_config(tmp_path)
    made_workdir.write_run(tmp_path)
    return tmp_path


@dataclasses.dataclass(frozen=True)
class Written:
    """A report of a run whose test and val splits were evaluated, and what it was made from."""

    content: str
    read: Page
    examples: dict[str, Examples]
    evaluations: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("run")
    made_workdir.write_config(folder)
    made_workdir.write_metrics(folder)
    made_workdir.write_run(folder)
    examples = {split: make_examples(split) for split in ("test", "val")}
    evaluations = {split: write_evaluation(folder, examples[split], len(split)) for split in examples}
    content = run.write(folder, examples).read_text(encoding="utf-8")
    return Written(content, Page(content), examples, evaluations)


def test_report_needs_nothing_outside_itself(written: Written) -> None:
    read = made_workdir.assert_self_contained(written.content)
    assert sum("src" in attributes for _, attributes in read.tags) > 10


def test_text_from_outside_is_escaped(run_folder: Path) -> None:
    classes = ("<i>", 'a" onload="alert(1)', "R&D")
    examples = make_examples("test", classes=classes)
    write_evaluation(run_folder, examples)
    record = json.loads((run_folder / "run.json").read_text())
    record["notes"].append("<script>alert(1)</script>")
    (run_folder / "run.json").write_text(json.dumps(record))
    content = run.write(run_folder, {"test": examples}).read_text(encoding="utf-8")
    read = Page(content)
    assert not {tag for tag, _ in read.tags} & {"i", "script"}
    assert not any("onload" in attributes for _, attributes in read.tags)
    assert "&lt;i&gt;" in content
    assert "R&amp;D" in content
    assert [row[0] for row in read.table("Class", "Support")[1:]] == list(classes)


def test_headline_is_the_test_split_and_val_until_that_is_evaluated(run_folder: Path) -> None:
    val = write_evaluation(run_folder, make_examples("val"), seed=1)
    before = write_report(run_folder)
    assert f"Val accuracy{val['accuracy']:.3f}[{val['accuracy_ci95'][0]:.3f}, " in before.text
    assert "Not evaluated yet: run launch/evaluate.py with --split=test." in before.text
    test = write_evaluation(run_folder, make_examples("test"), seed=2)
    assert test["accuracy"] != val["accuracy"]
    after = write_report(run_folder)
    assert f"Test accuracy{test['accuracy']:.3f}[{test['accuracy_ci95'][0]:.3f}, " in after.text
    assert "ot evaluated yet" not in after.text


def test_figures_shown_equal_the_evaluation(written: Written) -> None:
    read, test = written.read, written.evaluations["test"]
    rows = {row[0]: row[1:] for row in read.table("Class", "Support")[1:]}
    columns = ("precision", "recall", "specificity", "f1", "auroc", "average_precision")
    for name, scores in test["per_class"].items():
        shown = [f"{scores[key]:.3f} {formats.interval(scores[key + '_ci95'])}" for key in columns]
        assert rows[name] == [str(scores["support"]), *shown]
    assert [caption for _, caption in read.figures if "average precision" in caption]
    summary = {row[0]: row[1:] for row in read.table("95 % interval")[1:]}
    assert summary["Loss"] == ["0.457", ""]
    for title, key in (("Accuracy", "accuracy"), ("Macro F1", "macro_f1"), ("Macro AUROC", "macro_auroc")):
        low, high = test[f"{key}_ci95"]
        assert summary[title] == [f"{test[key]:.3f}", f"[{low:.3f}, {high:.3f}]"]
    assert summary["Calibration error (ECE)"] == [f"{test['ece']:.3f}", ""]
    matrix = read.table("predicted")[2:]
    assert [row[0] for row in matrix] == list(CLASSES)
    for row, counts in zip(matrix, test["confusion_matrix"], strict=True):
        expected = [f"{count}{100 * count / sum(counts):.1f}\N{NO-BREAK SPACE}%" for count in counts]
        assert row[1:] == expected


def test_wrong_images_come_most_confident_first_and_are_the_right_pixels(written: Written) -> None:
    test = written.examples["test"]
    probabilities = made_workdir.predict(test, len("test"))
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = sorted(np.flatnonzero(predicted != test.labels), key=lambda index: -confidence[index])[:12]
    assert len(wrong) == 12
    samples = [(data, caption) for data, caption in written.read.figures if "test/" in caption]
    for index, (data, caption) in zip(wrong, samples, strict=False):
        true, guess = CLASSES[test.labels[index]], CLASSES[predicted[index]]
        assert caption == f"{true} \N{RIGHTWARDS ARROW} {guess}p = {confidence[index]:.3f}{test.names[index]}"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), test.images[index, ..., 0])
    right = [caption for _, caption in samples[12:]]
    assert [caption.split()[0] for caption in right] == [*CLASSES, *CLASSES]
    assert all(caption.split()[2].startswith(caption.split()[0]) for caption in right)


def test_images_appear_only_for_examples_at_hand_and_undefined_figures_show_a_dash(run_folder: Path) -> None:
    evaluation = write_evaluation(run_folder, make_examples("test"))
    evaluation["per_class"]["covid19"] |= {"recall": None, "recall_ci95": None}
    (run_folder / "evaluation_test.json").write_text(json.dumps({**evaluation, "macro_auroc": None}))
    for at_hand in ({}, {"test": make_examples("train")}, {"val": make_examples("test")}):
        read = write_report(run_folder, at_hand)
        assert not any(".png" in caption for _, caption in read.figures)
        assert at_hand or "written without the images" in read.text
    assert read.table("Class", "Support")[3][3] == formats.MISSING
    assert ["Macro AUROC", formats.MISSING] in [row[:2] for row in read.table("95 % interval")]


def test_config_and_metrics_are_enough_and_a_folder_without_a_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        run.write(tmp_path, {})
    made_workdir.write_config(tmp_path)
    (tmp_path / "run.json").write_text('{"versions": ')
    with pytest.raises(UserError, match=r"run\.json"):
        run.write(tmp_path, {})
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "run.json").unlink()
    assert "No epoch has finished yet." in write_report(tmp_path).text
    made_workdir.write_metrics(tmp_path)
    read = write_report(tmp_path)
    assert "not evaluated yet" in read.text
    assert len(read.figures) == 3


def test_metrics_that_are_not_finite_missing_or_cut_are_told_and_left_out(run_folder: Path) -> None:
    lines = [
        {"step": 1, "epoch": 1, "phase": 0, "split": "train", "loss": float("nan"), "learning_rate": 0.0},
        {"step": 2, "epoch": 2, "split": "train", "accuracy": None, "learning_rate": 1e-3},
        {"step": 2, "epoch": 2, "split": "val", "loss": float("inf")},
        {"step": 3, "split": "val", "loss": 0.5},
    ]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "ep')
    read = write_report(run_folder)
    assert "not finite, left as gaps: 3." in read.text
    assert "could not be read, left out: 2." in read.text
    assert "Best epoch" not in read.text


def test_loss_and_rate_of_single_steps_are_in_the_curves_of_a_run_of_one_epoch(run_folder: Path) -> None:
    steps = [
        {"step": step, "epoch": step / 4, "phase": 0, "split": "step", "loss": 1 / step, "learning_rate": 0.1 * step}
        for step in range(1, 5)
    ]
    ends: list[dict[str, Any]] = [
        {"step": 4, "epoch": 1, "phase": 0, "split": split, "loss": 0.5, "learning_rate": 0.4}
        for split in ("train", "val")
    ]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps + ends))
    loss, rate = (data for data, _ in write_report(run_folder).figures[:2])
    assert all(f"<!-- {split} -->".encode() in loss for split in ("step", "train", "val"))
    drawn = re.findall(rb'<path d="(M [^"]*)" clip-path[^>]*style="fill: none; stroke: #9cc4dd', rate)
    assert [len(re.findall(rb"[ML] ", path)) for path in drawn] == [4]


def test_best_epoch_is_that_of_the_evaluated_checkpoint(run_folder: Path) -> None:
    made_workdir.write_metrics(run_folder)
    read = workdir.read(run_folder)
    epochs, losses = workdir.values(read, "val", "loss")
    assert workdir.best_epoch(read) == epochs[int(np.argmin(losses))]
    evaluation = write_evaluation(run_folder, make_examples("val"))
    evaluation["checkpoint"] = {"step": 7 * 24, "which": "best"}
    (run_folder / "evaluation_val.json").write_text(json.dumps(evaluation))
    assert workdir.best_epoch(workdir.read(run_folder)) == 7
    assert sum(b"<!-- best, epoch 7 -->" in data for data, _ in write_report(run_folder).figures) == 2


def test_what_validation_chose_is_on_the_page(run_folder: Path) -> None:
    evaluations = {split: write_evaluation(run_folder, make_examples(split), len(split)) for split in ("val", "test")}
    val, test = (read_predictions(run_folder / f"predictions_{split}.csv") for split in ("val", "test"))
    found = validated.measured(validated.choose(val), test.probabilities, make_examples("test"))
    (run_folder / "evaluation_test.json").write_text(json.dumps(evaluations["test"] | found))
    read = write_report(run_folder)
    rows = read.table("On validation", "Threshold")[1:]
    assert [row[:2] for row in rows[:2]] == [
        [CLASSES[0], "sensitivity 0.95 or more"],
        [CLASSES[0], "greatest Youden index"],
    ]
    youden = found["operating_points"][CLASSES[0]]["youden"]
    assert rows[1][2] == f"{youden['threshold']:.3f}" and rows[1][3].startswith(f"{youden['sensitivity']:.3f} [")
    assert f"With the temperature {found['calibrated']['temperature']:.3f}" in read.text
    (run_folder / "predictions_test.csv").unlink()
    assert "There is no table of predictions" in write_report(run_folder).text
