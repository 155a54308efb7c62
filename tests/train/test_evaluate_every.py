"""Runs that measure the validation split within epochs, and whose rare class counts several times in an epoch."""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import files
from covidjax.ops.choose import choose
from covidjax.report import workdir as workdirs
from covidjax.runs.train import train
from covidjax.tasks import weighting
from covidjax.train.job import Job
from covidjax.train.setup import prepare
from covidjax.weights.workdir import load_trained
from tests.support import TINY, small_config
from tests.train.test_resume import differing, figures, restore

EVERY = 3
IMAGES, TURNS, BATCH = 24, 44, 4
EPOCH_STEPS = TURNS // BATCH
LAST_STEP = 3 * EPOCH_STEPS
WITHIN = [step for step in range(EVERY, LAST_STEP, EVERY) if step % EPOCH_STEPS]


def config(folder: Path, **changes: Any) -> ConfigDict:
    """Two phases that train the head from cached views of each image; their calls take several steps."""
    settings: dict[str, Any] = {
        **TINY,
        "dataset__cache_dir": str(folder / "cache"),
        "dataset__oversample": (("covid19", 5),),
        "feature_views": 2,
        "augment__contrast": 0.2,
        "loss__class_weights": "balanced",
        "optimizer__learning_rate": 0.12,  # so high that the best validation loss is within an epoch
        "freeze": "backbone",
        "phases": ({"epochs": 1}, {"epochs": 2}),
    }
    return small_config("cnn", **{**settings, **changes})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return train(config(folder, evaluate_every_steps=EVERY), folder / "measured").parent


@pytest.fixture(scope="module")
def job(measured: Path) -> Job:
    return prepare(config(measured.parent))


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_with_and_without_it(measured: Path, job: Job) -> None:
    plain = train(job.config, measured.parent / "plain").parent
    assert differing(restore(plain, job).state, restore(measured, job).state) == []
    best = restore(measured, job).progress["best"]
    assert best == restore(plain, job).progress["best"]
    assert best["loss"] > min(line["loss"] for line in figures(measured) if line["split"] == "val")
    own = [line for line in figures(measured) if line["split"] == "step" or isinstance(line["epoch"], int)]
    assert figures(plain) == own
    assert (plain / "predictions_val.csv").read_bytes() == (measured / "predictions_val.csv").read_bytes()


def test_both_splits_are_measured_at_the_steps_asked_for_and_at_the_end_of_epochs(measured: Path) -> None:
    lines = figures(measured)
    within = [line for line in lines if line["split"] != "step" and not isinstance(line["epoch"], int)]
    assert [(line["step"], line["epoch"], line["split"]) for line in within] == [
        (step, step / EPOCH_STEPS, split) for step in WITHIN for split in ("train", "val")
    ]
    assert [line["phase"] for line in within[::2]] == [int(step > EPOCH_STEPS) for step in WITHIN]
    for split in ("train", "val"):
        assert [line["step"] for line in lines if line["split"] == split] == sorted(
            {*WITHIN, *range(EPOCH_STEPS, LAST_STEP + 1, EPOCH_STEPS)}
        )
    assert all(line.keys() >= {"loss", "accuracy"} for line in within)
    assert len({line["loss"] for line in within}) == len(within)


def test_figures_within_an_epoch_are_in_the_curves_of_the_report(measured: Path) -> None:
    assert "Lines of metrics.jsonl that could not be read" not in (measured / "report.html").read_text()
    for split, key in itertools.product(("train", "val"), ("loss", "accuracy")):
        epochs, _ = workdirs.values(workdirs.read(measured), split, key)
        assert epochs[:4] == [3 / EPOCH_STEPS, 6 / EPOCH_STEPS, 9 / EPOCH_STEPS, 1]


# ---- Oversampling in a run ----


def test_epochs_and_class_weights_go_by_the_repeated_counts_and_the_record_says_so(measured: Path, job: Job) -> None:
    labels = job.train_split.labels
    counts = np.bincount(labels) * np.array([5, 1, 1])
    assert counts.sum() == TURNS
    assert (job.steps_per_epoch, job.last_step) == (EPOCH_STEPS, LAST_STEP)
    weights = weighting.class_weights("balanced", np.repeat([0, 1, 2], counts), job.train_split.classes)
    assert job.recipes[0].loss.keywords["class_weights"] == weights  # type: ignore[attr-defined]
    run = files.read_json(measured / "run.json")
    assert run["data"]["train"]["num_examples"] == IMAGES
    assert choose("auto").note in run["notes"]
    (note,) = [note for note in run["notes"] if note.startswith("oversampling")]
    assert f"an epoch has {TURNS} examples of {IMAGES} training images" in note


def test_images_and_features_of_a_class_that_counts_more_are_held_once(job: Job) -> None:
    assert [job.abstract_data(phase)["label"].shape for phase in job.phases] == [(2 * IMAGES,)] * 2
    assert len(job.train_split.images) == IMAGES


def test_checkpoint_of_the_second_phase_is_found_in_it(measured: Path, job: Job) -> None:
    trained = load_trained(measured, LAST_STEP)
    restored = restore(measured, job).state
    jax.tree.map(np.testing.assert_array_equal, dict(trained.variables["params"]), dict(restored.params))
    assert trained.step == LAST_STEP
