"""Parts of a plugin work in every command like those of the package; what is wrong with one is told in one line."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from covidjax import files, losses, models, optim, tasks
from covidjax.config import default_config, from_json, load, to_json, validate
from covidjax.config.plugins import REGISTRIES, import_plugins
from covidjax.data.augment import augment, augmentation_of, register_augmentation
from covidjax.freeze import make_plan
from covidjax.freeze.strategies import register_strategy
from covidjax.losses import register_loss
from covidjax.models import register_model
from covidjax.optim import register_optimizer
from covidjax.runs.library import Network
from covidjax.runs.library import load as load_network
from covidjax.weights.workdir import load_trained
from launch import evaluate, predict, train
from tests.commands import call, refusal, user_error, write_image

PARTS = """
import contextlib
import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from covidjax.config.writers import register_writer
from covidjax.data.augment import register_augmentation
from covidjax.freeze.strategies import register_strategy
from covidjax.losses import register_loss
from covidjax.models import register_model
from covidjax.models.layers import Staged
from covidjax.optim import register_optimizer
from covidjax.tasks import CLASSIFICATION, register_task


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, *, train, use_batch_statistics):
        x = nn.LayerNorm(name="norm")(nn.Conv(self.features, (4, 4), strides=4, name="conv")(x))
        return x + nn.Dense(self.features, name="dense")(nn.gelu(x))


class Logits(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, *, train, use_batch_statistics):
        return nn.Dense(self.num_classes, name="dense")(x.mean((1, 2)))


@register_model("patches", features=(1, 64))
class Patches(Staged):
    num_classes: int
    features: tuple[int, ...] = (4, 8)

    @property
    def stages(self):
        return ("first", "second", "head")

    def setup(self):
        self.first, self.second = map(Block, self.features)
        self.head = Logits(self.num_classes)


@register_optimizer("lion", b1=(0, 1))
def lion(b1=0.9, b2=0.99):
    return optax.scale_by_lion(b1, b2)


@register_loss("squared", power=(1, 4))
def squared(logits, labels, *, power=2.0):
    return jnp.sum(abs(jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])) ** power, axis=-1)


@register_augmentation("cutout", default=0, low=0, high=8, text="Side of a black square.")
def cutout(key, image, side):
    row, column = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
    rows, columns = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])
    inside = (abs(rows - row) < side) & (abs(columns - column) < side)
    return jnp.where(inside[:, :, None], 0.0, image)


@register_strategy("every:<n>", "every n-th stage trains, from the last")
def every(argument, stages):
    return stages[:: -int(argument)]


def margin(logits, labels, *, class_weights=None):
    right = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return jnp.max(logits + 1 - jax.nn.one_hot(labels, logits.shape[-1]), axis=-1) - right[:, 0]


@register_task
def margins():
    return dataclasses.replace(CLASSIFICATION, name="margins", losses={"margin": margin})


@register_writer("lines")
@contextlib.contextmanager
def lines(workdir, config):
    with (workdir / f"{config['model']['name']}.txt").open("w") as file:
        yield lambda row: print(json.dumps(row), file=file)
