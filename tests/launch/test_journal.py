"""run.json is changed by one command at a time, and keeps every reading of the test split."""

import errno
import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from covidjax import files
from covidjax.checkpoint import journal
from covidjax.errors import UserError
from covidjax.train import loop
from launch import evaluate, train
from tests.commands import call


def test_changes_that_several_make_at_once_are_all_kept(tmp_path: Path) -> None:
    def change(number: int) -> None:
        with journal.changing(tmp_path) as run:
            run["changes"] = [*run.get("changes", []), number]
        journal.add_reading(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(40)))
    run = json.loads((tmp_path / "run.json").read_text())
    assert sorted(run["changes"]) == list(range(40))
    assert len(run["test_reads"]) == len(set(run["test_reads"])) == 40


def test_a_reading_outlives_a_run_json_that_was_written_over_it(tmp_path: Path) -> None:
    files.write_json(tmp_path / "run.json", {"test_reads": ["2026-01-01T00:00:00+00:00"]})
    journal.add_reading(tmp_path)
    files.write_json(tmp_path / "run.json", {"test_reads": ["2026-01-01T00:00:00+00:00"]})
    reads = journal.read(tmp_path)["test_reads"]
    assert reads[0] == "2026-01-01T00:00:00+00:00"
    assert len(reads) == 2
    with journal.changing(tmp_path):
        pass
    assert json.loads((tmp_path / "run.json").read_text())["test_reads"] == reads


@pytest.mark.parametrize("content", ["[]", '{"test_reads": 3}', "{", ""])
def test_a_record_that_is_none_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json (is not the record of a run|cannot be read as JSON)"):
        journal.read(tmp_path)


@pytest.mark.parametrize("lock", ["works", "fails"])
def test_a_test_reading_beside_a_training_stays_when_the_training_ends(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], lock: str
) -> None:
    trained = loop.train

    def train_then_evaluate(*arguments: Any) -> Any:
        progress = trained(*arguments)
        assert call(evaluate.main, f"--workdir={tmp_path}", "--split=test") == 0
        return progress

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(loop, "train", train_then_evaluate)
    if lock == "fails":
        monkeypatch.setattr(fcntl, "flock", refuse)
    assert call(train.main, config, f"--workdir={tmp_path}") == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert len(run["test_reads"]) == 1
    assert run["timings"]["train_seconds"] > 0
    assert set(run["data"]) == {"train", "val", "test"}
    assert "never read" not in (tmp_path / "report.html").read_text()
    said = capfd.readouterr().err
    assert (f"the disk of {tmp_path} knows no locks (No locks available): take care" in said) == (lock == "fails")
