"""What happens to several processes when one of them is asked to stop, is killed, or stands still."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from covidjax import config as configs
from covidjax import files
from covidjax.distributed.processes import LOST
from covidjax.train.setup import prepare
from tests.distributed.runs import losses, train_alone
from tests.support import ROOT
from tests.train.test_resume import assert_same_run

pytestmark = pytest.mark.slow
SECONDS = 480  # for what takes tens of them on an idle machine
RUNS = ("run", "undisturbed")


@contextlib.contextmanager
def two_processes(
    workdir: Path, *flags: str, host: str = "localhost", within: Sequence[Sequence[str]] = ((), ())
) -> Iterator[list[subprocess.Popen[str]]]:
    """Two trainings that find each other as other launchers have it, without one that looks after them.

    host: of the first one; within: for each the command that runs its command.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"{host}:{free.getsockname()[1]}"
    command = [sys.executable, "launch/train.py", f"--workdir={workdir}", "--config.precision=float64", *flags]
    common = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_COORDINATOR_ADDRESS": address}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [
        subprocess.Popen(
            [*before, *command],
            env={**os.environ, **common, "PYTHONPATH": str(ROOT), "COVIDJAX_PROCESSES": "2", "COVIDJAX_PROCESS": rank},
            **pipes,
        )
        for rank, before in zip("01", within, strict=True)
    ]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def reached(workdir: Path) -> int:
    """The last step that is told of."""
    return max((row["step"] for row in files.read_json_lines(workdir / "metrics.jsonl")[0]), default=0)


def wait_for_step(workdir: Path, children: list[subprocess.Popen[str]], step: int) -> None:
    until = time.monotonic() + SECONDS
    while reached(workdir) < step:
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
    for name in RUNS:
        with two_processes(tmp_path / name, *flags) as children:
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


@pytest.fixture
def link() -> Iterator[tuple[list[list[str]], list[str], str]]:
    """Two hosts joined by a link: what runs a command on each, the command that cuts it, the first one's address.

    Each is a network namespace whose host name is its address, so that every library finds it.
    """
    names, hosts = [f"covidjax-{os.getpid()}-{rank}" for rank in "01"], ["10.213.47.1", "10.213.47.2"]
    if (
        not shutil.which("ip")
        or os.geteuid()
        or subprocess.run(["ip", "netns", "add", names[0]], check=False).returncode
    ):
        pytest.skip("network namespaces need iproute2 and root: no link can be cut here")
    try:
        subprocess.run(["ip", "netns", "add", names[1]], check=True)
        ends = ["ip", "link", "add", "v0", "netns", names[0], "type", "veth", "peer", "name", "v1", "netns", names[1]]
        subprocess.run(ends, check=True)
        for rank, (name, host) in enumerate(zip(names, hosts, strict=True)):
            for words in (f"addr add {host}/24 dev v{rank}", f"link set v{rank} up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        inside = 'hostname "$0" && exec "$@"'
        within = [
            ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", inside, host]
            for name, host in zip(names, hosts, strict=True)
        ]
        yield within, ["ip", "-n", names[1], "link", "set", "v1", "down"], hosts[0]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def test_where_a_link_is_cut_each_side_names_the_other_in_watchdog_time(
    tmp_path: Path, config: str, link: tuple[list[list[str]], list[str], str]
) -> None:
    within, cut, host = link
    flags = (config, "--config.epochs=1000", "--config.watchdog_seconds=20")
    with two_processes(tmp_path / "run", *flags, host=host, within=within) as children:
        wait_for_step(tmp_path / "run", children, 6)
        subprocess.run(cut, check=True)
        for rank, child in enumerate(children):
            status, errors, seconds = ended(child)
            assert status == LOST, errors
            assert f"process {1 - rank} (10.213.47.{2 - rank}" in errors
            assert "silent for" in errors
            assert seconds < 30


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.kill)])
def test_kills_of_random_processes_at_random_moments_leave_the_same_bits(
    tmp_path: Path, config: str, kills: int
) -> None:
    flags = (config, "--config.epochs=40", "--config.evaluate_every_steps=1", "--config.processes.heartbeat_seconds=10")
    draw, workdir = random.Random(22), tmp_path / "run"
    for number in range(kills):
        began, known = time.monotonic(), reached(workdir)
        with two_processes(workdir, *flags) as children:
            victim, starting = draw.randrange(2), draw.random() < 0.25
            if starting:
                time.sleep(draw.uniform(0, 10))
            else:
                wait_for_step(workdir, children, known + draw.randint(1, 10))
            assert children[victim].poll() is None, "it had come to its end"
            children[victim].kill()
            if not starting:  # else the other waits for it, as long as config.processes.start_seconds says
                status, errors, _ = ended(children[1 - victim])
                assert status == LOST, errors
        text = f"kill {number + 1}: process {victim}, step {known} to {reached(workdir)}"
        print(f"{text}, {time.monotonic() - began:.0f} s", flush=True)
    for name in RUNS:
        with two_processes(tmp_path / name, *flags) as children:
            for child in children:
                status, errors, _ = ended(child)
                assert status == 0, errors
    with jax.enable_x64(True):
        settings = configs.from_json(files.read_json(tmp_path / "undisturbed" / "config.json"))
        assert_same_run(tmp_path / "run", tmp_path / "undisturbed", prepare(settings))


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
