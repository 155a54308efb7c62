"""ConvNeXt and ViT out of files of torchvision, timm and DINOv2, beside modules of PyTorch."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax.models import convnext, vit
from covidjax.weights import positions, torchvision
from covidjax.weights.load import restored
from covidjax.weights.torch_names import DINOV2, KINDS, LINEAR, TIMM_CONVNEXT, VIT
from tests.weights import parity
from tests.weights.parity import RandomWeights, network

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the port is compared with it")
from benchmarks.peers.torch_convnext import ConvNeXt  # noqa: E402 - it needs PyTorch
from benchmarks.peers.torch_vit import ViT  # noqa: E402
from tests.weights.test_parity_torch import as_array, as_batch  # noqa: E402

NUM_CLASSES, COUNTS, FEATURES = 7, (1, 2, 1, 1), (16, 32, 16, 32)
SIZES = {"convnext_tiny": (36, 67), "vit_b16": (48, 48), "vit_b14": (42, 42)}
# kinds of files by the network that each is for
FILES = {
    "torchvision": "convnext_tiny",
    "timm": "convnext_tiny",
    "torchvision, published": "vit_b16",
    "torchvision, renamed": "vit_b16",
    "timm vit": "vit_b16",
    "timm dinov2": "vit_b14",
    "transformers dinov2": "vit_b14",
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of few and narrow blocks."""
    monkeypatch.setitem(convnext.SIZES, "convnext_tiny", convnext.Size(COUNTS, FEATURES))
    for name, size in list(vit.SIZES.items()):
        monkeypatch.setitem(vit.SIZES, name, size._replace(num_blocks=2, features=24, num_heads=3))


def make_module(name: str) -> Any:
    """The module of PyTorch with random weights, scales of branches far from those of a fresh network."""
    if name == "convnext_tiny":
        module: Any = ConvNeXt(COUNTS, FEATURES, num_classes=NUM_CLASSES)
    else:
        patch, scaled, num_blocks, features, heads = vit.SIZES[name]
        sizes = {"num_blocks": num_blocks, "features": features, "heads": heads}
        module = ViT(patch, scaled, image_size=SIZES[name][0], num_classes=NUM_CLASSES, **sizes)
    weights = np.random.default_rng(0)
    with torch.no_grad():
        for tensor in module.parameters():
            shape = tuple(tensor.shape)
            spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) in (2, 4) else 0.5
            values = weights.normal(size=shape) * spread + 0.3 * (len(shape) not in (2, 4))
            tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return module.eval()


