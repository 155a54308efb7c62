"""Parts of a plugin work in every command like those of the package; what is wrong with one is told in one line."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from covidjax import files, models, tasks
from covidjax.config import default_config, to_json
from covidjax.config.plugins import REGISTRIES, import_plugins
from covidjax.models import register_model
from covidjax.runs.library import Network
from covidjax.runs.library import load as load_network
from covidjax.weights.workdir import load_trained
from launch import evaluate, predict, train
from tests.commands import call, refusal, user_error, write_image
from tests.config.plugin import PARTS, forget_plugins, overrides

pytestmark = pytest.mark.usefixtures("folder")
CHANGED = "the plugin own_parts.py has another content than when the run was trained with it (SHA-256 "


def edit(folder: Path) -> None:
    with (folder / "own_parts.py").open("a") as file:
        file.write("# changed\n")


def test_one_file_brings_parts_of_every_kind_to_every_command_and_frozen_stays_frozen(folder: Path) -> None:
    write_image(folder / "images" / "new.png", seed=1)
    found = []
    for epochs in (1, 2):  # the second goes on where the first ended
        assert (
            call(train.main, "--config=plain.py", "--workdir=run", *overrides(epochs=epochs, writers=("lines",))) == 0
        )
        rows = Path("run/patches.txt").read_text()
        assert Path("run/metrics.jsonl").read_text().endswith(rows)
        assert len(rows.splitlines()) == 4  # two steps, and the epoch on two splits
        edit(folder)
        forget_plugins()
        found.append(traverse_util.flatten_dict(load_trained(Path("run"), "latest").variables["params"], sep="/"))
        forget_plugins()
    same = {path.split("/")[0] for path, leaf in found[0].items() if np.array_equal(leaf, found[1][path])}
    moved = {path.split("/")[0] for path, leaf in found[0].items() if not np.array_equal(leaf, found[1][path])}
    assert "first" in same - moved
    assert moved == {"second", "head"}
    config = files.read_json(Path("run/config.json"))
    assert config["plugins"] == ["own_parts.py"]
    assert config["augment"]["cutout"] == 3
    assert CHANGED in "".join(files.read_json(Path("run/run.json"))["notes"])
    assert call(evaluate.main, "--workdir=run", "--split=test") == 0
    evaluation = files.read_json(Path("run/evaluation_test.json"))
    assert evaluation["num_examples"] == 6
    assert CHANGED in "".join(evaluation["notes"])
    forget_plugins()
    assert call(predict.main, "--workdir=run", "--images=images", "--output=predictions.csv") == 0
    assert "new.png" in Path("predictions.csv").read_text()
    forget_plugins()
    network = load_network("run")
    assert isinstance(network, Network)
    assert network.stages == ("first", "second", "head")


def test_a_registered_task_has_its_loss_its_evaluation_and_its_report(folder: Path) -> None:
    changes = overrides(loss__name="margin", loss__options=(), freeze="every:2", augment__cutout=0)
    assert call(train.main, "--config=plain.py", "--workdir=run", *changes) == 0
    forget_plugins()
    assert call(evaluate.main, "--workdir=run", "--split=test") == 0
    assert tasks.of("patches", "margin").name == "margins"
    assert "Confusion" in Path("run/report.html").read_text()


@pytest.mark.parametrize("plugin", ["own_parts", "lost.py"])
def test_a_plugin_that_is_not_there_is_named_with_the_place_where_it_was_looked_for(
    plugin: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "own_parts.py").unlink()
    message = refusal(capfd, train.main, "--config=plain.py", "--workdir=run", *overrides(plugin))
    assert message.startswith(f"config.plugins has {plugin!r}, and there is no ")
    assert f"{folder}" in message
    assert "start the command in the folder" in message
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(to_json(default_config()) | {"plugins": [plugin]}))
    assert refusal(capfd, evaluate.main, "--workdir=run", "--split=test") == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\nimport not_there_at_all", "fails in line 3: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("x = (", "fails in line 1: SyntaxError: '(' was never closed"),
        ("from covidjax.models import register_model\nregister_model('half')(dict)\n1 / 0", "fails in line 3: ZeroDiv"),
    ],
)
def test_a_plugin_that_fails_is_told_with_its_line_and_leaves_nothing_behind(
    folder: Path, text: str, expected: str
) -> None:
    (folder / "broken.py").write_text(text)
    assert f"config.plugins has 'broken.py', which {expected}" in user_error(import_plugins, ["broken.py"])
    assert [registry.registered for registry in REGISTRIES] == [()] * len(REGISTRIES)
    assert not [name for name in sys.modules if name.startswith("covidjax_plugin_broken")]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("        x = nn.LayerNorm", "Block.__call__"),
        ("    return jnp.sum(abs", "squared"),
        ("    inside = (", "cutout"),
        ("    return stages[::", "every"),
        ("    return optax.scale_by_lion", "lion"),
    ],
)
def test_what_fails_in_a_part_is_told_with_file_line_and_plugin(
    line: str, place: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    indent = " " * (len(line) - len(line.lstrip()))
    broken = PARTS.replace(line, f"{indent}1 / 0\n{line}")
    assert broken != PARTS
    (folder / "own_parts.py").write_text(broken)
    number = broken[: broken.index("1 / 0")].count("\n") + 1
    message = refusal(capfd, train.main, "--config=plain.py", "--workdir=run", *overrides(freeze="every:2"))
    assert message == (
        f"config.plugins has 'own_parts.py', which fails in line {number} of {folder}/own_parts.py, in {place}: "
        "ZeroDivisionError: division by zero (with JAX_TRACEBACK_FILTERING=off comes the traceback)"
    )


def test_a_part_that_takes_other_arguments_is_named_with_its_line(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = re.sub(r"def every\(.*?\)", "def every(stages)", PARTS)
    assert broken != PARTS
    (folder / "own_parts.py").write_text(broken)
    message = refusal(capfd, train.main, "--config=plain.py", "--workdir=run", *overrides(freeze="every:2"))
    assert re.match(r"config.plugins has 'own_parts.py', whose every in line \d+ takes other arguments than", message)
    assert "every() takes 1 positional argument but 2 were given" in message


def test_the_traceback_of_a_plugin_is_there_for_who_asks(folder: Path) -> None:
    (folder / "own_parts.py").write_text(PARTS.replace("return optax.scale_by_lion(b1, b2)", "return 1 / 0"))
    jax.config.update("jax_traceback_filtering", "off")
    try:
        with pytest.raises(ZeroDivisionError):
            call(train.main, "--config=plain.py", "--workdir=run", *overrides())
    finally:
        jax.config.update("jax_traceback_filtering", "auto")


def test_a_plugin_is_imported_once_and_one_definition_may_come_twice_but_two_may_not_share_a_name() -> None:
    import_plugins(["own_parts.py"])
    kept = models.MODELS["patches"]
    import_plugins(["own_parts.py"])
    assert models.MODELS["patches"] is kept
    import_plugins(["own_parts"])  # the same file under another name
    assert models.MODELS["patches"] is not kept
    message = user_error(register_model("patches"), lambda: None)
    assert "two definitions are registered as the model 'patches', Patches of " in message
    assert "test_plugins.py" in message
    assert "give one of them another name" in message


def test_a_network_of_other_logits_is_refused_before_it_trains(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "own_parts.py").write_text(PARTS.replace("nn.Dense(self.num_classes,", "nn.Dense(7,"))
    message = refusal(capfd, train.main, "--config=plain.py", "--workdir=run", *overrides())
    assert message == "the network patches gives [12, 7] for 12 images: allowed is [12, 3], the logits of num_classes"
