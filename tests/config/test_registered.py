"""Registered parts: their names and values in the config, and what they give."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from covidjax import losses, models, optim
from covidjax.config import default_config, from_json, load, to_json, validate
from covidjax.config.plugins import REGISTRIES, import_plugins
from covidjax.data.augment import augment, augmentation_of, register_augmentation
from covidjax.freeze import make_plan
from covidjax.freeze.strategies import register_strategy
from covidjax.losses import register_loss
from covidjax.models import register_model
from covidjax.optim import register_optimizer
from tests.commands import user_error
from tests.config.plugin import overrides

pytestmark = pytest.mark.usefixtures("folder")


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
        ("loss__name", "sigmoid_cross_entropy", "options (('power', 3.0),) are of parts that take some: sigmoid_cross"),
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
