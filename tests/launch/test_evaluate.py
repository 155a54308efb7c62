"""Evaluation says what it cannot do before it reads the test split, and records each time that it reads it."""

import shutil
from datetime import datetime
from pathlib import Path

import pytest

from covidjax import files
from launch import evaluate, train
from tests.commands import call, contents, refusal, tiny_config

NUM_STEPS = 6  # 24 images in batches of 4


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that workdir."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("split", ["val", "test"])
def test_checkpoint_that_is_not_there_is_refused_with_those_that_are(
    capfd: pytest.CaptureFixture[str], trained: Path, split: str
) -> None:
    before = contents(trained)
    message = refusal(capfd, evaluate.main, f"--workdir={trained}", f"--split={split}", "--checkpoint=17")
    assert message == f"there is no checkpoint 17 in {trained}: use best, latest or one of {NUM_STEPS}"
    assert contents(trained) == before


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--checkpoint=newest", "'newest' is none of best, latest and the number of a step"),
        ("--split=training", "invalid choice: 'training'"),
        ("--steps=3", "unrecognized arguments: --steps=3"),
    ],
)
def test_wrong_argument_is_one_line(
    capfd: pytest.CaptureFixture[str], trained: Path, argument: str, expected: str
) -> None:
    before = contents(trained)
    assert expected in refusal(capfd, evaluate.main, f"--workdir={trained}", "--split=test", argument)
    assert contents(trained) == before


def test_folder_that_is_no_workdir_is_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        message = refusal(capfd, evaluate.main, f"--workdir={folder}", "--split=test")
        assert message == f"there is no {folder / 'config.json'}: is this the workdir of a run?"
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("checkpoint", ["best", "latest", "6"])
def test_run_without_a_checkpoint_is_refused_and_no_test_read_recorded(
    capfd: pytest.CaptureFixture[str], run: Path, checkpoint: str
) -> None:
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    message = refusal(capfd, evaluate.main, f"--workdir={run}", "--split=test", f"--checkpoint={checkpoint}")
    assert message == f"there is no finished checkpoint in {run}: train first, or name another workdir"
    assert contents(run) == before


def test_damaged_checkpoint_is_refused_and_no_test_read_recorded(capfd: pytest.CaptureFixture[str], run: Path) -> None:
    (run / "checkpoints" / str(NUM_STEPS) / "progress" / "metadata").write_text("{}")
    before = contents(run)
    message = refusal(capfd, evaluate.main, f"--workdir={run}", "--split=test")
    assert f"checkpoint {NUM_STEPS} in {run / 'checkpoints'} is damaged (file progress/metadata differs" in message
    assert contents(run) == before


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_record_that_is_cut_is_named(capfd: pytest.CaptureFixture[str], run: Path, name: str) -> None:
    (run / name).write_bytes((run / name).read_bytes()[:50])
    before = contents(run)
    assert f"{run / name} cannot be read as JSON" in refusal(capfd, evaluate.main, f"--workdir={run}", "--split=test")
    assert contents(run) == before


def test_each_evaluation_of_the_test_split_is_recorded(run: Path) -> None:
    assert files.read_json(run / "run.json")["test_reads"] == []
    for number, checkpoint in enumerate(["best", "latest", str(NUM_STEPS)], start=1):
        assert call(evaluate.main, f"--workdir={run}", "--split=test", f"--checkpoint={checkpoint}") == 0
        record = files.read_json(run / "run.json")
        assert len(record["test_reads"]) == number
        result = files.read_json(run / "evaluation_test.json")
        assert result["checkpoint"] == {
            "step": NUM_STEPS,
            "which": NUM_STEPS if checkpoint.isdecimal() else checkpoint,
        }
    assert all(datetime.fromisoformat(moment).tzinfo is not None for moment in record["test_reads"])
    described = record["data"]["test"]
    assert described["num_examples"] == result["num_examples"] == 6
    assert described["fingerprint"] not in {record["data"][split]["fingerprint"] for split in ("train", "val")}
    assert record["data"].keys() == {"train", "val", "test"}


def test_evaluation_of_another_split_is_no_test_read(run: Path) -> None:
    for split in ("train", "val"):
        assert call(evaluate.main, f"--workdir={run}", f"--split={split}") == 0
        assert files.read_json(run / f"evaluation_{split}.json")["split"] == split
    record = files.read_json(run / "run.json")
    assert record["test_reads"] == []
    assert "test" not in record["data"]


def test_test_reads_survive_another_start_of_the_training(run: Path, tmp_path: Path) -> None:
    assert call(evaluate.main, f"--workdir={run}", "--split=test") == 0
    before, page = files.read_json(run / "run.json"), (run / "report.html").read_bytes()
    assert call(train.main, tiny_config(tmp_path), f"--workdir={run}") == 0
    after = files.read_json(run / "run.json")
    assert after["test_reads"] == before["test_reads"] != []
    assert after["data"]["test"] == before["data"]["test"]
    assert (run / "report.html").read_bytes() == page


def test_network_is_evaluated_when_the_run_that_it_started_from_is_gone(run: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    assert call(train.main, tiny_config(tmp_path), f"--config.pretrained={run}", f"--workdir={second}") == 0
    shutil.rmtree(run)
    assert call(evaluate.main, f"--workdir={second}", "--split=test") == 0
