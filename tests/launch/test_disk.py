"""A full disk ends a training with one line; once there is space again the same command finishes it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import train
from tests.commands import ROOT, call, only_error, refusal
from tests.disk import small_disk

DISK_BYTES = 8 * 2**20
# With this width a checkpoint takes about 1.1 MB, nearly all of it weights and moments, which do not compress.
WIDE = ["--config.model.width=64", "--config.epochs=3"]
ROOM_FOR_ONE_CHECKPOINT = 1_800_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as folder:
        yield folder


def fill(disk: Path, free_bytes: int) -> None:
    """Leaves this many bytes free, in whole pages."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    room = os.statvfs(disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - free_bytes))


@pytest.mark.slow
def test_disk_that_fills_during_a_save_ends_the_run_which_then_goes_on_to_the_same_result(
    tmp_path: Path, disk: Path, config: str, environment: dict[str, str]
) -> None:
    workdir = disk / "run"
    assert call(train.main, config, *WIDE, f"--workdir={tmp_path / 'whole'}") == 0
    command = [sys.executable, str(ROOT / "launch" / "train.py"), config, *WIDE, f"--workdir={workdir}"]

    fill(disk, ROOM_FOR_ONE_CHECKPOINT)
    stopped = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert stopped.returncode == 2
    assert re.fullmatch(
        rf"cannot write checkpoint (12|18) to {workdir / 'checkpoints'}: No space left on device; "
        "free space and run the same command again: training resumes from 6",
        only_error(stopped.stderr),
    )
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"6", "manifests"}

    (disk / "filler").unlink()
    finished = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "resuming from step 6 of 18" in finished.stdout
    for name in ("predictions_val.csv", "evaluation_val.json"):
        assert (workdir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_disk_that_is_full_hinders_no_later_run(capfd: pytest.CaptureFixture[str], config: str, disk: Path) -> None:
    workdir = disk / "run"
    messages = []
    for pages in (0, 1, 24):  # too little for config.json, then for run.json, ...
        shutil.rmtree(workdir, ignore_errors=True)
        fill(disk, pages * os.sysconf("SC_PAGE_SIZE"))
        messages.append(refusal(capfd, train.main, config, f"--workdir={workdir}"))
    assert all("No space left on device" in message and "free space" in message for message in messages)
    refused = [name for name in ("config.json", "run.json", "checkpoint 6") if any(name in m for m in messages)]
    assert refused == ["config.json", "run.json", "checkpoint 6"]
    (disk / "filler").unlink()
    assert call(train.main, config, f"--workdir={workdir}") == 0
