from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import AxisType
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from covidjax.errors import UserError
from covidjax.evaluate import network as evaluate
from covidjax.freeze.flops import count
from covidjax.models.layers import Conv, Staged
from covidjax.models.preprocessing import CAFFE, IMAGENET, SYMMETRIC, Preprocessing, fold_kernel, folded, unit
from covidjax.runs.train import train
from covidjax.weights import inputs
from covidjax.weights.catalog import CATALOG
from covidjax.weights.fetch import Fetched
from covidjax.weights.start import InitialVariables, initial_variables
from covidjax.weights.workdir import load_trained
from tests.commands import user_error
from tests.support import make_model, make_preprocessing, small_config
from tests.weights.made_files import invented, write

TINY = {"model__width": 2, "model__num_blocks": 2, "dataset__image_size": 16, "dataset__num_images": 12}
FAMILIES = [IMAGENET, CAFFE, SYMMETRIC]


def cnn_config(**changes: Any) -> ConfigDict:
    return small_config("cnn", **TINY | changes)


def write_own(path: Path, variables: Any, header: dict[str, str] | None = None) -> Path:
    leaves = traverse_util.flatten_dict(variables, sep="/")
    save_file({name: np.asarray(leaf) for name, leaf in leaves.items()}, path, header)
    return path


def begin_of(config: ConfigDict, num_classes: int = 3) -> InitialVariables:
    return initial_variables(config, make_model(config, num_classes), (16, 16, config.dataset.channels))


def gray_images(count: int = 2, size: int = 32, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)


def logits(model: Staged, variables: Any, preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1])
    return evaluate.predict(evaluate.make_forward(model, preprocessing, mesh), variables, images, 2, mesh)


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = invented(make_model(small_config("resnet18"), 3), "torchvision")
    return write(tmp_path_factory.mktemp("weights") / "w.safetensors", tensors)


