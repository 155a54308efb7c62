"""`covidjax.train` and `covidjax.load` answer as the commands do."""

import csv
import dataclasses
import doctest
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

import covidjax
from covidjax import config as configs
from covidjax import files
from covidjax.data.picture import ImageSpec, decode_image
from covidjax.errors import UserError
from covidjax.evaluate.network import inference
from covidjax.runs import library
from covidjax.weights.workdir import load_trained
from launch import predict
from tests.commands import call
from tests.support import small_config

EXAMPLE = {
    "dataset__name": "phantom",
    "dataset__image_size": 32,
    "dataset__num_images": 24,
    "model__width": 2,
    "model__num_blocks": 3,
    "batch_size": 8,
    "epochs": 1,
    "ops": "xla",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    covidjax.train(small_config("cnn", **EXAMPLE), folder / "runs" / "example")  # type: ignore[operator]
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 52), np.uint8)).save(folder / name)
    return folder


def test_the_examples_of_the_docstrings_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    results = doctest.testmod(library, extraglobs={"covidjax": covidjax, "np": np})
    assert results.attempted >= 5
    assert results.failed == 0


def test_logits_are_those_of_the_evaluation(folder: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (11, 32, 32, 1), np.uint8)
    expected = inference(*load_trained(folder / "runs" / "example", "best").network, 11, 1)(images)
    network = covidjax.load(str(folder / "runs" / "example"))
    np.testing.assert_allclose(network.logits(images), expected, rtol=1e-6)
    np.testing.assert_array_equal(network.features(images, "head"), network.logits(images))


def test_probabilities_of_files_are_those_of_the_command(folder: Path) -> None:
    table = folder / "predictions.csv"
    assert call(predict.main, f"--workdir={folder}/runs/example", f"--images={folder}/a.png", f"--output={table}") == 0
    with table.open() as lines:
        row = next(csv.DictReader(lines))
    network = covidjax.load(folder / "runs" / "example")
    wanted = [float(row[f"probability_{name}"]) for name in network.classes]
    np.testing.assert_allclose(network.predict([folder / "a.png", folder / "b.png"])[0], wanted, rtol=1e-5)


def test_explanations_are_of_the_classes_that_are_asked_for(folder: Path) -> None:
    network = covidjax.load(folder / "runs" / "example")
    images = np.random.default_rng(1).integers(0, 256, (11, 32, 32, 1), np.uint8)
    names = [network.classes[index] for index in network.logits(images).argmax(-1)]
    maps = network.explain(images, stage="block1")
    np.testing.assert_array_equal(maps, network.explain(images, names, stage="block1"))
    others = [network.classes[network.classes.index(name) - 1] for name in names]
    assert maps.shape == (11, 16, 16)
    assert maps.max() > 0
    assert np.abs(maps - network.explain(images, others, stage="block1")).max() > 0
    for wrong, told in ((names[:-1], "there are 10 classes"), (["nobody"] * 11, "classes have nobody")):
        with pytest.raises(UserError, match=f"{told}: give one of .* for each of the 11 images"):
            network.explain(images, wrong)
    with pytest.raises(UserError, match=r"a list of paths of files: give \['chest.png'\]"):
        network.predict("chest.png")


def test_a_constant_picture_is_decoded_with_a_warning(folder: Path) -> None:
    Image.new("L", (40, 52), 7).save(folder / "flat.png")
    with pytest.warns(UserWarning, match="flat.png: "):
        pixels = covidjax.load(folder / "runs" / "example").decode([folder / "flat.png"])
    assert np.array_equal(pixels, np.full((1, 32, 32, 1), 7, np.uint8))


@pytest.mark.filterwarnings("ignore:.*levels of brightness:UserWarning")
def test_of_a_file_with_frames_the_one_that_the_run_chose_is_decoded(folder: Path) -> None:
    path = str(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))
    network = covidjax.load(folder / "runs" / "example")
    config = network.config.copy_and_resolve_references()
    found = []
    for config.dataset.frame in (1, 2):
        chosen = dataclasses.replace(network, trained=dataclasses.replace(network.trained, config=config))
        found.append(chosen.decode([path])[0])
        expected, _ = decode_image(Path(path).read_bytes(), ImageSpec.of(config.dataset))
        np.testing.assert_array_equal(found[-1], expected)
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 32, 32, 1), np.float32), r"images are \[2, 32, 32, 1\] float32: .* \[n, 32, 32, 1\] uint8"),
        (np.zeros((32, 32), np.uint8), r"images are \[32, 32\] uint8"),
        (np.zeros((0, 32, 32, 1), np.uint8), r"images are \[0, 32, 32, 1\] uint8"),
        (["nowhere.png"], "nowhere.png: No such file"),
        ([], "no image was named"),
    ],
)
def test_other_images_are_refused(folder: Path, images: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        covidjax.load(folder / "runs" / "example").predict(images)


def test_double_precision_needs_the_switch_of_jax(folder: Path, tmp_path: Path) -> None:
    config = small_config("cnn", **EXAMPLE, precision="float64")
    files.write_json(tmp_path / "config.json", configs.to_json(config))
    for use in (lambda: covidjax.train(config, tmp_path / "new"), lambda: covidjax.load(tmp_path)):  # type: ignore[operator]
        with pytest.raises(UserError, match="precision float64: call .*jax_enable_x64"):
            use()
    assert not (tmp_path / "new").exists()
