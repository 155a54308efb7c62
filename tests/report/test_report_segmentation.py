"""The report of a run that answers with masks."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidjax.data import phantom, sources
from covidjax.data.examples import Examples
from covidjax.metrics import segmentation
from covidjax.metrics.mask_files import write_masks
from covidjax.report import formats
from covidjax.tasks.segmentation_page import choose
from tests.predictions import mask_counts
from tests.report.made_workdir import Page, write_report, write_run
from tests.support import small_config

CLASSES = phantom.MASK_CLASSES
NUM_IMAGES, SIZE = 20, 24


def make_examples(split: str) -> Examples:
    config = small_config("unet", dataset__image_size=SIZE, dataset__num_images=4 * NUM_IMAGES)
    return sources.load(config.dataset, split, masks=True)


def write_evaluation(workdir: Path, examples: Examples) -> dict[str, Any]:
    """Of the masks, of which a part is turned into background that grows with the image's number."""
    assert examples.masks is not None
    predicted, count = np.array(examples.masks), len(examples)
    for index, mask in enumerate(predicted):
        mask[: SIZE * index // (2 * count)] = 0
        mask[SIZE // 2 + SIZE * (count - index) // (2 * count) :] = 0
    counts = mask_counts(predicted, examples.masks, len(CLASSES))
    evaluation = segmentation.report_from_counts(counts, examples, 0.4567)
    evaluation["checkpoint"] = {"step": 48, "which": "best"}
    (workdir / f"evaluation_{examples.split}.json").write_text(json.dumps(evaluation))
    (workdir / f"predictions_{examples.split}.csv").write_text("columns of its own\n")
    write_masks(workdir / f"masks_{examples.split}", examples.names, predicted)
    return evaluation


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    names = {"model": {"name": "unet"}, "dataset": {"name": "phantom"}, "checkpoint": {"best": "dice"}}
    (tmp_path / "config.json").write_text(json.dumps({**names, "freeze": "none"}))
    write_run(tmp_path)
    return tmp_path


def test_figures_shown_equal_the_evaluation(run_folder: Path) -> None:
    examples = make_examples("test")
    evaluation = write_evaluation(run_folder, examples)
    read = write_report(run_folder, {"test": examples})
    summary = {row[0]: row[1:] for row in read.table("95 % interval")[1:]}
    for title, key in (("Dice, mean over images", "dice"), ("IoU, mean over images", "iou")):
        low, high = evaluation[f"{key}_ci95"]
        assert summary[title] == [f"{evaluation[key]:.3f}", f"[{low:.3f}, {high:.3f}]"]
    rows = {row[0]: row[1:] for row in read.table("Class", "Dice")[1:]}
    assert list(rows) == list(CLASSES)
    for name, scores in evaluation["per_class"].items():
        assert rows[name][0] == f"{scores['dice']:.3f} {formats.interval(scores['dice_ci95'])}"
        assert rows[name][-2:] == [formats.integer(scores["true_pixels"]), formats.integer(scores["predicted_pixels"])]
    assert f"Test Dice{evaluation['dice']:.3f}[" in read.text
    assert all(text in read.text for text in evaluation["conventions"].values())


def captions(read: Page) -> list[str]:
    return [caption for _, caption in read.figures if caption.startswith("Dice 0") or caption.startswith("Dice 1")]


def test_worst_median_and_best_images_are_shown_with_their_dice(run_folder: Path) -> None:
    examples = make_examples("val")
    per_image = write_evaluation(run_folder, examples)["per_image"]
    read = write_report(run_folder, {"val": examples})
    choice = choose(per_image)
    assert [len(indices) for indices in choice.values()] == [6, 3, 3]
    shown = captions(read)
    assert len(shown) == 12
    for caption, index in zip(shown, itertools.chain(*choice.values()), strict=True):
        image = per_image[index]
        assert caption.startswith(f"Dice {image['dice']:.3f}")
        assert caption.endswith(image["file"])
        for name, scores in image["per_class"].items():
            assert f"{name} {scores['dice']:.3f}" in caption


def test_text_from_outside_is_escaped(run_folder: Path) -> None:
    examples = make_examples("test")
    text = json.dumps(write_evaluation(run_folder, examples)).replace(f'"{CLASSES[1]}"', '"<i>R&D</i>"')
    (run_folder / "evaluation_test.json").write_text(text)
    read = write_report(run_folder, {"test": dataclasses.replace(examples, classes=(CLASSES[0], "<i>R&D</i>"))})
    assert len(captions(read)) == 12
    assert read.text.count("<i>R&D</i>") >= 14  # table of classes, legend, and the scores of each picture
    assert sum(tag == "i" for tag, _ in read.tags) == 3  # the colours of the class and of two kinds of errors


@pytest.mark.parametrize("count", range(1, 41))
def test_no_image_is_shown_twice_and_each_is_where_its_dice_puts_it(count: int) -> None:
    random = np.random.default_rng(count)
    per_image = [
        {"dice": float(value), "per_class": {"lung": {"true_pixels": int(pixels)}}}
        for value, pixels in zip(random.integers(0, 6, count) / 5, random.integers(0, 3, count), strict=True)
    ]
    worst, median, best = choose(per_image).values()
    shown = [*worst, *median, *best]
    assert len(set(shown)) == len(shown)
    assert len(shown) == 12 if count >= 12 else len(shown) >= min(count, 2)
    values = np.array([image["dice"] for image in per_image])
    assert values[worst].tolist() == sorted(values)[: len(worst)]
    assert values[best].tolist() == sorted(values)[::-1][: len(best)]
    assert not median or sorted(values)[count // 2] in values[median]


def test_of_perfect_images_those_with_something_to_find_stand_first() -> None:
    per_image = [{"dice": 1.0, "per_class": {"lung": {"true_pixels": pixels}}} for pixels in (0, 0, 9, 0, 5, 0)]
    assert choose(per_image)["Best"][0] == 2
