"""The base of all builders: features, the check of everything before anything is written, and the writing."""

import abc
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from covidjax.console import Progress
from covidjax.data.copies import Seen, copies
from covidjax.data.datasets.findings import told_of_findings
from covidjax.data.datasets.records import Listing, Record, with_facts
from covidjax.data.decode import in_parallel, remark_notes
from covidjax.data.examples import FACTS, SPLITS, present
from covidjax.data.formats.base import BadImageError
from covidjax.data.listing import check_classes
from covidjax.data.splits import draw_folds, draw_splits, hold_out_eighth
from covidjax.errors import UserError, some_of

Counts = Mapping[str, Mapping[str, int]]


class ManualBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set from files that the user has put into `manual_dir`.

    Features: image (encoded, as it came or as PNG), label (where CLASSES), mask (PNG of class ids, where MASK_CLASSES)
    or findings (1, 0, -1 uncertain, -2 unknown, where FINDINGS),
    id, patient ('' where unknown), source, fold (of five, by patient; -1: none) and held_out (of train,
    for val, where the published split has none).
    PUBLISHED: images by split ('all': of the whole set) and class ('': of all classes), and by variant where there are
    some.
    """

    VERSION = tfds.core.Version("1.0.0")
    CLASSES: tuple[str, ...] = ()
    MASK_CLASSES: tuple[str, ...] = ()
    FINDINGS: tuple[str, ...] = ()
    PUBLISHED: Mapping[str, Any] = {}

    @abc.abstractmethod
    def list_records(self, root: Path) -> Listing:
        """The images below `root` in the published layout, with what is amiss; opens tables and lists only."""

    def check(self, root: Path) -> Listing:
        """The images with splits, folds and all notes, once every image has been opened.

        Counts that differ from the published ones are a note. Raises UserError with every fault.
        """
        listing = self.list_records(root)
        records, faults = [record.printable() for record in listing.records], list(listing.faults)
        twice = [key for key, count in collections.Counter(record.name for record in records).items() if count > 1]
        faults += [f"{key} is there more than once" for key in twice]
        bad, digests, looks = _read_all(self.name, records, len(self.MASK_CLASSES))
        faults += bad
        present = {record.label for record in records}
        if records:
            faults += [f"no image of class {label}" for label in self.CLASSES if label not in present]
        if not records and not faults:
            faults = ["no image was found"]
        if faults:
            raise UserError(f"{self.name}: {len(faults)} problems, nothing was written: {some_of(faults, '; ')}")
        if self.CLASSES:
            check_classes(self.CLASSES, root)
        notes_on_findings = told_of_findings(records, self.FINDINGS)
        records, told = with_facts(records)
        records, notes = _draw(records, self.CLASSES)
        _check_training_images(self.name, records, self.CLASSES)
        notes += copies(
            Seen(digest, record.name, record.split, _label_of(record, self.FINDINGS))
            for digest, record in zip(digests, records, strict=True)
        )
        notes = [*listing.notes, *looks, *told, *notes_on_findings, *notes, *_differences(records, self.published())]
        sides = collections.Counter(patient for patient, _ in {(r.patient, r.split) for r in records if r.patient})
        torn = tuple(sorted(patient for patient, count in sides.items() if count > 1))
        if torn:
            notes.append(
                f"the split has {len(torn)} patients on two sides ({some_of(torn)}): as it stands "
                "it is image-level; dataset.fold=0 to 4 keep patients together"
            )
        if unknown := sum(not record.patient for record in records):
            notes.append(f"the patient of {unknown} of {len(records)} images is unknown: the split is image-level")
        return Listing(records, [], notes, torn)

    def write(self, listing: Listing, download_dir: Path) -> None:
        """Writes the listing of `check`. download_dir: for nothing, but TFDS makes it."""
        self.listing, self.progress = listing, Progress(f"{self.name}: writing", len(listing.records))
        tfds.disable_progress_bar()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            self.download_and_prepare(download_dir=download_dir, file_format="array_record")
        written = sum(split.num_examples for split in self.info.splits.values())
        if written != len(listing.records):
            raise RuntimeError(f"{written} of {len(listing.records)} images were written")
        self.progress.finish(f"{self.name}: wrote {written} images")

    def published(self) -> Counts:
        """The published counts of this variant."""
        return self.PUBLISHED.get(self.builder_config.name, {}) if self.builder_config else self.PUBLISHED

    def _info(self) -> tfds.core.DatasetInfo:
        text, image = tfds.features.Text, tfds.features.Image
        features = {"image": image(shape=(None, None, 3)), **{name: text() for name in ("id", "patient", *FACTS)}}
        features |= {"fold": tfds.features.Scalar(np.int32), "held_out": tfds.features.Scalar(np.bool_)}
        kinds = {
            "mask": image(shape=(None, None, 1), encoding_format="png"),
            "findings": tfds.features.Sequence(np.int8),
            "label": tfds.features.ClassLabel(names=list(self.CLASSES) or None),
        }
        features[self.kind()] = kinds[self.kind()]
        return tfds.core.DatasetInfo(
            builder=self,
            description=" ".join((type(self).__doc__ or "").split()),
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
        )

    def kind(self) -> str:
        """The feature that tells what an image is: 'mask', 'findings' or 'label'."""
        return "mask" if self.MASK_CLASSES else "findings" if self.FINDINGS else "label"

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[Any]]:
        records, done = self.listing.records, itertools.count(1)
        if self.kind() == "label":
            self.info.features["label"].names = list(self.CLASSES)
        self.info.metadata.update(
            mask_classes=self.MASK_CLASSES, findings=self.FINDINGS, notes=self.listing.notes, torn=self.listing.torn
        )
        parts = {split: [record for record in records if record.split == split] for split in SPLITS}
        return {split: self._generate_examples(part, done) for split, part in parts.items() if part}

    def _generate_examples(self, records: list[Record], done: Iterator[int]) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in records:
            image, mask, _ = record.encoded(len(self.MASK_CLASSES))
            kind = {self.kind(): {"mask": mask, "findings": record.findings, "label": record.label}[self.kind()]}
            texts = {name: getattr(record, name) for name in ("patient", *FACTS)} | {"id": record.name}
            self.progress.show(next(done))
            yield record.name, {"image": image, "fold": record.fold, "held_out": record.held_out, **texts, **kind}


def _label_of(record: Record, names: tuple[str, ...]) -> str:
    return record.label if record.findings is None else present(record.findings, names)


def _read_all(name: str, records: list[Record], num_mask_classes: int) -> tuple[list[str], list[str], list[str]]:
    """What is wrong with the files, the digest of each image, and notes on what the images look like."""

    def read(index: int) -> tuple[str, str, tuple[str, ...]]:
        record = records[index]
        try:
            image, _, remarks = record.encoded(num_mask_classes)
            return "", hashlib.sha256(image).hexdigest(), remarks
        except BadImageError as error:
            return f"{record.name} ({error})", "", ()
        except OSError as error:
            return f"{record.name} ({error.strerror or type(error).__name__})", "", ()

    progress = Progress(f"{name}: checking", len(records))
    found = in_parallel(read, len(records), progress)
    if records:
        progress.finish(f"{name}: checked {len(records)} images")
    remarks = {record.name: own for record, (*_, own) in zip(records, found, strict=True)}
    return [fault for fault, *_ in found if fault], [digest for _, digest, _ in found], remark_notes(remarks)


def _check_training_images(name: str, records: list[Record], classes: tuple[str, ...]) -> None:
    """Raises UserError where a class has images, but none to train on."""
    trained = {record.label for record in records if record.split == "train" and not record.held_out}
    if missing := [label for label in classes if label not in trained]:
        counts = collections.Counter(record.label for record in records)
        told = some_of(f"{label} ({counts[label]} images)" for label in missing)
        raise UserError(f"{name}: no training image is of class {told}: add some, or leave the class out")


def _draw(records: list[Record], classes: tuple[str, ...]) -> tuple[list[Record], list[str]]:
    """Records with folds and, where the set has none, with splits and images held out for val; and the notes."""
    notes = []
    numbers = {label: number for number, label in enumerate(classes)}
    labels = [numbers[record.label] if classes else 0 for record in records]
    patients = [record.patient or record.name for record in records]
    splits = [record.split for record in records]
    folds, held_out = [-1] * len(records), np.zeros(len(records), bool)
    try:
        folds = list(draw_folds(labels, patients))
    except UserError as error:
        notes.append(f"no folds: {error}")
    if not all(splits):
        splits = list(draw_splits(labels, patients))
        notes.append("the set has no split of its own: one was drawn, by patient where known")
    elif "val" not in splits:
        held_out = hold_out_eighth(labels, patients, np.asarray(splits) == "train")
        notes.append(f"no val split: {held_out.sum()} images of train are held out as val, by patient where known")
    drawn = zip(records, splits, folds, held_out.tolist(), strict=True)
    return [dataclasses.replace(one, split=split, fold=fold, held_out=out) for one, split, fold, out in drawn], notes


def _differences(records: list[Record], published: Counts) -> list[str]:
    lines = []
    for split, wanted in published.items():
        labels = [record.label for record in records if split in (record.split, "all")]
        for label, count in wanted.items():
            found = sum(label in (own, "") for own in labels)
            if found != count:
                lines.append(f"{found} images of {' '.join((split, label)).strip()}, published are {count}")
    return [f"counts differ from the published ones: {some_of(lines, '; ')}"] if lines else []
