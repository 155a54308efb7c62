from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open

from covidjax.models.preprocessing import CAFFE, IMAGENET
from covidjax.runs.train import train
from covidjax.weights import files, inputs
from covidjax.weights.catalog import CATALOG
from covidjax.weights.start import initial_variables
from launch import convert
from tests.commands import call
from tests.support import make_model, make_preprocessing, small_config
from tests.weights.made_files import invented, write


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize(
    ("name", "family", "suffix"),
    [("resnet18", "torchvision", "pth"), pytest.param("resnet50", "keras", "h5", marks=pytest.mark.slow)],
)
def test_converted_file_starts_the_same_network_with_the_same_preprocessing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, family: str, suffix: str
) -> None:
    config = small_config(name, model__arrangement=family, dataset__channels=3)
    model = make_model(config)
    source = write(tmp_path / f"w.{suffix}", invented(model, family))
    output = tmp_path / "ours.safetensors"
    assert call(convert.main, f"--pretrained={source}", f"--output={output}") == 0
    assert "every parameter filled" in capfd.readouterr().out
    header = files.metadata(output)
    assert (header["model"], header["arrangement"], header["source"]) == (name, family, str(source))
    assert len(header["source_sha256"]) == 64
    begins = []
    for pretrained in (source, output):
        config.pretrained = str(pretrained)
        begins.append(initial_variables(config, model, (64, 64, 3)))
    assert begins[0].preprocessing == begins[1].preprocessing == (CAFFE if family == "keras" else IMAGENET)
    assert jax.tree.all(jax.tree.map(np.array_equal, begins[0].variables, begins[1].variables))


@pytest.mark.usefixtures("few_blocks")
def test_head_for_other_classes_is_written_as_it_is_and_a_missing_one_left_out(tmp_path: Path) -> None:
    tensors = invented(make_model(small_config("resnet18"), 7), "torchvision")
    for path, wanted in ((write(tmp_path / "with.pth", tensors), (64, 7)), (tmp_path / "without.pth", None)):
        if wanted is None:
            write(path, {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")})
        output = path.with_suffix(".safetensors")
        assert call(convert.main, f"--pretrained={path}", f"--output={output}") == 0
        with safe_open(output, "numpy") as file:
            names = set(file.keys())
            assert ("params/head/dense/kernel" in names) == (wanted is not None)
            assert wanted is None or tuple(file.get_slice("params/head/dense/kernel").get_shape()) == wanted


def test_run_is_converted_with_its_preprocessing(tmp_path: Path) -> None:
    tiny: dict[str, Any] = {"model__width": 2, "model__num_blocks": 2, "dataset__image_size": 16}
    config = small_config("cnn", **tiny, dataset__num_images=12, batch_size=4, epochs=1)
    train(config, tmp_path / "run")
    output = tmp_path / "ours.safetensors"
    assert call(convert.main, f"--pretrained={tmp_path / 'run'}", f"--output={output}") == 0
    assert inputs.decode(files.metadata(output)["preprocessing"]) == make_preprocessing(config)
    model = make_model(config, 3)
    begins = [
        initial_variables(small_config("cnn", **tiny, pretrained=str(p)), model, (16, 16, 1))
        for p in (tmp_path / "run", output)
    ]
    assert jax.tree.all(jax.tree.map(np.array_equal, begins[0].variables, begins[1].variables))


def test_list_shows_every_known_id(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(convert.main, "--list") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(CATALOG)
