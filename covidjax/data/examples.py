"""The decoded form that every data source ends in."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SPLITS = ("train", "val", "test")
FACTS = ("view", "spacing", "source")  # of images, where their files tell them


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """One split, decoded once, ready to be placed on a device or streamed.

    images: [n, height, width, channels] uint8, possibly a read-only memory map
    labels: [n] int32, an index into `classes`
    names: n unique identifiers (for files, the path below the data root)
    patients: n patient identifiers; where the source knows none, each image is its own patient and
        `patients_known` is False
    classes: class names, in label order
    fingerprint: SHA-256 of the content that the split was made from, so that a changed pixel is noticed
    notes: sentences for the person who runs this (held-out split, dropped files), printed and recorded
    masks: [n, height, width] uint8 class ids or None; for segmentation `classes` are those of the pixels, with the
        background first, and `labels` are zeros
    findings: [n, findings] int8 or None: 1 present, 0 absent, -1 uncertain, -2 unknown; `classes` are the findings
        then, and `labels` are zeros
    digests: SHA-256 of the bytes of each image: n, or none where the source has no files
    drawn: file, label, patient and split of the images of all splits, where the split was drawn as they were listed
    facts: of `FACTS` those that any image has: n texts each
    repeats: [n] int32, how often each example counts in an epoch of training; None: once
    """

    split: str
    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    patients: tuple[str, ...]
    patients_known: bool
    classes: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    masks: np.ndarray | None = None
    findings: np.ndarray | None = None
    repeats: np.ndarray | None = None
    digests: tuple[str, ...] = ()
    drawn: tuple[tuple[str, ...], ...] = ()
    facts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def label_names(self) -> tuple[str, ...]:
        """What each image is, in words: its class, its present findings joined by '|', or '' where it has a mask."""
        if self.findings is not None:
            return tuple(present(row, self.classes) for row in self.findings)
        if self.masks is not None and not self.labels.any():
            return ("",) * len(self)
        return tuple(self.classes[label] for label in self.labels)

    def turns(self) -> np.ndarray:
        """The example of each turn of an epoch of training, rising: [turns] int32."""
        numbers = np.arange(len(self), dtype=np.int32)
        return numbers if self.repeats is None else np.repeat(numbers, self.repeats)


def present(findings: Iterable[int], names: Sequence[str]) -> str:
    """The names of the present ones of `Examples.findings` of an image, [findings], joined by '|'."""
    return "|".join(name for name, own in zip(names, findings, strict=True) if own == 1)


def joined(train: Examples, val: Examples) -> Examples:
    """The images of both as one training split, each once in an epoch; they are copied."""

    def both(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
        return None if first is None or second is None else np.concatenate([first, second])

    return dataclasses.replace(
        train,
        images=np.concatenate([train.images, val.images]),
        labels=np.concatenate([train.labels, val.labels]),
        names=train.names + val.names,
        patients=train.patients + val.patients,
        patients_known=train.patients_known and val.patients_known,
        fingerprint=f"{train.fingerprint} {val.fingerprint}",
        masks=both(train.masks, val.masks),
        findings=both(train.findings, val.findings),
        repeats=None,
        digests=train.digests + val.digests,
    )
