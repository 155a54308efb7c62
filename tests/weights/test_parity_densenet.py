import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.models import densenet
from covidjax.models.preprocessing import XRV
from tests.weights import parity
from tests.weights.parity import RandomWeights, network

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the port is compared with it")
from benchmarks.peers.torch_densenet import (  # noqa: E402 - it needs PyTorch
    DenseBlock,
    DenseLayer,
    DenseNet,
    Transition,
)
from tests.weights import test_parity_torch as torch_parity  # noqa: E402

SHALLOW = (2, 1, 1, 2)
NUM_CLASSES = 18


def make_module(monkeypatch: pytest.MonkeyPatch, channels: int = 3) -> Any:
    """The module of few layers, and ours of as many."""
    monkeypatch.setitem(densenet.LAYERS, "densenet121", SHALLOW)
    return torch_parity.randomise(DenseNet(SHALLOW, num_classes=NUM_CLASSES, channels=channels), gain=1.0)


@pytest.mark.parametrize("published", [True, False])
def test_densenet_of_a_torchvision_file_gives_the_activations_of_torch(
    published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published file has names such as `denselayer1.norm.1`, the module `denselayer1.norm1`."""
    module = make_module(monkeypatch)
    names = {name: name for name in module.state_dict()}
    if published:
        names = {
            name: name.replace("norm1.", "norm.1.")
            .replace("norm2.", "norm.2.")
            .replace("conv1.", "conv.1.")
            .replace("conv2.", "conv.2.")
            if "denselayer" in name
            else name
            for name in names
        }
    path = tmp_path / "densenet121.pth"
    torch.save({names[name]: tensor for name, tensor in module.state_dict().items()}, path)

    def outputs(images: np.ndarray) -> Any:
        with torch.no_grad():
            yield from map(torch_parity.as_array, module.stage_outputs(torch_parity.as_batch(images)))

    parity.assert_parity(network("densenet121", NUM_CLASSES), path, "torchvision", (37, 67), outputs)


def test_densenet_of_gray_images_pickled_whole_before_zip_files_gives_the_logits_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchxrayvision publishes its networks: on pixels of -1024..1024."""
    module, model = make_module(monkeypatch, channels=1), network("densenet121", NUM_CLASSES)
    path = tmp_path / "nih.pt"
    with monkeypatch.context() as patch:  # where the classes are when such a file is written
        home: Any = types.ModuleType("torchxrayvision.models")
        patch.setitem(sys.modules, home.__name__, home)
        patch.setitem(sys.modules, "torchxrayvision", types.ModuleType("torchxrayvision"))
        for kind in (DenseNet, DenseBlock, DenseLayer, Transition, torch.nn.Module):
            patch.setattr(kind, "__module__", home.__name__)
            setattr(home, kind.__name__, kind)
        torch.save(module, path, _use_new_zipfile_serialization=False)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 40, 40, 1)).astype(np.float32)
    images = XRV(jnp.asarray(pixels))
    np.testing.assert_allclose(images, (2 * pixels / 255 - 1) * 1024, atol=1e-3)
    variables = parity.load(model, path, "torchvision", np.asarray(images))
    with torch.no_grad():
        theirs = module(torch_parity.as_batch(np.asarray(images))).numpy()
    assert parity.error(jax.jit(model.apply)(variables, images), theirs) < parity.TOLERANCE


def test_gradients_of_densenet_are_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, module = RandomWeights(1).images(1, 37, 37), make_module(monkeypatch)
    model = network("densenet121", NUM_CLASSES)
    variables = parity.load(model, torch_parity.saved(module, tmp_path), "torchvision", images)

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({**variables, "params": params}, images)
        return jnp.sum(jnp.sin(logits))

    ours = jax.jit(jax.grad(loss))(variables["params"])
    torch.sin(module(torch_parity.as_batch(images))).sum().backward()
    parts = module.features
    pairs = {
        "stem": (ours["stem"]["conv1"]["kernel"], parts.conv0.weight),
        "layer": (ours["block1"]["layer2"]["conv1"]["kernel"], parts.denseblock1.denselayer2.conv1.weight),
        "norm": (ours["block1"]["layer2"]["norm1"]["scale"], parts.denseblock1.denselayer2.norm1.weight),
        "transition": (ours["block2"]["transition_conv"]["kernel"], parts.transition2.conv.weight),
        "head": (ours["head"]["dense"]["kernel"], module.classifier.weight),
    }
    errors = {
        name: parity.error(own, other.grad.numpy().transpose(torch_parity.AXES[other.ndim]))
        for name, (own, other) in pairs.items()
    }
    assert max(errors.values()) < parity.GRADIENT_TOLERANCE, errors
