"""Splits that a paper prints as numbers of images alone: drawn by these counts, class by class, with a fixed seed."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from covidjax.data.datasets.base import Counts
from covidjax.data.datasets.ct import CovidCt
from covidjax.data.datasets.folders import ChestXrayPneumonia, SarsCov2Ct
from covidjax.data.datasets.records import Listing, Record

SEED = 0
OURS = "which images these are is drawn by a fixed seed, image by image, as the paper does not say"


class ChestXrayPneumoniaPrinted(ChestXrayPneumonia):
    """Chest radiographs of children, normal or pneumonia, with the validation set of Li 2023: 8 normal, 15 pneumonia.

    Its train and test, 5 232 and 624, are all images that there are, so that its 23 are of these or of elsewhere: here
    they are taken out of train.
    """

    PUBLISHED = {
        "train": {"normal": 1349 - 8, "pneumonia": 3883 - 15},
        "val": {"normal": 8, "pneumonia": 15},
        "test": ChestXrayPneumonia.PUBLISHED["test"],
    }

    def list_records(self, root: Path) -> Listing:
        listing, own = super().list_records(root), {"val": self.PUBLISHED["val"]}
        train = [record for record in listing.records if record.split == "train"]
        splits = draw(train, own, ChestXrayPneumonia.PUBLISHED["train"])
        listing.records = with_splits(listing.records, splits)
        listing.notes.append(f"val are {len(splits)} images of train: {OURS}")
        return listing


class CovidCtPrinted(CovidCt):
    """CT images out of papers, in the split of Li 2023: 400 for train, 98 for val, 200 for test, half of them COVID-19.

    The paper gives its val of 98 images 200 of each class; 349 images of COVID-19 less 200 and 100 leave 49.
    """

    PUBLISHED = {
        "train": {"noncovid": 200, "covid": 200},
        "val": {"noncovid": 49, "covid": 49},
        "test": {"noncovid": 100, "covid": 100},
    }

    def list_records(self, root: Path) -> Listing:
        return in_numbers(super().list_records(root), self.PUBLISHED, CovidCt.PUBLISHED["all"])


class SarsCov2CtPrinted(SarsCov2Ct):
    """CT slices with and without SARS-CoV-2 in the split that the figures of Pandiyan 2023 are of: 80, 10 and 10 %.

    Its test figures are 237 and 238 of 249, its validation figures 241 and 245 of 248. These are what scikit-learn's
    `train_test_split` makes of 2 481 with 0.2, and of that part with 0.5. Slices of one patient are on all sides.
    """

    PUBLISHED = {
        "train": {"noncovid": 983, "covid": 1001},
        "val": {"noncovid": 123, "covid": 125},
        "test": {"noncovid": 123, "covid": 126},
    }

    def list_records(self, root: Path) -> Listing:
        return in_numbers(super().list_records(root), self.PUBLISHED, SarsCov2Ct.PUBLISHED["all"])


def in_numbers(listing: Listing, counts: Counts, totals: Mapping[str, int]) -> Listing:
    """The listing with the images that are drawn alone, each in its split, and a note. Arguments as those of `draw`."""
    splits = draw(listing.records, counts, totals)
    left = len(listing.records) - len(splits)
    listing.records = with_splits((record for record in listing.records if record.name in splits), splits)
    listing.notes.append(f"{len(splits)} images in the paper's numbers, {left} are left out: {OURS}")
    return listing


def draw(records: Iterable[Record], counts: Counts, totals: Mapping[str, int]) -> dict[str, str]:
    """The split of each image that is drawn, by its name.

    counts: images of each class in each split; totals: of each class among the records when the set is complete. Of a
    part of the set the same shares are drawn, and at least one image.
    """
    chosen: dict[str, str] = {}
    records = list(records)
    for number, (label, total) in enumerate(totals.items()):
        names = sorted(record.name for record in records if record.label == label)
        order, start = np.random.default_rng((SEED, number)).permutation(len(names)), 0
        for split, wanted in counts.items():
            end = start + max(1, round(wanted[label] * len(names) / total))
            chosen |= {names[index]: split for index in order[start:end]}
            start = end
    return chosen


def with_splits(records: Iterable[Record], splits: Mapping[str, str]) -> list[Record]:
    """The records with the splits that were drawn, the others as they are."""
    return [dataclasses.replace(record, split=splits.get(record.name, record.split)) for record in records]
