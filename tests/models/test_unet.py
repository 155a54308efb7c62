import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.models.layers import Numerics
from covidjax.models.resnet import BOTTLENECK, LAYERS, ResNet
from covidjax.models.unet import SelfAttention, UNet, UNetResNet, UpConv
from covidjax.ops.choose import choose
from tests.models.test_models import draw_images
from tests.support import make_variables, shapes_of

SIZE = (61, 67)


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("width", "upsampling", "without", "with_norm", "printed"),
    [
        (64, "transposed", 31_030_658, 31_036_546, 31),
        (64, "bilinear", 28_941_698, 28_947_586, 28),
        (32, "transposed", 7_759_554, 7_762_498, 7.75),
        (16, "transposed", 1_940_834, 1_942_306, 1.94),
    ],
)
def test_parameter_counts_are_those_that_xu_prints(
    width: int, upsampling: str, without: int, with_norm: int, printed: float
) -> None:
    plain, normalised = (UNet(2, width, upsampling, batch_norm) for batch_norm in (False, True))
    assert count(shapes_of(plain, SIZE)["params"]) == without
    assert count(shapes_of(normalised, SIZE)["params"]) == with_norm
    assert "batch_stats" not in shapes_of(plain, SIZE)
    assert count(shapes_of(normalised, SIZE)["batch_stats"]) == 2 * 2 * (2 * (1 + 2 + 4 + 8) + 16) * width
    digits = 10**2 if printed % 1 else 1
    assert math.floor(without / 1e6 * digits) / digits == printed  # cut off, not rounded


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_encoder_is_the_classifier_up_to_its_head(name: str) -> None:
    model = UNetResNet(2, name)
    classifier = ResNet(2, LAYERS[name], name in BOTTLENECK)
    encoder = classifier.stages[:-1]
    whole = shapes_of(model, SIZE)
    for collection, stages in shapes_of(classifier, SIZE).items():
        own = whole[collection]
        assert {stage: own[stage] for stage in encoder} == {stage: stages[stage] for stage in encoder}
    if name == "resnet18":
        numerics = Numerics(native=choose("auto").native)
        model = dataclasses.replace(model, numerics=numerics)
        classifier = dataclasses.replace(classifier, numerics=numerics)
        variables, images = make_variables(model, SIZE), draw_images(SIZE)

        @jax.jit
        def run(variables: Any, images: Any) -> tuple[Any, Any]:
            stops = ("layer2", "layer3", "layer4", "head")
            return model.apply(variables, images, stop="decoder"), [
                classifier.apply(variables, images, stop=stop) for stop in stops
            ]

        (own_images, stem, *maps), expected = run(variables, images)
        np.testing.assert_array_equal(own_images, images)
        assert stem.shape == (2, 31, 34, 8)
        for found, reference in zip(maps, expected, strict=True):
            np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_attention_sits_after_the_block_that_joins_layer2_and_starts_as_the_identity() -> None:
    model, plain = UNetResNet(2, "resnet18", attention=True), UNetResNet(2, "resnet18")
    images, variables = jax.ShapeDtypeStruct((1, *SIZE, 1), jnp.float32), shapes_of(model, SIZE)
    kept: dict[str, Any] = {"capture_intermediates": True, "mutable": ["intermediates"]}
    _, seen = jax.eval_shape(lambda v, x: model.apply(v, x, **kept), variables, images)
    modules = seen["intermediates"]["decoder"]
    assert modules["attention"]["__call__"][0].shape == modules["up2"]["__call__"][0][-1].shape == (1, 8, 9, 128)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, stop="decoder"), variables, images)
    assert maps[3].shape[1:3] == (8, 9)  # layer2

    maps = [jax.random.normal(jax.random.key(number), leaf.shape) for number, leaf in enumerate(maps)]
    variables = make_variables(model, SIZE)
    params = variables["params"]["decoder"]
    own: Any = {key: {"decoder": value["decoder"]} for key, value in variables.items()}
    run = jax.jit(lambda v: model.apply(v, tuple(maps), start="decoder", stop="head"))
    expected = jax.jit(lambda v: plain.apply(v, tuple(maps), start="decoder", stop="head"))(own)
    for scale in (0.0, 1.0):
        params["attention"]["scale"] = jnp.full((1,), scale)
        assert bool(np.allclose(run(own), expected, atol=1e-5)) == (scale == 0.0)


def test_attention_is_a_softmax_over_all_positions() -> None:
    x = np.asarray(draw_images((3, 4), channels=16))
    module = SelfAttention()
    variables: Any = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["scale"], [0.0])
    variables["params"]["scale"] = jnp.asarray([0.7])
    query, key, value = (
        x.reshape(2, 12, 16) @ np.asarray(variables["params"][f"{role}_conv"]["kernel"])[0, 0]
        for role in ("query", "key", "value")
    )
    assert query.shape == (2, 12, 2)
    weights = np.exp(query @ key.transpose(0, 2, 1))
    weights /= weights.sum(axis=2, keepdims=True)
    expected = x + 0.7 * (weights @ value).reshape(x.shape)
    np.testing.assert_allclose(np.asarray(module.apply(variables, x)), expected, atol=1e-5)


def test_an_odd_last_row_and_column_are_pooled_alone() -> None:
    model = UNet(2, width=4)
    variables = make_variables(model, (5, 7))
    flowing: Any = model.apply(variables, draw_images((5, 7)), stop="down2")
    skip, pooled = flowing
    assert skip.shape == (2, 5, 7, 4) and pooled.shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(pooled[:, -1, -1], skip[:, -1, -1])
    np.testing.assert_array_equal(pooled[:, 0, -1], np.max(skip[:, :2, -1], axis=1))


@pytest.mark.parametrize("native", [False, True])
def test_up_convolution_and_its_gradients_are_those_of_torchs_transposed_convolution(native: bool) -> None:
    """Also its layout: the kernel is torch's [in, out, height, width] with its axes moved."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    inputs, probe = (random.normal(size=shape).astype(np.float32) for shape in ((2, 5, 4, 3), (2, 10, 8, 6)))
    theirs = torch.nn.ConvTranspose2d(3, 6, 2, 2)
    kernel, bias = (random.normal(size=shape).astype(np.float32) for shape in ((3, 6, 2, 2), (6,)))
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(kernel))
        theirs.bias.copy_(torch.from_numpy(bias))
    module = UpConv(6, numerics=Numerics(native=native and choose("auto").native))
    params = {"kernel": jnp.asarray(kernel.transpose(2, 3, 0, 1)), "bias": jnp.asarray(bias)}
    given = torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = theirs(given)
    (expected * torch.from_numpy(probe.transpose(0, 3, 1, 2).copy())).sum().backward()

    def outputs(params: Any, inputs: Any) -> Any:
        return module.apply({"params": params}, inputs)

    def loss(params: Any, inputs: Any) -> jax.Array:
        return jnp.sum(outputs(params, inputs) * probe)

    of_params, of_inputs = jax.grad(loss, (0, 1))(params, jnp.asarray(inputs))
    for ours, other, axes in (
        (outputs(params, inputs), expected.detach(), (0, 2, 3, 1)),
        (of_params["kernel"], theirs.weight.grad, (2, 3, 0, 1)),
        (of_params["bias"], theirs.bias.grad, (0,)),
        (of_inputs, given.grad, (0, 2, 3, 1)),
    ):
        np.testing.assert_allclose(ours, other.numpy().transpose(axes), rtol=1e-5, atol=1e-5)
