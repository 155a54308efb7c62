"""launch/sweep.py from its arguments to its table."""

import itertools
import json
import shlex
from pathlib import Path

import pytest

from covidjax import config as configs
from launch import sweep
from tests.commands import call, read_table

FROZEN = "--config.freeze=backbone"


def test_sweep_writes_its_table_best_first(tmp_path: Path, capfd: pytest.CaptureFixture[str], config: str) -> None:
    workdir = tmp_path / "sweep"
    knobs = ["--learning_rates=1e-3,0.0123456789", "--weight_decays=0,0.05", "--class_weights=none,balanced"]
    spread = "--config.optimizer.learning_rate=(1e-4,1e-3)"
    assert call(sweep.main, config, f"--workdir={workdir}", FROZEN, spread, "--seeds=5", *knobs) == 0
    output, errors = capfd.readouterr()
    assert errors == ""
    rows = read_table(workdir / "sweep.csv")
    found = {(row["learning_rate"], row["weight_decay"], row["class_weights"], row["seed"]) for row in rows}
    assert found == set(itertools.product(("0.001", "0.0123456789"), ("0.0", "0.05"), ("none", "balanced"), "5"))
    losses = [float(row["val_loss"]) for row in rows]
    assert losses == sorted(losses)
    for row in rows:
        low, middle, high = (float(row[f"val_accuracy{end}"]) for end in ("_ci95_low", "", "_ci95_high"))
        assert 0 <= low <= middle <= high <= 1

    account = json.loads((workdir / "sweep.json").read_text())
    assert account["research_use_only"] is True
    assert account["num_validation_examples"] == 6
    assert account["config"]["freeze"] == "backbone"
    assert [str(head["val_loss"]) for head in account["heads"]] == [row["val_loss"] for row in rows]
    assert any(note.startswith("features: block1, block2 run once") for note in account["notes"])

    assert "8 heads in " in output
    flags = shlex.split(output.splitlines()[-1])[3:]  # after `python launch/train.py ...`
    alone = configs.load(config.removeprefix("--config="), [FROZEN, *flags])
    rate = float(rows[0]["learning_rate"])
    assert alone.optimizer.learning_rate == (pytest.approx(rate / 10), rate)
    assert (alone.seed, alone.loss.class_weights) == (5, rows[0]["class_weights"])
    assert alone.optimizer.weight_decay == float(rows[0]["weight_decay"])


def test_diverged_head_is_last_without_figures(tmp_path: Path, capfd: pytest.CaptureFixture[str], config: str) -> None:
    workdir = tmp_path / "sweep"
    knobs = ["--config.optimizer.name=sgd", "--learning_rates=1e6,1e-3", "--weight_decays=1e6,0"]
    by_accuracy = "--config.checkpoint.best=accuracy"
    assert call(sweep.main, config, f"--workdir={workdir}", FROZEN, by_accuracy, *knobs) == 0
    output = capfd.readouterr().out
    rows = read_table(workdir / "sweep.csv")
    assert [bool(row["val_loss"]) for row in rows] == [True, True, True, False]
    assert (rows[-1]["learning_rate"], rows[-1]["val_accuracy"], rows[-1]["last_val_loss"]) == ("1000000.0", "", "")
    assert json.loads((workdir / "sweep.json").read_text())["heads"][-1]["val_accuracy"] is None
    assert "4 heads (1 of them diverged) in " in output
    assert "nan" not in output
