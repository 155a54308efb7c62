"""A mistake ends a command with status 2 and one line that says what to do, and spoils nothing that is there."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from covidjax.runs import record
from launch import train
from tests.commands import ROOT, contents, refusal


def refusal_beside(capfd: pytest.CaptureFixture[str], workdir: Path, *arguments: object) -> str:
    """The message of a refused training in a workdir that keeps its bytes."""
    before = contents(workdir)
    message = refusal(capfd, train.main, *arguments, f"--workdir={workdir}")
    assert contents(workdir) == before
    return message


@pytest.mark.parametrize("below", ["", "folder"])
def test_bad_workdir_is_named(capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    workdir = tmp_path / "file" / below
    message = refusal(capfd, train.main, config, f"--workdir={workdir}")
    assert message.startswith(f"--workdir: cannot write to {workdir}: ")
    assert contents(tmp_path) == {"file": b"kept"}


def test_run_of_another_config_is_not_continued(capfd: pytest.CaptureFixture[str], config: str, trained: Path) -> None:
    changed = ["--config.optimizer.learning_rate=0.5", "--config.seed=7", "--config.checkpoint.keep=3"]
    message = refusal_beside(capfd, trained, config, *changed)
    assert message == (
        f"{trained} holds a run of another config: optimizer.learning_rate (was 0.001, now 0.5), "
        "seed (was 0, now 7): use another --workdir, or the former values"
    )


def test_batch_not_divisible_by_devices_is_refused(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    message = refusal(capfd, train.main, config, f"--workdir={tmp_path / 'run'}", "--config.batch_size=6")
    assert message == "config.batch_size 6 in 1 part(s) does not divide over 4 devices: choose a multiple of 4"
    assert contents(tmp_path / "run") == {}


def test_loss_that_is_not_finite_names_its_step(capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path) -> None:
    wild = {"learning_rate": 1e6, "weight_decay": 1e6}
    phases = f"--config.phases=({{'epochs': 1}}, {{'epochs': 2, 'optimizer': {wild}}})"
    workdir = tmp_path / "run"
    arguments = [config, f"--workdir={workdir}", "--config.optimizer.name=sgd", phases]
    message = refusal(capfd, train.main, *arguments)
    assert "is not finite in step 9 (learning rate 1e+06); the last good checkpoint is step 6: " in message
    assert "config.optimizer.learning_rate" in message
    assert refusal(capfd, train.main, *arguments) == message


def test_second_process_in_a_workdir_is_refused(capfd: pytest.CaptureFixture[str], config: str, trained: Path) -> None:
    with record.locked(trained):
        message = refusal_beside(capfd, trained, config)
    assert message == f"another process trains in {trained}: wait for it, or use another --workdir"


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "launch").glob("[a-z]*.py")))
def test_command_outside_the_environment_says_how_to_use_it(script: str, tmp_path: Path) -> None:
    without_packages = [sys.executable, "-S", "-E", str(ROOT / "launch" / script)]
    bare = subprocess.run(without_packages, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert bare.returncode == 1
    assert bare.stderr == (
        "error: No module named 'covidjax': use the environment of `make setup`, with `. .venv/bin/activate`\n"
    )
