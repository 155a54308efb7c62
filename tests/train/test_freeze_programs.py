"""The programs of a step hold forward of all and backward of what trains, for every network and strategy."""

from functools import cache
from typing import Any

import pytest

from covidjax.runs import costs
from tests.support import EVERYTHING_ON, small_config
from tests.train.networks import layers, products
from tests.train.programs import QUICKLY, compiled_products, lowered_products

# The gradient norm and the check for finite values are in every step.
CHANGES: dict[str, Any] = {**EVERYTHING_ON, "precision": "bfloat16", "features": "off"}
NUM_BLOCKS = 3  # of the cnn
# model: (image size, first stage, a middle stage)
MODELS = {
    "cnn": (32, "block1", "block2"),
    "vgg16": (32, "block1", "block3"),
    "resnet18": (32, "stem", "layer2"),
    "resnet50": (32, "stem", "layer2"),
    "unet": (32, "down1", "middle"),
    "unet_resnet34": (64, "stem", "layer3"),
}


def strategies(model: str) -> tuple[str, ...]:
    _, first, middle = MODELS[model]
    thin = ("bitfit",) if model == "vgg16" else ("norm", "bitfit")  # vgg16 has no normalisation
    return ("none", f"until:{first}", f"until:{middle}", "backbone", *thin, "last:2")


def cases(*models: str) -> list[tuple[str, str]]:
    return [(model, strategy) for model in models for strategy in strategies(model)]


@cache
def setting(model: str) -> costs.Setting:
    changes = {"dataset__image_size": MODELS[model][0], "batch_size": 4, "model__width": 2}
    return costs.make_setting(small_config(model, model__num_blocks=NUM_BLOCKS, **changes, **CHANGES), 3)


def check_products(model: str, strategy: str, *, compiled: bool = True) -> None:
    """Counts the layers' products in the program as it is written and, unless told otherwise, as it is optimised."""
    recipe = setting(model).recipe_of(strategy)
    expected = products(model, trained(recipe), NUM_BLOCKS)
    lowered = costs.lower_step(setting(model), recipe)
    assert lowered_products(lowered) == expected
    if compiled:
        assert compiled_products(lowered.compile(QUICKLY)) == expected


def trained(recipe: Any) -> set[str]:
    return {leaf.path for leaf in recipe.plan.leaves if leaf.trains}


@pytest.mark.parametrize(
    "model", ["cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "cnn")]
)
def test_layers_written_down_are_those_of_the_network(model: str) -> None:
    paths = trained(setting(model).recipe_of("none"))
    for kind, name in (("product", "/kernel"), ("norm", "/scale")):
        written = {layer.path for layer in layers(model, NUM_BLOCKS) if layer.kind == kind}
        assert written == {path.removesuffix(name) for path in paths if path.endswith(name)}


@pytest.mark.parametrize(("model", "strategy"), cases("cnn"))
def test_a_step_holds_the_products_that_its_layers_need(model: str, strategy: str) -> None:
    check_products(model, strategy, compiled=strategy == "until:block2")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "strategy"), cases(*MODELS))
def test_a_compiled_step_of_every_network_holds_the_products_that_its_layers_need(model: str, strategy: str) -> None:
    check_products(model, strategy)
