import dataclasses
import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import models
from covidjax.data.augment import Augmentation
from covidjax.data.order import batch_indices
from covidjax.mesh import replicated
from covidjax.train import features
from covidjax.train.inputs import PhaseInputs, final_inputs, make_inputs, split_into_calls
from covidjax.train.job import Job
from covidjax.train.parallel import mapped_step
from covidjax.train.setup import prepare
from covidjax.train.state import TrainState
from covidjax.train.step import run_prefix
from tests.support import TINY, assert_same_bits, make_caching, small_config
from tests.train.cached import make_case, passes

FROZEN: dict[str, Any] = {**TINY, "batch_size": 5, "epochs": 5, "freeze": "until:block1"}
EPOCH_STEPS = 4  # batches of 5 from 24 images
VIEWS = 3


# ---- Calls ----


def test_every_step_is_taken_once_by_calls_that_end_with_their_epoch_a_part_of_it_or_a_pause() -> None:
    draw = random.Random(0)
    for _ in range(500):
        epoch_steps = draw.randint(1, 20)
        steps_per_call = draw.randint(1, epoch_steps)
        first = draw.randint(0, 3 * epoch_steps)
        last = first + draw.randint(0, 3 * epoch_steps)
        pause_every = draw.choice((0, draw.randint(1, 30)))
        ends = {step for step in range(first + 1, last + 1) if step % epoch_steps % steps_per_call == 0}
        ends |= {step for step in range(first + 1, last) if pause_every and step % pause_every == 0} | {last}
        expected = [(start, end - start) for start, end in itertools.pairwise(sorted({first} | ends))]
        assert list(split_into_calls(first, last, epoch_steps, steps_per_call, pause_every)) == expected


def test_calls_bring_the_rows_of_their_steps() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    feed = PhaseInputs(({"label": np.arange(24)},), 1, np.arange(24, dtype=np.int32), True, None, None)
    taken = list(feed.calls(mesh, "jit", 7, 5, (2, 11), 2, 7))
    assert [count for count, _ in taken] == [2, 2, 1, 1, 2, 1]
    assert [arguments[2:] for _, arguments in taken] == [() if count == 2 else (count,) for count, _ in taken]
    rows = np.concatenate([np.asarray(arguments[1])[:count] for count, arguments in taken])
    np.testing.assert_array_equal(rows, [batch_indices(7, step, 24, 5) for step in range(2, 11)])


# ---- Views ----


@pytest.fixture(scope="module")
def job() -> Job:
    return prepare(small_config("cnn", **FROZEN))


@pytest.fixture(scope="module")
def augmented_job(job: Job) -> Job:
    """The same with images that change at random, of which a few views are agreed."""
    config = job.config.copy_and_resolve_references()
    config.feature_views = VIEWS
    recipe = dataclasses.replace(job.recipes[0], augmentation=Augmentation(brightness=0.2))
    caching = make_caching(config, recipe, FROZEN["epochs"], job.train_split, job.val_split)
    return dataclasses.replace(job, config=config, recipes=(recipe,), caching=(caching,))


def with_seed(job: Job, seed: int) -> Job:
    """A job with another seed: other batches and another head; its prefix is from a file of weights."""
    config = job.config.copy_and_resolve_references()
    config.seed = seed
    params = job.variables["params"]
    head = jax.tree.map(lambda leaf: leaf + 1, params["head"])
    return dataclasses.replace(job, config=config, variables={**job.variables, "params": {**params, "head": head}})


def plain_features(job: Job, variables: Any, images: np.ndarray) -> np.ndarray:
    """What the network itself makes of images that nothing changes."""
    recipe = job.recipes[0]
    run = jax.jit(lambda variables, images: run_prefix(recipe, variables, images))
    return np.asarray(run(variables, jnp.asarray(images, jnp.float32)))


