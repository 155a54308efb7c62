"""What every network keeps, whatever it is: one compiled program of each tells most of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import models
from covidjax.models import unet
from covidjax.models.layers import Staged
from tests.models.test_models import draw_images
from tests.support import make_model, make_variables, shapes_of, small_config

pytestmark = pytest.mark.usefixtures("few_blocks", "few_levels")
SIZE = (33, 35)
PATCHES = {"vit_b16": (32, 48), "vit_b14": (28, 42)}  # which divide their images
CASES: dict[str, dict[str, Any]] = {
    "cnn": {"num_blocks": 2, "dropout": 0.5},
    "vgg16": {"head": "paper", "blocks": 3},
    "resnet18": {"dropout": 0.5},
    "resnet50": {"arrangement": "keras"},
    "resnet50v2": {},
    "densenet121": {"dropout": 0.5},
    "convnext_tiny": {"dropout": 0.5, "stochastic_depth": 0.5},
    "vit_b16": {"dropout": 0.5, "stochastic_depth": 0.5},
    "vit_b14": {},
    "unet": {"dropout": 0.5},
    "unet, bilinear": {"upsampling": "bilinear"},
    "unet_resnet18": {"attention": True, "dropout": 0.5},
    "unet_resnet18, bilinear": {"upsampling": "bilinear"},
    "unet_resnet18, fastai": {"decoder": "fastai", "attention": True, "dropout": 0.5},
    "deeplabv3_resnet50": {"dropout": 0.5},
}
SLOW = ("resnet50", "unet, bilinear", "unet_resnet18, bilinear", "unet_resnet18, fastai", "deeplabv3_resnet50")


@pytest.fixture
def few_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """U-Nets of two levels, as each further one repeats what the second has, and of few features."""
    monkeypatch.setattr(unet, "LEVELS", 2)
    monkeypatch.setattr(unet, "DECODER_FEATURES", (16, 12, 8, 8, 6))


def build(case: str, **changes: Any) -> Staged:
    options = {f"model__{key}": value for key, value in CASES[case].items()}
    return make_model(small_config(case.partition(",")[0], **{"model__width": 4, **options, **changes}))


def chain(model: Staged, variables: Any, flowing: Any, added: Any = None, **options: Any) -> tuple[dict[str, Any], Any]:
    """What leaves each stage when one stage runs after the other, and the statistics; added: to what leaves a stage."""
    found: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    for stage, following in zip(model.stages, (*model.stages[1:], None), strict=True):
        flowing, updated = model.apply(
            variables, flowing, start=stage, stop=following, mutable=["batch_stats"], **options
        )
        if added is not None:
            flowing = jax.tree.map(jnp.add, flowing, added[stage])
        found[stage] = flowing
        statistics |= {name: value for name, value in updated.get("batch_stats", {}).items() if name == stage}
    return found, statistics


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_network_is_the_sequence_of_its_stages_and_each_part_has_its_gradient(case: str) -> None:
    model, size = build(case), PATCHES.get(case, SIZE)
    variables, images = make_variables(model, size), draw_images(size)
    options: dict[str, Any] = {"train": True, "batch_norm_stages": model.stages, "rngs": {"dropout": jax.random.key(7)}}
    shapes, _ = jax.eval_shape(lambda images: chain(model, variables, images, **options), images)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    @jax.jit
    def run(variables: Any, images: Any) -> Any:
        whole, updated = model.apply(variables, images, mutable=["batch_stats"], **options)

        def loss(params: Any, added: Any) -> Any:
            found, statistics = chain(model, {**variables, "params": params}, images, added, **options)
            return jnp.sum(jnp.sin(found["head"])), (found["head"], statistics)

        gradients, (logits, statistics) = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], zeros)
        return whole, updated.get("batch_stats", {}), logits, statistics, gradients

    whole, updated, logits, statistics, (of_params, of_flows) = run(variables, images)
    assert set(variables["params"]) == set(model.stages) >= set(updated)
    assert whole.shape == ((2, *SIZE, 3) if case.partition(",")[0] in models.SEGMENTATION else (2, 3))
    assert np.std(whole) > 1e-3
    np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-4)
    assert str(jax.tree.structure(updated)) == str(jax.tree.structure(statistics))
    for one, other, before in zip(
        *map(jax.tree.leaves, (updated, statistics, variables.get("batch_stats", {}))), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        assert not np.array_equal(one, before)
    for gradients in (of_params, of_flows):
        leaves = jax.tree.leaves_with_path(gradients)
        none = [jax.tree_util.keystr(path) for path, leaf in leaves if leaf.size and not np.any(leaf)]
        assert none == []


@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_for_what_flows_and_not_for_parameters_and_statistics(case: str) -> None:
    model = build(case, precision="bfloat16")
    size = PATCHES.get(case, SIZE)
    images, variables = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32), shapes_of(model, size, 3)
    found, statistics = jax.eval_shape(
        lambda variables, images: chain(model, variables, images, batch_norm_stages=model.stages), variables, images
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, statistics))} == {jnp.dtype(jnp.float32)}
    for stage, flowing in found.items():
        maps = [leaf.dtype for leaf in jax.tree.leaves(flowing) if leaf.shape[-1] > 3]  # but the images themselves
        assert set(maps) <= {jnp.dtype(jnp.bfloat16)}, stage
    assert found["head"].dtype == jnp.bfloat16


@pytest.mark.parametrize("name", models.NAMES)
def test_network_of_every_name_has_the_options_of_its_config(name: str) -> None:
    options = {"model__width": 5, "model__dropout": 0.25, "model__attention": True, "model__upsampling": "bilinear"}
    model = make_model(small_config(name, **options), 7)
    assert model.stages[-1] == "head"
    expected = {"num_classes": 7, "width": 5, "dropout": 0.25, "attention": True, "upsampling": "bilinear"}
    fields = expected.keys() & {field.name for field in dataclasses.fields(model)}
    assert {key: getattr(model, key) for key in fields} == {key: expected[key] for key in fields}


@pytest.mark.parametrize("size", [(1, 1), (33, 2)], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.partition(",")[0] in models.SEGMENTATION])
def test_logits_of_masks_lie_on_the_pixels_of_any_image(case: str, size: tuple[int, int]) -> None:
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits, _ = jax.eval_shape(build(case).init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, *size, 3)


@pytest.mark.parametrize("case", ["cnn", pytest.param("unet, bilinear", marks=pytest.mark.slow)])
def test_half_precision_is_close_to_single(case: str) -> None:
    exact, half = (build(case, precision=precision) for precision in ("float32", "bfloat16"))
    variables, images = make_variables(exact, (20, 20)), draw_images((20, 20))
    expected, found = (np.asarray(jax.jit(model.apply)(variables, images), np.float32) for model in (exact, half))
    assert 0 < np.max(np.abs(found - expected)) < 0.05 * np.max(np.abs(expected))