@pytest.fixture(scope="module")
def cnn_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted file: our names, and the preprocessing of three channels in its header."""
    config = cnn_config(dataset__channels=3, seed=7)
    path = tmp_path_factory.mktemp("own") / "w.safetensors"
    return write_own(path, begin_of(config).variables, {"preprocessing": inputs.encode(IMAGENET)})


def test_families_normalise_as_their_libraries_do_and_replicate_gray_images_first() -> None:
    pixels, gray = gray_images(channels=3).astype(np.float32), jnp.asarray(gray_images(), jnp.float32)
    expected = {
        IMAGENET: (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        CAFFE: pixels[..., ::-1] - np.asarray([103.939, 116.779, 123.68]),
        SYMMETRIC: pixels / 127.5 - 1,
    }
    for preprocessing, wanted in expected.items():
        assert np.allclose(preprocessing(jnp.asarray(pixels)), wanted, atol=1e-4)
        np.testing.assert_array_equal(preprocessing(gray), preprocessing(jnp.repeat(gray, 3, -1)))


@pytest.mark.parametrize("preprocessing", FAMILIES)
def test_folded_convolution_equals_the_replicated_one_also_at_the_border(preprocessing: Preprocessing) -> None:
    gray = jnp.asarray(gray_images(size=21), jnp.float32)
    conv = Conv(8, 7, strides=2, padding=3, use_bias=True)
    kernel = jax.random.normal(jax.random.key(0), (7, 7, 3, 8))
    bias = jax.random.normal(jax.random.key(1), (8,))
    wanted = np.asarray(conv.apply({"params": {"kernel": kernel, "bias": bias}}, preprocessing(gray)))
    narrow = fold_kernel(kernel, preprocessing)
    found = np.asarray(conv.apply({"params": {"kernel": narrow, "bias": bias}}, folded(preprocessing)(gray)))
    assert narrow.shape[2] == (1 if preprocessing == SYMMETRIC else 2)  # equal means need no image of ones
    assert np.max(np.abs(found - wanted)) < 1e-5 * np.max(np.abs(wanted))


def test_folded_stem_costs_a_third_of_the_replicated_one() -> None:
    def flops(preprocessing: Preprocessing) -> float:
        conv = Conv(64, 7, strides=2, padding=3)
        images = preprocessing(jnp.zeros((16, 32, 32, 1)))
        variables = conv.init(jax.random.key(0), images)
        return count(conv.apply, variables, images)

    assert flops(folded(IMAGENET)) < 0.37 * flops(IMAGENET)  # a third, and the image of ones: 1/16 of another


@pytest.mark.parametrize(("chosen", "expected"), [("auto", IMAGENET), ("unit", unit(IMAGENET))])
def test_stems_and_equal_channels_give_the_same_logits(cnn_file: Path, chosen: str, expected: Preprocessing) -> None:
    gray, found = gray_images(size=16), []
    for stem, images in (("replicate", gray), ("fold", gray), ("replicate", np.repeat(gray, 3, -1))):
        changes = {"preprocessing": chosen, "model__stem": stem, "dataset__channels": images.shape[-1]}
        config = cnn_config(pretrained=str(cnn_file), **changes)
        model = make_model(config)
        begin = initial_variables(config, model, images.shape[1:])
        assert begin.preprocessing == (folded(expected) if stem == "fold" else expected)
        found.append(logits(model, begin.variables, begin.preprocessing, images))
    for other in found[1:]:
        assert np.max(np.abs(other - found[0])) < 1e-5 * np.max(np.abs(found[0]))


def test_new_head_or_scale_of_its_features_is_named_and_the_same_as_a_fresh_one(cnn_file: Path) -> None:
    begin = begin_of(cnn_config(pretrained=str(cnn_file)), 5)
    weights, preprocessing = begin.notes
    assert "newly initialised: params/head/dense/bias, params/head/dense/kernel" in weights
    assert "unused tensors: params/head/dense/bias, params/head/dense/kernel" in weights
    assert "0.485" in preprocessing
    fresh, found = begin_of(cnn_config(), 5).variables["params"], begin.variables["params"]
    assert np.array_equal(found["head"]["dense"]["kernel"], fresh["head"]["dense"]["kernel"])
    assert not np.array_equal(found["block1"]["conv"]["kernel"], fresh["block1"]["conv"]["kernel"])

    begin = begin_of(cnn_config(pretrained=str(cnn_file), model__normalised_features=True))
    assert "newly initialised: params/head/scale" in begin.notes[0] and "unused" not in begin.notes[0]
    assert begin.variables["params"]["head"]["scale"] == 2.0  # of four features


def test_file_of_another_network_is_refused_with_its_name(resnet18_file: Path) -> None:
    for name in ("resnet34", "vgg16", "cnn"):
        config = small_config(name, pretrained=str(resnet18_file))
        message = user_error(initial_variables, config, make_model(config), (32, 32, 3))
        assert str(resnet18_file) in message


def test_three_channel_images_under_one_channel_weights_are_refused_with_both_shapes(tmp_path: Path) -> None:
    narrow = write_own(tmp_path / "w.safetensors", begin_of(cnn_config()).variables)
    with pytest.raises(UserError, match=r"\[3, 3, 1, 2\].*\[3, 3, 3, 2\]"):
        begin_of(cnn_config(pretrained=str(narrow), dataset__channels=3))


@pytest.mark.parametrize(
    ("identifier", "model", "words"),
    [
        ("torchvision/resnet50", "resnet18", "config.model.name is 'resnet18': set it to 'resnet50'"),
        ("keras/resnet50", "resnet50", "set config.model.arrangement to 'keras'"),
        ("keras/resnet51", "resnet50", "keras/resnet50"),
        ("weights/resnet50.h5", "resnet50", "there is no weight file"),
        ("weights/resnet50.safetensors", "resnet50", "there is no file "),
    ],
)
def test_wrong_name_in_pretrained_says_what_to_set(identifier: str, model: str, words: str) -> None:
    config = small_config(model, pretrained=identifier)
    with pytest.raises(UserError, match=words):
        initial_variables(config, make_model(config), (32, 32, 3))


def test_published_weights_bring_preprocessing_and_licence(
    resnet18_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("covidjax.weights.start.fetch", lambda source, folder: Fetched(resnet18_file, "f00d", "r3v"))
    config = small_config("resnet18", pretrained="timm/resnet18.a1_in1k")
    begin = initial_variables(config, make_model(config), (32, 32, 3))
    assert begin.preprocessing == CATALOG["timm/resnet18.a1_in1k"].preprocessing
    assert any("timm/resnet18.a1_in1k (Apache-2.0, revision r3v, SHA-256 f00d)" in note for note in begin.notes)


@pytest.mark.parametrize(
    ("pretrained", "model", "wanted"),
    [
        ("keras/resnet50", "resnet50", CAFFE),
        ("keras/resnet50v2", "resnet50v2", SYMMETRIC),
        ("w.h5", "vgg16", CAFFE),
        ("w.weights.h5", "resnet101v2", SYMMETRIC),
        ("w.pth", "resnet18", IMAGENET),
        ("", "cnn", Preprocessing()),
    ],
)
def test_preprocessing_follows_from_the_config_alone(pretrained: str, model: str, wanted: Preprocessing) -> None:
    assert make_preprocessing(small_config(model, pretrained=pretrained)) == wanted


def test_another_preprocessing_than_that_of_the_weights_is_told(cnn_file: Path) -> None:
    begin = begin_of(cnn_config(pretrained=str(cnn_file), preprocessing="unit"))
    own = begin_of(cnn_config(pretrained=str(cnn_file)))
    assert begin.preprocessing == unit(IMAGENET)
    np.testing.assert_allclose(begin.preprocessing(jnp.full((1, 1, 1, 1), 51.0)), np.full((1, 1, 1, 3), 0.2), rtol=1e-6)
    assert f"differs from that of the weights, which is {IMAGENET}" in begin.notes[1]
    assert "differs" not in own.notes[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, begin.variables, own.variables))


def test_preprocessing_follows_chains_of_runs_and_is_that_of_a_restored_network(cnn_file: Path, tmp_path: Path) -> None:
    first = cnn_config(pretrained=str(cnn_file), model__stem="fold", batch_size=4, epochs=1)
    train(first, tmp_path / "first")
    trained = load_trained(tmp_path / "first", "latest")
    assert trained.preprocessing == folded(IMAGENET)
    begin = begin_of(cnn_config(pretrained=str(tmp_path / "first" / "checkpoints" / str(trained.step))))
    assert begin.preprocessing == folded(IMAGENET)
    assert jax.tree.all(jax.tree.map(np.array_equal, begin.variables, trained.variables))
