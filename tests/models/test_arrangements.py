from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import models
from covidjax.models import vgg
from covidjax.models.layers import BatchNorm, Conv, pool
from covidjax.models.resnet import KERAS, KERAS_V2, TORCHVISION, Block, Layer, Stem
from tests.support import small_config

INFERENCE = {"train": False, "use_batch_statistics": False}


def network(name: str, num_classes: int = 1000, **options: Any) -> Any:
    config = small_config(name, **{f"model__{key}": value for key, value in options.items()})
    return models.build(config.model, num_classes, "float32")


def shapes(model: Any, size: int = 224) -> dict[str, Any]:
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))


def test_paper_head_of_vgg16_is_flatten_1024_1024_classes() -> None:
    head = shapes(network("vgg16", 3, head="paper"))["params"]["head"]
    assert [head[f"dense{number}"]["kernel"].shape for number in (1, 2, 3)] == [(25088, 1024), (1024, 1024), (1024, 3)]


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


def test_original_head_of_vgg16_drops_half_whatever_the_config_says() -> None:
    assert network("vgg16", dropout=0.1).bind({}).head.dropout == 0.5
    assert network("vgg16", head="paper", dropout=0.1).bind({}).head.dropout == 0.1


@pytest.mark.parametrize(("arrangement", "halved_by"), [(TORCHVISION, "conv2"), (KERAS, "conv1"), (KERAS_V2, "conv2")])
def test_stride_of_a_bottleneck_sits_where_its_arrangement_says(arrangement: Any, halved_by: str) -> None:
    block: Any = Block(4, 2, True, arrangement)
    images = jnp.ones((1, 8, 8, 16))
    kept = jax.eval_shape(
        lambda: block.init(jax.random.key(0), images, use_batch_statistics=False, capture_intermediates=True)
    )
    sizes = {key: value["__call__"][0].shape[1] for key, value in kept["intermediates"].items() if "conv" in key}
    assert next(conv for conv in ("conv1", "conv2", "conv3") if sizes[conv] == 4) == halved_by


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
    ("arrangement", "epsilon", "kept"), [(TORCHVISION, 1e-5, 0.9), (KERAS, 1.001e-5, 0.99), (KERAS_V2, 1.001e-5, 0.99)]
)
def test_every_norm_has_the_epsilon_and_the_momentum_of_its_arrangement(
    arrangement: Any, epsilon: float, kept: float
) -> None:
    layer: Any = Layer(4, 1, 1, True, arrangement, final_norm=True)
    images = jnp.zeros((2, 8, 8, 4))
    seen: list[BatchNorm] = []

    def note(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            seen.append(context.module)
        return next_function(*arguments, **keywords)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: layer.init(jax.random.key(0), images, **INFERENCE))
    assert len(seen) == (4 if arrangement is KERAS_V2 else 5)
    assert {(norm.epsilon, norm.momentum) for norm in seen} == {(epsilon, kept)}


def test_dilated_convolution_is_the_convolution_with_a_spread_kernel() -> None:
    inputs = jax.random.normal(jax.random.key(0), (1, 9, 11, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 4))
    spread = jnp.zeros((5, 5, 2, 4)).at[::2, ::2].set(kernel)
    dilated: Any = Conv(4, 3, padding=2, dilation=2).apply({"params": {"kernel": kernel}}, inputs)
    plain: Any = Conv(4, 5, padding=2).apply({"params": {"kernel": spread}}, inputs)
    np.testing.assert_allclose(dilated, plain, rtol=1e-4, atol=1e-5)


def test_dilations_of_a_layer_keep_the_size_of_its_map() -> None:
    layer: Any = Layer(4, 2, 1, True, dilations=(2, 4))
    images = jnp.ones((1, 9, 11, 8))
    outputs, _ = jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), images, **INFERENCE))
    assert outputs.shape == (1, 9, 11, 16)


def test_flatten_runs_over_height_width_features() -> None:
    x = jnp.arange(24.0).reshape(1, 2, 3, 4)
    assert np.array_equal(pool(x, "flatten"), np.arange(24.0)[None])
    assert np.array_equal(pool(x, "max"), [[20, 21, 22, 23]])
    assert np.array_equal(pool(x, "average"), [[10, 11, 12, 13]])
