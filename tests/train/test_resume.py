"""A run that is stopped at any moment and started again ends with the same bits as one that was left alone."""

import contextlib
import io
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidjax import config as configs
from covidjax import files
from covidjax.checkpoint.checkpoint import Restored
from covidjax.distributed.processes import Processes
from covidjax.files import read_json_lines
from covidjax.runs.train import terminated
from covidjax.train.job import Job
from covidjax.train.setup import prepare
from covidjax.weights.workdir import open_checkpoints
from launch import train as command
from tests.commands import call, contents, tiny_config
from tests.support import by_path, send_before

# Everything that a resumed run could get wrong: two phases, running statistics, moments, moving average, dropout,
# augmentation and a learning rate that follows the loss.
CONFIG: dict[str, Any] = {
    "dataset__num_images": 50,
    "batch_size": 6,
    "model__dropout": 0.2,
    "ema_decay": 0.9,
    "augment__brightness": 0.2,
    "optimizer__name": "adamw",
    "optimizer__weight_decay": 0.01,
    "optimizer__schedule": "plateau",
    "optimizer__plateau_patience": 1,
    "optimizer__plateau_factor": 0.7,
    "optimizer__plateau_min_delta": 0.1,
    "steps_per_call": 2,
    "phases": ({"epochs": 4, "freeze": "backbone"}, {"epochs": 8, "freeze": "none"}),
}
STEPS_PER_EPOCH, FIRST_PHASE_EPOCHS, EPOCHS = 8, 4, 12
BOUNDARY, LAST_STEP = STEPS_PER_EPOCH * FIRST_PHASE_EPOCHS, STEPS_PER_EPOCH * EPOCHS
STOPS = ((BOUNDARY, signal.SIGTERM), (62, signal.SIGINT))
# Goes on as launch/train.py, but takes its time for every step and saves after every epoch, so that there is something
# to kill.
SLOWLY = """
import time
from covidjax import command
from covidjax.checkpoint import saver
from covidjax.train import inputs
from launch import train

calls = inputs.PhaseInputs.calls

def changed(*arguments):
    for call in calls(*arguments):
        time.sleep(0.1)
        yield call

inputs.PhaseInputs.calls = changed
saver.TIMES_LONGER = 0
command.run(train.main)
"""
Start = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_config(tmp_path_factory.mktemp("config"), **CONFIG)


