"""The base of all builders: features, the check of everything before anything is written, and the writing."""

import abc
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from covidjax.console import Progress
from covidjax.data.datasets.records import Counts, Listing, Record, settle


class ManualBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set from files that the user has put into `manual_dir`.

    Features: image (encoded, as it came or as PNG), label (where CLASSES) or mask (PNG of class ids, where
    MASK_CLASSES), id, patient ('' where unknown), source, fold (of five, by patient; -1: none) and held_out (of train,
    for val, where the published split has none).
    PUBLISHED: images by split ('all': of the whole set) and class ('': of all classes).
    """

    VERSION = tfds.core.Version("1.0.0")
    CLASSES: tuple[str, ...] = ()
    MASK_CLASSES: tuple[str, ...] = ()
    PUBLISHED: Counts = {}
    checked: Listing | None = None

    @abc.abstractmethod
    def list_records(self, root: Path) -> Listing:
        """The images below `root` in the published layout, with what is amiss; opens tables and lists only."""

    def check(self, root: Path) -> Listing:
        """The images with splits and folds; all of them have been opened. Raises UserError with every fault."""
        listing = self.list_records(root)
        self.checked = settle(self.name, listing, self.CLASSES, self.MASK_CLASSES, self.published())
        return self.checked

    def write(self, manual_dir: Path, download_dir: Path) -> None:
        """Writes the listing of `check`. download_dir: for nothing, but TFDS makes it."""
        count = len((self.checked or self.check(manual_dir)).records)
        progress = Progress(f"{self.name}: writing", count)
        tfds.disable_progress_bar()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            config = tfds.download.DownloadConfig(manual_dir=manual_dir)
            self.download_and_prepare(download_dir=download_dir, download_config=config, file_format="array_record")
        written = sum(split.num_examples for split in self.info.splits.values())
        if written != count:
            raise RuntimeError(f"{written} of {count} images were written")
        progress.finish(f"{self.name}: wrote {count} images")

    def published(self) -> Counts:
        """The published counts of this variant."""
        return self.PUBLISHED

    def _info(self) -> tfds.core.DatasetInfo:
        text, image = tfds.features.Text, tfds.features.Image
        features = {"image": image(shape=(None, None, 3)), "id": text(), "patient": text(), "source": text()}
        features |= {"fold": tfds.features.Scalar(np.int32), "held_out": tfds.features.Scalar(np.bool_)}
        if self.has_masks():
            features["mask"] = image(shape=(None, None, 1), encoding_format="png")
        else:
            features["label"] = tfds.features.ClassLabel(names=list(self.CLASSES) or None)
        return tfds.core.DatasetInfo(
            builder=self,
            description=" ".join((type(self).__doc__ or "").split()),
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
        )

    def has_masks(self) -> bool:
        """Whether the images have masks instead of labels."""
        return bool(self.MASK_CLASSES)

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[Any]]:
        listing = self.checked or self.check(Path(dl_manager.manual_dir))
        if not self.has_masks():
            self.info.features["label"].names = list(self.CLASSES)
        self.info.metadata.update(mask_classes=self.MASK_CLASSES, notes=listing.notes, torn=listing.torn)
        progress = Progress(f"{self.name}: writing", len(listing.records))
        splits = [split for split in ("train", "val", "test") if any(r.split == split for r in listing.records)]
        written: list[str] = []
        return {
            split: self._generate_examples([r for r in listing.records if r.split == split], written, progress)
            for split in splits
        }

    def _generate_examples(
        self, records: list[Record], written: list[str], progress: Progress
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in records:
            image, mask = record.encoded(len(self.MASK_CLASSES))
            kind = {"mask": mask} if self.has_masks() else {"label": record.label}
            texts = {"id": record.name, "patient": record.patient, "source": record.source}
            written.append(record.name)
            progress.show(len(written))
            yield record.name, {"image": image, "fold": record.fold, "held_out": record.held_out, **texts, **kind}
