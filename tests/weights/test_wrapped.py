"""Right weights are read from whatever training code, compilers and larger models put around them, and it is said."""

import argparse
import collections
import json
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest

from covidjax.models.preprocessing import IMAGENET
from covidjax.weights import files
from covidjax.weights.start import InitialVariables, initial_variables
from launch import convert
from tests.commands import call, user_error
from tests.support import make_model, small_config
from tests.weights.made_files import invented, write, write_checkpoint

pytestmark = pytest.mark.usefixtures("few_blocks")


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return invented(make_model(small_config("resnet18")), "torchvision")


def start(path: Path, name: str = "resnet18", channels: int = 3) -> InitialVariables:
    arrangement = "keras" if path.name.endswith(".h5") else "torchvision"
    config = small_config(name, pretrained=str(path), model__arrangement=arrangement, dataset__channels=channels)
    return initial_variables(config, make_model(config), (32, 32, channels))


def assert_read(begin: InitialVariables, tensors: dict[str, np.ndarray], *words: str) -> None:
    params = begin.variables["params"]
    found = params["layer4"]["block1"]["conv2"]["kernel"]
    wanted = tensors["layer4.0.conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(params["head"]["dense"]["kernel"], tensors["fc.weight"].T)
    assert "every parameter filled" in begin.notes[0]
    for word in words:
        assert word in begin.notes[0], begin.notes[0]


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module._orig_mod.model.", "_orig_mod.net.backbone."],
)
def test_prefixes_are_cut_and_told(tmp_path: Path, tensors: dict[str, np.ndarray], prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
    assert_read(start(write(tmp_path / "w.safetensors", wrapped)), tensors, f"read without the prefix '{prefix}'")


def test_a_compiled_part_inside_is_no_other_network(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    wrapped = {name.replace("layer4.", "layer4._orig_mod."): tensor for name, tensor in tensors.items()}
    assert_read(start(write(tmp_path / "w.safetensors", wrapped)), tensors)


def test_modules_beside_the_prefix_are_left_and_named(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    wrapped = {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    wrapped["decoder.blocks.0.conv1.weight"] = np.ones((4, 4, 3, 3), np.float32)
    assert_read(start(write(tmp_path / "w.pth", wrapped)), tensors, "unused tensors: decoder.blocks.0.conv1.weight")


OPTIMIZER = {"state": {0: {"exp_avg": np.ones(3, np.float32)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
CHECKPOINTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "model": ({"model": "NETWORK", "optimizer": OPTIMIZER, "epoch": 3}, ("tensors of ['model']", "optimizer, epoch")),
    "state_dict": ({"state_dict": "NETWORK", "best_acc1": np.ones((), np.float32)}, ("tensors of ['state_dict']",)),
    "model_state_dict": ({"model_state_dict": "NETWORK", "loss": 0.5}, ("tensors of ['model_state_dict']",)),
    "nested": ({"checkpoint": {"model": "NETWORK", "optim": OPTIMIZER}}, ("tensors of ['checkpoint']['model']",)),
    "average": (
        {"model": "NETWORK", "model_ema": {"module.conv1.weight": np.ones((64, 3, 7, 7), np.float32)}},
        ("tensors of ['model']", "not its average model_ema"),
    ),
    "average alone": ({"state_dict_ema": "NETWORK", "epoch": 1}, ("tensors of ['state_dict_ema']",)),
    "arguments": ({"model": "NETWORK", "args": argparse.Namespace(lr=0.1)}, ("tensors of ['model']", "args")),
    "lightning": (
        {
            "epoch": 1,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": "NETWORK",
            "callbacks": {"best": {"score": np.ones((), np.float32)}},
            "optimizer_states": [OPTIMIZER],
            "lr_schedulers": [{"milestones": collections.Counter([30, 60])}],
            "hyper_parameters": {"lr": 0.1, "layers": [1, 2]},
        },
        ("tensors of ['state_dict']", "hyper_parameters"),
    ),
}


def filled(saved: Any, network: Any) -> Any:
    if isinstance(saved, dict):
        return {key: filled(value, network) for key, value in saved.items()}
    return network if isinstance(saved, str) and saved == "NETWORK" else saved


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_trainings_are_opened_and_told(
    tmp_path: Path, tensors: dict[str, np.ndarray], name: str
) -> None:
    saved, words = CHECKPOINTS[name]
    network = collections.OrderedDict((f"model.{key}", tensor) for key, tensor in tensors.items())
    path = write_checkpoint(tmp_path / ("w.ckpt" if name == "lightning" else "w.pth"), filled(saved, network))
    assert_read(start(path), tensors, *words, "read without the prefix 'model.'")


def test_a_moving_average_beside_is_left_and_two_networks_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    def twice(other: str) -> Path:
        both = {f"{prefix}.{name}": array for prefix in ("model", other) for name, array in tensors.items()}
        return write(tmp_path / f"{other}.safetensors", both)

    assert_read(start(twice("model_ema")), tensors, "without the prefix 'model.'", "not the average below 'model_ema.'")
    assert "2 times: below 'model.', 'teacher.'" in user_error(start, twice("teacher"))
    path = write_checkpoint(tmp_path / "two.pth", {"generator": dict(tensors), "discriminator": dict(tensors)})
    message = user_error(start, path)
    assert "'generator' (" in message and "'discriminator' (" in message


def test_parts_of_a_network_are_put_together(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    names, folder = list(tensors), tmp_path / "sharded"
    folder.mkdir()
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for part, own in parts.items():
        write(folder / part, {name: tensors[name] for name in own})
    index = folder / "model.safetensors.index.json"
    places = {name: part for part, own in parts.items() for name in own}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (folder, index):
        assert_read(start(path), tensors, "2 parts, by model.safetensors.index.json")
    first, second = (folder / part for part in parts)
    assert "a part of a network: give" in user_error(start, first)
    index.write_text(json.dumps({"weight_map": places | {"extra": first.name}}))
    assert "differ in extra" in user_error(start, folder)
    index.write_text(json.dumps({"weight_map": {"conv1.weight": "../w.safetensors"}}))
    assert "outside its folder" in user_error(start, folder)
    index.write_text(json.dumps({"weight_map": places}))
    second.unlink()
    assert "lacks 1 of the 2 parts: model-00002-of-00002.safetensors" in user_error(start, folder)


@pytest.mark.parametrize("form", ["keras", "numbered"])
def test_a_keras_backbone_in_a_model_is_found(tmp_path: Path, form: str) -> None:
    made = invented(make_model(small_config("resnet50", model__arrangement="keras")), form)
    head = {name: tensor for name, tensor in made.items() if "dense" in name or "predictions" in name}
    inner = {name: tensor for name, tensor in made.items() if name not in head}
    path = tmp_path / ("w.h5" if form == "keras" else "w.weights.h5")
    with h5py.File(path, "w") as file:
        if form == "numbered":
            for name, tensor in inner.items():
                file[f"layers/functional/{name}"] = tensor
            for name, tensor in head.items():
                file[name] = tensor
        else:
            file.attrs["layer_names"] = [b"rescaling", b"resnet50", b"out"]
            file.create_group("rescaling").attrs["weight_names"] = []
            for layer, weights in (("resnet50", inner), ("out", head)):
                group = file.create_group(layer)
                group.attrs["weight_names"] = [f"{name.replace('predictions', 'out')}:0".encode() for name in weights]
                for name, tensor in weights.items():
                    group[f"{name.replace('predictions', 'out')}:0"] = tensor
    begin = start(path, "resnet50")
    first = "conv1_conv/0" if form == "keras" else "layers/conv2d/vars/0"
    np.testing.assert_array_equal(begin.variables["params"]["stem"]["conv1"]["kernel"], inner[first])
    np.testing.assert_array_equal(begin.variables["params"]["head"]["dense"]["kernel"], next(iter(head.values())))
    prefix = "resnet50/" if form == "keras" else "layers/functional/"
    assert f"read without the prefix '{prefix}'; every parameter filled" in begin.notes[0]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_gray_first_convolution_makes_a_gray_network(
    tmp_path: Path, tensors: dict[str, np.ndarray], suffix: str
) -> None:
    rgb = write(tmp_path / f"rgb{suffix}", tensors)
    tensors["conv1.weight"] = tensors["conv1.weight"].sum(1, keepdims=True)
    path = write(tmp_path / f"w{suffix}", {f"module.{name}": tensor for name, tensor in tensors.items()})
    begin = start(path, channels=1)
    assert_read(begin, tensors, "its first convolution takes one channel")
    assert begin.variables["params"]["stem"]["conv1"]["kernel"].shape == (7, 7, 1, 8)
    assert begin.preprocessing.mean == pytest.approx((np.mean(IMAGENET.mean),))
    assert start(rgb, channels=1).preprocessing == IMAGENET
    assert "conv1.weight is [8, 1, 7, 7]" in user_error(start, path)
    ours = tmp_path / "ours.safetensors"
    assert call(convert.main, f"--pretrained={path}", f"--output={ours}") == 0
    again = start(ours, channels=1)
    assert again.preprocessing == begin.preprocessing
    assert jax.tree.all(jax.tree.map(np.array_equal, again.variables, begin.variables))
    assert files.metadata(ours)["names"] == "read without the prefix 'module.'"


def test_what_does_not_fit_says_what_was_found_and_what_was_expected(tmp_path: Path) -> None:
    strange = {f"blocks.{number}.attn.weight": np.ones((2, 3), np.float32) for number in range(12)}
    message = user_error(start, write(tmp_path / "w.safetensors", strange))
    assert "found 12 tensors, blocks.0.attn.weight [2, 3], " in message
    assert "and 2 more" in message
    assert "expected conv1.weight, bn1.weight" in message
