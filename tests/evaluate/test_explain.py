"""Grad-CAM, integrated gradients and occlusion say what their definitions say, for every classifier."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.errors import UserError
from covidjax.evaluate import explain
from covidjax.mesh import local_mesh
from covidjax.models.preprocessing import Preprocessing
from tests.support import make_model, make_variables, small_config

CLASSES = np.array([2, 0, 1])
PREPROCESSING = Preprocessing()
NETWORKS: dict[str, dict[str, Any]] = {
    "cnn": {"model__width": 4, "model__num_blocks": 3},
    "resnet18": {},
    "vgg16": {"model__head": "pooled"},
}


def made(name: str, size: int = 32, **changes: Any) -> tuple[Any, Any, np.ndarray]:
    model = make_model(small_config(name, ops="xla", **NETWORKS.get(name, {}), **changes))
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 1), np.uint8)
    return model, make_variables(model, size), images


def by_hand(model: Any, variables: Any, images: np.ndarray, stage: str) -> np.ndarray:
    """Grad-CAM one example and one class at a time, from the logits' whole Jacobian by the stage's output."""
    following = model.stages[model.stages.index(stage) + 1]
    maps = []
    for image, label in zip(images, CLASSES, strict=True):
        inputs = PREPROCESSING(jnp.asarray(image[None], model.numerics.param_dtype))
        flowing = model.apply(variables, inputs, stop=following)
        gradients = jax.jacrev(lambda x: model.apply(variables, x, start=following)[0])(flowing)[label, 0]
        flowing, gradients = np.asarray(flowing[0], np.float64), np.asarray(gradients, np.float64)
        maps.append(np.maximum((flowing * gradients.mean((0, 1))).sum(-1), 0))
    return np.stack(maps)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        *(("cnn", stage) for stage in ("block1", "block2", "block3")),
        pytest.param("resnet18", "layer3", marks=pytest.mark.slow),
        pytest.param("resnet50", "layer4", marks=pytest.mark.slow),
        pytest.param("resnet50v2", "layer2", marks=pytest.mark.slow),
        pytest.param("vgg16", "block5", marks=pytest.mark.slow),
    ],
)
def test_class_activation_map_is_that_of_a_gradient_by_hand(name: str, stage: str) -> None:
    model, variables, images = made(name, 64 if name == "vgg16" else 32)
    run = explain.make_explain(model, PREPROCESSING, local_mesh(1), "grad_cam", stage)
    maps = np.asarray(run(variables, images, CLASSES))
    expected = by_hand(model, variables, images, stage)
    assert expected.max() > 0
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


def test_integrated_gradients_add_up_to_what_the_image_adds_to_the_logit() -> None:
    model, variables, images = made("cnn")
    run = explain.make_explain(model, PREPROCESSING, local_mesh(1), "integrated_gradients", explain.last_map(model))
    maps = np.asarray(run(variables, images, CLASSES))
    assert maps.shape == images.shape[:3]
    logits = [
        np.asarray(model.apply(variables, PREPROCESSING(jnp.asarray(part, jnp.float32))))[np.arange(3), CLASSES]
        for part in (images, np.zeros_like(images))
    ]
    difference = logits[0] - logits[1]
    assert np.abs(difference).min() > 0.01
    np.testing.assert_allclose(maps.sum((1, 2)), difference, rtol=0.05)


def test_occlusion_is_what_the_logit_loses_with_a_patch() -> None:
    model, variables, images = made("cnn")
    run = explain.make_explain(model, PREPROCESSING, local_mesh(1), "occlusion", explain.last_map(model))
    maps = np.asarray(run(variables, images, CLASSES))
    hidden = images.astype(np.float32)
    hidden[:, 8:12, 20:24] = images.mean((1, 2), keepdims=True)
    whole, other = (
        np.asarray(model.apply(variables, PREPROCESSING(jnp.asarray(part))))[np.arange(3), CLASSES]
        for part in (images.astype(np.float32), hidden)
    )
    assert np.abs(whole - other).max() > 1e-4
    np.testing.assert_allclose(maps[:, 2, 5], whole - other, atol=1e-5)


def test_share_inside_is_the_part_of_the_mass_that_the_mask_holds() -> None:
    maps = np.array([[[1.0, 3.0], [0.0, -4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = np.array([[[255, 0], [0, 255]], [[1, 1], [1, 1]]])
    found = np.asarray(explain.share_inside(maps, masks))
    assert found[0] == 0.25
    assert np.isnan(found[1])


def test_methods_and_stages_that_are_none_are_refused() -> None:
    model, *_ = made("cnn")
    for method, stage, message in (
        ("cam", "block1", "no method 'cam': allowed are grad_cam, integrated_gradients, occlusion"),
        ("grad_cam", "head", "no map behind a stage 'head': the stages are block1, block2, block3"),
    ):
        with pytest.raises(UserError, match=message):
            explain.make_explain(model, PREPROCESSING, local_mesh(1), method, stage)
