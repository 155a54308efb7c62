"""The parts of the networks: spans, statistics, arrangements, heads."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax import models
from covidjax.errors import UserError
from covidjax.freeze.plan import make_plan
from covidjax.freeze.strategies import default_strategies
from covidjax.models import vgg
from covidjax.models.layers import BatchNorm, Conv, pool
from covidjax.models.resnet import KERAS, KERAS_V2, TORCHVISION, Layer, Stem
from tests.support import (
    assert_same_bits,
    make_model,
    make_variables,
    shapes_of,
    small_config,
)


def draw_images(size: tuple[int, int] = (32, 32), channels: int = 1, batch_size: int = 2) -> jax.Array:
    images = np.random.default_rng(1).normal(size=(batch_size, *size, channels))
    return jnp.asarray(images, jnp.float32)


def test_the_network_is_the_sequence_of_its_spans_to_the_bit() -> None:
    model = make_model(small_config("cnn", model__width=4, model__num_blocks=2))
    variables, images = make_variables(model), draw_images()
    logits = model.apply(variables, images)
    for stage in model.stages:
        between = model.apply(variables, images, stop=stage)
        assert_same_bits(model.apply(variables, between, start=stage), logits)


@pytest.mark.parametrize(("start", "stop"), [("block9", None), (None, "block9"), ("block1", "block9")])
def test_an_unknown_stage_is_refused(start: str | None, stop: str | None) -> None:
    model = make_model(small_config("cnn"))
    variables = shapes_of(model)
    with pytest.raises(UserError, match="no stage 'block9': the stages are block1, block2, block3, block4, head"):
        jax.eval_shape(lambda variables: model.apply(variables, draw_images(), start=start, stop=stop), variables)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lenet", {}, "allowed are "),
        ("resnet18", {"arrangement": "keras"}, "resnet18.*resnet50"),
        ("unet_resnet18", {"arrangement": "keras"}, "torchvision"),
        ("unet", {"normalised_features": True}, "normalised_features is for networks that label .*, not for unet"),
        ("vgg16", {}, "vgg16.*32"),  # five halvings empty an image of 28 pixels
        ("densenet121", {}, "DenseNet.*29"),
        ("convnext_tiny", {}, "ConvNeXt.*32"),
        ("vit_b16", {}, "image_size is 28.*multiples of 16, such as 16"),
    ],
)
def test_a_network_that_there_is_not_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        model = make_model(small_config(name, **{f"model__{key}": value for key, value in options.items()}))
        shapes_of(model, 28)


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
    variables = shapes_of(model, (33, 47), 3)
    maps = [jax.eval_shape(partial(model.apply, stop=stage), variables, images) for stage in model.stages[1:]]
    assert [leaf.shape[1:3] for leaf in maps] == sizes


def test_a_map_of_one_position_is_not_pooled_away() -> None:
    model = make_model(small_config("cnn", model__width=2, model__num_blocks=6))
    logits = jax.jit(model.apply)(make_variables(model, (16, 20)), draw_images((16, 20)))
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
    variables = make_variables(model)
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


# ---- Arrangements and heads ----

INFERENCE = {"train": False, "use_batch_statistics": False}


def network(name: str, num_classes: int = 1000, **options: Any) -> Any:
    config = small_config(name, **{f"model__{key}": value for key, value in options.items()})
    return models.build(config.model, num_classes, "float32")


def test_heads_of_vgg16_have_their_layers_and_the_original_drops_half_whatever_the_config_says() -> None:
    paper = network("vgg16", 3, head="paper", dropout=0.1)
    head = shapes_of(paper, 224, 3)["params"]["head"]
    assert [head[f"dense{number}"]["kernel"].shape for number in (1, 2, 3)] == [(25088, 1024), (1024, 1024), (1024, 3)]
    assert paper.bind({}).head.dropout == 0.1
    assert network("vgg16", dropout=0.1).bind({}).head.dropout == 0.5


def test_pooled_head_of_vgg16_averages_the_last_map_of_any_size_and_drops_in_training_only() -> None:
    head: Any = vgg.Head(3, (), 0.5)
    maps = np.random.default_rng(0).normal(size=(1, 2, 3, 64)).astype(np.float32)
    variables = head.init(jax.random.key(0), maps, **INFERENCE)
    dense = variables["params"]["dense1"]
    assert variables["params"].keys() == {"dense1"}
    for each in (maps, maps[:, :1]):
        wanted = each.mean((1, 2)) @ dense["kernel"] + dense["bias"]
        np.testing.assert_allclose(head.apply(variables, each, **INFERENCE), wanted, atol=1e-5)
    dropped = head.apply(variables, maps, **{**INFERENCE, "train": True}, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(dropped, head.apply(variables, maps, **INFERENCE))
    assert network("vgg16", 3, head="pooled", dropout=0.1).bind({}).head.dropout == 0.1


def test_vgg16_of_fewer_blocks_has_the_first_ones_and_the_head() -> None:
    model = network("vgg16", 3, head="pooled", blocks=4)
    assert model.stages == ("block1", "block2", "block3", "block4", "head")
    params = shapes_of(model, 64, 3)["params"]
    assert tuple(params) == model.stages and params["head"]["dense1"]["kernel"].shape == (512, 3)


def test_dropout_of_vgg16_acts_in_training_only() -> None:
    head: Any = vgg.Head(3, (8, 8), 0.5)
    features = np.ones((1, 1, 1, 4), np.float32)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), features, **INFERENCE))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)
    once, again, quiet, same = (
        head.apply(variables, features, **{**INFERENCE, "train": seed > 0}, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 2, 0, 0)
    )
    assert not np.array_equal(once, again)
    assert np.array_equal(quiet, same)


def test_preactivated_layer_halves_in_its_last_block_and_skips_it_by_sampling() -> None:
    layer: Any = Layer(4, 2, 2, True, KERAS_V2)
    images = jax.random.normal(jax.random.key(1), (1, 9, 9, 16))
    variables = layer.init(jax.random.key(0), images, **INFERENCE)
    outputs, kept = layer.apply(variables, images, **INFERENCE, capture_intermediates=True, mutable=True)
    first = kept["intermediates"]["block1"]["__call__"][0]
    assert first.shape == (1, 9, 9, 16) and outputs.shape == (1, 5, 5, 16)
    last = variables["params"]["block2"]["conv3"]
    branch = kept["intermediates"]["block2"]["norm3"]["__call__"][0] @ last["kernel"][0, 0] + last["bias"]
    np.testing.assert_allclose(outputs, first[:, ::2, ::2] + branch, rtol=1e-5, atol=1e-6)


def test_preactivated_stem_lets_the_zeros_of_its_border_win() -> None:
    """All values are negative, so the maximum of a window on the border is the padding."""
    stem: Any = Stem(KERAS_V2)
    images = jnp.ones((1, 16, 16, 3))
    params = {"conv1": {"kernel": jnp.zeros((7, 7, 3, 64)), "bias": jnp.full(64, -1.0)}}
    outputs = stem.apply({"params": params}, images, **INFERENCE)
    assert np.all(outputs[:, 0] == 0) and np.all(outputs[:, :, 0] == 0) and np.all(outputs[:, 1:, 1:] == -1)


@pytest.mark.parametrize(
    ("arrangement", "halved_by", "num_norms", "epsilon", "kept"),
    [
        (TORCHVISION, "conv2", 5, 1e-5, 0.9),
        (KERAS, "conv1", 5, 1.001e-5, 0.99),
        (KERAS_V2, "conv2", 4, 1.001e-5, 0.99),
    ],
)
def test_stride_and_norms_of_a_bottleneck_are_those_of_its_arrangement(
    arrangement: Any, halved_by: str, num_norms: int, epsilon: float, kept: float
) -> None:
    layer: Any = Layer(4, 1, 2, True, arrangement, final_norm=True)
    norms: list[BatchNorm] = []
    sizes: dict[str, int] = {}

    def note(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        outputs = next_function(*arguments, **keywords)
        if context.method_name == "__call__" and isinstance(context.module, BatchNorm):
            norms.append(context.module)
        elif context.method_name == "__call__" and isinstance(context.module, Conv):
            sizes[str(context.module.name)] = outputs.shape[1]
        return outputs

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((2, 8, 8, 4)), **INFERENCE))
    assert next(conv for conv in ("conv1", "conv2", "conv3") if sizes[conv] == 4) == halved_by
    assert len(norms) == num_norms
    assert {(norm.epsilon, norm.momentum) for norm in norms} == {(epsilon, kept)}


def test_flatten_runs_over_height_width_features() -> None:
    x = jnp.arange(24.0).reshape(1, 2, 3, 4)
    assert np.array_equal(pool(x, "flatten"), np.arange(24.0)[None])
    assert np.array_equal(pool(x, "max"), [[20, 21, 22, 23]])
    assert np.array_equal(pool(x, "average"), [[10, 11, 12, 13]])