def saved(module: Any, model: Any, kind: str, path: Path) -> Path:
    """The module's tensors under the names of another kind of file."""
    tensors = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    own = torchvision.entries(model, tensors)
    if kind in ("timm", "torchvision, published", "torchvision, renamed", "transformers dinov2"):
        leaves = {}
        for entry in own:
            leaves[entry.path] = parity.place(tensors[entry.source], entry.layout, np.float32)
        kinds = {
            "timm": TIMM_CONVNEXT,
            "torchvision, renamed": VIT,
            "torchvision, published": (*VIT, *LINEAR),
            "transformers dinov2": DINOV2,
        }
        mark = next((mark for files in KINDS.values() for mark, rules in files if rules == kinds[kind] and mark), "")
        head = {"timm": "head.fc.weight", "transformers dinov2": "classifier.weight"}.get(kind, "heads.head.weight")
        tensors = restored(torchvision.entries(model, {mark, head}), leaves)
    torch.save({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("kind", FILES)
def test_network_of_a_published_kind_of_file_gives_the_activations_of_torch(kind: str, tmp_path: Path) -> None:
    name = FILES[kind]
    module, model = make_module(name), network(name, NUM_CLASSES)

    def outputs(images: np.ndarray) -> Any:
        with torch.no_grad():
            yield from map(as_array, module.stage_outputs(as_batch(images)))

    parity.assert_parity(model, saved(module, model, kind, tmp_path / "w.pth"), "torchvision", SIZES[name], outputs)


def test_the_token_of_hidden_patches_is_left_and_named() -> None:
    model = network("vit_b14", NUM_CLASSES)
    images = jax.ShapeDtypeStruct((1, 42, 42, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    arrays = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), dict(shapes))
    entries = torchvision.entries(model, {"embeddings.patch_embeddings.projection.weight"})
    tensors = restored(entries, traverse_util.flatten_dict(arrays, sep="/"))
    tensors["embeddings.mask_token"] = np.ones((1, 24), np.float32)
    _, report = parity.fill(arrays, entries, tensors)
    assert report.unused == ("embeddings.mask_token",)
    assert report.new == ("params/head/dense/bias", "params/head/dense/kernel")


def test_names_are_those_of_the_published_files() -> None:
    """Of one layer of each kind, as the sources of torchvision, timm and transformers have them."""
    published = {
        ("convnext_tiny", ""): ("features.1.0.block.3.weight", "features.2.1.bias", "features.3.1.layer_scale"),
        ("convnext_tiny", "stem.0.weight"): (
            "stages.1.downsample.0.weight",
            "stages.1.blocks.1.conv_dw.weight",
            "stages.0.blocks.0.gamma",
        ),
        ("vit_b16", ""): (
            "class_token",
            "encoder.pos_embedding",
            "encoder.layers.encoder_layer_1.self_attention.in_proj_weight",
            "encoder.layers.encoder_layer_0.self_attention.out_proj.bias",
            "encoder.layers.encoder_layer_0.ln_2.weight",
            "encoder.ln.bias",
        ),
        ("vit_b14", ""): ("cls_token", "blocks.1.attn.qkv.bias", "blocks.0.ls2.gamma", "norm.weight"),
        ("vit_b14", "embeddings.patch_embeddings.projection.weight"): (
            "embeddings.cls_token",
            "embeddings.position_embeddings",
            "encoder.layer.0.attention.attention.key.weight",
            "encoder.layer.1.attention.output.dense.bias",
            "encoder.layer.0.layer_scale1.lambda1",
            "layernorm.weight",
        ),
        ("vit_b14", "encoder.layer.0.attention.q_proj.weight"): (
            "encoder.layer.1.attention.v_proj.bias",
            "encoder.layer.0.attention.o_proj.weight",
            "encoder.layer.0.mlp.fc2.weight",
        ),
    }
    for (name, mark), expected in published.items():
        found = {entry.source for entry in torchvision.entries(network(name, NUM_CLASSES), {mark})}
        assert set(expected) <= found


@pytest.mark.parametrize(("before", "after"), [(37, 16), (14, 24), (5, 3)])
@pytest.mark.parametrize("way", positions.WAYS.values(), ids=str)
def test_positions_are_resized_as_torch_does(before: int, after: int, way: positions.Way) -> None:
    embeddings = np.random.default_rng(0).normal(size=(1, 1 + before**2, 8)).astype(np.float32)
    grid = torch.from_numpy(embeddings[:, 1:].reshape(1, before, before, 8).transpose(0, 3, 1, 2).copy())
    options = {"align_corners": way.align_corners, "antialias": way.antialias}
    wanted = torch.nn.functional.interpolate(grid, size=(after, after), mode="bicubic", **options).numpy()
    found = positions.resized(embeddings, after, way)
    np.testing.assert_array_equal(found[:, 0], embeddings[:, 0])
    np.testing.assert_allclose(
        found[0, 1:].T.reshape(8, after, after), wanted[0], atol=5e-5
    )  # PyTorch works in float32


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b14"])
def test_gradients_are_those_of_torch(name: str, tmp_path: Path) -> None:
    module, model = make_module(name), network(name, NUM_CLASSES)
    images = RandomWeights(1).images(1, *SIZES[name])
    variables = parity.load(model, saved(module, model, "own", tmp_path / "w.pth"), "torchvision", images)

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({**variables, "params": params}, images)
        return jnp.sum(jnp.sin(logits))

    ours = jax.jit(jax.grad(loss))(variables["params"])
    torch.sin(module(as_batch(images))).sum().backward()
    theirs = {name: tensor.grad.numpy() for name, tensor in module.named_parameters()}
    leaves = traverse_util.flatten_dict({"params": ours}, sep="/")
    found = restored(torchvision.entries(model, theirs), leaves)
    errors = {name: parity.error(found[name], theirs[name]) for name in theirs if np.std(theirs[name]) > 1e-6}
    assert len(errors) > 0.8 * len(theirs) and max(errors.values()) < parity.GRADIENT_TOLERANCE, errors
