"""What is exported answers as the workdir's network does, without covidjax, and goes back to PyTorch bit by bit."""

import dataclasses
import datetime
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from covidjax.errors import UserError
from covidjax.evaluate.network import inference
from covidjax.models.preprocessing import IMAGENET, Preprocessing, folded
from covidjax.weights import export, exported
from covidjax.weights.load import arrange, restore
from covidjax.weights.workdir import Trained
from tests.commands import ROOT, user_error
from tests.support import make_model, make_variables, small_config
from tests.weights import parity

pytest.importorskip("flatbuffers", reason="flatbuffers is not installed: jax.export writes programs with it")
CLASSES = ("healthy", "ill", "unknown")
PLAIN = Preprocessing()
ALONE = """
import sys
sys.modules["covidjax"] = None
import numpy as np
import load
predict, about = load.load("model.zip")
images = np.load("images.npy")
for count in (1, 7, 64):
    np.save(f"{count}.npy", predict(images[:count]))
try:
    predict(images[:, 1:])
except ValueError as error:
    print(error)
"""


def untrained(name: str, preprocessing: Preprocessing = PLAIN, size: int = 16, **changes: Any) -> Trained:
    config = small_config(name, batch_size=8, dataset__image_size=size, **changes)
    model = make_model(config, len(CLASSES))
    variables = make_variables(model, size, channels=len(preprocessing.mean))
    return Trained(config, CLASSES, model, preprocessing, variables, 7, "best")


@pytest.mark.parametrize("name", ["cnn", pytest.param("unet", marks=pytest.mark.slow)])
def test_exported_network_answers_without_covidjax_as_here(name: str, tmp_path: Path) -> None:
    trained = untrained(name, model__width=2, ops="xla", model__num_blocks=2)
    notes = export.write(trained, tmp_path / "model.zip")
    assert any(note.startswith("checked: ") for note in notes)
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        file.extract("load.py", tmp_path)
    told = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert told == ["images are (64, 15, 16, 1) uint8: allowed are [n, *[16, 16, 1]] uint8"]
    expected = trained.task.answer(inference(*trained.network, 8, 1)(images), trained.config.loss)
    for count in (1, 7, 64):
        found = np.load(tmp_path / f"{count}.npy")
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-6 if name == "cnn" else 0)


def test_exported_file_says_what_it_is_and_expires(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    export.write(untrained("cnn", model__width=2, model__num_blocks=2), path)
    _, about = exported.load(path)
    assert about["classes"] == list(CLASSES)
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    days = datetime.date.fromisoformat(about["until"]) - datetime.date.fromisoformat(about["exported"])
    assert days == datetime.timedelta(days=180)
    about |= {"until": "2020-01-01", "versions": about["versions"] | {"jax": "0.4.30"}}
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(content, "w") as new:
        new.writestr("about.json", json.dumps(about))
        for name in ("program", "weights.npz"):
            new.writestr(name, old.read(name))
    path.write_bytes(content.getvalue())
    with pytest.raises(ValueError, match=r"^\S+ is of jax 0.4.30, good until 2020-01-01: export it again$"):
        exported.load(path)


def test_documented_function_is_the_one_in_the_file() -> None:
    assert Path(exported.__file__).read_text().partition('"""\n\n')[2] in (ROOT / "docs" / "export.md").read_text()


def test_tensors_go_back_to_torch_bit_by_bit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: its network takes the tensors")
    from tests.weights.test_parity_torch import reference, resnet  # noqa: PLC0415 - it needs PyTorch

    module = resnet("resnet18")
    path = tmp_path / "model.safetensors"
    torch.save(module.state_dict(), tmp_path / "model.pth")
    trained = untrained("resnet18", IMAGENET, 32)
    model = parity.network("resnet18", 7)
    variables = parity.load(model, tmp_path / "model.pth", "torchvision", np.zeros((1, 32, 32, 3), np.float32))
    notes = export.write(Trained(trained.config, CLASSES, model, IMAGENET, variables, 7, "best"), path)
    assert len(notes) == 1
    other = reference.ResNet((2, 2, 2, 2), bottleneck=False, num_classes=7)
    found = {name: torch.from_numpy(np.array(tensor)) for name, tensor in load_file(path).items()}
    other.load_state_dict(found, strict=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_flattened_dense_layers_go_back_as_they_came() -> None:
    rng = np.random.default_rng(0)
    for layout, shape in (("dense_from_chw:3,2,5", (4, 30)), ("conv_oihw", (4, 3, 2, 5)), ("dense_oi", (4, 3))):
        tensor = rng.normal(size=shape)
        np.testing.assert_array_equal(restore(arrange(tensor, layout), layout), tensor)


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path) -> None:
    trained = untrained("cnn", model__width=2, model__num_blocks=2)
    assert "allowed is a name that ends in .zip or .safetensors" in user_error(
        export.write, trained, tmp_path / "m.onnx"
    )
    message = user_error(export.write, trained, tmp_path / "m.safetensors")
    assert message == "there are no torchvision names for the network CNN"
    network = untrained("resnet18", folded(IMAGENET), 32)
    assert "config.model.stem='replicate'" in user_error(export.write, network, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="float64"):
        export.write(dataclasses.replace(trained, config=small_config(precision="float64")), tmp_path / "m.zip")
