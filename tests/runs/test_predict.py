"""Predictions of new images with untrained networks: what is written, and what is left behind when it goes wrong."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from covidjax import losses
from covidjax.errors import UserError
from covidjax.evaluate import explain
from covidjax.evaluate.tiles import Tiling
from covidjax.mesh import local_mesh
from covidjax.models.preprocessing import Preprocessing
from covidjax.runs import predict
from covidjax.runs.images import list_images
from covidjax.tasks.pictures import GAP, STRIP
from covidjax.weights.workdir import Trained
from tests.commands import contents, read_table, user_error
from tests.data.test_dicom import file as dicom_file
from tests.runs.untrained import LABELS, SIZE, SIZES, logits_of, network_pixels


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


def test_network_that_answers_with_nan_is_refused(classifier: Trained, images: Path, tmp_path: Path) -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.nan, classifier.variables)
    with pytest.raises(UserError, match="step 7 answers with what is no number"):
        trained = dataclasses.replace(classifier, variables=broken)
        predict.predict(trained, list_images(images), tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()
