"""Evaluation says what it cannot do before it reads the test split, and records each time that it reads it."""

import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import covidjax
from covidjax import files
from covidjax.data import sources
from covidjax.metrics import validated
from covidjax.metrics.prediction_table import read_predictions
from launch import evaluate, train
from tests.commands import call, contents, refusal

NUM_STEPS = 6  # 24 images in batches of 4


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that workdir."""
    return shutil.copytree(trained, tmp_path / "run")


def lose_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def damage_checkpoint(run: Path) -> None:
    (run / "checkpoints" / str(NUM_STEPS) / "progress" / "metadata").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "checkpoint", "expected"),
    [
        *((lose_checkpoints, which, "there is no finished checkpoint in {run}") for which in ("best", "latest", "6")),
        (damage_checkpoint, "best", "checkpoint 6 in {run}/checkpoints is damaged (file progress/metadata differs"),
        (lambda run: os.truncate(run / "config.json", 50), "best", "{run}/config.json cannot be read as JSON"),
        (lambda run: os.truncate(run / "run.json", 50), "best", "{run}/run.json cannot be read as JSON"),
    ],
)
def test_spoilt_workdir_is_refused_and_no_test_read_recorded(
    capfd: pytest.CaptureFixture[str], run: Path, spoil: Callable[[Path], None], checkpoint: str, expected: str
) -> None:
    spoil(run)
    before = contents(run)
    message = refusal(capfd, evaluate.main, f"--workdir={run}", "--split=test", f"--checkpoint={checkpoint}")
    assert expected.format(run=run) in message
    assert contents(run) == before


def test_each_evaluation_of_the_test_split_is_recorded_and_that_of_another_is_none(run: Path) -> None:
    for split in ("train", "val"):
        assert call(evaluate.main, f"--workdir={run}", f"--split={split}") == 0
        assert files.read_json(run / f"evaluation_{split}.json")["split"] == split
    record = files.read_json(run / "run.json")
    assert record["test_reads"] == []
    assert record["data"].keys() == {"train", "val"}
    for number, checkpoint in enumerate(["best", "latest", str(NUM_STEPS)], start=1):
        assert call(evaluate.main, f"--workdir={run}", "--split=test", f"--checkpoint={checkpoint}") == 0
        record, result = (files.read_json(run / name) for name in ("run.json", "evaluation_test.json"))
        assert len(record["test_reads"]) == number
        which = NUM_STEPS if checkpoint.isdecimal() else checkpoint
        assert result["checkpoint"] == {"step": NUM_STEPS, "which": which}
    assert all(datetime.fromisoformat(moment).tzinfo is not None for moment in record["test_reads"])
    described = record["data"]["test"]
    assert described["num_examples"] == result["num_examples"] == 6
    assert described["fingerprint"] not in {record["data"][split]["fingerprint"] for split in ("train", "val")}
    assert record["data"].keys() == {"train", "val", "test"}


def test_page_shows_where_the_network_looks_while_the_maps_are_of_the_evaluated_checkpoint(run: Path) -> None:
    assert call(evaluate.main, f"--workdir={run}", "--split=val", "--explain") == 0
    recorded = files.read_json(run / "explanations_val.json")
    network = covidjax.load(run)
    examples = sources.load(network.config.dataset, "val")
    chosen = [examples.names.index(name) for name in recorded["maps"]]
    assert chosen
    maps = network.explain(examples.images[chosen])
    np.testing.assert_allclose(np.array(list(recorded["maps"].values())), maps, atol=1e-4)
    assert "Grad-CAM" in (run / "report.html").read_text()
    files.write_json(run / "explanations_val.json", recorded | {"checkpoint": {"step": 1, "which": "best"}})
    assert call(evaluate.main, f"--workdir={run}", "--split=val") == 0
    assert "Grad-CAM" not in (run / "report.html").read_text()


def test_test_reads_survive_another_start_of_the_training(run: Path, config: str) -> None:
    assert call(evaluate.main, f"--workdir={run}", "--split=test") == 0
    before, page = files.read_json(run / "run.json"), (run / "report.html").read_bytes()
    assert call(train.main, config, f"--workdir={run}") == 0
    after = files.read_json(run / "run.json")
    assert after["test_reads"] == before["test_reads"] != []
    assert after["data"]["test"] == before["data"]["test"]
    assert (run / "report.html").read_bytes() == page


def test_network_is_evaluated_when_the_run_that_it_started_from_is_gone(run: Path, tmp_path: Path, config: str) -> None:
    second = tmp_path / "second"
    assert call(train.main, config, f"--config.pretrained={run}", f"--workdir={second}") == 0
    shutil.rmtree(run)
    assert call(evaluate.main, f"--workdir={second}", "--split=test") == 0


def test_what_validation_chooses_joins_the_evaluation_of_the_test_split_by_the_same_step_alone(run: Path) -> None:
    assert call(evaluate.main, f"--workdir={run}", "--split=test") == 0
    found = files.read_json(run / "evaluation_test.json")
    assert found["operating_points"].keys() == set(found["classes"]) and found["calibrated"]["temperature"] > 0
    assert not (run / "predictions_test_calibrated.csv").exists()
    assert call(evaluate.main, f"--workdir={run}", "--split=test", "--calibrated") == 0
    own, tempered = (read_predictions(run / f"predictions_test{part}.csv") for part in ("", "_calibrated"))
    expected = validated.tempered(own.probabilities, found["calibrated"]["temperature"])
    np.testing.assert_allclose(tempered.probabilities, expected, rtol=1e-12)
    of_val = files.read_json(run / "evaluation_val.json")
    files.write_json(run / "evaluation_val.json", of_val | {"checkpoint": {"step": 1, "which": 1}})
    assert call(evaluate.main, f"--workdir={run}", "--split=test") == 0
    found = files.read_json(run / "evaluation_test.json")
    assert "operating_points" not in found
    assert (
        "test: nothing is chosen by validation, as the validation split was evaluated at another step" in found["notes"]
    )


def test_views_are_told_with_their_price_and_chosen_by_validation_of_as_many(run: Path, tmp_path: Path) -> None:
    config = files.read_json(run / "config.json")
    files.write_json(run / "config.json", config | {"augment": config["augment"] | {"rotate": 5.0}})
    assert call(evaluate.main, f"--workdir={run}", "--split=test", "--views=3") == 0
    found = files.read_json(run / "evaluation_test.json")
    assert found["views"]["count"] == 3 and found["views"]["images_per_second"] > 0
    assert any("test: the mean of 3 views of each image: " in note for note in found["notes"])
    assert "operating_points" not in found
    assert call(evaluate.main, f"--workdir={run}", "--split=val", "--views=3") == 0
    assert call(evaluate.main, f"--workdir={run}", "--split=test", "--views=3") == 0
    assert "operating_points" in files.read_json(run / "evaluation_test.json")
