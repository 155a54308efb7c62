"""A gradual run that is killed in its second and in its third phase ends with the same bits as one left alone."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from covidjax import config as configs
from covidjax import files
from covidjax.checkpoint.checkpoint import Restored
from covidjax.train.setup import prepare
from covidjax.weights.workdir import open_checkpoints
from launch import train
from tests.commands import call
from tests.train.test_resume import differing, figures

# Without augmentation, so that the first two phases train from cached features.
CONFIG = """
from covidjax.config import default_config

def get_config():
    config = default_config()
    config.dataset.image_size = 16
    config.dataset.num_images = 25
    config.model.width = 2
    config.model.num_blocks = 2
    config.model.dropout = 0.2
    config.batch_size = 6
    config.epochs = 7
    config.ema_decay = 0.9
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "one_cycle"
    config.steps_per_call = 2
    config.freeze = "gradual:2"
    return config
"""
LAST_STEP = 28
TIMEOUT = 180  # seconds, of a run that takes a few
PHASES = ((0, 8, "last:1"), (8, 16, "last:2"), (16, 28, "none"))
# Goes on as launch/train.py, but saves every epoch, also where a save is still going on, and kills itself while a given
# step is about to be taken and a given file is there.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from covidjax import command
from covidjax.checkpoint import saver
from covidjax.train import inputs
from launch import train

step, saved = int(sys.argv.pop(1)), Path(sys.argv.pop(1))
calls, offer = inputs.PhaseInputs.calls, saver.Saver.offer

def changed(self, mesh, engine, seed, batch_size, steps, *calling):
    next_step = steps[0]
    for count, arguments in calls(self, mesh, engine, seed, batch_size, steps, *calling):
        while next_step == step:
            if saved.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
        yield count, arguments
        next_step += count

inputs.PhaseInputs.calls = changed
saver.Saver.offer = lambda self, offered, must=False: offer(self, offered, must=True)
command.run(train.main)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    return f"--config={path}"


def restore(workdir: Path) -> Restored:
    job = prepare(configs.from_json(files.read_json(workdir / "config.json")))
    assert tuple((phase.first_step, phase.last_step, phase.freeze) for phase in job.phases) == PHASES
    with open_checkpoints(workdir, job.config) as checkpoints:
        return checkpoints.restore("latest", job.abstract_state(checkpoints.steps()[-1]))


def kill_before(workdir: Path, step: int, saved: int, *arguments: str, environment: dict[str, str]) -> dict[str, Any]:
    """Runs the command up to a step; returns where the checkpoint `saved`, its last one, says that the run stands."""
    manifest = workdir / "checkpoints" / "manifests" / f"{saved}.json"
    command = [sys.executable, "-c", KILLED, str(step), str(manifest), *arguments, f"--workdir={workdir}"]
    killed = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert (killed.returncode, killed.stderr) == (-signal.SIGKILL, "")
    restored = restore(workdir)
    assert restored.step == saved
    return restored.progress


@pytest.mark.slow
def test_run_killed_in_its_second_and_third_phase_ends_with_the_same_bits(
    tmp_path: Path, config: str, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    caches = [f"--config.dataset.cache_dir={tmp_path / name}" for name in ("cache", "another cache")]
    assert call(train.main, config, caches[0], f"--workdir={whole}") == 0

    progress = kill_before(workdir, 14, 12, config, caches[0], environment=environment)
    assert (progress["phase"], progress["phase_step"]) == (1, 4)
    # The features of the second phase are found the first time, and computed anew the second time.
    progress = kill_before(workdir, 22, 20, config, caches[1], environment=environment)
    assert (progress["phase"], progress["phase_step"]) == (2, 4)
    capsys.readouterr()
    assert call(train.main, config, caches[1], f"--workdir={workdir}") == 0
    assert f"resuming from step 20 of {LAST_STEP}" in capsys.readouterr().out

    found, expected = restore(workdir), restore(whole)
    assert differing(found.state, expected.state) == []
    assert (found.step, found.progress["best"]) == (LAST_STEP, expected.progress["best"])
    assert figures(workdir) == figures(whole)
    for name in ("evaluation_val.json", "predictions_val.csv"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()
    run = files.read_json(whole / "run.json")
    assert [phase["features"]["placement"] for phase in run["freeze"]] == ["device", "device", ""]
