"""The names and shapes in published weight files, as digests: a wrong name map fails here without a download.

What the digests are of: for torchvision, the `state_dict` of the rebuild in `benchmarks/peers/torch_networks.py`,
whose names are written after torchvision's; for Keras, the layers of `keras.applications` (3.15.1), named and ordered
as a legacy `.h5` stores them. No published file was read. Whether those two still say the same is a test of its own,
for machines that have PyTorch or Keras.
"""

import hashlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax.errors import UserError
from covidjax.models.layers import Staged
from covidjax.models.resnet import BOTTLENECK, LAYERS
from covidjax.weights.foreign import COUNTERS
from covidjax.weights.load import Entry, arrange
from tests.weights.parity import entries_for, network

# (format, network): tensors without counters, trained parameters, statistics, half of the SHA-256 over the sorted lines
# "name shape". The pages of torchvision print the parameters, those of Keras their sum with the statistics.
MANIFEST = {
    ("torchvision", "resnet18"): (102, 11_689_512, 9_600, "80792f24e335f198da2026579a542950"),
    ("torchvision", "resnet34"): (182, 21_797_672, 17_024, "a677c9bb4d7afdda5fdc675aec32973b"),
    ("torchvision", "resnet50"): (267, 25_557_032, 53_120, "c092c1e765beaab72bbb1be050f33f2f"),
    ("torchvision", "resnet101"): (522, 44_549_160, 105_344, "f453f353d7c60358a9a011ee66b40ace"),
    ("torchvision", "resnet152"): (777, 60_192_808, 151_424, "f97d293684ef84f558977584953aea4c"),
    ("torchvision", "vgg16"): (32, 138_357_544, 0, "d0503fffc73cd7a11dd0ea5f62df59d6"),
    ("keras", "vgg16"): (32, 138_357_544, 0, "95b303858f504819ae68e96c58a0a93f"),
    ("keras", "resnet50"): (320, 25_583_592, 53_120, "cc9d8b9bf2b65049bc8b1e799548508b"),
    ("keras", "resnet101"): (626, 44_601_832, 105_344, "8412feb6884a3850e33b655583cb9eb4"),
    ("keras", "resnet152"): (932, 60_268_520, 151_424, "1e6b236978ffc5963046932a18858fdd"),
    ("keras", "resnet50v2"): (272, 25_568_360, 45_440, "714beb1cd0839d0cce981059584319e8"),
    ("keras", "resnet101v2"): (544, 44_577_896, 97_664, "255a4e09e0a7db4022368bf88b93efd0"),
    ("keras", "resnet152v2"): (816, 60_236_904, 143_744, "2e4fdc797b44888f6172a018fab87aa1"),
}
DEEP = ("resnet101", "resnet152", "resnet101v2", "resnet152v2")


def assert_published(source_format: str, name: str, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    lines = sorted(f"{tensor} {','.join(map(str, shape))}" for tensor, shape in shapes)
    count, *_, digest = MANIFEST[source_format, name]
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]) == (count, digest)


def network_of(source_format: str, name: str) -> Staged:
    return network(name, 1000, arrangement="keras" if source_format == "keras" else "torchvision")


def leaves_of(model: Staged) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(shapes), sep="/").items()}


def shape_in_file(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    if entry.layout == "conv_oihw":
        return (shape[3], shape[2], shape[0], shape[1])
    return shape if entry.layout == "same" else shape[::-1]


@pytest.mark.parametrize(
    ("source_format", "name"), [pytest.param(*key, marks=[pytest.mark.slow] * (key[1] in DEEP)) for key in MANIFEST]
)
def test_network_has_the_parameters_of_the_published_file_and_their_names(source_format: str, name: str) -> None:
    model = network_of(source_format, name)
    leaves, entries = leaves_of(model), entries_for(source_format, model)
    sizes = {
        kind: sum(int(np.prod(shape)) for path, shape in leaves.items() if path.startswith(kind))
        for kind in ("params", "batch_stats")
    }
    assert tuple(sizes.values()) == MANIFEST[source_format, name][1:3]
    assert sorted(entry.path for entry in entries) == sorted(leaves)
    shapes = ((entry.source, shape_in_file(entry, leaves[entry.path])) for entry in entries)
    assert_published(source_format, name, shapes)


@pytest.mark.parametrize("name", [name for source_format, name in MANIFEST if source_format == "torchvision"])
def test_manifest_is_that_of_the_torch_rebuild(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.peers import torch_networks as reference  # noqa: PLC0415 - it needs PyTorch

    with torch.device("meta"):
        vgg = name == "vgg16"
        module = reference.VGG16() if vgg else reference.ResNet(LAYERS[name], bottleneck=name in BOTTLENECK)
    state = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items() if not key.endswith(COUNTERS)}
    assert_published("torchvision", name, state.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for source_format, name in MANIFEST if source_format == "keras"])
def test_manifest_is_that_of_keras_applications(name: str) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    class_name = name.upper() if name == "vgg16" else name.replace("resnet", "ResNet").replace("v2", "V2")
    model = getattr(keras.applications, class_name)(weights=None)
    shapes = (
        (f"{layer.name}/{index}", tuple(weight.shape))
        for layer in model.layers
        for index, weight in enumerate([*layer.trainable_weights, *layer.non_trainable_weights])
    )
    assert_published("keras", name, shapes)


def test_head_of_vgg16_is_the_same_function_in_torchvision_and_in_timm() -> None:
    """fc1 reads the map as channel, height, width; timm keeps fc1 and fc2 as convolutions. Here with few outputs."""
    random, model = np.random.default_rng(0), network("vgg16", 1000)
    map_, kernel = random.normal(size=(2, 7, 7, 512)), random.normal(size=(3, 512, 7, 7))
    logits = np.einsum("bhwc,ochw->bo", map_, kernel)
    timm_names = [
        f"{layer}.{leaf}" for layer in ("pre_logits.fc1", "pre_logits.fc2", "head.fc") for leaf in ("weight", "bias")
    ]
    for names, tensor, source in (
        (None, kernel.reshape(3, -1), "classifier.0.weight"),
        (timm_names, kernel, "pre_logits.fc1.weight"),
    ):
        entries = {entry.path: entry for entry in entries_for("timm", model, names)}
        entry = entries["params/head/dense1/kernel"]
        assert entry.source == source
        np.testing.assert_allclose(map_.reshape(2, -1) @ arrange(tensor, entry.layout), logits, rtol=1e-9)
    assert [entry.source for path, entry in entries.items() if "head" in path] == timm_names
    assert arrange(np.ones((4, 5, 1, 1)), entries["params/head/dense2/kernel"].layout).shape == (5, 4)
    assert arrange(np.ones((4, 5)), entries["params/head/dense3/kernel"].layout).shape == (5, 4)


@pytest.mark.parametrize(
    ("source_format", "name", "arrangement"),
    [
        ("torchvision", "resnet50", "keras"),
        ("torchvision", "resnet50v2", "torchvision"),
        ("torchvision", "cnn", "torchvision"),
        ("keras", "resnet50", "torchvision"),
        ("keras", "cnn", "torchvision"),
    ],
)
def test_network_that_a_format_has_no_names_for_is_refused(source_format: str, name: str, arrangement: str) -> None:
    with pytest.raises(UserError):
        entries_for(source_format, network(name, 3, arrangement=arrangement))
