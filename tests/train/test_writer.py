"""TensorBoard's curves are those of metrics.jsonl, after any history of starts."""

import contextlib
import importlib
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from covidjax import files
from covidjax.config.writers import WRITERS, WriteRow, figures
from covidjax.train import writer
from covidjax.train.writer import Hook, MetricsWriter
from tests.commands import ROOT


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


# ---- Registered writers ----

ROWS = [{"step": step, "epoch": step, "phase": 0, "split": "val", "loss": 1 / step} for step in range(1, 5)]


def hook_of(name: str, told: list[Any], fails: str = "") -> Hook:
    """A writer that keeps what it is told, and fails where it begins, with the second row, or as it ends."""

    @contextlib.contextmanager
    def make(workdir: Path, config: Any) -> Iterator[WriteRow]:
        def write(row: Any) -> None:
            if fails == "row" and row["step"] == 2:
                raise ConnectionError("the server\nis gone")
            told.append(row)

        if fails == "begin":
            raise ConnectionError("no server")
        try:
            yield write
        finally:
            told.append(type(sys.exception()))
            if fails == "end":
                raise ConnectionError("late")

    return Hook(name, make, Path("run"), {})


def test_a_writer_that_fails_is_told_in_one_line_and_costs_neither_the_run_nor_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, list[Any]] = {"begin": [], "row": [], "end": [], "": []}
    hooks = [hook_of(fails or "sound", own, fails) for fails, own in told.items()]
    with pytest.raises(ZeroDivisionError), MetricsWriter(tmp_path, 0, hooks) as metrics:
        metrics.write(*ROWS[:3])
        metrics.write(ROWS[3] | {"loss": float("nan")})
        assert len(metrics.notes) == 2
        raise ZeroDivisionError
    last = ROWS[3] | {"loss": None}
    assert told == {
        "begin": [],
        "row": [ROWS[0], type(None)],
        "end": [*ROWS[:3], last, ZeroDivisionError],
        "": [*ROWS[:3], last, ZeroDivisionError],
    }
    assert files.read_json_lines(tmp_path / "metrics.jsonl")[0] == [*ROWS[:3], last]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "the writer 'begin' gets no more rows, and the run goes on: ConnectionError: no server",
        "the writer 'row' gets no more rows, and the run goes on: ConnectionError: the server is gone",
        "the writer 'end' gets no more rows, and the run goes on: ConnectionError: late",
    ]


@pytest.mark.parametrize("tool", ["mlflow", "wandb"])
def test_the_writers_of_the_page_hand_all_figures_on(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "add-a-model.md").read_text()
    (text,) = re.findall(rf"^```python\n# to_{tool}\.py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / f"to_{tool}.py").write_text(text)
    fake = mock.MagicMock()
    monkeypatch.setitem(sys.modules, tool, fake)
    monkeypatch.syspath_prepend(tmp_path)
    before = WRITERS.state()
    try:
        importlib.import_module(f"to_{tool}")
        hook = Hook(tool, WRITERS[tool], Path("runs/own"), {"seed": 3})
        for row in ROWS:
            hook.write(row)
        hook.close(None)
    finally:
        WRITERS.reset(before)
        sys.modules.pop(f"to_{tool}", None)
    assert hook.note == ""
    begun, log = (fake.start_run, fake.log_metrics) if tool == "mlflow" else (fake.init, fake.init().__enter__().log)
    assert "own" in begun.call_args_list[0].kwargs.values()  # the name of the run
    assert figures(ROWS[0]) == {"val/loss": 1.0}
    assert log.call_args_list == [mock.call(figures(row), step=row["step"]) for row in ROWS]
