"""Networks that answer with masks go through the same commands as classifiers.

They train, resume, are evaluated, predict, and are compared in a study; find_lr finds their rate.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covidjax import config as configs
from covidjax import files
from covidjax.data import sources
from covidjax.data.examples import Examples
from covidjax.data.phantom import phantom
from covidjax.files import read_json_lines
from covidjax.metrics import segmentation
from covidjax.models import unet
from launch import evaluate, predict, study, train
from tests.commands import call, contents, read_table, tiny_config, write_image
from tests.predictions import mask_counts

CLASSES = ("background", "lung", "lesion")
AUGMENTED = "--config.augment.flip=true"
NUM_TEST = 7


@pytest.fixture(scope="module", autouse=True)
def shallow() -> Iterator[None]:
    """A U-Net of two levels takes half as long to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet, "LEVELS", 2)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    training = {"freeze": "until:up1", "features": "off", "optimizer__learning_rate": 1e-2, "checkpoint__best": "dice"}
    loss = {"loss__name": "cross_entropy_dice", "loss__class_weights": "balanced"}
    sizes = {"dataset__num_images": 28, "model__width": 1, "epochs": 2}
    return tiny_config(tmp_path_factory.mktemp("config"), model__name="unet", **training, **loss, **sizes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    """The workdir of a finished run whose test split was evaluated, which no test may change."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert call(train.main, config, AUGMENTED, f"--workdir={workdir}") == 0
    assert call(evaluate.main, f"--workdir={workdir}", "--split=test") == 0
    return workdir


def split_of(workdir: Path, split: str) -> Examples:
    dataset = configs.from_json(files.read_json(workdir / "config.json")).dataset
    return sources.load(dataset, split, masks=True)


def saved_masks(workdir: Path, examples: Examples) -> np.ndarray:
    paths = [workdir / f"masks_{examples.split}" / f"{Path(name).stem}.png" for name in examples.names]
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.mark.parametrize("split", ["val", "test"])
def test_dice_and_iou_are_those_of_the_saved_masks(trained: Path, split: str) -> None:
    examples, result = split_of(trained, split), files.read_json(trained / f"evaluation_{split}.json")
    assert examples.masks is not None
    counts = mask_counts(saved_masks(trained, examples), examples.masks, len(CLASSES))[:, 1:]
    dice, iou = segmentation.dice(counts), segmentation.iou(counts)
    assert result["num_examples"] == len(examples) == NUM_TEST
    assert result["classes"] == list(CLASSES)
    assert result["dice"] == pytest.approx(dice.mean(), rel=1e-12)
    assert result["iou"] == pytest.approx(iou.mean(), rel=1e-12)
    for c, name in enumerate(CLASSES[1:]):
        assert result["per_class"][name]["dice"] == pytest.approx(dice[:, c].mean(), rel=1e-12)
        assert result["per_class"][name]["iou"] == pytest.approx(iou[:, c].mean(), rel=1e-12)
        low, high = result["per_class"][name]["iou_ci95"]
        assert low <= result["per_class"][name]["iou"] <= high
    rows = read_table(trained / f"predictions_{split}.csv")
    assert [row["file"] for row in rows] == list(examples.names)
    figures = {f"{key}_{name}" for key in ("dice", "iou", "true_pixels", "predicted_pixels") for name in CLASSES[1:]}
    assert set(rows[0]) == {"file", "mask", "patient", "dice", "iou"} | figures
    np.testing.assert_allclose([[float(row[f"dice_{name}"]) for name in CLASSES[1:]] for row in rows], dice)


def test_metrics_and_records_tell_of_masks(trained: Path) -> None:
    lines = [line for line in read_json_lines(trained / "metrics.jsonl")[0] if line["split"] == "val"]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(0 <= line["iou"] <= line["dice"] <= 1 and 0 < line["accuracy"] <= 1 for line in lines)
    best = max(lines, key=lambda line: (line["dice"], line["step"]))
    evaluation = files.read_json(trained / "evaluation_val.json")
    assert evaluation["checkpoint"] == {"step": best["step"], "which": "best"}
    assert evaluation["dice"] == pytest.approx(best["dice"], rel=1e-9)
    assert evaluation["loss"] == pytest.approx(best["loss"], rel=1e-6)
    data, masks = files.read_json(trained / "run.json")["data"], split_of(trained, "train").masks
    assert masks is not None
    assert data["train"]["classes"] == dict(zip(CLASSES, np.bincount(masks.ravel()).tolist(), strict=True))
    assert data["train"]["bytes"] == 2 * masks.nbytes
    assert (trained / "report.html").exists()


def test_study_compares_the_dice_of_its_runs(tmp_path: Path, config: str, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "runs" / "until-up1_lr0.01_seed0")
    plan = ["--strategies=until:up1", "--seeds=0", "--test", f"--workdir={tmp_path}"]
    assert call(study.main, config, AUGMENTED, *plan) == 0
    evaluation = files.read_json(trained / "evaluation_val.json")
    (row,) = read_table(tmp_path / "study.csv")
    assert row["status"] == "finished"
    for key in ("dice", "iou", "dice_pooled", "iou_pooled"):
        assert float(row[f"val_{key}"]) == evaluation[key]
        assert [float(row[f"val_{key}_{bound}"]) for bound in ("low", "high")] == evaluation[f"{key}_ci95"]
    page = (tmp_path / "study.html").read_text(encoding="utf-8")
    assert f"has the highest mean validation Dice, {evaluation['dice']:.3f}" in page
    assert f"{files.read_json(trained / 'evaluation_test.json')['dice']:.3f}" in page.partition("chosen by the")[2]
    reads = files.read_json(tmp_path / "runs" / "until-up1_lr0.01_seed0" / "run.json")["test_reads"]
    assert len(reads) == 1  # it had been evaluated before


def test_new_images_get_masks_and_overlays(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    sides = {"a.png": 20, "b.png": 21, "more/c.png": 22}
    for seed, (name, side) in enumerate(sides.items()):
        write_image(tmp_path / "images" / name, seed, side)
    output, overlays = tmp_path / "p.csv", tmp_path / "over"
    flags = [f"--workdir={trained}", f"--images={tmp_path / 'images'}", f"--output={output}", f"--overlays={overlays}"]
    assert call(predict.main, *flags) == 0
    assert [Image.open(tmp_path / row["mask"]).width for row in read_table(output)] == list(sides.values())
    assert contents(overlays).keys() == contents(tmp_path / "p_masks").keys() == {"a.png", "b.png", "c.png"}
    said = capsys.readouterr().out.splitlines()
    assert "what lies outside the centre square was not seen, and is background in the masks" in said
    written = [f"table: {output}", f"masks: {tmp_path / 'p_masks'}", f"overlays: {overlays}"]
    assert said[-4:] == [*written, "Research use only - not for clinical decisions."]
    before = contents(tmp_path)
    assert call(predict.main, *flags) == 2
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_round_of_pseudo_labels_keeps_what_lies_in_lungs_and_trains_on_it(config: str, tmp_path: Path) -> None:
    unlabelled = tmp_path / "unlabelled"
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for index in range(count):
            drawn = phantom(0, split, index, 32)
            for name, mask in (("lungs", drawn.lungs), ("lesions", drawn.lesions)):
                for kind, pixels in (("images", drawn.image), ("masks", 255 * mask)):
                    path = tmp_path / name / split / kind / f"{split}{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
    unlabelled.mkdir()
    for index in range(20, 28):
        Image.fromarray(phantom(0, "train", index, 32).image).save(unlabelled / f"new{index}.png")

    def train_on(name: str, run: str) -> Path:
        own = ["name=folder", f"root={tmp_path / name}", f"mask_classes=('background','{name}')", "image_size=32"]
        flags = [f"--config.dataset.{setting}" for setting in own]
        assert call(train.main, config, *flags, f"--workdir={tmp_path / run}", "--config.freeze=none") == 0
        return tmp_path / run

    def label(run: Path, output: str, *flags: str) -> list[dict[str, str]]:
        table = tmp_path / output
        assert call(predict.main, f"--workdir={run}", f"--images={unlabelled}", f"--output={table}", *flags) == 0
        return read_table(table)

    lungs, lesions = train_on("lungs", "first_lungs"), train_on("lesions", "first_lesions")
    parts = []
    for lung, lesion in zip(label(lungs, "lungs.csv"), label(lesions, "everything.csv"), strict=True):
        inside, found = (np.asarray(Image.open(tmp_path / row["mask"])) > 0 for row in (lung, lesion))
        parts.append(float(inside[found].mean()) if found.any() else 1.0)
    least = float(np.median(parts))
    assert least > 0
    kept = label(lesions, "pseudo.csv", f"--inside={tmp_path / 'lungs_masks'}", f"--inside_at_least={least}")
    assert len(kept) == sum(part >= least for part in parts)
    for row in kept:
        shutil.copy(unlabelled / row["file"], tmp_path / "lesions" / "train" / "images")
        shutil.copy(tmp_path / row["mask"], tmp_path / "lesions" / "train" / "masks")
    again = train_on("lesions", "second_lesions")
    counts = [files.read_json(run / "run.json")["data"]["train"]["num_examples"] for run in (lesions, again)]
    assert counts == [8, 8 + len(kept)]
