"""Predictions of new images with untrained networks: what is written, and what is left behind when it goes wrong."""

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from covidjax import losses
from covidjax.data.picture import ImageSpec, decode_image
from covidjax.errors import UserError
from covidjax.evaluate import explain
from covidjax.evaluate.tiles import Tiling
from covidjax.mesh import local_mesh
from covidjax.models.layers import Conv, Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.runs import predict
from covidjax.runs.images import list_images
from covidjax.tasks.pictures import GAP, STRIP
from covidjax.weights.workdir import Trained
from tests.commands import contents, read_table, user_error, write_image
from tests.data.test_dicom import file as dicom_file
from tests.support import make_model, small_config

SIZE = 16
LABELS = ("healthy", "ill")
PIXELS = ("background", "lung", "lesion")
SIZES = {"a.png": (20, 30), "b.jpg": (16, 16), "deep/c.tif": (45, 17), "deep/d.png": (9, 9), "e.bmp": (33, 20)}


class OneConvolution(Staged):
    """The least network that answers with masks: it stands for a U-Net, which takes long to compile."""

    num_classes: int

    @property
    def stages(self) -> tuple[str, ...]:
        return ("head",)

    def setup(self) -> None:
        self.head = Convolution(self.num_classes)


class Convolution(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        return Conv(self.features, 3, padding=1)(x)


def untrained(model: str, classes: tuple[str, ...], **changes: Any) -> Trained:
    config = small_config(model, batch_size=2, dataset__image_size=SIZE, model__width=2, **changes)
    network = OneConvolution(len(classes)) if model == "unet" else make_model(config, len(classes))
    variables = dict(network.init(jax.random.key(3), jnp.zeros((1, SIZE, SIZE, 1))))
    return Trained(config, classes, network, Preprocessing(), variables, 7, "best")


@pytest.fixture(scope="module")
def classifier() -> Trained:
    return untrained("cnn", LABELS, model__num_blocks=2)


@pytest.fixture(scope="module")
def unet() -> Trained:
    return untrained("unet", PIXELS)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def logits_of(trained: Trained, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(trained.model.apply(trained.variables, trained.preprocessing(jnp.asarray(pixels, jnp.float32))))


def network_pixels(folder: Path, name: str, crop: str = "center", enhancement: str = "none") -> np.ndarray:
    return decode_image((folder / name).read_bytes(), ImageSpec(SIZE, 1, crop, enhancement))[0]


def test_folder_is_listed_with_its_folders_and_without_what_is_no_image(images: Path, tmp_path: Path) -> None:
    found = list_images(images)
    assert found.names == tuple(sorted(SIZES))
    assert found.ignored == 1
    assert list_images(images / "a.png").names == ("a.png",)


def test_folder_without_images_and_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="there is no"):
        list_images(tmp_path / "missing")


def test_table_of_labels_holds_probabilities_of_the_network(classifier: Trained, images: Path, tmp_path: Path) -> None:
    enhanced = classifier.config.copy_and_resolve_references()
    enhanced.dataset.enhancement = "clahe"
    answers = []
    for config, name in ((classifier.config, "none"), (enhanced, "clahe")):
        output = tmp_path / name / "predictions.csv"
        trained = dataclasses.replace(classifier, config=config)
        outcome = predict.predict(trained, list_images(images), output)
        rows = read_table(output)
        assert list(rows[0]) == ["file", "predicted", "probability_healthy", "probability_ill", "use"]
        assert [row["file"] for row in rows] == sorted(SIZES)
        pixels = np.stack([network_pixels(images, file, enhancement=name) for file in sorted(SIZES)])
        answers.append(logits_of(classifier, pixels))
        expected = np.asarray(losses.probabilities(jnp.asarray(answers[-1]), "softmax_cross_entropy"))
        written = np.array([[float(row[f"probability_{name}"]) for name in LABELS] for row in rows])
        np.testing.assert_allclose(written, expected, rtol=0, atol=1e-6)
        assert [row["predicted"] for row in rows] == [LABELS[guess] for guess in expected.argmax(axis=1)]
        assert {row["use"] for row in rows} == {"research use only"}
        assert sum(outcome.counts.values()) == outcome.num_images == len(SIZES)
        assert contents(tmp_path / name).keys() == {"predictions.csv"}
    assert np.abs(answers[1] - answers[0]).max() > 0.01  # the images are enhanced as those of the run were


def centred(sides: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """Of an array the part of these sides that lies in its middle."""
    starts = [(whole - side) // 2 for side, whole in zip(sides, shape, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))


@pytest.mark.parametrize("crop", ["center", "pad", "squash"])
def test_masks_are_those_of_the_network_at_the_size_of_their_images(images: Path, tmp_path: Path, crop: str) -> None:
    trained = untrained("unet", PIXELS, dataset__crop=crop)
    output = tmp_path / "predictions.csv"
    predict.predict(trained, list_images(images), output)
    seen = set()
    for row in read_table(output):
        width, height = SIZES[row["file"]]
        with Image.open(tmp_path / row["mask"]) as file:
            mask = np.asarray(file)
        assert mask.dtype == np.uint8
        assert mask.shape == (height, width) == (int(row["height"]), int(row["width"]))
        areas = [int(row[f"pixels_{name}"]) for name in PIXELS]
        assert areas == np.bincount(mask.reshape(-1), minlength=3).tolist()
        small = logits_of(trained, network_pixels(images, row["file"], crop)[None])[0].argmax(-1)
        shown = (min(width, height),) * 2 if crop == "center" else (height, width)
        inner = (
            [round(length * SIZE / max(width, height)) for length in (height, width)] if crop == "pad" else [SIZE] * 2
        )
        region, cells = mask[centred(shown, mask.shape)], small[centred(inner, small.shape)]
        assert region.sum() == mask.sum()  # outside is background
        near = (
            [((np.arange(length) + 0.5) * of / length + bias).astype(int).clip(0, of - 1) for bias in (-1e-9, 1e-9)]
            for length, of in zip(region.shape, cells.shape, strict=True)
        )
        # A centre that lies between two pixels of the network may take either.
        assert np.any([region == cells[np.ix_(*pair)] for pair in itertools.product(*near)], axis=0).all()
        seen |= set(mask.reshape(-1).tolist())
    assert seen == {0, 1, 2}


def test_tables_have_what_dicom_files_say_and_numbers_for_patients(
    classifier: Trained, unet: Trained, images: Path, tmp_path: Path
) -> None:
    for number, patient in enumerate(("MRN9", "MRN7", "MRN9")):
        pixels = np.full((9, 9), number, np.uint8)
        tags: dict[str, Any] = {
            "PatientID": patient,
            "ViewPosition": "PA",
            "PixelSpacing": [0.5, 0.25],
            "Modality": "CR",
        }
        (images / f"{number}.dcm").write_bytes(dicom_file(pixels, 8, **tags))
    for trained in (classifier, unet):
        output = tmp_path / trained.task.name / "p.csv"
        predict.predict(trained, list_images(images), output)
        found = [(row["patient"], row["view"], row["spacing"], row["source"]) for row in read_table(output)]
        told = [(f"dicom-{number}", "PA", "0.5x0.25", "CR") for number in (1, 2, 1)]
        assert found == [*told, *[("", "", "", "")] * len(SIZES)]
        assert "MRN" not in output.read_text()


def test_masks_of_two_classes_are_black_and_white(images: Path, tmp_path: Path) -> None:
    predict.predict(untrained("unet", PIXELS[:2]), list_images(images), tmp_path / "p.csv")
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "p_masks").iterdir()]
    assert {int(value) for mask in masks for value in np.unique(mask)} == {0, 255}


def test_images_whose_findings_lie_outside_other_masks_are_dropped_and_listed(
    unet: Trained, images: Path, tmp_path: Path
) -> None:
    sources, inside = list_images(images), tmp_path / "lungs"
    predict.predict(unet, sources, tmp_path / "all.csv")
    inside.mkdir()
    expected = {}
    for number, row in enumerate(read_table(tmp_path / "all.csv")):
        found = np.asarray(Image.open(tmp_path / row["mask"])) > 0
        lung = np.zeros(found.shape, np.uint8)
        lung[:, : found.shape[1] * number // (len(SIZES) - 1)] = 255  # of the first nothing, of the last everything
        Image.fromarray(lung).save(inside / Path(row["mask"]).name)
        assert found.any()
        expected[row["file"]] = found[lung > 0].sum() / found.sum()
    least = sorted(expected.values())[2]
    outcome = predict.predict(
        unet, sources, tmp_path / "p.csv", tmp_path / "over", inside=inside, inside_at_least=least
    )
    kept = {name for name, part in expected.items() if part >= least}
    assert 0 < len(kept) < len(SIZES)
    assert {row["file"] for row in read_table(tmp_path / "p.csv")} == kept
    for folder in ("p_masks", "over"):
        assert {path.stem for path in (tmp_path / folder).iterdir()} == {Path(name).stem for name in kept}
    dropped = {row["file"]: float(row["inside"]) for row in read_table(tmp_path / "p_dropped.csv")}
    assert dropped == pytest.approx({name: expected[name] for name in expected.keys() - kept}, abs=1e-4)
    (note,) = [note for note in outcome.notes if "dropped" in note]
    assert note.startswith(f"{len(dropped)} of {len(SIZES)} images were dropped: ") and min(dropped) in note
    assert outcome.num_images == len(kept)
    for folder in ("p_masks", "over"):
        shutil.rmtree(tmp_path / folder)
    predict.predict(unet, sources, tmp_path / "p.csv")
    assert not (tmp_path / "p_dropped.csv").exists(), "that of an earlier prediction stays"

    Image.fromarray(np.zeros((3, 4), np.uint8)).save(inside / "b.png")
    with pytest.raises(UserError, match="--inside: .*b.png is no mask of an image of 16x16 pixels"):
        predict.predict(unet, sources, tmp_path / "q.csv", inside=inside)
    (inside / "b.png").unlink()
    with pytest.raises(UserError, match="--inside: cannot read .*b.png: .*the same --images"):
        predict.predict(unet, sources, tmp_path / "q.csv", inside=inside)
    with pytest.raises(UserError, match="--inside drops images, and --spacing needs all of a volume"):
        predict.predict(unet, sources, tmp_path / "q.csv", spacing=(1.0, 1.0, 1.0), inside=inside)
    assert not list(tmp_path.glob("q*"))


def test_overlays_show_each_image_beside_its_mask(unet: Trained, images: Path, tmp_path: Path) -> None:
    predict.predict(unet, list_images(images), tmp_path / "p.csv", tmp_path / "over")
    assert contents(tmp_path / "over").keys() == contents(tmp_path / "p_masks").keys()
    for name, (width, height) in SIZES.items():
        with Image.open(tmp_path / "over" / f"{Path(name).stem}.png") as picture:
            assert picture.size == (2 * width + GAP, height + STRIP)
            assert picture.info["Comment"] == "research use only"
            if name.endswith(".png"):
                own = np.asarray(Image.open(images / name))[..., None]
                np.testing.assert_array_equal(np.asarray(picture)[:height, :width], own.repeat(3, axis=-1))


def test_tiles_take_images_at_their_own_size(unet: Trained, images: Path, tmp_path: Path) -> None:
    predict.predict(unet, list_images(images), tmp_path / "p.csv", tiling=Tiling(64, 16))
    for name, (width, height) in SIZES.items():
        if name.endswith(".jpg"):
            continue
        own = np.asarray(Image.open(images / name))[None, ..., None]
        expected = logits_of(unet, own)[0].argmax(-1)
        assert expected.shape == (height, width)
        mask = np.asarray(Image.open(tmp_path / "p_masks" / f"{Path(name).stem}.png"))
        assert np.mean(mask == expected) > 0.99  # another program may round a tie the other way


@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("position", ["0.png", "z.png"])
def test_bad_files_are_named_together_and_nothing_is_left_behind(
    classifier: Trained, unet: Trained, images: Path, tmp_path: Path, task: str, position: str
) -> None:
    (images / position).write_bytes(b"")
    (images / "deep" / "broken.jpg").write_text("no image")
    trained, overlays = (unet, tmp_path / "x" / "over") if task == "segmentation" else (classifier, None)
    before = contents(tmp_path)
    output = tmp_path / "out" / "p.csv"
    message = user_error(predict.predict, trained, list_images(images), output, overlays, strict=True)
    assert message.startswith("2 of 7 images are bad: ")
    assert f"{images / position} (the file is empty)" in message
    assert f"{images / 'deep' / 'broken.jpg'} (not a JPEG, PNG, BMP, TIFF or DICOM image)" in message
    assert contents(tmp_path) == before


def test_bad_files_are_listed_and_the_others_predicted_as_without_them(
    classifier: Trained, unet: Trained, images: Path, tmp_path: Path
) -> None:
    for trained in (classifier, unet):
        name = trained.task.name
        predict.predict(trained, list_images(images), tmp_path / name / "good.csv")
    (images / "0.png").write_bytes(b"")
    (images / "deep" / "broken.jpg").write_text("no image")
    for trained in (classifier, unet):
        folder = tmp_path / trained.task.name
        outcome = predict.predict(trained, list_images(images), folder / "p.csv")
        good, rows = (read_table(folder / f"{stem}.csv") for stem in ("good", "p"))
        assert [row | {"mask": ""} for row in rows] == [row | {"mask": ""} for row in good]
        assert outcome.num_images == len(SIZES)
        assert outcome.num_bad == 2
        reasons = {row["file"]: row["reason"] for row in read_table(folder / "p_bad.csv")}
        assert reasons.keys() == {"0.png", "deep/broken.jpg"}
        assert reasons["0.png"] == "the file is empty"
        assert any(
            note.startswith("2 of 7 images are bad and were left out: 0.png (the file") for note in outcome.notes
        )
    with pytest.raises(UserError, match="1 of 1 images are bad"):
        predict.predict(classifier, list_images(images / "0.png"), tmp_path / "q.csv")
    (images / "0.png").unlink()
    (images / "deep" / "broken.jpg").unlink()
    assert predict.predict(classifier, list_images(images), tmp_path / "classification" / "p.csv").num_bad == 0
    assert not (tmp_path / "classification" / "p_bad.csv").exists()


def test_patterns_of_names_are_listed_as_folders_are(images: Path) -> None:
    found = list_images(images / "**" / "*.[pt]*")
    assert found.names == ("a.png", "deep/c.tif", "deep/d.png")
    assert found.ignored == 1  # notes.txt
    assert list_images(images / "deep" / "?.tif").names == ("c.tif",)
    with pytest.raises(UserError, match=r"\*.gif matches no image: allowed are files ending in"):
        list_images(images / "*.gif")


def test_explanations_are_pictures_with_the_part_inside_the_lungs(
    classifier: Trained, unet: Trained, images: Path, tmp_path: Path
) -> None:
    sources, masks = list_images(images), tmp_path / "lungs"
    kernel = classifier.variables["params"]["head"]["dense"]["kernel"]
    params = classifier.variables["params"] | {"head": {"dense": {"kernel": jnp.abs(kernel), "bias": jnp.zeros(2)}}}
    classifier = dataclasses.replace(classifier, variables=classifier.variables | {"params": params})
    masks.mkdir()
    for name, (width, height) in SIZES.items():
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2 if name != "a.png" else width] = 255
        Image.fromarray(mask).save(masks / f"{Path(name).stem}.png")
    outcome = predict.predict(classifier, sources, tmp_path / "p.csv", explain=tmp_path / "why", masks=masks)
    rows = {row["file"]: row for row in read_table(tmp_path / "why" / "explanations.csv")}
    predicted = {row["file"]: row["predicted"] for row in read_table(tmp_path / "p.csv")}
    assert {name: row["class"] for name, row in rows.items()} == predicted
    pixels = np.stack([network_pixels(images, name) for name in SIZES])
    classes = np.array([LABELS.index(predicted[name]) for name in SIZES])
    run = explain.make_explain(classifier.model, Preprocessing(), local_mesh(1), "grad_cam", "block2")
    for name, map_ in zip(SIZES, np.asarray(run(classifier.variables, pixels, classes)), strict=True):
        large = np.asarray(Image.fromarray(map_).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        part = 1.0 if name == "a.png" else large[:, : SIZE // 2].sum() / large.sum()
        if name in ("a.png", "b.jpg", "e.bmp"):  # the half of an odd side lies between two pixels
            assert float(rows[name]["inside"]) == pytest.approx(part, abs=1e-5 if name != "e.bmp" else 0.1)
        with Image.open(tmp_path / "why" / rows[name]["picture"]) as picture:
            assert picture.size == (2 * 224 + GAP, 224 + STRIP)
            assert picture.info["Comment"] == "research use only"
    assert any("inside the masks is 0." in note and "5 of 5 images" in note for note in outcome.notes)
    with pytest.raises(UserError, match="--masks: cannot read .*: give the folder"):
        predict.predict(classifier, sources, tmp_path / "q.csv", explain=tmp_path / "other", masks=tmp_path)
    for tiling in (None, Tiling(32, 0)):
        with pytest.raises(UserError, match="answers with masks: --explain is for classifiers"):
            predict.predict(unet, sources, tmp_path / "q.csv", tiling=tiling, explain=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "q.csv").exists()


def test_what_images_look_like_is_told(classifier: Trained, unet: Trained, images: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (200, 100, 0, 0)).save(images / "clear.png")
    for trained, tiling in ((classifier, None), (unet, None), (unet, Tiling(32, 0))):
        output = tmp_path / f"{trained.config.model.name}{tiling is None}.csv"
        notes = predict.predict(trained, list_images(images), output, tiling=tiling).notes
        assert "1 images are transparent everywhere, and come out black: clear.png" in notes


def test_what_a_killed_run_left_is_removed_and_that_of_another_not(unet: Trained, images: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, other, busy = (
        tmp_path / f".{name}.{process}.tmp"
        for name, process in (("p_masks", dead.pid), ("q_masks", dead.pid), ("p_masks", os.getppid()))
    )
    for folder in (left, other, busy):
        folder.mkdir()
        (folder / "a.png").write_text("half a mask")
    predict.predict(unet, list_images(images), tmp_path / "p.csv")
    assert (left.exists(), other.exists(), busy.exists()) == (False, True, True)


def test_masks_that_would_take_the_place_of_others_are_refused(unet: Trained, images: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "p_masks" / "mine.png", seed=0)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="p_masks is there already: remove it or choose another name"):
        predict.predict(unet, list_images(images), tmp_path / "p.csv")
    assert contents(tmp_path) == before


def test_every_image_has_a_mask_of_its_own(unet: Trained, images: Path, tmp_path: Path) -> None:
    write_image(images / "a.bmp", seed=0)
    predict.predict(unet, list_images(images), tmp_path / "p.csv")
    masks = [row["mask"] for row in read_table(tmp_path / "p.csv")]
    assert len(set(masks)) == len(list((tmp_path / "p_masks").iterdir())) == len(SIZES) + 1
    assert all((tmp_path / mask).is_file() for mask in masks)


def test_linked_folders_are_predicted_and_pipes_masks_and_loops_are_named(images: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "store" / "f.png", seed=0)
    (images / "hospital").symlink_to(tmp_path / "store")
    (images / "deep" / "loop").symlink_to(images)
    os.mkfifo(images / "pipe.png")
    write_image(images / "a_mask.png", seed=0)
    found = list_images(images)
    assert found.names == tuple(sorted((*SIZES, "hospital/f.png")))
    told = "; ".join(found.notes)
    for part in (
        ": 1, deep/loop",
        ": 1, pipe.png",
        ": 1, .hidden.png",
        "1 files are masks of images, and were left out",
    ):
        assert part in told


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_names_that_are_no_utf8_are_escaped_in_the_table(
    classifier: Trained, unet: Trained, images: Path, tmp_path: Path, task: str
) -> None:
    (images / "a.png").rename(images / os.fsdecode(b"r\xf6ntgen.png"))
    trained = unet if task == "segmentation" else classifier
    predict.predict(trained, list_images(images), tmp_path / "p.csv")
    assert [row["file"] for row in read_table(tmp_path / "p.csv")] == sorted({*SIZES, "r\\xf6ntgen.png"} - {"a.png"})
    single = list_images(images / os.fsdecode(b"r\xf6ntgen.png"))
    predict.predict(trained, single, tmp_path / "single.csv")
    assert [row["file"] for row in read_table(tmp_path / "single.csv")] == ["r\\xf6ntgen.png"]


def test_volumes_are_those_of_the_areas(unet: Trained, images: Path, tmp_path: Path) -> None:
    for name in ("b.jpg", "e.bmp"):
        (images / name).unlink()
    output = tmp_path / "p.csv"
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"slices in deep have different sizes \(9 x 9, 45 x 17\)"):
        predict.predict(unet, list_images(images), output, spacing=(5.0, 1.0, 1.0))
    assert contents(tmp_path) == before
    (images / "deep" / "c.tif").unlink()
    outcome = predict.predict(unet, list_images(images), output, spacing=(5.0, 1.0, 1.0))
    assert outcome.files["volumes"] == tmp_path / "p_volumes.csv"
    areas, stacks = read_table(output), read_table(outcome.files["volumes"])
    assert [row["stack"] for row in stacks] == [".", "deep"]
    for area, stack in zip(areas, stacks, strict=True):
        assert float(stack["millilitres_lung"]) == pytest.approx(int(area["pixels_lung"]) * 5 / 1000)


def test_network_that_answers_with_nan_is_refused(classifier: Trained, images: Path, tmp_path: Path) -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.nan, classifier.variables)
    with pytest.raises(UserError, match="step 7 answers with what is no number"):
        trained = dataclasses.replace(classifier, variables=broken)
        predict.predict(trained, list_images(images), tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()
