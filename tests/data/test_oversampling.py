"""Classes whose training images count several times in an epoch."""

import collections
import dataclasses

import numpy as np
import pytest

from covidjax.data import phantom, sources, stream
from covidjax.data.examples import Examples
from covidjax.data.order import batch_indices, batch_rows, more_turns, oversampled, steps_per_epoch
from covidjax.errors import UserError
from covidjax.train.inputs import PhaseInputs
from tests.support import small_config

CLASSES = ("covid19", "normal", "pneumonia")
LABELS = np.array([1, 0, 2, 1, 2, 0, 1], np.int32)
TIMES = (("covid19", 4), ("pneumonia", 2))
REPEATS = np.array([1, 4, 2, 1, 2, 4, 1])
BATCH, VIEWS = 5, 4


def examples() -> Examples:
    names = tuple(map(str, range(len(LABELS))))
    images = np.arange(len(LABELS), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Examples("train", images, LABELS, names, names, False, CLASSES, "", ("a note",))


def rows_of_epoch(turns: np.ndarray, epoch: int, batch_size: int = BATCH, views: int = VIEWS) -> list[tuple[int, int]]:
    steps = steps_per_epoch(len(turns), batch_size)
    batches = [batch_rows(3, epoch * steps + step, turns, batch_size, views) for step in range(steps)]
    return [pair for batch in batches for pair in zip(*(array.tolist() for array in batch), strict=True)]


def test_each_image_of_a_class_has_its_turns_in_every_epoch() -> None:
    found = oversampled(examples(), TIMES)
    turns = found.turns()
    assert (len(turns), turns.dtype) == (15, np.int32)
    for epoch in range(4):
        counts = collections.Counter(example for example, _ in rows_of_epoch(turns, epoch))
        assert [counts[index] for index in range(7)] == REPEATS.tolist()
    assert rows_of_epoch(turns, 0) != rows_of_epoch(turns, 1)


def test_images_are_not_copied_and_the_note_says_what_counts() -> None:
    plain = examples()
    found = oversampled(plain, TIMES)
    assert found.images is plain.images
    assert found.labels is plain.labels
    assert found.notes == (
        "a note",
        "oversampling: each of 2 images of covid19 counts 4 times, each of 2 images of pneumonia counts 2 times; an "
        "epoch has 15 examples of 7 training images, and balanced class weights go by these",
    )
    assert oversampled(plain, ()) is plain


def test_without_oversampling_the_order_is_that_of_the_examples() -> None:
    turns = examples().turns()
    for step in range(9):
        found, views = batch_rows(0, step, turns, 2, num_views=3)
        np.testing.assert_array_equal(found, batch_indices(0, step, 7, 2))
        assert views.tolist() == [step // 3 % 3] * 2
        assert (found.dtype, views.dtype) == (np.int32, np.int32)


def test_copies_of_an_image_see_different_views_in_an_epoch_and_each_all_of_them_in_time() -> None:
    turns = oversampled(examples(), TIMES).turns()
    seen = collections.defaultdict(set)
    for epoch in range(VIEWS):
        rows = rows_of_epoch(turns, epoch)
        assert len(set(rows)) == len(rows) == 15
        for example, view in rows:
            seen[example].add(view)
    assert all(views == set(range(VIEWS)) for views in seen.values())


def test_stream_gives_the_rows_of_the_resident_views() -> None:
    turns = oversampled(examples(), TIMES).turns()
    views = [{"features": np.arange(7) + 100 * number, "label": LABELS} for number in range(VIEWS)]
    together = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
    feed = PhaseInputs((together,), VIEWS, turns, True, None, None)
    for first in (0, 4):
        for step, batch in enumerate(stream.batches(views, turns, 3, BATCH, first, 9), start=first):
            rows = feed.rows(step, 3, BATCH)
            for name, array in together.items():
                np.testing.assert_array_equal(batch[name], array[rows])


def test_only_the_training_split_is_oversampled() -> None:
    dataset = small_config(
        dataset__num_images=12, dataset__image_size=16, dataset__oversample=(("covid19", 17),)
    ).dataset
    train, val = (sources.load(dataset, split) for split in ("train", "val"))
    assert train.repeats is not None
    assert set(train.repeats[train.labels == 0]) == {17}
    assert set(train.repeats[train.labels != 0]) == {1}
    assert val.repeats is None
    assert not any("oversampling" in note for note in val.notes)


def test_phantoms_are_counted_without_drawing_one() -> None:
    dataset = small_config(dataset__num_images=33, dataset__image_size=16).dataset
    drawn = phantom.load(dataset, "train")
    expected = dict(zip(CLASSES, np.bincount(drawn.labels).tolist(), strict=True))
    assert phantom.training_counts(dataset) == expected


@pytest.mark.parametrize(
    "pairs", [(("covid", 2),), (("covid19", 0),), (("covid19", 1001),), (("covid19", 2), ("covid19", 3))]
)
def test_pairs_that_do_not_fit_are_refused_with_the_names_of_the_classes(pairs: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(UserError) as caught:
        oversampled(dataclasses.replace(examples()), pairs)
    message = str(caught.value)
    assert message.startswith(f"config.dataset.oversample is {pairs!r}: allowed are pairs of a class")
    assert message.endswith("from 1 to 1000; the classes are covid19, normal, pneumonia")
    assert "\n" not in message


def test_turns_are_counted_from_the_numbers_of_images() -> None:
    counts = {"covid19": 2, "normal": 3, "pneumonia": 2}
    assert more_turns(counts, TIMES) == 15 - 7
    assert more_turns({"background": 10**6}, ()) == 0
