from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax.errors import UserError
from covidjax.freeze.plan import make_plan
from covidjax.freeze.strategies import default_strategies
from covidjax.models.layers import BatchNorm, Staged
from tests.support import assert_same_bits, make_model, small_config


def random_variables(model: Staged, size: tuple[int, int] = (32, 32), channels: int = 1) -> dict[str, Any]:
    """Weights and statistics drawn in numpy, of a scale that keeps activations near one."""
    images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    generator = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = generator.normal(size=leaf.shape)
        if leaf.ndim > 1:
            values *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            values = 0.2 * values + (path[-1].key in ("scale", "var"))
        if path[-1].key == "var":
            values = np.abs(values) + 0.1
        return jnp.asarray(values, leaf.dtype)

    abstract = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    return jax.tree.map_with_path(draw, abstract)


def draw_images(size: tuple[int, int] = (32, 32), channels: int = 1, batch_size: int = 2) -> jax.Array:
    images = np.random.default_rng(1).normal(size=(batch_size, *size, channels))
    return jnp.asarray(images, jnp.float32)


def test_the_network_is_the_sequence_of_its_spans_to_the_bit() -> None:
    model = make_model(small_config("cnn", model__width=4, model__num_blocks=2))
    variables, images = random_variables(model), draw_images()
    logits = model.apply(variables, images)
    for stage in model.stages:
        between = model.apply(variables, images, stop=stage)
        assert_same_bits(model.apply(variables, between, start=stage), logits)


@pytest.mark.parametrize(("start", "stop"), [("block9", None), (None, "block9"), ("block1", "block9")])
def test_an_unknown_stage_is_refused(start: str | None, stop: str | None) -> None:
    model = make_model(small_config("cnn"))
    variables = jax.eval_shape(model.init, jax.random.key(0), draw_images())
    with pytest.raises(UserError, match="no stage 'block9': the stages are block1, block2, block3, block4, head"):
        jax.eval_shape(lambda variables: model.apply(variables, draw_images(), start=start, stop=stop), variables)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lenet", {}, "allowed are "),
        ("resnet18", {"arrangement": "keras"}, "resnet18.*resnet50"),
        ("unet_resnet18", {"arrangement": "keras"}, "torchvision"),
        ("unet", {"normalised_features": True}, "normalised_features is for networks that label .*, not for unet"),
        ("vgg16", {}, "vgg16.*32"),  # five halvings empty an image of 31 pixels
    ],
)
def test_a_network_that_there_is_not_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        model = make_model(small_config(name, **{f"model__{key}": value for key, value in options.items()}))
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 31, 31, 1), jnp.float32))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cnn", [(16, 23), (8, 11), (4, 5), (2, 2)]),
        ("resnet18", [(9, 12), (9, 12), (5, 6), (3, 3), (2, 2)]),
        ("resnet50", [(9, 12), (9, 12), (5, 6), (3, 3), (2, 2)]),
    ],
)
def test_maps_of_odd_images_have_the_sizes_of_the_published_networks(name: str, sizes: list[tuple[int, int]]) -> None:
    model = make_model(small_config(name))
    shape = (2, 33, 47, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    maps = [jax.eval_shape(partial(model.apply, stop=stage), variables, images) for stage in model.stages[1:]]
    assert [leaf.shape[1:3] for leaf in maps] == sizes


def test_a_map_of_one_position_is_not_pooled_away() -> None:
    model = make_model(small_config("cnn", model__width=2, model__num_blocks=6))
    logits = jax.jit(model.apply)(random_variables(model, (16, 20)), draw_images((16, 20)))
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(("kept", "epsilon"), [(0.9, 1e-5), (0.99, 0.25)])
def test_running_statistics_keep_their_share_and_take_the_biased_variance(kept: float, epsilon: float) -> None:
    norm = BatchNorm(epsilon=epsilon, momentum=kept)
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 2, 1, 5)).astype(np.float32)  # few values: n and n - 1 differ
    old = {"mean": np.arange(5, dtype=np.float32), "var": np.arange(1, 6, dtype=np.float32)}
    params = {"scale": np.full(5, 2.0, np.float32), "bias": np.ones(5, np.float32)}
    variables: dict[str, Any] = {"params": params, "batch_stats": old}
    outputs, updated = norm.apply(variables, x, use_batch_statistics=True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(updated["batch_stats"]["mean"], kept * old["mean"] + (1 - kept) * mean, rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], kept * old["var"] + (1 - kept) * var, rtol=1e-6)
    np.testing.assert_allclose(outputs, 2 * (x - mean) / np.sqrt(var + epsilon) + 1, rtol=1e-4, atol=1e-5)

    outputs, updated = norm.apply(variables, x, use_batch_statistics=False, mutable=["batch_stats"])
    assert_same_bits(updated["batch_stats"], old)
    np.testing.assert_allclose(outputs, 2 * (x - old["mean"]) / np.sqrt(old["var"] + epsilon) + 1, rtol=1e-4, atol=1e-5)


def test_only_the_named_stages_update_their_statistics() -> None:
    model = make_model(small_config("cnn", model__width=2))
    variables = random_variables(model)
    _, updated = model.apply(variables, draw_images(), batch_norm_stages=("block2",), mutable=["batch_stats"])
    same = jax.tree.map(np.array_equal, variables["batch_stats"], dict(updated["batch_stats"]))
    assert {stage: set(jax.tree.leaves(tree)) for stage, tree in same.items()} == {
        stage: {stage != "block2"} for stage in model.stages[:-1]
    }


# ---- Without normalisation ----

CONVOLUTIONS = ("block1/conv", "block2/conv")


def test_without_normalisation_convolutions_have_biases_and_start_as_in_keras_and_no_strategy_is_for_it() -> None:
    config = small_config("cnn", model__normalisation="none", model__num_blocks=2, model__pooling="flatten")
    model = make_model(config, 2)
    variables: Any = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    assert set(variables) == {"params"}
    leaves = traverse_util.flatten_dict(variables["params"], sep="/")
    assert {path.rpartition("/")[0] for path in leaves} == {*CONVOLUTIONS, "head/dense"}
    for path in CONVOLUTIONS:
        kernel = leaves[f"{path}/kernel"]
        limit = np.sqrt(6 / (9 * (kernel.shape[2] + kernel.shape[3])))  # Glorot and Bengio 2010, uniform
        assert 0.9 * limit < np.abs(kernel).max() <= limit
        assert not leaves[f"{path}/bias"].any()
    assert leaves["head/dense/kernel"].shape == (4 * 4 * 32, 2)
    assert "norm" not in default_strategies(model.stages, leaves)
    with pytest.raises(UserError, match="no normalisation"):
        make_plan("norm", variables, model.stages)
