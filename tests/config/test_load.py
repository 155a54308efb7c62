"""A config is a Python module like any other: what works in a script works in it, and nothing of it stays behind."""

import getpass
import sys
from pathlib import Path

import pytest

from covidjax.config import default_config, load, to_json
from covidjax.config.schema import PRESETS
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
    with pytest.raises(UserError, match=r"config\.py:2: ValueError: no$"):
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


MISTAKES = [
    (
        "config.optimzer.name = 'sgd'",
        "config.optimzer does not exist: did you mean config.optimizer? config.optimizer has",
    ),
    ("config['optimzer'].name = 'sgd'", "config.optimzer does not exist: did you mean config.optimizer?"),
    ("config.lr = 1e-4", "config.lr does not exist: did you mean config.optimizer.learning_rate? config.optimizer has"),
    ("config.optimizer.lr = 1e-4", "config.optimizer.lr does not exist: did you mean config.optimizer.learning_rate?"),
    (
        "config.update({'optimizer': {'lr': 1}})",
        "config.optimizer.lr does not exist: did you mean config.optimizer.learn",
    ),
    ("config.learning_rate = 1", "config.learning_rate does not exist: did you mean config.optimizer.learning_rate?"),
    ("config.dataset.batchsize = 1", "config.dataset.batchsize does not exist: did you mean config.batch_size?"),
    ("config.xyzzy = 1", "config.xyzzy does not exist: config has accumulation_steps, audit, batch_norm,"),
    ("config.name = 'x'", "config.name does not exist: did you mean config.dataset.name or config.model.name or"),
    ("config.epochs = 2.5", "config.epochs is 2.5: allowed is a whole number, such as its default 10"),
    ("config.optimizer.momentum = 3.0", "config.optimizer.momentum is 3.0: allowed is from 0 to below 1"),
    (
        "config.phases = ({'epochs': 1})",
        "config.phases is {'epochs': 1}: allowed is a tuple; add a comma, which makes it",
    ),
    (
        "config.lr_scale = ('layer1', 0.1)",
        "(('layer1', 0.01),); add a comma, which makes it a tuple of one: (('layer1'",
    ),
    (
        "config.remat = ('layer4')",
        "config.remat is 'layer4': allowed are none, lean",
    ),
    ("config.optimizer.step_epochs = (3)", "config.optimizer.step_epochs is 3: allowed is a tuple; add a comma"),
    (
        "config.phases = ({'augment': {'rotate': 1.0}},)",
        "config.phases[0].augment.rotate does not exist: a phase may set",
    ),
    (
        "config.phases = ({'lr': 1e-4},)",
        "config.phases[0].lr does not exist: did you mean config.phases[0].optimizer.lear",
    ),
    ("config.augment = 'lihgt'", "config.augment is 'lihgt': allowed are none, light, strong; did you mean 'light'?"),
    ("config.augment = {'rotat': 3.0}", "config.augment.rotat does not exist: did you mean config.augment.rotate?"),
    ("config.epochs = = 3", "SyntaxError: invalid syntax: config.epochs = = 3"),
    ("import absent", "ModuleNotFoundError: No module named 'absent'"),
]


@pytest.mark.parametrize("neighbour", [False, True], ids=["config", "neighbour"])
@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_told_with_the_line_of_the_file_that_has_it(
    tmp_path: Path, line: str, message: str, neighbour: bool
) -> None:
    plain = (
        "\nfrom covidjax.config import default_config\ndef get_config():\n    return common.change(default_config())\n"
    )
    (tmp_path / "common.py").write_text(
        f"def change(config):\n    {line if neighbour else 'pass'}\n    return config\n"
    )
    changed = plain.replace("    return", f"    config = default_config()\n    {line}\n    return")
    changed = changed.replace("change(default_config())", "change(config)")
    (tmp_path / "config.py").write_text(f"import common\n{plain if neighbour else changed}")
    with pytest.raises(UserError) as refused:
        load(str(tmp_path / "config.py"), [])
    place = f"{tmp_path / 'common.py'}:2" if neighbour else f"{tmp_path / 'config.py'}:6"
    assert str(refused.value).startswith(f"--config: {place}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("", "", "has no function get_config"),
        ("def get_config(): return 3", "", r"returns int: it has to return the ConfigDict of"),
        ("def get_config(): return 3", ":a", r"takes \(\) and was given 'a': too many"),
        ("def get_config(name): return 3", "", r"takes \(name\) and was given none: missing a required"),
        ("def get_config(): return nothing", "", r"config\.py:1: NameError: name 'nothing' is not defined"),
    ],
)
def test_a_file_that_makes_no_config_is_told(tmp_path: Path, text: str, argument: str, message: str) -> None:
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load(f"{tmp_path / 'config.py'}{argument}", [])


def test_a_preset_is_recorded_as_its_keys_and_single_keys_come_on_top(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(
        PLAIN.format(epochs=4).replace("    return", "    config.augment = 'light'\n    return")
    )
    path = str(tmp_path / "config.py")
    none, light, strong = (load(path, [f"--config.augment={name}"]).augment for name in PRESETS["augment"])
    assert load(path, []).augment == light
    assert none == default_config().augment
    assert 0 < light.rotate < strong.rotate and not strong.flip
    both = load(path, ["--config.augment=strong", "--config.augment.rotate=45"])
    assert to_json(both)["augment"] == {**strong.to_dict(), "rotate": 45.0}
    with pytest.raises(
        UserError, match=r"^config\.augment is 'weak': allowed are none, light, strong; single keys are"
    ):
        load(path, ["--config.augment=weak"])
