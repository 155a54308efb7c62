"""Batches: a function of seed and step, the same wherever the data live, in which some classes have several turns."""

import collections
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from covidjax import files
from covidjax.data import phantom, sources, stream
from covidjax.data.examples import Examples
from covidjax.data.order import batch_indices, batch_rows, more_turns, oversampled, steps_per_epoch
from covidjax.data.resident import choose_placement
from covidjax.runs.train import train
from covidjax.train.inputs import PhaseInputs
from covidjax.weights.workdir import load_trained
from tests.commands import user_error
from tests.support import TINY, small_config

CLASSES = ("covid19", "normal", "pneumonia")
LABELS = np.array([1, 0, 2, 1, 2, 0, 1], np.int32)
TIMES = (("covid19", 4), ("pneumonia", 2))
REPEATS = np.array([1, 4, 2, 1, 2, 4, 1])
BATCH, VIEWS = 5, 4


def make_examples() -> Examples:
    names = tuple(map(str, range(len(LABELS))))
    return Examples("train", np.zeros((len(LABELS), 1, 1, 1)), LABELS, names, names, False, CLASSES, "", ("a note",))


@pytest.mark.parametrize(("count", "batch_size"), [(8, 8), (29, 4), (5, 1)])
def test_an_epoch_uses_each_example_at_most_once(count: int, batch_size: int) -> None:
    steps = steps_per_epoch(count, batch_size)
    assert steps == count // batch_size
    for epoch in range(3):
        batches = [batch_indices(5, epoch * steps + position, count, batch_size) for position in range(steps)]
        assert {(batch.shape, batch.dtype) for batch in batches} == {((batch_size,), np.dtype(np.int32))}
        used = np.concatenate(batches)
        assert len(set(used.tolist())) == steps * batch_size
        assert 0 <= used.min() <= used.max() < count


def test_every_epoch_has_another_order_and_leaves_out_others() -> None:
    epochs = [np.concatenate([batch_indices(0, 7 * epoch + step, 29, 4) for step in range(7)]) for epoch in range(20)]
    assert len({epoch.tobytes() for epoch in epochs}) == 20
    left_out = [set(range(29)) - set(epoch.tolist()) for epoch in epochs]
    assert all(len(rest) == 1 for rest in left_out)
    assert len(set.union(*left_out)) > 5


