"""A run ends where its figure no longer gets better, at the same step whether it was stopped before or not."""

import math
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from covidjax.errors import Interrupted
from covidjax.files import read_json, read_json_lines
from covidjax.runs.train import train
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from covidjax.weights.workdir import load_trained, open_checkpoints
from tests.support import TINY, by_path, send_before, small_config

PATIENCE, EPOCH_STEPS = 2, 6
# The rate of the last phase is too small for any figure to get better, but for the loss by a little.
PHASES = ({"epochs": 3}, {"epochs": 9, "optimizer": {"learning_rate": 1e-30}})


def settings(**changes: Any) -> ConfigDict:
    return small_config(
        "cnn", **TINY, **{"early_stopping__patience": PATIENCE, "checkpoint__best": "auroc", "phases": PHASES} | changes
    )


@pytest.fixture(scope="module")
def programs() -> Programs:
    return Programs()


def end(workdir: Path, config: ConfigDict) -> tuple[dict[str, Any], Any]:
    """The progress and the state of the latest checkpoint."""
    with open_checkpoints(workdir, config) as checkpoints:
        restored = checkpoints.restore_latest(prepare(config).abstract_state)
    assert restored is not None
    return restored.progress, restored.state


@pytest.mark.slow
def test_killed_and_resumed_run_stops_at_the_same_step_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings()
    report = train(config, tmp_path / "whole", programs=programs)
    progress, state = end(tmp_path / "whole", config)
    figures = [line for line in read_json_lines(tmp_path / "whole" / "metrics.jsonl")[0] if line["split"] == "val"]
    values = [line["auroc"] for line in figures]
    # By hand: the first epoch of the last phase from which on nothing was better than all before, and two more.
    stop = next(
        epoch
        for epoch in range(3 + PATIENCE, 13)
        if max(values[epoch - PATIENCE : epoch]) <= max(values[: epoch - PATIENCE])
    )
    assert (progress["step"], progress["waited"]) == (stop * EPOCH_STEPS, PATIENCE)
    assert stop < 12
    notes = read_json(tmp_path / "whole" / "run.json")["notes"]
    said = (
        f"stopped early after step {stop * EPOCH_STEPS} of {12 * EPOCH_STEPS}: no better validation auroc in 2 epochs"
    )
    assert [note for note in notes if note.startswith(said)]
    assert said in capsys.readouterr().out
    assert said in report.read_text()
    best = max(epoch for epoch, value in enumerate(values, 1) if value == max(values))
    assert load_trained(tmp_path / "whole", "best").step == best * EPOCH_STEPS

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        send_before(4 * EPOCH_STEPS + 2, patch)  # while it waits
        train(config, tmp_path / "run", programs=programs)
    train(config, tmp_path / "run", programs=programs)
    again, resumed = end(tmp_path / "run", config)
    assert {**again, "train_seconds": 0} == {**progress, "train_seconds": 0}
    assert all((by_path(resumed)[name] == value).all() for name, value in by_path(state).items())


def test_patience_counts_in_the_last_phase_and_better_means_strictly_also_after_a_stop_and_then_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs
) -> None:
    still = ({"epochs": 3, "optimizer": {"learning_rate": 1e-30}}, {"epochs": 4, "optimizer": {"learning_rate": 1e-30}})
    config = settings(
        phases=still, early_stopping__patience=3, checkpoint__best="accuracy", model__normalisation="none"
    )
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        send_before(4 * EPOCH_STEPS + 2, patch)  # while it waits
        train(config, tmp_path, programs=programs)
    report = train(config, tmp_path, programs=programs)
    values = [line for line in read_json_lines(tmp_path / "metrics.jsonl")[0] if line["split"] == "val"]
    assert len({line["accuracy"] for line in values}) == 1
    assert math.ceil(values[-1]["epoch"]) == 3 + 3
    before = (tmp_path / "metrics.jsonl").read_bytes(), report.stat().st_mtime_ns
    assert train(config, tmp_path, programs=programs) == report
    assert ((tmp_path / "metrics.jsonl").read_bytes(), report.stat().st_mtime_ns) == before
