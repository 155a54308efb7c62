"""What happens to several processes when one of them is asked to stop, is killed, or stands still."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from covidjax.distributed.processes import LOST
from tests.distributed.runs import losses, train_alone
from tests.support import ROOT

pytestmark = pytest.mark.slow
SECONDS = 480  # for what takes tens of them on an idle machine
RUNS = ("run", "undisturbed")


@contextlib.contextmanager
def two_processes(workdir: Path, *flags: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two trainings that find each other as other launchers have it, without one that looks after them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "launch/train.py", f"--workdir={workdir}", "--config.precision=float64", *flags]
    common = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_COORDINATOR_ADDRESS": address}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "PYTHONPATH": str(ROOT), "COVIDJAX_PROCESSES": "2", "COVIDJAX_PROCESS": rank},
            **pipes,
        )
        for rank in "01"
    ]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def wait_for_step(workdir: Path, children: list[subprocess.Popen[str]], step: int) -> None:
    until = time.monotonic() + SECONDS
    while not (workdir / "metrics.jsonl").exists() or max(losses(workdir), default=0) < step:
        for child in children:
            assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < until, "the training did not come so far"
        time.sleep(0.1)


def ended(child: subprocess.Popen[str], seconds: float = SECONDS) -> tuple[int, str, float]:
    """Status, standard error, and the seconds that it took to end."""
    began = time.monotonic()
    _, errors = child.communicate(timeout=seconds)
    return child.returncode, errors, time.monotonic() - began


def test_sigterm_to_one_stops_all_at_one_step_and_one_process_goes_on_alone(tmp_path: Path, config: str) -> None:
    flags = (config, "--config.epochs=8", "--config.evaluate_every_steps=1")
    with two_processes(tmp_path / "run", *flags) as children:
        wait_for_step(tmp_path / "run", children, 3)
        children[1].send_signal(signal.SIGTERM)
        for child in children:
            status, errors, _ = ended(child)
            assert status == 143, errors
            assert "stopped after step" in errors
    reached = max(losses(tmp_path / "run"))
    assert reached < 48, "it was finished before the signal came"
    for workdir in ("run", "alone"):
        done = train_alone(1, *flags, "--config.precision=float64", f"--workdir={tmp_path / workdir}")
        assert done.returncode == 0, done.stderr
        assert ("resuming from step" in done.stdout) == (workdir == "run")
    found, expected = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert list(found) == list(expected) == list(range(1, 49))
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-8)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_which_names_it_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, config: str, victim: int
) -> None:
    flags = (config, "--config.epochs=8", "--config.processes.heartbeat_seconds=20")
    with two_processes(tmp_path / "run", *flags) as children:
        wait_for_step(tmp_path / "run", children, 6)
        children[victim].kill()
        status, errors, seconds = ended(children[1 - victim])
        assert status == LOST, errors
        assert f"error: process {victim} (" in errors
        assert "is gone, or cannot be reached" in errors
        assert seconds < 30
    for workdir in RUNS:
        with two_processes(tmp_path / workdir, *flags) as children:
            for child in children:
                status, errors, _ = ended(child)
                assert status == 0, errors
    last = [max((tmp_path / run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name)) for run in RUNS]
    assert last[0].name == last[1].name == "48"
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")
    assert (tmp_path / "run" / "predictions_val.csv").read_bytes() == (
        tmp_path / "undisturbed" / "predictions_val.csv"
    ).read_bytes()


def test_a_process_that_stands_still_is_named_in_watchdog_time_with_where_the_other_waits(
    tmp_path: Path, config: str
) -> None:
    flags = (config, "--config.epochs=1000", "--config.watchdog_seconds=20")
    with two_processes(tmp_path / "run", *flags) as children:
        wait_for_step(tmp_path / "run", children, 6)
        children[1].send_signal(signal.SIGSTOP)
        status, errors, seconds = ended(children[0])
        assert status == LOST, errors
        assert "behind is process 1 (" in errors
        assert "train_phase" in errors, "there is no traceback"
        assert seconds < 30


def test_an_error_of_one_ends_the_other_with_its_words(tmp_path: Path, config: str) -> None:
    flags = (config, "--config.epochs=1000")
    with two_processes(tmp_path / "run", *flags) as children:
        wait_for_step(tmp_path / "run", children, 6)
        (tmp_path / "run" / "metrics.jsonl").unlink()
        (tmp_path / "run" / "metrics.jsonl").mkdir()
        status, errors, _ = ended(children[0])
        assert status == 2
        assert "metrics.jsonl" in errors.splitlines()[-1]
        status, errors, _ = ended(children[1])
        assert status == LOST
        assert "process 0 (" in errors
        assert "metrics.jsonl" in errors
