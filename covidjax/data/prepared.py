"""Data sets that `launch/prepare.py` wrote, and any other that TFDS has written as array_record."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from covidjax.data.decode import decode
from covidjax.data.examples import Examples
from covidjax.data.listing import ImageFiles, Row, choose_split
from covidjax.data.pairs import look_at_masks
from covidjax.errors import UserError

INFO = "dataset_info.json"
HOW = "launch/prepare.py writes such folders: DATA_DIR/NAME/VERSION, or DATA_DIR/NAME/VARIANT/VERSION"


def load(dataset: ConfigDict, split: str, *, masks: bool = False) -> Examples:
    """One split, through `as_data_source`: random access, and no TensorFlow.

    images: [n, image_size, image_size, channels] uint8, decoded as those of a folder are; `masks`: see
    `covidjax.data.pairs.load`, with the classes of the data set. Reads `dataset.{root, fold}` and what
    `covidjax.data.decode.decode` reads. Images of the test split are opened for `split` 'test' only, and for a fold.
    Raises UserError for a folder that is no prepared set, and for one without labels or masks, as asked for.
    """
    examples = decode(list_records(dataset, split, masks), dataset)
    return look_at_masks(examples, dataset.root) if masks else examples


def list_records(dataset: ConfigDict, split: str, masks: bool) -> ImageFiles:
    """The records of one split in the order of their names.

    Where the set has no val split, val are the images of train that its maker marked as held out, or else a fixed
    eighth of train. `dataset.fold`: see `covidjax.data.splits.assign_fold`.
    Where patients are unknown, or the published split tears some apart, the split is image-level.
    """
    root = find(Path(dataset.root).expanduser())
    with _damage_named(root):
        builder = tfds.builder_from_directory(root)
        metadata = root / "metadata.json"
        facts = json.loads(metadata.read_text()) if metadata.exists() else {}
    features, kind = builder.info.features, "mask" if masks else "label"
    if kind not in features or "image" not in features:
        raise UserError(
            f"config.dataset.root {root} has the features {', '.join(features)} and no {kind}: choose "
            + ("a network that labels images" if masks else "a network for segmentation, such as unet")
        )
    classes = tuple(facts.get("mask_classes") or dataset.mask_classes) if masks else tuple(features["label"].names)
    parts = _parts(split, dataset.fold, tuple(builder.info.splits))
    records = _Records(builder, parts, ("image", "mask") if masks else ("image",))
    rows = list(records.rows(classes, masks))
    known = not records.unknown and (dataset.fold != -1 or not facts.get("torn"))
    notes = list(facts.get("notes", ()))
    if not known and not any("image-level" in note for note in notes):
        notes.append("no patient ids: the split is image-level")
    missing = f"config.dataset.root {root} has no {split} split, but {', '.join(builder.info.splits)}"
    files = ImageFiles(root, tuple(rows), classes, known, tuple(notes), records.read)
    return choose_split(files, split, dataset.fold, root / INFO, missing)


def find(root: Path) -> Path:
    """The folder of a prepared set: `root`, or the only one, but for its older versions, below it."""
    if (root / INFO).exists():
        return root
    found = [path.parent for pattern in ("*", "*/*") for path in root.glob(f"{pattern}/{INFO}")]
    newest = {path.parent: path for path in sorted(found, key=_version)}
    if len(newest) == 1:
        return next(iter(newest.values()))
    which = f"holds several: {', '.join(map(str, sorted(newest.values())))}" if newest else "is no prepared data set"
    raise UserError(f"config.dataset.root {str(root)!r} {which}; {HOW}")


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.split(".") if part.isdecimal())


def _parts(split: str, fold: int, there: tuple[str, ...]) -> tuple[str, ...]:
    """The splits whose records have to be seen to know what is in one."""
    wanted = there if fold != -1 else ("test",) if split == "test" else ("train", "val")
    return tuple(part for part in there if part in wanted)


class _Records:
    """Random access to the encoded images of some splits, by name."""

    def __init__(self, builder: Any, splits: tuple[str, ...], keys: tuple[str, ...]) -> None:
        self.root, self.keys = builder.data_path, keys
        decoders = {key: tfds.decode.SkipDecoding() for key in keys}
        with _damage_named(self.root):
            self.sources = {split: builder.as_data_source(split, decoders=decoders) for split in splits}
            self.sizes = {split: len(source) for split, source in self.sources.items()}
        self.places: dict[str, tuple[str, int, str]] = {}
        self.unknown = 0  # patients, of the rows so far

    def rows(self, classes: tuple[str, ...], masks: bool) -> Iterator[Row]:
        """The facts of each record; from then on its image can be read."""
        for split, size in self.sizes.items():
            for index in range(size):
                with _damage_named(self.root):
                    record = self.sources[split][index]
                name = _text(record, "id") or f"{split}/{index}"
                names = [name, f"{name} (mask)"]
                for part, key in zip(names, self.keys, strict=False):
                    self.places[part] = split, index, key
                label, mask = ("", names[1]) if masks else (classes[int(record["label"])], None)
                patient = _text(record, "patient")
                self.unknown += not patient
                part = "val" if record.get("held_out") else split
                yield Row(name, part, label, patient or name, int(record.get("fold", -1)), mask)

    def read(self, name: str) -> bytes:
        """The bytes of an image or a mask. Raises UserError where the data set is damaged."""
        split, index, key = self.places[name]
        with _damage_named(self.root):
            return self.sources[split][index][key]


@contextlib.contextmanager
def _damage_named(root: Any) -> Iterator[None]:
    """Within it an error of the reader, which raises many kinds, becomes a UserError."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(f"{root} is not written as array_record: prepare it with that file format") from error
    except Exception as error:
        detail = " ".join(str(error).split())
        raise UserError(f"config.dataset.root {root} is damaged ({detail}): prepare it again") from error


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key, b"")
    return value.decode() if isinstance(value, bytes) else str(value)
