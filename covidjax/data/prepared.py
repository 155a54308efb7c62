"""Data sets that `launch/prepare.py` wrote, and any other that TFDS has written as array_record."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from covidjax.data.examples import FACTS, present
from covidjax.data.listing import ImageFiles, Row, choose_split
from covidjax.errors import UserError, some_of
from covidjax.process import path_of

INFO = "dataset_info.json"
HOW = "launch/prepare.py writes such folders: DATA_DIR/NAME/VERSION, or DATA_DIR/NAME/VARIANT/VERSION"


def list_files(dataset: ConfigDict, split: str, masks: bool) -> ImageFiles:
    """The records of one split in the order of their names, through `as_data_source`: random access, no TensorFlow.

    Where the set has no val split, val are the images of train that its maker marked as held out, or else a fixed
    eighth of train: `covidjax.data.listing.choose_split`. Images of the test split are opened for `split` 'test' only,
    and for a fold. Where patients are unknown, or the published split tears some apart, the split is image-level.
    Reads `dataset.{root, fold, mask_classes}`. Raises UserError for a folder that is no prepared set, for a damaged
    one, and for one without labels or masks, as asked for.
    """
    root = find(path_of(dataset.root))
    with _damage_named(root):
        builder = tfds.builder_from_directory(root)
        metadata = root / "metadata.json"
        facts = json.loads(metadata.read_text()) if metadata.exists() else {}
    features = builder.info.features
    kind = "mask" if masks else "findings" if facts.get("findings") else "label"
    if kind not in features or "image" not in features:
        raise UserError(
            f"config.dataset.root {root} has the features {', '.join(features)} and no {kind}: choose "
            + ("a network that labels images" if masks else "a network for segmentation, such as unet")
        )
    if kind == "label":
        classes = tuple(features["label"].names)
    else:
        classes = tuple(facts["findings"] if kind == "findings" else facts.get("mask_classes") or dataset.mask_classes)
    keys, there = ("image", "mask") if masks else ("image",), tuple(builder.info.splits)
    needed = there if dataset.fold != -1 else ("test",) if split == "test" else ("train", "val")
    rows: list[Row] = []
    places: dict[str, tuple[Any, int, str]] = {}  # of the encoded images and masks
    known = dataset.fold != -1 or not facts.get("torn")
    for part in [part for part in there if part in needed]:
        with _damage_named(root):
            source = builder.as_data_source(part, decoders={key: tfds.decode.SkipDecoding() for key in keys})
            for index in range(len(source)):
                record = source[index]
                name, patient = _text(record, "id") or f"{part}/{index}", _text(record, "patient")
                names = [name, f"{name} (mask)"]
                places |= {name: (source, index, key) for name, key in zip(names, keys, strict=False)}
                mask = (names[1],) if masks else None
                findings = tuple(map(int, record["findings"])) if kind == "findings" else None
                label = (
                    present(findings, classes) if findings is not None else "" if masks else classes[record["label"]]
                )
                own = "val" if record.get("held_out") else part
                told = {fact: _text(record, fact) for fact in FACTS}
                rows.append(
                    Row(name, own, label, patient or name, int(record.get("fold", -1)), mask, findings=findings, **told)
                )
                known = known and bool(patient)

    def read(name: str) -> bytes:
        source, index, key = places[name]
        with _damage_named(root):
            return source[index][key]

    notes = list(facts.get("notes", ()))
    if not known and not any("image-level" in note for note in notes):
        notes.append("no patient ids: the split is image-level")
    missing = f"config.dataset.root {root} has no {split} split, but {', '.join(there)}"
    files = ImageFiles(root, tuple(rows), classes, known, tuple(notes), read)
    return choose_split(files, split, dataset.fold, root / INFO, missing)


def find(root: Path) -> Path:
    """The folder of a prepared set: `root`, or the only one, but for its older versions, below it."""
    if (root / INFO).exists():
        return root
    found = [path.parent for pattern in ("*", "*/*") for path in root.glob(f"{pattern}/{INFO}")]
    newest = {path.parent: path for path in sorted(found, key=_version)}
    if len(newest) == 1:
        return next(iter(newest.values()))
    which = f"holds several: {some_of(sorted(newest.values()))}" if newest else "is no prepared data set"
    raise UserError(f"config.dataset.root {str(root)!r} {which}; {HOW}")


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.split(".") if part.isdecimal())


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
