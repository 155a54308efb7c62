import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.models.preprocessing import Preprocessing
from covidjax.train.step import run_prefix
from tests.support import EVERYTHING_ON, small_config
from tests.train.cached import (
    Case,
    assert_same_training,
    from_features,
    make_case,
    passes,
    through_the_network,
    train,
    trained_part,
)

TOLERANCES = {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2}
TINY: dict[str, Any] = {"model__width": 4, "model__num_blocks": 3, "batch_size": 4}


# ---- The same parameters ----


SMALL = {"model__width": 2, "model__num_blocks": 2}
# A smaller batch would leave two numbers for the variance of layer4's single position. At larger rates float32
# diverges: a rounding of 1e-6 moves a unit over the kink of its ReLU, and each step does that to more of them.
RESNET = {"batch_size": 16, "optimizer__learning_rate": 1e-4}
WIDE = ("float64", "float32")
RESNETS = [("resnet18", 32, "until:layer3", precision, 50, RESNET) for precision in WIDE]
RESNETS += [("resnet18", 32, "backbone", precision, 50, RESNET) for precision in WIDE]
# In float32 a rounding moves one unit over its ReLU's kink in the tenth step, and that alone changes a moment by a
# twentieth.
UNETS = [
    ("unet", 16, "until:up3", "float64", 20, {}),  # with a cached skip
    ("unet", 32, "until:middle", "float64", 20, {"batch_size": 8}),
    ("unet_resnet34", 64, "until:layer4", "float64", 20, {"batch_size": 8}),
]
CNNS = [("cnn", 16, "backbone", "float32", 50, SMALL), ("cnn", 8, "until:block1", "float16", 5, SMALL)]


@pytest.mark.parametrize(
    ("name", "size", "freeze", "precision", "steps", "changes"),
    [
        ("cnn", 16, "until:block1", "float64", 50, SMALL),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (*CNNS, *RESNETS, *UNETS)),
    ],
)
def test_network_has_the_same_parameters_from_features_as_from_images(
    tmp_path: Path, name: str, size: int, freeze: str, precision: str, steps: int, changes: dict[str, Any]
) -> None:
    with jax.enable_x64(precision == "float64"):
        changes = {**TINY, **EVERYTHING_ON, "model__dropout": 0.2, "freeze": freeze, "precision": precision, **changes}
        case = make_case(small_config(name, **changes), size, of_pixels=name.startswith("unet"))
        assert_same_training(
            case, from_features(case, tmp_path, steps), through_the_network(case, steps), TOLERANCES[precision]
        )


def test_half_precision_prefix_is_kept_bit_for_bit(tmp_path: Path) -> None:
    case, first, second = tiny_case(prefix_precision="bfloat16"), passes(tmp_path), passes(tmp_path)
    made, kept = (each.features(case.recipe, case.variables, case.images) for each in (first, second))
    assert (first.computed, second.reused) == (1, 1)
    assert made.dtype == kept.dtype == jnp.bfloat16
    np.testing.assert_array_equal(made.view(np.uint16), kept.view(np.uint16))
    full = passes(tmp_path).features(tiny_case().recipe, case.variables, case.images)
    assert full.dtype == np.float32
    error = np.abs(made.astype(np.float32) - full).max() / np.abs(full).max()
    assert 1e-5 < error < 2e-2


def test_network_behind_a_half_precision_prefix_computes_in_its_own_precision(tmp_path: Path) -> None:
    case = tiny_case(prefix_precision="bfloat16")
    features = passes(tmp_path).features(case.recipe, case.variables, case.images)
    recipe = dataclasses.replace(case.recipe, cached=True)
    half, full = (
        train(recipe, case.variables, {"features": inputs}, case, steps=10)
        for inputs in (features, features.astype(np.float32))
    )
    assert {value.dtype for path, value in trained_part(case, half).items() if "params" in path} == {np.dtype("f4")}
    assert_same_training(case, half, full, tolerance=1e-6)


# ---- What is computed and what is reused ----