@pytest.fixture(scope="module")
def start(config: str, environment: dict[str, str]) -> Start:
    """Starts the slow command on a workdir."""

    def started(workdir: Path) -> "subprocess.Popen[str]":
        line = [sys.executable, "-c", SLOWLY, config, f"--workdir={workdir}"]
        return subprocess.Popen(line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return started


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    """The workdir of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def job(whole: Path) -> Job:
    """What the whole run was, after a look at whether it has all that could be resumed wrong."""
    found = prepare(configs.from_json(files.read_json(whole / "config.json")))
    assert found.last_step == LAST_STEP
    fields = {name.split("[")[0] for name in by_path(restore(whole, found).state)}
    assert fields >= {".params", ".batch_stats", ".opt_state", ".average"}
    rates = {record["learning_rate"] for record in figures(whole) if record["split"] == "train"}
    assert len(rates) > 2, "the plateau rule never acted, so nothing here shows that it is resumed"
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    """The workdir of a run that got two signals: between two phases, and within an epoch."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    for step, number in STOPS:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as errors:
            send_before(step, patch, number)
            assert call(command.main, config, f"--workdir={workdir}") == 128 + number
        assert errors.getvalue() == f"stopped after step {step}, which is saved: the same command goes on from there\n"
        assert finished_steps(workdir)[-1] == step
    return workdir


def finish(config: str, workdir: Path) -> str:
    """Runs the command, which has to succeed; returns what it said."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert call(command.main, config, f"--workdir={workdir}") == 0
    return output.getvalue()


def finished_steps(workdir: Path) -> list[int]:
    return sorted(int(path.stem) for path in (workdir / "checkpoints" / "manifests").glob("*.json"))


def unfinished(workdir: Path) -> set[str]:
    """The folders of a save that is going on."""
    done = {"manifests", "damaged", "deleted", *map(str, finished_steps(workdir))}
    return {path.name for path in (workdir / "checkpoints").glob("*") if path.name not in done}


def last_epoch(workdir: Path) -> int:
    return max((record["epoch"] for record in read_json_lines(workdir / "metrics.jsonl")[0]), default=0)


def kill_when(process: "subprocess.Popen[str]", reached: Callable[[], bool], delay: float = 0.0) -> None:
    """Kills the process once the condition holds, and the delay in seconds has passed."""
    while not reached():
        assert process.poll() is None, f"the run ended before it could be killed: {process.communicate()}"
        time.sleep(0.0005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


def restore(workdir: Path, job: Job) -> Restored:
    """The end of a run."""
    with open_checkpoints(workdir, job.config) as checkpoints:
        return checkpoints.restore("latest", job.abstract_state(job.last_step))


def differing(one: Any, other: Any) -> list[str]:
    """The arrays of a state that another, which has to have the same ones, holds with other bits."""
    found, expected = by_path(one), by_path(other)
    assert found.keys() == expected.keys()
    return [name for name, value in expected.items() if not np.array_equal(found[name], value)]


def figures(workdir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without what depends on the clock."""
    records = read_json_lines(workdir / "metrics.jsonl")[0]
    return [{**record, "images_per_second": 0} for record in records]


def assert_same_run(workdir: Path, whole: Path, job: Job) -> None:
    found, expected = restore(workdir, job), restore(whole, job)
    assert differing(found.state, expected.state) == []
    assert found.progress["step"] == job.last_step
    assert found.progress["best"] == expected.progress["best"]
    assert figures(workdir) == figures(whole)
    for name in ("evaluation_val.json", "predictions_val.csv"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(tmp_path: Path, config: str, start: Start, whole: Path, job: Job) -> None:
    workdir = tmp_path / "run"
    for _ in range(4):
        known = finished_steps(workdir)

        def saving(known: list[int] = known) -> bool:
            return finished_steps(workdir) > known and bool(unfinished(workdir))

        kill_when(start(workdir), saving)
        if unfinished(workdir):
            break
    assert unfinished(workdir), "no kill fell into a save"
    assert finished_steps(workdir)

    draw = random.Random(0)
    for earliest in (0, FIRST_PHASE_EPOCHS, FIRST_PHASE_EPOCHS):
        target = STEPS_PER_EPOCH * (max(earliest, last_epoch(workdir)) + draw.randint(1, 2))

        def reached(target: int = target) -> bool:
            return finished_steps(workdir)[-1] >= target

        kill_when(start(workdir), reached, draw.uniform(0, 0.1))
    latest = finished_steps(workdir)[-1]
    assert latest > BOUNDARY
    assert f"resuming from step {latest} of {LAST_STEP}" in finish(config, workdir)
    assert_same_run(workdir, whole, job)


def test_sigterm_and_sigint_in_an_epoch_cost_no_bit(
    tmp_path: Path, config: str, stopped: Path, whole: Path, job: Job
) -> None:
    assert finished_steps(stopped)[-1] % STEPS_PER_EPOCH != 0
    workdir = shutil.copytree(stopped, tmp_path / "run")
    assert f"resuming from step {STOPS[-1][0]} of {LAST_STEP}" in finish(config, workdir)
    assert_same_run(workdir, whole, job)


def test_a_second_sigint_is_left_to_the_system_which_ends_the_process() -> None:
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), terminated(Processes()) as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == former


@pytest.mark.slow
def test_a_second_sigint_ends_a_run_at_once(tmp_path: Path, start: Start) -> None:
    process = start(tmp_path)
    while not read_json_lines(tmp_path / "metrics.jsonl")[0]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)  # a step takes twice as long
    assert process.wait(timeout=20) == -signal.SIGINT


@pytest.mark.slow
def test_damage_is_told_and_costs_no_bit(tmp_path: Path, config: str, stopped: Path, whole: Path, job: Job) -> None:
    workdir = shutil.copytree(stopped, tmp_path / "run")
    *_, before, newest = finished_steps(workdir)
    folder = workdir / "checkpoints" / str(newest)
    biggest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 1
    biggest.write_bytes(content)
    output = finish(config, workdir)
    reason = f"file {biggest.relative_to(folder).as_posix()} differs from its manifest"
    assert f"checkpoint {newest} is damaged ({reason}): using {before}" in output
    assert f"resuming from step {before} of {LAST_STEP}" in output
    assert_same_run(workdir, whole, job)


@pytest.mark.slow
def test_finished_run_started_again_changes_no_checkpoint(tmp_path: Path, config: str, whole: Path, job: Job) -> None:
    workdir = shutil.copytree(whole, tmp_path / "run")
    before = contents(workdir / "checkpoints")
    output = finish(config, workdir)
    assert f"resuming from step {LAST_STEP} of {LAST_STEP}" in output
    assert "compiling the step" not in output
    assert contents(workdir / "checkpoints") == before
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_run(workdir, whole, job)
