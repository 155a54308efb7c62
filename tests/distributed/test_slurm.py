"""A run on a real Slurm of two nodes: it finds itself, is requeued in the middle, and ends with the same bits.

COVIDJAX_SLURM names a program that starts such a cluster (`PROGRAM start FOLDER`, whose output is a shell's `export` of
SLURM_CONF) and stops it (`PROGRAM stop FOLDER`).
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from covidjax import config as configs
from covidjax import files
from covidjax.train.setup import prepare
from tests.commands import tiny_config
from tests.distributed.runs import losses
from tests.support import ROOT
from tests.train.test_resume import assert_same_run

PROGRAM = os.environ.get("COVIDJAX_SLURM", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="COVIDJAX_SLURM is not set: there is no cluster to start"),
]
SECONDS = 600  # a job that is requeued waits for two minutes


class Cluster:
    """A cluster, as whoever submits jobs from the root of the checkout sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        started = subprocess.run([PROGRAM, "start", folder], check=True, capture_output=True, text=True).stdout
        found = re.search(r"export SLURM_CONF=(\S+)", started)
        assert found
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"SLURM_CONF": found[1], "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        self.environment = {**os.environ, **own}

    def stop(self) -> None:
        subprocess.run([PROGRAM, "stop", self.folder], check=True)

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, cwd=ROOT, env=self.environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def submit(self, nodes: int, *command: object) -> str:
        """The number of the job that runs a command."""
        options = ["--parsable", f"--nodes={nodes}", f"--output={self.folder}/%j.out"]
        return self.ask("sbatch", *options, "launch/slurm/job.sh", *map(str, command))

    def output(self, job: str) -> str:
        """What the job has printed."""
        path = self.folder / f"{job}.out"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def state(self, job: str) -> str:
        """Such as RUNNING, or COMPLETED."""
        found = re.search(r"JobState=(\w+)", self.ask("scontrol", "show", "job", job))
        assert found
        return found[1]

    def wait(self, job: str, *states: str) -> None:
        """Until the job is in one of these states; it must not end in another."""
        until = time.monotonic() + SECONDS
        while (state := self.state(job)) not in states:
            assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), self.output(job)
            assert time.monotonic() < until, f"{state}: {self.output(job)}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    yield found
    found.stop()


def test_a_run_that_is_requeued_in_the_middle_ends_with_the_same_bits(tmp_path: Path, cluster: Cluster) -> None:
    flags = ["launch/train.py", tiny_config(tmp_path, epochs=40)]
    job = cluster.submit(2, *flags, f"--workdir={tmp_path / 'requeued'}")
    while not (tmp_path / "requeued" / "metrics.jsonl").exists() or max(losses(tmp_path / "requeued"), default=0) < 12:
        assert cluster.state(job) in ("PENDING", "CONFIGURING", "RUNNING"), cluster.output(job)
        time.sleep(0.1)
    cluster.ask("scontrol", "requeue", job)
    cluster.wait(job, "PENDING")
    assert cluster.output(job).count("which is saved: the same command goes on from there") == 2  # each process says so

    whole = cluster.submit(2, *flags, f"--workdir={tmp_path / 'whole'}")
    cluster.wait(whole, "COMPLETED")
    cluster.wait(job, "COMPLETED")
    assert re.search(r"^0: resuming from step \d+ of 240$", cluster.output(job), re.MULTILINE)
    settings = configs.from_json(files.read_json(tmp_path / "whole" / "config.json"))
    assert_same_run(tmp_path / "requeued", tmp_path / "whole", prepare(settings))

    cluster.wait(
        cluster.submit(1, "launch/evaluate.py", f"--workdir={tmp_path / 'requeued'}", "--split=test"), "COMPLETED"
    )
    assert files.read_json(tmp_path / "requeued" / "evaluation_test.json")["num_examples"] > 0


def test_a_run_whose_time_is_over_is_queued_again_and_one_that_is_cancelled_is_not(
    tmp_path: Path, cluster: Cluster
) -> None:
    flags = [tiny_config(tmp_path, epochs=100000), f"--workdir={tmp_path / 'run'}"]
    options = ["--parsable", "--nodes=2", "--time=3", "--signal=TERM@60", f"--output={cluster.folder}/%j.out"]
    job = cluster.ask("sbatch", *options, "launch/slurm/job.sh", "launch/train.py", *flags)
    cluster.wait(job, "RUNNING")
    cluster.wait(job, "PENDING")
    assert "which is saved: the same command goes on from there" in cluster.output(job)
    cluster.wait(job, "RUNNING")
    until = time.monotonic() + SECONDS
    while "resuming from step" not in cluster.output(job):
        assert time.monotonic() < until, cluster.output(job)
        time.sleep(0.5)
    cluster.ask("scancel", job)
    cluster.wait(job, "CANCELLED")
    time.sleep(5)
    assert cluster.state(job) == "CANCELLED"