def tiny_case(**changes: Any) -> Case:
    options = {"model__width": 2, "model__num_blocks": 2, "batch_size": 4, "freeze": "until:block1"}
    return make_case(small_config("cnn", **options | changes), size=8)


def expected_features(case: Case) -> np.ndarray:
    """Of the network as it is, in one batch."""
    recipe, images = case.recipe, jnp.asarray(case.images, case.recipe.model.numerics.param_dtype)
    return np.asarray(jax.jit(lambda variables, images: run_prefix(recipe, variables, images))(case.variables, images))


def with_changes(case: Case, **changes: Any) -> Case:
    return dataclasses.replace(case, recipe=dataclasses.replace(case.recipe, **changes))


def with_leaf(case: Case, kind: str, stage: str, layer: str, name: str) -> Case:
    """With one number of one array another one."""
    variables = jax.tree.map(np.array, case.variables)
    leaf = variables[kind][stage][layer][name]
    leaf.flat[-1] = np.nextafter(leaf.flat[-1], np.inf)
    return dataclasses.replace(case, variables=variables)


def with_pixel(case: Case) -> Case:
    images = case.images.copy()
    images[-1, -1, -1, 0] ^= 1
    return dataclasses.replace(case, images=images)


REUSED: dict[str, Callable[[Case], Case]] = {
    "the same": lambda case: case,
    "another head": lambda case: with_leaf(case, "params", "head", "dense", "kernel"),
    "another stage behind": lambda case: with_leaf(case, "batch_stats", "block2", "norm", "mean"),
    "another learning rate": lambda case: with_changes(case, learning_rate=lambda step: 7.0),
    "another loss": lambda case: with_changes(case, loss=lambda logits, labels: 0.0),
    "accumulation": lambda case: with_changes(case, accumulation_steps=2),
    "another batch size": lambda case: dataclasses.replace(case, batch_size=2),
    "other labels": lambda case: dataclasses.replace(case, labels=case.labels[::-1]),
    "another optimizer": lambda case: tiny_case(optimizer__name="sgd", optimizer__weight_decay=0.1, ema_decay=0.9),
    "dropout in the head": lambda case: tiny_case(model__dropout=0.5),
}
COMPUTED: dict[str, Callable[[Case], Case]] = {
    "a pixel": with_pixel,
    "the order of the images": lambda case: dataclasses.replace(case, images=case.images[::-1]),
    "fewer images": lambda case: dataclasses.replace(case, images=case.images[:-1]),
    "a weight": lambda case: with_leaf(case, "params", "block1", "conv", "kernel"),
    "a running statistic": lambda case: with_leaf(case, "batch_stats", "block1", "norm", "var"),
    "the preprocessing": lambda case: with_changes(case, preprocessing=Preprocessing(mean=(0.4,))),
    "the scale of the pixels": lambda case: with_changes(case, preprocessing=Preprocessing(scale=1 / 256)),
    "a longer prefix": lambda case: tiny_case(freeze="backbone"),
    "the precision": lambda case: tiny_case(prefix_precision="bfloat16"),
}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A case whose features are kept in a folder, which no test may change."""
    case, folder = tiny_case(), tmp_path_factory.mktemp("features")
    passes(folder).features(case.recipe, case.variables, case.images)
    return case, folder


@pytest.mark.parametrize("name", [*REUSED, *COMPUTED])
def test_features_are_reused_unless_the_prefix_changes(computed: tuple[Case, Path], tmp_path: Path, name: str) -> None:
    case, folder = computed
    shutil.copytree(folder, tmp_path / "features")
    other, own = (REUSED | COMPUTED)[name](case), passes(tmp_path / "features")
    found = own.features(other.recipe, other.variables, other.images)
    (key,) = folder.iterdir()
    notes = [f"features: reused {tmp_path / 'features' / key.name}"] if name in REUSED else []
    assert (own.computed, own.reused, own.notes) == (int(name in COMPUTED), int(name in REUSED), notes)
    tolerance = 1e-2 if found.dtype == jnp.bfloat16 else 1e-5
    expected = np.asarray(expected_features(other), np.float32)
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=tolerance, atol=tolerance)
