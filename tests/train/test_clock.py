"""One rate everywhere, and a wall time whose parts add up."""

import re
from pathlib import Path

import pytest

from covidjax.files import read_json, read_json_lines
from covidjax.runs.train import train
from covidjax.train import clock
from covidjax.train.clock import PARTS, Clock
from tests.support import TINY, small_config

EPOCHS, EPOCH_IMAGES = 3, 24


def test_parts_and_the_rest_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    watch = Clock()
    watch.add("data", 2.0)
    now[0] += 5.0
    watch.settle("set-up")
    with watch.spent("steps"):
        now[0] += 4.0
    now[0] += 1.0
    found = {part: seconds for part, seconds in watch.account().items() if seconds}
    assert found == {"set-up": 3.0, "data": 2.0, "steps": 4.0, "rest": 1.0, "total": 10.0}


def test_console_metrics_record_and_report_tell_one_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = train(small_config("cnn", **TINY, epochs=EPOCHS), tmp_path).read_text()
    lines = [line for line in read_json_lines(tmp_path / "metrics.jsonl")[0] if line["split"] == "train"]
    rates = [line["images_per_second"] for line in lines]
    shown = re.findall(r"([0-9.]+) images/s", capsys.readouterr().out)
    assert shown == [f"{rate:.1f}" for rate in rates]
    timings = read_json(tmp_path / "run.json")["timings"]
    seconds = sum(EPOCH_IMAGES / rate for rate in rates)
    assert timings["train_seconds"] == pytest.approx(seconds, abs=0.01)
    assert timings["images_per_second"] == pytest.approx(EPOCHS * EPOCH_IMAGES / seconds, rel=0.01)
    wall = timings["wall"]
    assert list(wall) == [*PARTS, "rest", "total"]
    assert sum(wall[part] for part in (*PARTS, "rest")) == pytest.approx(wall["total"], abs=0.1)
    assert wall["steps"] == pytest.approx(timings["train_seconds"], abs=0.02)
    assert min(wall.values()) >= 0
    assert wall["rest"] < 0.2 * wall["total"]
    assert "Wall time since the last start" in report
