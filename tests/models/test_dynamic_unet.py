"""The network of fastai 1's `unet_learner`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax.models.dynamic_unet import DynamicDecoder, PixelShuffle
from covidjax.models.layers import Numerics
from covidjax.models.resnet import LAYERS
from covidjax.models.unet import UNetResNet
from covidjax.ops.choose import choose
from covidjax.weights.load import Entry
from covidjax.weights.torchvision import TENSORS, entries
from tests.support import shapes_of
from tests.weights.parity import RandomWeights, error, fill, stage_outputs

SHALLOW = (2, 1, 1, 1)


def count(num_classes: int, **options: Any) -> int:
    model = UNetResNet(num_classes, "resnet34", decoder_name="fastai", **options)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model, (64, 64), 3)["params"]))


def test_parameters_are_as_many_as_fastai_has() -> None:
    def conv(size: int, before: int, after: int) -> int:
        return size * size * before * after + after

    encoder = 21_797_672 - (512 * 1000 + 1000)  # torchvision's resnet34 without its classifier
    middle = 2 * 512 + conv(3, 512, 1024) + conv(3, 1024, 512)
    ups, channels = 0, 512
    for skipping, halve in ((256, 1), (128, 1), (64, 1), (64, 2)):
        joined = channels // 2 + skipping
        ups += conv(1, channels, 2 * channels) + 2 * skipping
        channels = joined // halve
        ups += conv(3, joined, channels) + conv(3, channels, channels)
    last = conv(1, 96, 4 * 96) + 2 * conv(3, 99, 99)
    assert channels == 96
    assert encoder + middle + ups + last == 41_220_968
    assert [count(classes) for classes in (2, 3)] == [41_221_168, 41_221_268]
    assert count(2, attention=True) - count(2) == 384 * (48 + 48 + 384) + 1


def test_fresh_convolutions_are_kaimings_and_pixel_shuffles_repeat() -> None:
    maps = [(1, 32, 32, 3), (1, 16, 16, 64), (1, 8, 8, 64), (1, 4, 4, 128), (1, 2, 2, 256), (1, 1, 1, 512)]
    shapes = tuple(jnp.zeros(shape) for shape in maps)
    decoder = DynamicDecoder(attention=False, dropout=0.0)
    init = jax.jit(lambda key: decoder.init(key, shapes, train=False, use_batch_statistics=False))
    params: Any = init(jax.random.key(0))["params"]
    for kernel, fan_in in ((params["middle_conv1"], 9 * 512), (params["up1"]["conv2"], 9 * 512)):
        assert float(jnp.std(kernel["kernel"])) == pytest.approx(np.sqrt(2 / fan_in), rel=0.01)
    assert {float(value) for value in params["up1"]["skip_norm"]["bias"]} == {float(np.float32(1e-3))}
    fours = params["up1"]["shuffle"]["conv"]["kernel"].reshape(512, 256, 4)
    np.testing.assert_array_equal(fours, np.repeat(fours[..., :1], 4, axis=-1))
    assert float(jnp.std(fours[..., 0])) == pytest.approx(np.sqrt(2 / 512), rel=0.01)

    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4, 5)), jnp.float32)
    module = PixelShuffle(2)
    enlarged = np.asarray(module.apply(module.init(jax.random.key(1), image), image))
    np.testing.assert_array_equal(enlarged, np.repeat(np.repeat(enlarged[:, ::2, ::2], 2, axis=1), 2, axis=2))


@pytest.mark.parametrize(
    ("num_blocks", "size"),
    [(SHALLOW, (33, 70)), pytest.param(LAYERS["resnet34"], (97, 107), marks=pytest.mark.slow)],
    ids=["shallow", "whole"],
)
def test_every_stage_equals_the_torch_network(
    num_blocks: tuple[int, ...], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the port is compared with it")
    from tests.models import torch_dynamic_unet  # noqa: PLC0415 - it needs PyTorch
    from tests.weights.test_parity_torch import randomise  # noqa: PLC0415

    torch.set_num_threads(1)
    monkeypatch.setitem(LAYERS, "resnet34", num_blocks)
    network = randomise(torch_dynamic_unet.DynamicUnet(num_blocks, 2), gain=0.7)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    numerics = Numerics(native=choose("auto").native)
    model = UNetResNet(2, "resnet34", attention=True, decoder_name="fastai", numerics=numerics)
    shapes = shapes_of(model, size, 3)
    own = []
    for path in traverse_util.flatten_dict(shapes, sep="/"):
        _, stage, *inside, leaf = path.split("/")
        if stage in ("decoder", "head"):
            tensor = leaf if inside == ["attention"] else TENSORS[leaf]  # the factor of the attention has no layer
            layout = "conv_oihw" if leaf == "kernel" else "same"
            own.append(Entry(path, ".".join((stage, *inside, tensor)), layout))
    variables, account = fill(shapes, (*entries(model, tensors), *own), tensors, new_stages=())
    assert not [name for name in account.unused if not name.endswith("num_batches_tracked")]
    images = RandomWeights(1).images(1, *size)
    ours = stage_outputs(model, variables, images)
    with torch.no_grad():
        theirs = network.stage_outputs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for stage, expected in zip(model.stages, theirs, strict=True):
        last = ours[stage][-1] if isinstance(ours[stage], tuple) else ours[stage]
        assert error(last, expected.numpy().transpose(0, 2, 3, 1)) < 1e-4, stage
