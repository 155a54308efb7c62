"""Runs start from files as they are published: of DINOv2 at another image size, of torchxrayvision for gray images."""

from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from covidjax.models.preprocessing import IMAGENET, XRV
from covidjax.weights import positions, torchvision
from covidjax.weights.catalog import CATALOG
from covidjax.weights.load import restored
from covidjax.weights.start import initial_variables
from tests.commands import user_error
from tests.support import make_model, make_variables, small_config

pytestmark = pytest.mark.usefixtures("few_blocks")
torch = pytest.importorskip("torch", reason="PyTorch is not installed: it writes the files")
DINOV2 = "embeddings.patch_embeddings.projection.weight"


def tensors_of(name: str, size: int, channels: int, mark: str = "") -> dict[str, np.ndarray]:
    """A file of the backbone with random weights."""
    model = make_model(small_config(name))
    leaves = traverse_util.flatten_dict(make_variables(model, size, channels), sep="/")
    return restored(torchvision.entries(model, {mark}), leaves)


def test_vit_of_dinov2_starts_at_another_size_with_its_positions_resized_and_a_new_head(tmp_path: Path) -> None:
    tensors = tensors_of("vit_b14", 70, 3, DINOV2)
    tensors["embeddings.mask_token"] = np.ones((1, 12), np.float32)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    config = small_config("vit_b14", pretrained=str(tmp_path / "w.safetensors"), dataset__channels=1)
    begin = initial_variables(config, make_model(config), (42, 42, 1))
    way = positions.WAYS["embeddings.position_embeddings"]
    wanted = positions.resized(tensors["embeddings.position_embeddings"], 3, way)
    np.testing.assert_array_equal(begin.variables["params"]["stem"]["position"], wanted)
    query = tensors["encoder.layer.1.attention.attention.query.weight"]
    np.testing.assert_array_equal(begin.variables["params"]["block2"]["attention"]["query"]["kernel"], query.T)
    assert begin.preprocessing == IMAGENET
    assert "5 x 5 positions resized to 3 x 3, bicubic" in begin.notes[0]
    assert "unused tensors: embeddings.mask_token" in begin.notes[0] and "head/dense/kernel" in begin.notes[0]


def test_one_tensor_of_query_key_and_value_fills_three_arrays(tmp_path: Path) -> None:
    tensors = tensors_of("vit_b16", 32, 3)
    torch.save({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}, tmp_path / "w.pth")
    config = small_config("vit_b16", pretrained=str(tmp_path / "w.pth"), dataset__channels=1)
    attention = initial_variables(config, make_model(config), (32, 32, 1)).variables["params"]["block1"]["attention"]
    together = tensors["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]
    for index, role in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(attention[role]["kernel"], together[12 * index : 12 * (index + 1)].T)


@pytest.mark.parametrize("named", ["xrv/densenet121-res224-nih", "a path"])
def test_network_of_torchxrayvision_takes_gray_pixels_of_its_own_scale(named: str, tmp_path: Path) -> None:
    """By its id from the cache folder, and as a local file, whose name tells what it is."""
    source = CATALOG["xrv/densenet121-res224-nih"]
    tensors = tensors_of("densenet121", 32, 1)
    path = tmp_path / "weights" / source.file_name
    path.parent.mkdir()
    torch.save({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}, path)
    named = str(path) if named == "a path" else named
    config = small_config("densenet121", pretrained=named, dataset__channels=1, dataset__cache_dir=str(tmp_path))
    begin = initial_variables(config, make_model(config), (32, 32, 1))
    assert begin.preprocessing == XRV
    stem = begin.variables["params"]["stem"]["conv1"]["kernel"]
    np.testing.assert_array_equal(stem, tensors["features.conv0.weight"].transpose(2, 3, 1, 0))
    with config.unlocked():
        config.dataset.channels = 3
    assert "set config.dataset.channels to 1" in user_error(initial_variables, config, make_model(config), (32, 32, 3))
