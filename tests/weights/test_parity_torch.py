from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from covidjax.models.resnet import BOTTLENECK, LAYERS
from tests.weights import parity
from tests.weights.parity import RandomWeights, network

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the port is compared with it")
from benchmarks.peers import torch_networks as reference  # noqa: E402 - it needs PyTorch

NUM_CLASSES = 7
SMALL, ODD, FULL = (37, 67), (97, 107), (224, 224)
SHALLOW = (2, 1, 1, 1)
AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # of a weight, as ours are


def randomise(module: Any, gain: float) -> Any:
    """The module with random weights and statistics, in evaluation mode."""
    weights = RandomWeights(0, gain)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                targets = [part.weight, part.bias, part.running_mean, part.running_var]
                values = [*weights.norm(part.num_features)]
            elif isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                shape = tuple(part.weight.shape)
                targets = [part.weight, part.bias]
                values = [weights.kernel(shape, int(np.prod(shape[1:]))), weights.bias(shape[0])]
            else:
                continue
            for target, value in zip(targets, values, strict=True):
                if target is not None:
                    target.copy_(torch.from_numpy(value))
    return module.eval()


def as_batch(images: np.ndarray) -> Any:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def as_array(tensor: Any) -> np.ndarray:
    values = tensor.detach().numpy()
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values


def resnet(name: str, num_blocks: tuple[int, ...] = ()) -> Any:
    module = reference.ResNet(num_blocks or LAYERS[name], bottleneck=name in BOTTLENECK, num_classes=NUM_CLASSES)
    return randomise(module, gain=0.7)


def saved(module: Any, folder: Path, suffix: str = ".pth") -> Path:
    path = folder / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(module.state_dict(), path)
    else:
        save_file({name: tensor.numpy() for name, tensor in module.state_dict().items()}, path)
    return path


def assert_parity(model: Any, module: Any, size: tuple[int, int], path: Path) -> None:
    def outputs(images: np.ndarray) -> Iterator[np.ndarray]:
        with torch.no_grad():
            yield from map(as_array, module.stage_outputs(as_batch(images)))

    parity.assert_parity(model, path, "torchvision", size, outputs)


@pytest.mark.parametrize(
    ("name", "num_blocks", "size", "suffix"),
    [
        ("resnet18", (), SMALL, ".pth"),
        ("resnet50", SHALLOW, SMALL, ".safetensors"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("resnet18", (), FULL, ".safetensors"),
                ("resnet34", (), ODD, ".pth"),
                ("resnet50", (), FULL, ".safetensors"),
                ("resnet101", (), (197, 211), ".pth"),
            )
        ),
    ],
)
def test_resnet_of_a_torch_file_gives_the_activations_of_torch(
    name: str, num_blocks: tuple[int, ...], size: tuple[int, int], suffix: str, tmp_path: Path
) -> None:
    module = resnet(name, num_blocks)
    assert_parity(network(name, NUM_CLASSES, num_blocks), module, size, saved(module, tmp_path, suffix))


@pytest.mark.parametrize("size", [SMALL, pytest.param(FULL, marks=pytest.mark.slow)])
def test_vgg16_of_a_pth_file_gives_the_activations_of_torch(size: tuple[int, int], tmp_path: Path) -> None:
    """At the small size without the head, whose flatten fits 224 pixels only."""
    module = randomise(reference.VGG16(NUM_CLASSES, with_head=size == FULL), gain=1.0)
    model = network("vgg16", NUM_CLASSES, head="original" if size == FULL else "paper")
    assert_parity(model, module, size, saved(module, tmp_path))


def test_gradients_are_those_of_torch(tmp_path: Path) -> None:
    images, target = RandomWeights(1).images(1, *SMALL), 3
    module, model = resnet("resnet18", SHALLOW), network("resnet18", NUM_CLASSES, SHALLOW)
    variables = parity.load(model, saved(module, tmp_path), "torchvision", images)

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({**variables, "params": params}, images)
        return -jnp.mean(jax.nn.log_softmax(logits)[:, target])

    ours = jax.jit(jax.grad(loss))(variables["params"])
    (-torch.log_softmax(module(as_batch(images)), 1)[:, target].mean()).backward()
    pairs = {
        "stem conv1": (ours["stem"]["conv1"]["kernel"], module.conv1.weight),
        "layer3 shortcut": (ours["layer3"]["block1"]["shortcut_conv"]["kernel"], module.layer3[0].downsample[0].weight),
        "layer4 norm2": (ours["layer4"]["block1"]["norm2"]["scale"], module.layer4[0].bn2.weight),
        "head": (ours["head"]["dense"]["kernel"], module.fc.weight),
    }
    errors = {
        name: parity.error(own, other.grad.numpy().transpose(AXES[other.ndim])) for name, (own, other) in pairs.items()
    }
    assert max(errors.values()) < parity.GRADIENT_TOLERANCE, errors
