import json
import math
from typing import Any

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from covidjax.errors import UserError
from covidjax.metrics import bootstrap, segmentation
from tests.predictions import make_examples, mask_counts

CLASSES = ("background", "lung", "lesion")


def make_masks(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that follow the masks three times in four; the first two masks, and first prediction, are empty."""
    generator = np.random.default_rng(seed)
    masks = generator.integers(0, 3, (count, 9, 11), np.uint8)
    noise = generator.integers(0, 3, masks.shape, np.uint8)
    predicted = np.where(generator.random(masks.shape) < 0.75, masks, noise).astype(np.uint8)
    masks[:2], predicted[0] = 0, 0
    return predicted, masks


def make_report(
    predicted: np.ndarray, masks: np.ndarray, loss: float = 0.25, resamples: int = 200, **changes: Any
) -> dict[str, Any]:
    options = {key: changes.pop(key) for key in ("seed", "distances") if key in changes}
    fields = {"patients": tuple(f"p{index // 2}" for index in range(len(masks)))} | changes
    examples = make_examples(np.zeros(len(masks)), CLASSES, **fields)
    counts = mask_counts(predicted, masks, len(CLASSES))
    return segmentation.report_from_counts(counts, examples, loss, resamples=resamples, **options)


def plain(predicted: np.ndarray, masks: np.ndarray, c: int) -> tuple[float, float]:
    """Dice and IoU of a class by sets of positions."""
    guess, true = set(zip(*np.nonzero(predicted == c), strict=True)), set(zip(*np.nonzero(masks == c), strict=True))
    if not guess and not true:
        return 1.0, 1.0
    return 2 * len(guess & true) / (len(guess) + len(true)), len(guess & true) / len(guess | true)


@pytest.mark.parametrize("count", [1, 2, 7, 13])
def test_report_equals_a_plain_computation(count: int) -> None:
    predicted, masks = make_masks(count)
    report = make_report(predicted, masks)
    each = np.array([[plain(predicted[i], masks[i], c) for c in range(3)] for i in range(count)])
    pooled = np.array([plain(predicted, masks, c) for c in range(3)])
    for index, key in enumerate(("dice", "iou")):
        assert report[key] == pytest.approx(each[:, 1:, index].mean(), abs=1e-14)
        assert report[f"{key}_pooled"] == pytest.approx(pooled[1:, index].mean(), abs=1e-14)
        for c, name in enumerate(CLASSES):
            assert report["per_class"][name][key] == pytest.approx(each[:, c, index].mean(), abs=1e-14)
            assert report["per_class"][name][f"{key}_pooled"] == pytest.approx(pooled[c, index], abs=1e-14)
        for i in range(count):
            image = report["per_image"][i]
            assert (image["file"], image["patient"]) == (f"{i}.png", f"p{i // 2}")
            assert image[key] == pytest.approx(each[i, 1:, index].mean(), abs=1e-14)
            for c in (1, 2):
                assert image["per_class"][CLASSES[c]][key] == pytest.approx(each[i, c, index], abs=1e-14)
                assert image["per_class"][CLASSES[c]]["true_pixels"] == (masks[i] == c).sum()
                assert image["per_class"][CLASSES[c]]["predicted_pixels"] == (predicted[i] == c).sum()
    for c, name in enumerate(CLASSES):
        assert report["per_class"][name]["images_with"] == (masks == c).any(axis=(1, 2)).sum()
        assert report["per_class"][name]["true_pixels"] == (masks == c).sum()
    assert report["num_examples"] == count


def test_equal_logits_are_the_first_class() -> None:
    count = jax.jit(segmentation.overlap_counts)
    counts = count(np.zeros((1, 2, 2, 2), np.float32), np.ones((1, 2, 2), np.uint8))
    assert counts.tolist() == [[[0, 4, 0], [0, 0, 4]]]


def test_empty_masks_follow_the_stated_convention() -> None:
    counts = np.array([[0, 0, 0], [0, 5, 0], [0, 0, 5], [5, 5, 5], [1, 2, 3]])
    assert segmentation.dice(counts).tolist() == [1.0, 0.0, 0.0, 1.0, 0.4]
    assert segmentation.iou(counts).tolist() == [1.0, 0.0, 0.0, 1.0, 0.25]
    report = make_report(*make_masks(5))
    assert "counts as 1" in report["conventions"]["dice and iou"]
    assert report["per_image"][0]["dice"] == 1.0
    assert report["per_image"][1]["dice"] == 0.0


def test_bootstrap_equals_figures_of_resampled_images() -> None:
    predicted, masks = make_masks(9)
    patients = ("a", "b", "b", "c", "d", "d", "d", "e", "f")
    weights = bootstrap.resample_weights(np.array([0, 1, 1, 2, 3, 3, 3, 4, 5]), np.random.default_rng(3), 60).astype(
        int
    )
    resampled = []
    for row in weights:
        chosen = np.repeat(predicted, row, axis=0), np.repeat(masks, row, axis=0)
        again = make_report(*chosen, patients_known=False, resamples=1)
        resampled.append([again[key] for key in ("dice", "iou", "dice_pooled", "iou_pooled")])
    report = make_report(predicted, masks, patients=patients, seed=3, resamples=60)
    for index, key in enumerate(("dice", "iou", "dice_pooled", "iou_pooled")):
        expected = bootstrap.interval(np.array(resampled)[:, index], count=6)
        assert report[f"{key}_ci95"] == pytest.approx(expected, abs=1e-12)


def test_single_patient_gives_no_interval_and_perfect_masks_one() -> None:
    predicted, masks = make_masks(6)
    alone = make_report(predicted, masks, patients=("p",) * 6)
    assert alone["dice_ci95"] is alone["per_class"]["lung"]["iou_pooled_ci95"] is None
    perfect = make_report(masks, masks)
    assert (perfect["dice"], perfect["dice_ci95"], perfect["iou_pooled_ci95"]) == (1.0, [1.0, 1.0], [1.0, 1.0])


def test_report_survives_json() -> None:
    predicted, masks = make_masks(5)
    report = make_report(predicted, masks, loss=math.inf)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["loss"] is None
    assert report["research_use_only"] is True
    assert list(report) == [
        "split", "num_examples", "loss", "dice", "dice_ci95", "iou", "iou_ci95", "dice_pooled", "dice_pooled_ci95",
        "iou_pooled", "iou_pooled_ci95", "classes", "per_class", "per_image", "conventions", "intervals",
        "research_use_only",
    ]  # fmt: skip


def test_diverged_networks_and_empty_splits_are_refused() -> None:
    predicted, masks = make_masks(3)
    with pytest.raises(UserError, match="'test' has no images"):
        make_report(predicted[:0], masks[:0])
    with pytest.raises(UserError, match="the network has diverged"):
        make_report(predicted, masks, loss=math.nan)


def border(mask: np.ndarray) -> np.ndarray:
    """Positions in the mask with one of four neighbours outside it, one by one."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inside)


@pytest.mark.parametrize("seed", range(4))
def test_hausdorff_equals_all_pairs_of_border_pixels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, columns = np.ogrid[:30, :40]
    guess, true = (
        np.hypot(rows - generator.uniform(5, 25), columns - generator.uniform(5, 35)) < generator.uniform(3, 12)
        for _ in range(2)
    )
    pairs = cdist(border(guess), border(true))
    expected = max(np.percentile(pairs.min(axis=1), 95), np.percentile(pairs.min(axis=0), 95))
    assert segmentation.hausdorff95(guess, true) == pytest.approx(expected, abs=1e-12)
    assert segmentation.hausdorff95(true, guess) == pytest.approx(expected, abs=1e-12)


def test_hausdorff_by_hand() -> None:
    one, other, none = np.zeros((3, 9, 9), bool)
    one[2, 3] = other[5, 7] = True
    assert segmentation.hausdorff95(one, other) == 5.0
    assert segmentation.hausdorff95(one, one) == 0.0
    assert segmentation.hausdorff95(none, none) == 0.0
    assert math.isnan(segmentation.hausdorff95(one, none))
    guesses, truths = np.stack([one, one, none]), np.stack([other, none, none])
    distances = np.pad(segmentation.hausdorff95_of(guesses, truths, 2), ((0, 0), (0, 1)), constant_values=np.nan)
    report = make_report(guesses.astype(int), truths.astype(int), distances=distances, resamples=2)
    assert report["per_class"]["lung"]["hausdorff95"] == 2.5
    assert report["per_class"]["lung"]["hausdorff95_undefined"] == 1
    assert report["per_class"]["lesion"]["hausdorff95"] is None
    assert [image["per_class"]["lung"]["hausdorff95"] for image in report["per_image"]] == [5.0, None, 0.0]
    assert "left out" in report["conventions"]["hausdorff95"]
