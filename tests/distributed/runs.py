"""Runs of one, two and more processes, started as from a shell, and what is compared of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import ROOT, on_devices


def started(command: list[Any], devices: int | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command of the repository, run to its end. devices: of its only process; None: it starts several itself."""
    own = {} if devices is None else on_devices(devices)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **own, **settings, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def train_together(processes: int, devices: int, *flags: object) -> subprocess.CompletedProcess[str]:
    """`launch/train.py` in several processes with so many devices each."""
    own = [f"--processes={processes}", f"--devices_per_process={devices}"]
    return started(["launch/local.py", *own, "--", "launch/train.py", *flags])


def train_alone(devices: int, *flags: object) -> subprocess.CompletedProcess[str]:
    """`launch/train.py` in one process with so many devices."""
    return started(["launch/train.py", *flags], devices)


def losses(workdir: Path) -> dict[int, float]:
    """The validation losses of a run by their steps."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "val"}


def assert_same_losses(workdir: Path, other: Path, steps: int) -> None:
    """The losses after each of so many steps are the same, but for roundings of double precision."""
    own, others = losses(workdir), losses(other)
    assert list(own) == list(others) == list(range(1, steps + 1))
    np.testing.assert_allclose(list(own.values()), list(others.values()), rtol=1e-8)