def test_epochs_take_turns_with_the_views_which_are_the_same_for_every_seed(tmp_path: Path, augmented_job: Job) -> None:
    job, count = augmented_job, len(augmented_job.train_split)
    first, second = passes(tmp_path), passes(tmp_path)
    feed = make_inputs(job, job.phases[0], job.variables, first)
    assert (first.computed, first.reused, feed.num_views, feed.start) == (VIEWS + 1, 0, VIEWS, "block2")

    for step in range(job.last_step):
        rows = feed.rows(step, 7, 5)
        assert set(rows // count) == {step // EPOCH_STEPS % VIEWS}
        np.testing.assert_array_equal(rows % count, batch_indices(7, step, count, 5))
    np.testing.assert_array_equal(feed.views[0]["label"], np.tile(job.train_split.labels, VIEWS))

    views = np.asarray(feed.views[0]["features"]).reshape(VIEWS, count, -1)
    plain = plain_features(job, job.variables, job.train_split.images).reshape(count, -1)
    for number, view in enumerate(views):
        for another in (plain, *views[:number]):
            assert np.all(np.abs(view - another).max(axis=1) > 1e-3), "an image looks the same in two views"

    other = with_seed(job, 1)
    again = make_inputs(other, other.phases[0], other.variables, second)
    assert (second.computed, second.reused) == (0, VIEWS + 1)
    np.testing.assert_array_equal(again.views[0]["features"], feed.views[0]["features"])


def test_validation_features_are_of_the_images_as_they_are(tmp_path: Path, job: Job, augmented_job: Job) -> None:
    expected = plain_features(job, job.variables, job.val_split.images)
    for each in (job, augmented_job):
        feed = make_inputs(each, each.phases[0], each.variables, passes(tmp_path))
        np.testing.assert_allclose(feed.val, expected, rtol=1e-5, atol=1e-5)


def test_images_of_equal_pixels_look_different_in_a_view_also_in_another_batch(tmp_path: Path) -> None:
    case = make_case(small_config("cnn", **FROZEN, augment__brightness=0.2), 8)
    images = np.repeat(case.images[:1], 80, axis=0)  # more than one batch of the pass
    found = passes(tmp_path).features(case.recipe, case.variables, images, view=0)
    assert len({row.tobytes() for row in found}) == 80


def uncached(job: Job) -> Job:
    caching = dataclasses.replace(job.caching[0], placement="", validation=False)
    return dataclasses.replace(job, caching=(caching,), recipes=(dataclasses.replace(job.recipes[0], cached=False),))


# ---- Places ----


def placed(job: Job, monkeypatch: pytest.MonkeyPatch, place: str) -> Job:
    """The job where only one place has room."""
    with monkeypatch.context() as patch:
        patch.setattr(features, "device_room", lambda: (1e9 if place == "device" else 0, "a device"))
        patch.setattr(features, "host_room", lambda: 1e9 if place == "host" else 0)
        caching = make_caching(job.config, job.recipes[0], FROZEN["epochs"], job.train_split, job.val_split)
    assert caching.placement == place
    return dataclasses.replace(job, caching=(caching,))


def trained(job: Job, feed: PhaseInputs, steps: int) -> TrainState:
    step = mapped_step(job.recipes[0], job.mesh, resident=feed.resident)
    state = jax.device_put(jax.tree.map(jnp.array, job.fresh_state()), replicated(job.mesh))
    for _, arguments in feed.calls(job.mesh, "jit", 3, job.config.batch_size, (0, steps), 1):
        state = step(state, *arguments)
    return state


def test_place_of_features_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmented_job: Job) -> None:
    own, states = passes(tmp_path), {}
    for place in ("device", "host", "disk"):
        here = placed(augmented_job, monkeypatch, place)
        feed = make_inputs(here, here.phases[0], here.variables, own)
        assert feed.resident == (place == "device")
        maps = [isinstance(view["features"], np.memmap) for view in feed.views]
        assert maps == ([False] if place == "device" else [place == "disk"] * VIEWS)
        states[place] = trained(here, feed, steps=2 * EPOCH_STEPS + 1)
    assert (own.computed, own.reused) == (VIEWS + 1, 2 * (VIEWS + 1))
    for one, other in (("device", "host"), ("host", "disk")):
        assert_same_bits(states[one], states[other])


# ---- The validation split at the end ----


def best(job: Job) -> Any:
    return SimpleNamespace(step=EPOCH_STEPS, variables=job.variables)


def test_best_network_is_measured_from_the_features_of_training(tmp_path: Path, job: Job) -> None:
    own = passes(tmp_path)
    feed = make_inputs(job, job.phases[0], job.variables, own)
    inputs, start = final_inputs(job, best(job), own)
    assert (own.computed, own.reused, start) == (2, 1, "block2")
    np.testing.assert_array_equal(inputs, feed.val)


def test_best_network_is_measured_whole_where_features_are_not_its_own(tmp_path: Path, job: Job) -> None:
    prefix = models.build(job.config.model, 3, "bfloat16")
    half = dataclasses.replace(job, recipes=(dataclasses.replace(job.recipes[0], prefix=prefix),))
    for other in (uncached(job), half):
        own = passes(tmp_path)
        assert final_inputs(other, best(job), own) == (None, None)
        assert (own.computed, own.reused) == (0, 0)


# ---- Masks of views ----

NUM_MASKS, SIZE = 40, 32  # more than one batch of the pass
MOVED: dict[str, Any] = {"augment__rotate": 30.0, "augment__shift": 0.2, "augment__scale": 0.2, "augment__flip": True}


def draw_masks() -> np.ndarray:
    """A rectangle in each image, off the centre."""
    generator = np.random.default_rng(0)
    masks = np.zeros((NUM_MASKS, SIZE, SIZE), np.uint8)
    for mask in masks:
        top, left = generator.integers(4, 14, 2)
        mask[top : top + generator.integers(6, 16), left : left + 6] = 1
    return masks


def test_masks_move_with_the_images_of_their_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A prefix that does nothing: its features are the images themselves.
    monkeypatch.setattr(features, "run_prefix", lambda recipe, variables, images: images)
    recipe = make_case(small_config("cnn", **{**FROZEN, **MOVED}), SIZE).recipe
    own, masks = passes(tmp_path), draw_masks()
    views = []
    for view in (0, 1):
        seen = own.features(recipe, {}, 255 * masks[..., None], view)[..., 0] > 127
        views.append(own.targets(recipe, masks, view))
        assert views[view].dtype == np.uint8
        right = (seen == views[view]).mean(axis=(1, 2))
        assert right.min() > 0.97
        assert right.mean() > 0.99
        assert (seen == masks).mean(axis=(1, 2)).mean() < 0.95
    assert (views[0] != views[1]).any(axis=(1, 2)).all()


def test_labels_of_images_and_masks_of_images_as_they_are_stay(tmp_path: Path) -> None:
    recipe = make_case(small_config("cnn", **{**FROZEN, **MOVED}), SIZE).recipe
    own, masks, labels = passes(tmp_path), draw_masks(), np.arange(NUM_MASKS)
    assert own.targets(recipe, masks) is masks
    assert own.targets(recipe, labels, 1) is labels