"""
OWN = {
    "model.name": "patches",
    "optimizer.name": "lion",
    "loss.name": "squared",
    "loss.options": (("power", 3.0),),
    "augment.cutout": 3,
    "freeze": "until:first",
    "dataset.image_size": 16,
    "dataset.num_images": 24,
    "batch_size": 12,
    "epochs": 1,
}


def forget_plugins() -> None:
    """What was registered and imported, as in a new process."""
    for name in [name for name in sys.modules if name.startswith("covidjax_plugin_") or name == "own_parts"]:
        del sys.modules[name]
    for registry, state in zip(REGISTRIES, PACKAGE, strict=True):
        registry.reset(state)


PACKAGE = [registry.state() for registry in REGISTRIES]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with a plugin and a config that needs it only on the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_parts.py").write_text(PARTS)
    (tmp_path / "plain.py").write_text("from covidjax.config import default_config as get_config\n")
    yield tmp_path
    forget_plugins()


def overrides(plugin: str = "own_parts.py", **changes: Any) -> list[str]:
    values = {"plugins": (plugin,), **OWN, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [
        f"--config.{key}={value!r}" if isinstance(value, tuple) else f"--config.{key}={value}"
        for key, value in values.items()
    ]


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


@pytest.mark.parametrize(
    ("register", "name"),
    [
        (register_model, "cnn"),
        (register_optimizer, "adam"),
        (register_loss, "sigmoid_cross_entropy"),
        (register_augmentation, "flip"),
        (lambda name: register_strategy(name, "x"), "until:<block>"),
        (lambda name: register_strategy(name, "x"), "cached"),
        (lambda name: register_strategy(name, "x"), "a+b"),
    ],
)
def test_a_name_of_the_package_stays_the_packages(register: object, name: str) -> None:
    assert name in user_error(register(name), lambda: None)  # type: ignore[operator]
    assert [registry.registered for registry in REGISTRIES] == [()] * len(REGISTRIES)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model__name", "patchs", "config.model.name is 'patchs'.*did you mean 'patches'"),
        ("optimizer__name", "loin", "config.optimizer.name is 'loin'.*did you mean 'lion'"),
        ("loss__name", "squard", "config.loss.name is 'squard'.*did you mean 'squared'"),
        ("augment__cutouts", 1, "config.augment.cutouts does not exist: did you mean config.augment.cutout?"),
        ("augment__cutout", 9, "config.augment.cutout is 9: allowed is from 0 to 8"),
        ("augment__cutout", 1.5, "config.augment.cutout is 1.5: allowed is a whole number"),
        (
            "model__options",
            (("feature", (1, 2)),),
            "'feature', which Patches does not take: it has features.*'features'",
        ),
        ("model__options", (("features", (1, 65)),), "features (1, 65): allowed are numbers from 1 to 64"),
        ("model__dropout", 0.1, "model.dropout is 0.1, which patches does not take"),
        ("optimizer__options", (("b1", 1.1),), "b1 1.1: allowed are numbers from 0 to 1"),
        ("loss__class_weights", "balanced", "loss.class_weights is set, and squared does not take it"),
        ("loss__label_smoothing", 0.1, "loss.label_smoothing is set, and squared does not take it"),
        ("loss__name", "sigmoid_cross_entropy", "options (('power', 3.0),) are of registered parts: sigmoid_cross"),
        ("writers", ("lnes",), "config.writers is 'lnes': allowed are lines; did you mean 'lines'?"),
        ("plugins", ("own_parts.py", 3), "config.plugins is ('own_parts.py', 3): allowed are modules or .py files"),
    ],
)
def test_a_wrong_name_or_value_of_a_registered_part_is_refused(key: str, value: Any, expected: str) -> None:
    message = user_error(load, "plain.py", overrides(**{key: value}))
    for part in expected.split(".*"):
        assert part in message


def test_an_unknown_strategy_is_answered_with_a_near_one() -> None:
    import_plugins(["own_parts.py"])
    model = models.build(load("plain.py", overrides()).model, 3, "float32")
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    assert "did you mean 'every:<n>'?" in user_error(make_plan, "evry:2", variables, model.stages)
    plan = make_plan("every:2", variables, model.stages)
    trains = {path[0] for path, on in traverse_util.flatten_dict(plan.mask()).items() if on}
    assert trains == {"first", "head"}


def test_a_registered_optimizer_gives_its_directions_and_its_decay_is_the_configs() -> None:
    config = load("plain.py", overrides(optimizer__weight_decay=0.5, optimizer__options=(("b1", 0.5),)))
    params = {"kernel": jnp.full((2, 2), 2.0)}
    gradients = {"kernel": jnp.array([[1.0, -1.0], [3.0, 0.0]])}
    rule, plain = optim.optimizer(config.optimizer), optax.scale_by_lion(0.5, 0.99)
    found, _ = rule.update(gradients, rule.init(params), params)
    expected, _ = plain.update(gradients, plain.init(params), params)
    np.testing.assert_array_equal(found["kernel"], expected["kernel"] + 0.5 * 2.0)


def test_an_optimizer_that_would_climb_is_refused() -> None:
    assert "register what gives directions of unit rate" in user_error(register_optimizer("lion"), optax.lion)
    register_optimizer("backwards")(lambda: optax.lion(1.0))
    (config := default_config()).optimizer.name = "backwards"
    assert "gives the negative of a direction" in user_error(validate, config)


def test_a_part_of_a_device_changes_its_images_as_the_whole_batch_does() -> None:
    import_plugins(["own_parts.py"])
    change = augmentation_of({"cutout": 2, "brightness": 0.2})
    images = jnp.asarray(np.random.default_rng(0).uniform(1, 200, (6, 8, 8, 1)).astype(np.float32))
    whole, _ = augment(jax.random.key(1), images, change)
    parts, _ = jax.vmap(lambda part: augment(jax.random.key(1), part, change, axis="data"), axis_name="data")(
        images.reshape(2, 3, 8, 8, 1)
    )
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, rtol=1e-6)
    black = np.asarray((whole == 0).sum((1, 2, 3)))
    assert set(black) <= {4, 6, 9}  # a square of 3 pixels a side, cut by the border or not
    assert len({tuple(np.argwhere(image[..., 0] == 0)[0]) for image in np.asarray(whole)}) > 1
    assert hash(dataclasses.replace(change)) == hash(change)


def test_a_config_without_the_plugin_neither_has_nor_needs_its_keys() -> None:
    before = to_json(default_config())
    plain = from_json(before)
    import_plugins(["own_parts.py"])
    validate(plain)
    assert to_json(default_config()) == before
    assert default_config(("own_parts.py",)).augment.cutout == 0


def test_probabilities_of_a_registered_loss_are_its_own() -> None:
    register_loss("raw", probabilities=lambda logits: logits / logits.sum(-1, keepdims=True))(lambda x, y: x[:, 0])
    np.testing.assert_allclose(losses.probabilities(jnp.array([[1.0, 3.0]]), "raw"), [[0.25, 0.75]])


def test_what_a_plugin_gives_is_checked_where_it_is_asked_for() -> None:
    import_plugins(["own_parts.py"])
    config = load("plain.py", overrides())
    model = models.build(config.model, 3, "float32")
    variables = {"params": {stage: {"norm": {"scale": jnp.ones(2)}} for stage in model.stages}, "batch_stats": {}}
    register_strategy("typo", "one stage that is not there")(lambda argument, stages: ("heed",))
    message = user_error(make_plan, "typo", variables, model.stages)
    assert message == "freeze trains the stage 'heed', which there is not: allowed are first, second, head"
    table: Any = lambda num_classes: {}  # noqa: E731
    register_model("table")(table)
    config.model.name = "table"
    assert "the network 'table' is a dict: allowed is a covidjax.models.layers.Staged" in user_error(validate, config)
    register_optimizer("needy")(lambda size: optax.identity())
    config = load("plain.py", overrides())
    config.optimizer.name = "needy"
    assert "needs 'size': set config.optimizer.options = (('size', VALUE),)" in user_error(validate, config)
    assert "range of 'power', which it does not take" in user_error(register_loss("odd", power=(0, 1)), lambda x, y: x)
    mean = losses.loss_function(config.loss, None, {"squared": losses.OwnLoss(lambda x, y, power: jnp.mean(x), {})})
    message = user_error(mean, jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32))
    assert "gives [] for a batch of 4: allowed is one number for each example, [4]" in message
    register_augmentation("halved")(lambda key, image, amount: image[::2])
    message = user_error(augment, jax.random.key(0), jnp.zeros((2, 8, 8, 1)), augmentation_of({"halved": 1}))
    assert message == "the augmentation halved makes images of [4, 8, 1] of [8, 8, 1]: allowed is the same shape"


def test_a_network_of_other_logits_is_refused_before_it_trains(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "own_parts.py").write_text(PARTS.replace("nn.Dense(self.num_classes,", "nn.Dense(7,"))
    message = refusal(capfd, train.main, "--config=plain.py", "--workdir=run", *overrides())
    assert message == "the network patches gives [12, 7] for 12 images: allowed is [12, 3], the logits of num_classes"
