"""The tiny network that the commands are tried on: trained once."""

from pathlib import Path

import pytest

from launch import train
from tests.commands import call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    """The workdir of a finished run of it, which no test may change."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert call(train.main, config, f"--workdir={workdir}") == 0
    return workdir
