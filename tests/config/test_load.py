"""A config is a Python module like any other: what works in a script works in it, and nothing of it stays behind."""

import getpass
import sys
from pathlib import Path

import pytest

from covidjax.config import load
from covidjax.errors import UserError

PLAIN = """
from covidjax.config import default_config

def get_config(argument=""):
    config = default_config()
    config.epochs = {epochs}
    return config
"""
WITH_DATACLASS = """
from __future__ import annotations

import dataclasses
from typing import ClassVar

from covidjax.config import default_config

@dataclasses.dataclass
class Choice:
    limit: ClassVar[int] = 9
    epochs: int = 7

def get_config():
    config = default_config()
    config.epochs = Choice().epochs
    return config
"""
WITH_NEIGHBOURS = """
from covidjax.config import default_config

from common import EPOCHS

def get_config():
    import parts.sizes
    config = default_config()
    config.epochs, config.batch_size = EPOCHS, parts.sizes.BATCH
    return config
"""


def test_a_config_may_have_a_dataclass_with_postponed_annotations(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(WITH_DATACLASS)
    assert load(str(tmp_path / "config.py"), []).epochs == 7


def test_configs_of_one_name_import_the_neighbours_of_their_own_folder(tmp_path: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    for number in (2, 3):
        folder = tmp_path / f"experiment {number}"
        (folder / "parts").mkdir(parents=True)
        (folder / "config.py").write_text(WITH_NEIGHBOURS)
        (folder / "common.py").write_text(f"EPOCHS = {number}")
        (folder / "parts" / "sizes.py").write_text(f"BATCH = {10 * number}")
    for number in (2, 3, 2):
        config = load(str(tmp_path / f"experiment {number}" / "config.py"), [])
        assert (config.epochs, config.batch_size) == (number, 10 * number)
    assert sys.path == path
    assert set(sys.modules) == before


def test_a_config_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    (tmp_path / "config.py").write_text("import common\nraise ValueError('no')")
    (tmp_path / "common.py").write_text("")
    with pytest.raises(UserError, match="could not be evaluated: ValueError: no"):
        load(str(tmp_path / "config.py"), [])
    assert (set(sys.modules), sys.path) == (before, path)


def test_a_config_is_found_below_a_folder_with_a_colon_and_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "config.py").write_text(PLAIN.format(epochs=4))
    assert load(f"{folder}/config.py", []).epochs == 4
    assert load(f"{folder}/config.py:resnet18", []).epochs == 4
    monkeypatch.setenv("HOME", str(folder))
    assert load("~/config.py:resnet18", []).epochs == 4
    with pytest.raises(UserError, match=r"^~nobody-here/c\.py: there is no home folder ~nobody-here: write \./~nobody"):
        load("~nobody-here/c.py", [])
    monkeypatch.delenv("HOME")  # by the name of the user
    with pytest.raises(UserError, match="there is no file"):
        load(f"~{getpass.getuser()}/no such config.py", [])
