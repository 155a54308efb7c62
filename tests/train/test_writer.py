"""TensorBoard's curves are those of metrics.jsonl, after any history of starts."""

import random
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from covidjax import files
from covidjax.train import writer
from covidjax.train.writer import MetricsWriter


def curves_of_tensorboard(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(workdir)).Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: curve for tag, curve in curves.items() if curve}


def curves_of_metrics(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for record in files.read_json_lines(workdir / "metrics.jsonl")[0]:
        for name in set(record) - {"step", "epoch", "phase", "split"}:
            value = float(np.float32(record[name]))
            found.setdefault(f"{record['split']}/{name}", []).append((record["step"], value))
    return found


def write(workdir: Path, first_step: int, steps: range) -> None:
    """A start that goes on from a checkpoint and measures at some steps."""
    with MetricsWriter(workdir, first_step) as metrics:
        for step in steps:
            for split in ("train", "val"):
                metrics.write({"step": step, "epoch": step, "phase": 0, "split": split, "loss": random.random()})


def test_an_epoch_that_a_restart_goes_on_from_stays_in_the_curves(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4))
    write(tmp_path, 2, range(3, 6))
    assert [step for step, _ in curves_of_tensorboard(tmp_path)["val/loss"]] == [1, 2, 3, 4, 5]
    assert curves_of_tensorboard(tmp_path) == curves_of_metrics(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_curves_are_the_same_after_any_history_of_starts_within_a_second_and_with_any_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw, reached = random.Random(seed), 0
    for _ in range(12):
        monkeypatch.setattr(writer.os, "getpid", lambda: draw.choice([9, 99, 100, 100_000]))
        monkeypatch.setattr(writer.time, "time", lambda: 1.7e9 + draw.choice([-3600, 0, 0.4]))
        first = draw.randint(max(0, reached - 3), reached)
        reached = first + draw.randint(0, 4)
        write(tmp_path, first, range(first + 1, reached + 1))
        assert curves_of_tensorboard(tmp_path) == curves_of_metrics(tmp_path)
    write(tmp_path, reached, range(reached + 1, reached + 6))
    assert curves_of_tensorboard(tmp_path) == curves_of_metrics(tmp_path)
    assert len(curves_of_tensorboard(tmp_path)["val/loss"]) == reached + 5
