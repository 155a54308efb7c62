import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax.models.deeplab import DeepLabV3
from covidjax.models.layers import Numerics
from covidjax.models.resnet import LAYERS
from covidjax.ops.choose import choose
from covidjax.weights.torchvision import entries
from tests.weights.parity import stage_outputs

# Parameters that torchvision prints for its files, less those of aux_classifier (1024 x 256 x 9, BatchNorm, 256 x 21).
AUXILIARY = 1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21
PUBLISHED = {"resnet50": 42_004_074 - AUXILIARY, "resnet101": 60_996_202 - AUXILIARY}
SIZE = (33, 49)


def shapes(model: DeepLabV3, size: tuple[int, int] = SIZE, channels: int = 3) -> dict[str, Any]:
    images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    return dict(jax.eval_shape(model.init, jax.random.key(0), images))


def random_tensors(network: Any) -> dict[str, np.ndarray]:
    """Weights and statistics that a wrong map would show: negative scales, means off zero, variances up to 100."""
    generator = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, tensor in state.items():
        shape, values = tuple(tensor.shape), generator.normal(size=tuple(tensor.shape))
        if len(shape) == 4:
            values *= np.sqrt(0.7 / np.prod(shape[1:]))  # keeps every stage near one, so that no mean or bias drowns
        elif name.endswith("running_var"):
            values = 10 ** generator.uniform(-2, 2, size=shape)
        elif not name.endswith("weight"):
            values *= 0.5
        tensors[name] = np.asarray(values, np.float32)
    for name in [name for name in tensors if name.endswith("running_var")]:
        scale = name.replace("running_var", "weight")  # negative for about a third; signals keep their size
        tensors[scale] = (0.5 + 0.5 * np.abs(tensors[scale])) * np.sqrt(tensors[name])
        tensors[scale] *= generator.choice([-1, 1, 1], size=tensors[scale].shape).astype(np.float32)
    return tensors