def test_the_order_depends_on_seed_and_step_alone() -> None:
    forwards = [batch_indices(3, step, 29, 4) for step in range(30)]
    backwards = [batch_indices(3, step, 29, 4) for step in reversed(range(30))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert not np.array_equal(forwards, [batch_indices(4, step, 29, 4) for step in range(30)])
    # Pinned: another order would silently break the resumption of runs that are under way.
    np.testing.assert_array_equal(batch_indices(0, 0, 10, 4), [4, 6, 2, 7])


@pytest.mark.slow
def test_placement_does_not_change_a_bit_of_training(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"augment__rotate": 10.0, "ema_decay": 0.9, "model__dropout": 0.2}
    ends = []
    for placement in ("device", "stream"):
        train(small_config(**TINY, **changes, dataset__placement=placement), tmp_path / placement)
        assert files.read_json(tmp_path / placement / "run.json")["data"]["train"]["placement"] == placement
        ends.append(load_trained(tmp_path / placement, "latest").variables)
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize(("mebibytes", "chosen"), [(1, "device"), (10_000_000, "stream")])
def test_auto_places_by_bytes_and_says_how_many_unless_a_placement_is_asked_for(mebibytes: int, chosen: str) -> None:
    decision = choose_placement(mebibytes * 2**20, "training images", "auto")
    assert (decision["placement"], decision["bytes"]) == (chosen, mebibytes * 2**20)
    word = "within" if chosen == "device" else "over"
    assert f"training images: {chosen} ({mebibytes:.1f} MiB, {word} the " in decision["note"]
    assert "config.dataset.placement" not in decision["note"]
    for asked in ("device", "stream"):
        decision = choose_placement(mebibytes * 2**20, "training images", asked)
        assert decision["placement"] == asked
        assert decision["note"].endswith(", as config.dataset.placement says")


def test_the_limit_is_a_share_of_the_memory_that_holds_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 * 5 * 2**20 // 4096}  # 20 MiB, of which a quarter is lent
    monkeypatch.setattr("covidjax.data.resident.os.sysconf", pages.__getitem__)
    monkeypatch.setattr("covidjax.data.resident.jax.local_devices", lambda: jax.devices("cpu"))
    placements = [choose_placement(size * 2**20, "training images", "auto")["placement"] for size in (5, 6)]
    assert placements == ["device", "stream"]


def rows_of_epoch(turns: np.ndarray, epoch: int, batch_size: int = BATCH, views: int = VIEWS) -> list[tuple[int, int]]:
    steps = steps_per_epoch(len(turns), batch_size)
    batches = [batch_rows(3, epoch * steps + step, turns, batch_size, views) for step in range(steps)]
    return [pair for batch in batches for pair in zip(*(array.tolist() for array in batch), strict=True)]


def test_each_image_of_a_class_has_its_turns_in_every_epoch_and_sees_all_views_in_time() -> None:
    turns = oversampled(make_examples(), TIMES).turns()
    assert (len(turns), turns.dtype) == (15, np.int32)
    seen = collections.defaultdict(set)
    for epoch in range(VIEWS):
        rows = rows_of_epoch(turns, epoch)
        assert len(set(rows)) == len(rows) == 15
        counts = collections.Counter(example for example, _ in rows)
        assert [counts[index] for index in range(7)] == REPEATS.tolist()
        for example, view in rows:
            seen[example].add(view)
    assert all(views == set(range(VIEWS)) for views in seen.values())
    assert rows_of_epoch(turns, 0) != rows_of_epoch(turns, 1)


def test_images_are_not_copied_and_the_note_says_what_counts() -> None:
    plain = make_examples()
    found = oversampled(plain, TIMES)
    assert found.images is plain.images
    assert found.labels is plain.labels
    assert found.notes == (
        "a note",
        "oversampling: each of 2 images of covid19 counts 4 times, each of 2 images of pneumonia counts 2 times; an "
        "epoch has 15 examples of 7 training images, and balanced class weights go by these",
    )
    assert oversampled(plain, ()) is plain
    for step in range(9):  # the order without oversampling is that of the examples
        rows, views = batch_rows(0, step, plain.turns(), 2, num_views=3)
        np.testing.assert_array_equal(rows, batch_indices(0, step, 7, 2))
        assert views.tolist() == [step // 3 % 3] * 2
        assert (rows.dtype, views.dtype) == (np.int32, np.int32)


def test_stream_gives_the_rows_of_the_resident_views() -> None:
    turns = oversampled(make_examples(), TIMES).turns()
    views = [{"features": np.arange(7) + 100 * number, "label": LABELS} for number in range(VIEWS)]
    together = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
    feed = PhaseInputs((together,), VIEWS, turns, True, None, None)
    for first in (0, 4):
        for step, batch in enumerate(stream.batches(views, turns, 3, BATCH, np.arange(BATCH), first, 9), start=first):
            rows = feed.rows(step, 3, BATCH)
            for name, array in together.items():
                np.testing.assert_array_equal(batch[name], array[rows])


def test_only_the_training_split_is_oversampled_and_its_turns_are_counted_from_the_numbers_of_images() -> None:
    settings: dict[str, Any] = {"dataset__num_images": 33, "dataset__image_size": 16}
    dataset = small_config(**settings, dataset__oversample=(("covid19", 17),)).dataset
    train, val = (sources.load(dataset, split) for split in ("train", "val"))
    assert train.repeats is not None
    np.testing.assert_array_equal(train.repeats, np.where(train.labels == 0, 17, 1))
    assert val.repeats is None
    assert not any("oversampling" in note for note in val.notes)
    counts = phantom.training_counts(small_config(**settings).dataset)
    assert counts == dict(zip(CLASSES, np.bincount(train.labels).tolist(), strict=True))
    assert more_turns({"covid19": 2, "normal": 3, "pneumonia": 2}, TIMES) == 15 - 7
    assert more_turns({"background": 10**6}, ()) == 0


@pytest.mark.parametrize(
    "pairs", [(("covid", 2),), (("covid19", 0),), (("covid19", 1001),), (("covid19", 2), ("covid19", 3))]
)
def test_pairs_that_do_not_fit_are_refused_with_the_names_of_the_classes(pairs: tuple[tuple[str, int], ...]) -> None:
    message = user_error(oversampled, make_examples(), pairs)
    assert message.startswith(f"config.dataset.oversample is {pairs!r}: allowed are pairs of a class")
    assert message.endswith("from 1 to 1000; the classes are covid19, normal, pneumonia")
