"""Grad-CAM on the same weights is that of PyTorch by hand, of pytorch-grad-cam and of captum."""

import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.evaluate.explain import grad_cam
from tests.weights import parity
from tests.weights.parity import RandomWeights, network

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the maps are compared with its own")
from tests.evaluate.torch_classifier import Classifier  # noqa: E402 - it needs PyTorch
from tests.weights.test_parity_torch import (  # noqa: E402 - it needs PyTorch
    NUM_CLASSES,
    SHALLOW,
    as_batch,
    randomise,
    reference,
    resnet,
    saved,
)

NO_PEER = "{} is not installed: pip install --no-deps grad-cam captum ttach opencv-python-headless tqdm"


def both(name: str, folder: Path) -> tuple[np.ndarray, Any, Any, np.ndarray]:
    """Our maps of the last stage before the head, PyTorch's network, its batch, and the classes."""
    if name == "vgg16":
        module = randomise(reference.VGG16(NUM_CLASSES), gain=1.0)
        model, stage, images = (
            network(name, NUM_CLASSES, head="original"),
            "block5",
            RandomWeights(1).images(2, 224, 224),
        )
    else:
        blocks = SHALLOW if name == "shallow" else ()
        module, model = resnet("resnet18", blocks), network("resnet18", NUM_CLASSES, blocks)
        stage, images = "layer4", RandomWeights(1).images(2, 67, 97)
    variables = parity.load(model, saved(module, folder), "torchvision", images)
    classes = np.array([1, 2] if name == "shallow" else [3, 0])  # for which something speaks
    run = jax.jit(lambda images: grad_cam(model, lambda x: x, variables, images, jnp.asarray(classes), stage))  # type: ignore[arg-type]
    return np.asarray(run(images)), Classifier(module).eval(), as_batch(images), classes


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def pair(name: str) -> Any:
        if name not in made:
            made[name] = both(name, tmp_path_factory.mktemp(name))
        return made[name]

    return pair


NAMES = ("shallow", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vgg16")))
FULL = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vgg16"))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_hooks_in_torch(pairs: Any, name: str) -> None:
    ours, module, batch, classes = pairs(name)
    seen: dict[str, Any] = {}

    def keep(_: Any, __: Any, output: Any) -> None:
        output.retain_grad()
        seen["map"] = output

    hook = module.map.register_forward_hook(keep)
    module(batch)[range(len(classes)), classes].sum().backward()
    hook.remove()
    flowing, gradient = seen["map"].detach().numpy(), seen["map"].grad.numpy()
    theirs = np.maximum((flowing * gradient.mean((2, 3), keepdims=True)).sum(1), 0)
    assert parity.error(ours, theirs) < parity.TOLERANCE


@pytest.mark.parametrize("name", FULL)
def test_maps_are_those_of_pytorch_grad_cam(pairs: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module_name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        unused = types.ModuleType(module_name)  # it imports four names of these, and needs none of them here
        unused.__dict__.update(dict.fromkeys(("Compose", "Normalize", "ToTensor", "resize")))
        monkeypatch.setitem(sys.modules, module_name, unused)
    peer = pytest.importorskip("pytorch_grad_cam", reason=NO_PEER.format("pytorch-grad-cam"))
    image = pytest.importorskip("pytorch_grad_cam.utils.image")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    ours, module, batch, classes = pairs(name)
    with peer.GradCAM(model=module, target_layers=[module.map]) as cam:
        theirs = cam(input_tensor=batch, targets=[targets.ClassifierOutputTarget(int(label)) for label in classes])
    # The peer scales each map to 0..1, enlarges it, and scales it again: ours goes the same way.
    scaled = image.scale_cam_image(image.scale_cam_image(ours, (batch.shape[3], batch.shape[2])))
    assert parity.error(scaled, theirs) < parity.TOLERANCE


@pytest.mark.parametrize("name", FULL)
def test_maps_are_those_of_captum(pairs: Any, name: str) -> None:
    attr = pytest.importorskip("captum.attr", reason=NO_PEER.format("captum"))
    ours, module, batch, classes = pairs(name)
    theirs = attr.LayerGradCam(module, module.map).attribute(
        batch, target=torch.from_numpy(classes), relu_attributions=True
    )
    assert parity.error(ours, theirs.detach().numpy()[:, 0]) < parity.TOLERANCE
