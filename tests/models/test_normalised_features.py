"""Xu's softmax on normalised features: the logits beside NumPy."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax.models import layers, vgg
from covidjax.train.step import train_step
from tests.support import (
    make_batch,
    make_model,
    make_recipe,
    make_state,
    shapes_of,
    small_config,
)

CLASSES, FEATURES, SCALE = 3, 5, 4.5
CLASSIFIER, WIDE = layers.Head(CLASSES, normalised_features=True), vgg.Head(CLASSES, (7,), 0.0, True)


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape) for shape in shapes]


def logits(head: nn.Module, params: Any, maps: Any) -> jax.Array:
    return jnp.asarray(head.apply({"params": params}, maps, train=True, use_batch_statistics=False))


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_logits_are_those_of_features_of_one_length() -> None:
    maps, kernel, bias = arrays((4, 2, 2, FEATURES), (FEATURES, CLASSES), (CLASSES,))
    params = {"scale": SCALE, "dense": {"kernel": kernel, "bias": bias}}
    expected = SCALE * unit(maps.mean((1, 2))) @ kernel + bias
    np.testing.assert_allclose(logits(CLASSIFIER, params, maps), expected, rtol=1e-5, atol=1e-6)
    longer = maps * np.array([0.01, 1, 30, 500])[:, None, None, None]  # how far an image stands out is no matter
    np.testing.assert_allclose(logits(CLASSIFIER, params, longer), expected, rtol=1e-5, atol=1e-6)


def test_vgg_normalises_what_its_last_dense_layer_takes() -> None:
    maps, first, bias, last = arrays((4, 1, 1, FEATURES), (FEATURES, 7), (7,), (7, CLASSES))
    params = {"scale": SCALE, "dense1": {"kernel": first, "bias": bias}, "dense2": {"kernel": last, "bias": np.ones(3)}}
    hidden = np.maximum(maps[:, 0, 0] @ first + bias, 0)
    expected = SCALE * unit(hidden) @ last + 1
    np.testing.assert_allclose(logits(WIDE, params, maps), expected, rtol=1e-5, atol=1e-6)


def test_features_that_are_all_zero_have_finite_logits_and_gradients() -> None:
    params = {"scale": SCALE, "dense": {"kernel": jnp.ones((FEATURES, CLASSES)), "bias": jnp.zeros(CLASSES)}}
    found = jax.grad(lambda features: jnp.sum(logits(CLASSIFIER, params, features)))(jnp.zeros((2, FEATURES)))
    assert np.isfinite(found).all()
    assert not logits(CLASSIFIER, params, jnp.zeros((2, FEATURES))).any()


@pytest.mark.parametrize("name", ["cnn", "vgg16", "resnet18", "resnet50v2", "densenet121", "convnext_tiny", "vit_b16"])
def test_every_classifier_has_it_in_its_head(name: str) -> None:
    plain, normalised = (
        make_model(small_config(name, model__normalised_features=normalised)) for normalised in (False, True)
    )
    paths = [set(traverse_util.flatten_dict(shapes_of(model)["params"], sep="/")) for model in (plain, normalised)]
    assert paths[1] - paths[0] == {"head/scale"}


def test_a_frozen_backbone_leaves_the_scale_to_train() -> None:
    changes = {"freeze": "backbone", "model__width": 4, "model__num_blocks": 1, "model__normalised_features": True}
    config = small_config("cnn", **changes, optimizer__weight_decay=0.1)
    model = make_model(config)
    variables = dict(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    assert variables["params"]["head"]["scale"] == 2.0
    recipe = make_recipe(config, model, variables)
    trained = {leaf.path for leaf in recipe.plan.leaves if leaf.trains}
    assert trained == {"head/scale", "head/dense/kernel", "head/dense/bias"}
    state = jax.jit(partial(train_step, recipe=recipe))(make_state(recipe, variables), make_batch(size=8))
    moved = float(state.params["head"]["scale"] - variables["params"]["head"]["scale"])
    assert abs(moved) == pytest.approx(1e-3, rel=1e-2)  # Adam's first step; weight decay is for kernels