def mapped(model: DeepLabV3, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    axes = {"conv_oihw": (2, 3, 1, 0)}
    flat = {
        entry.path: np.transpose(tensors[entry.source], axes.get(entry.layout)) for entry in entries(model, tensors)
    }
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_the_name_map_fills_every_leaf_from_one_tensor_of_the_published_network(backbone: str) -> None:
    model = DeepLabV3(21, backbone)
    flat = traverse_util.flatten_dict(shapes(model), sep="/")
    paths, sources = ([getattr(entry, name) for entry in entries(model)] for name in ("path", "source"))
    assert sorted(paths) == sorted(flat)
    assert len(set(sources)) == len(sources)
    assert sum(leaf.size for path, leaf in flat.items() if path.startswith("params/")) == PUBLISHED[backbone]


def test_the_file_of_a_classifier_fills_the_backbone_and_nothing_else() -> None:
    model = DeepLabV3(2, "resnet50")
    found = entries(model, {"conv1.weight", "fc.weight"})
    flat = traverse_util.flatten_dict(shapes(model), sep="/")
    assert {entry.path for entry in found} == {path for path in flat if path.split("/")[1] not in ("decoder", "head")}
    assert "layer3.0.downsample.0.weight" in {entry.source for entry in found}


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """A block of each kind: with and without a convolution beside it, and with each dilation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, "resnet50", (1, 1, 2, 2))
        yield


@functools.cache
def torch_network(num_blocks: tuple[int, ...]) -> tuple[Any, dict[str, np.ndarray]]:
    torch = pytest.importorskip("torch")
    from tests.models import torch_deeplab  # noqa: PLC0415

    torch.set_num_threads(1)
    network = torch_deeplab.DeepLabV3(num_blocks, 3).eval()
    tensors = random_tensors(network)
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()}, strict=False)
    return network, tensors


def both(backbone: str = "resnet50") -> tuple[DeepLabV3, dict[str, Any], Any]:
    """Our network, its variables, and that of PyTorch."""
    network, tensors = torch_network(LAYERS[backbone])
    model = DeepLabV3(3, backbone, numerics=Numerics(native=choose("auto").native))
    assert {entry.source for entry in entries(model)} == set(tensors)
    return model, mapped(model, tensors), network


def to_torch(array: np.ndarray) -> Any:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def relative_error(found: Any, reference: Any) -> float:
    """Largest error over largest value; reference: a torch map [batch, features, height, width]."""
    reference = reference.detach().numpy().transpose(0, 2, 3, 1)
    assert found.shape == reference.shape
    assert np.std(reference) > 1e-3 * np.max(np.abs(reference))
    return float(np.max(np.abs(np.asarray(found) - reference)) / np.max(np.abs(reference)))


def assert_every_stage_is_that_of_torch(backbone: str) -> None:
    model, variables, network = both(backbone)
    images = np.random.default_rng(1).normal(size=(1, *SIZE, 3)).astype(np.float32)
    expected = network(to_torch(images))
    for stage, found in stage_outputs(model, variables, images).items():
        assert relative_error(found if stage == "head" else found[1], expected[stage]) < 1e-4, stage


def test_every_stage_equals_the_torch_network(shallow: None) -> None:
    assert_every_stage_is_that_of_torch("resnet50")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", PUBLISHED)
def test_every_stage_of_a_published_depth_equals_the_torch_network(backbone: str) -> None:
    assert_every_stage_is_that_of_torch(backbone)


@pytest.mark.parametrize("size", [(39, 3), pytest.param((3, 39), marks=pytest.mark.slow)], ids=str)
def test_atrous_rates_equal_those_of_the_torch_network_on_a_map_wider_than_the_largest(
    size: tuple[int, int], shallow: None
) -> None:
    model, variables, network = both()
    map_ = np.random.default_rng(2).normal(size=(1, *size, 2048)).astype(np.float32)
    state = (jnp.zeros((1, 8, 8, 0)), jnp.asarray(map_))
    _, found = model.apply(variables, state, start="decoder", stop="head")
    assert relative_error(found, network.classifier[:-1](to_torch(map_))) < 1e-4


def test_gradients_equal_those_of_the_torch_network(shallow: None) -> None:
    model, variables, network = both()
    generator = np.random.default_rng(3)
    map_ = np.abs(generator.normal(size=(1, 3, 4, 1024))).astype(np.float32)
    weights = generator.normal(size=(1, 17, 25, 3)).astype(np.float32)

    def loss(params: Any) -> jax.Array:
        state = (jnp.zeros((1, 17, 25, 0)), jnp.asarray(map_))
        logits: Any = model.apply({**variables, "params": params}, state, start="layer4")
        return jnp.sum(weights * logits)

    gradients = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")
    functional = pytest.importorskip("torch").nn.functional
    logits = network.classifier(network.backbone.layer4(to_torch(map_)))
    logits = functional.interpolate(logits, (17, 25), mode="bilinear", align_corners=False)
    (to_torch(weights) * logits).sum().backward()
    pairs = {
        "layer4/block2/conv2/kernel": network.backbone.layer4[1].conv2.weight,
        "decoder/pooled/norm/scale": network.classifier[0].convs[4][2].weight,
        "head/conv/kernel": network.classifier[4].weight,
    }
    for path, tensor in pairs.items():
        expected = tensor.grad.numpy()
        expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected
        error = np.max(np.abs(gradients[path] - expected)) / np.max(np.abs(expected))
        assert error < 1e-3, path


def test_strides_of_layer3_and_layer4_are_dilation() -> None:
    model, images = DeepLabV3(2, "resnet50"), jax.ShapeDtypeStruct((1, 64, 96, 1), jnp.float32)
    variables = shapes(model, (64, 96), channels=1)
    before = {
        stage: jax.eval_shape(lambda v, x, s=stage: model.apply(v, x, stop=s), variables, images)
        for stage in model.stages[1:]
    }
    assert [map_.shape[1:3] for _, map_ in before.values()] == [(16, 24)] * 2 + [(8, 12)] * 4
    assert all(size.shape == (1, 64, 96, 0) for size, _ in before.values())
