"""Predicted masks of new images, with untrained networks."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covidjax.errors import UserError
from covidjax.evaluate.tiles import Tiling
from covidjax.runs import predict
from covidjax.runs.images import list_images
from covidjax.tasks.pictures import GAP, STRIP
from covidjax.weights.workdir import Trained
from tests.commands import contents, read_table, write_image
from tests.runs.untrained import PIXELS, SIZE, SIZES, logits_of, network_pixels, untrained


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
