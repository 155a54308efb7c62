"""The folder in which a plugin lies."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.config.plugin import PARTS, forget_plugins


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with a plugin and a config that needs it only on the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_parts.py").write_text(PARTS)
    (tmp_path / "plain.py").write_text("from covidjax.config import default_config as get_config\n")
    yield tmp_path
    forget_plugins()
