import functools
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
from covidjax.weights.foreign import COUNTERS
from covidjax.weights.load import arrange
from covidjax.weights.torchvision import entries
from tests.support import shapes_of
from tests.weights.parity import GRADIENT_TOLERANCE, error, fill, stage_outputs

# Parameters that torchvision prints for its files, less those of aux_classifier (1024 x 256 x 9, BatchNorm, 256 x 21).
AUXILIARY = 1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21
PUBLISHED = {"resnet50": 42_004_074 - AUXILIARY, "resnet101": 60_996_202 - AUXILIARY}
SIZE = (33, 49)
FEW = (1, 1, 2, 2)  # a block of each kind: with and without a convolution beside it, and with each dilation


@pytest.mark.parametrize("backbone", ["resnet50", pytest.param("resnet101", marks=pytest.mark.slow)])
def test_the_name_map_fills_every_leaf_from_one_tensor_of_the_published_network(backbone: str) -> None:
    model = DeepLabV3(21, backbone)
    shapes = shapes_of(model, SIZE, 3)
    flat, known = traverse_util.flatten_dict(shapes, sep="/"), entries(model, variables=shapes)
    paths, sources = ([getattr(entry, name) for entry in known] for name in ("path", "source"))
    assert sorted(paths) == sorted(flat)
    assert len(set(sources)) == len(sources)
    assert sum(leaf.size for path, leaf in flat.items() if path.startswith("params/")) == PUBLISHED[backbone]


def test_the_file_of_a_classifier_fills_the_backbone_and_nothing_else() -> None:
    model = DeepLabV3(2, "resnet50")
    found = entries(model, {"conv1.weight", "fc.weight"})
    flat = traverse_util.flatten_dict(shapes_of(model, SIZE, 3), sep="/")
    assert {entry.path for entry in found} == {path for path in flat if path.split("/")[1] not in ("decoder", "head")}
    assert "layer3.0.downsample.0.weight" in {entry.source for entry in found}


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "resnet50", FEW)


@functools.cache
def network_of_torch(num_blocks: tuple[int, ...]) -> Any:
    pytest.importorskip("torch").set_num_threads(1)
    from tests.models import torch_deeplab  # noqa: PLC0415
    from tests.weights.test_parity_torch import randomise  # noqa: PLC0415

    return randomise(torch_deeplab.DeepLabV3(num_blocks, 3), gain=0.6)


def both(backbone: str = "resnet50") -> tuple[DeepLabV3, dict[str, Any], Any]:
    """Our network, its variables, and that of PyTorch, from which they are."""
    network = network_of_torch(LAYERS[backbone])
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    model = DeepLabV3(3, backbone, numerics=Numerics(native=choose("auto").native))
    variables, account = fill(shapes := shapes_of(model, SIZE, 3), entries(model, tensors, shapes), tensors)
    assert all(name.endswith(COUNTERS) for name in account.unused)
    return model, variables, network


def to_torch(array: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def of_torch(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("backbone", "num_blocks"),
    [("resnet50", FEW), *(pytest.param(name, LAYERS[name], marks=pytest.mark.slow) for name in PUBLISHED)],
)
def test_every_stage_equals_the_torch_network(
    backbone: str, num_blocks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAYERS, backbone, num_blocks)
    model, variables, network = both(backbone)
    images = np.random.default_rng(1).normal(size=(1, *SIZE, 3)).astype(np.float32)
    expected = network(to_torch(images))
    for stage, found in stage_outputs(model, variables, images).items():
        assert error(found if stage == "head" else found[1], of_torch(expected[stage])) < 1e-4, stage


@pytest.mark.slow
def test_every_gradient_is_that_of_the_torch_network(shallow: None) -> None:
    model, variables, network = both()
    random = np.random.default_rng(3)
    images, probe = (random.normal(size=(1, *SIZE, 3)).astype(np.float32) for _ in range(2))

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({**variables, "params": params}, images)
        return jnp.sum(jax.nn.log_softmax(logits) * probe)

    ours = traverse_util.flatten_dict({"params": jax.jit(jax.grad(loss))(variables["params"])}, sep="/")
    torch = pytest.importorskip("torch")
    (torch.log_softmax(network(to_torch(images))["head"], 1) * to_torch(probe)).sum().backward()
    theirs = {name: tensor.grad.numpy() for name, tensor in network.named_parameters()}
    found = {
        entry.source: error(ours[entry.path], arrange(theirs[entry.source], entry.layout))
        for entry in entries(model, theirs)
        if entry.path in ours
    }
    assert found.keys() == theirs.keys()
    assert max(found.values()) < GRADIENT_TOLERANCE, found


@pytest.mark.parametrize("size", [(39, 3), pytest.param((3, 39), marks=pytest.mark.slow)], ids=str)
def test_atrous_rates_equal_torchs_on_a_map_wider_than_the_largest(size: tuple[int, int], shallow: None) -> None:
    model, variables, network = both()
    map_ = np.random.default_rng(2).normal(size=(1, *size, 2048)).astype(np.float32)
    state = (jnp.zeros((1, 8, 8, 0)), jnp.asarray(map_))
    _, found = model.apply(variables, state, start="decoder", stop="head")
    assert error(found, of_torch(network.classifier[:-1](to_torch(map_)))) < 1e-4


def test_strides_of_layer3_and_layer4_are_dilation() -> None:
    model, images = DeepLabV3(2, "resnet50"), jax.ShapeDtypeStruct((1, 64, 96, 1), jnp.float32)
    variables = shapes_of(model, (64, 96))
    before = {
        stage: jax.eval_shape(lambda v, x, s=stage: model.apply(v, x, stop=s), variables, images)
        for stage in model.stages[1:]
    }
    assert [map_.shape[1:3] for _, map_ in before.values()] == [(16, 24)] * 2 + [(8, 12)] * 4
    assert all(size.shape == (1, 64, 96, 0) for size, _ in before.values())
