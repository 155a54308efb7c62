"""Image files to one uint8 array, decoded once, in parallel, and kept in a cache keyed by the content of the files."""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import PIL
from ml_collections import ConfigDict

from covidjax.console import Progress, say
from covidjax.data import picture
from covidjax.data.examples import Examples
from covidjax.data.formats.base import BadImageError
from covidjax.data.listing import ImageFiles, Row
from covidjax.data.picture import ImageSpec, decode_image, decode_pair
from covidjax.data.store import ArrayStore
from covidjax.errors import UserError, some_of
from covidjax.process import cache_dir

FORMAT_VERSION = 1  # of fingerprints, which run.json holds
CACHE_VERSION = 2  # of decoded pixels and what is kept beside them
DAMAGED = "the cache folder {folder} is damaged ({reason}): decoding again"
Result = TypeVar("Result")


def decode(files: ImageFiles, dataset: ConfigDict) -> Examples:
    """The decoded files of one split, or those that an earlier start decoded.

    images: [n, image_size, image_size, channels] uint8, a read-only memory map of the cache file where there is one
    masks: [n, image_size, image_size] uint8, where the files have masks: see `covidjax.data.picture.decode_pair`
    notes: those of the files, and what their users have to know of the pixels, also where they come from the cache
    Reads `dataset.{image_size, channels, crop, enhancement, window, frame, skip_bad, cache_dir}`.
    Says its progress on stderr.
    Raises UserError for bad files: all of them at once, each with its reason.
    With `dataset.skip_bad` bad files are dropped and noted, unless all are bad.
    """
    spec = ImageSpec.of(dataset)
    settings: dict[str, Any] = dataclasses.asdict(spec)
    for name, unset in (("enhancement", "none"), ("window", ""), ("frame", 0)):
        if settings[name] == unset:  # images as they are keep the fingerprint that they always had
            del settings[name]
    if files.with_masks:
        settings["num_classes"] = len(files.classes)
    digests, bad = _digest_files(files)
    if not digests:
        raise _bad_files(files, bad)
    arrays, found, notes = _decoded(_without(files, bad), digests, spec, settings, cache_dir(dataset.cache_dir))
    bad |= found["bad"]
    notes += [f"{files.split}: {note}" for note in remark_notes(found["remarks"])]
    if bad and (len(bad) == len(files.rows) or not dataset.skip_bad):
        raise _bad_files(files, bad)
    if bad:
        dropped = some_of((f"{name} ({reason})" for name, reason in sorted(bad.items())), "; ")
        notes.append(f"{files.split}: {len(bad)} bad files were dropped: {dropped}")
    good = _without(files, bad)
    findings = None if good.rows[0].findings is None else np.array([row.findings for row in good.rows], np.int8)
    names, labels, patients, content = good.names, good.labels, good.patients, [digests[name] for name in good.names]
    return Examples(
        split=files.split,
        images=arrays[0][: len(names)],
        labels=np.array(labels, np.int32),
        names=names,
        patients=patients,
        patients_known=files.patients_known,
        classes=files.classes,
        fingerprint=_fingerprint(
            [FORMAT_VERSION, settings, names, labels, files.classes, patients, content]
            + ([] if findings is None else [findings.tolist()])
        ),
        notes=(*files.notes, *notes),
        masks=arrays[1][: len(names)] if files.with_masks else None,
        findings=findings,
        digests=tuple(digest.partition(" ")[0] for digest in content),
        drawn=files.drawn,
        facts=good.facts,
    )


def _decoded(
    files: ImageFiles, digests: dict[str, str], spec: ImageSpec, settings: dict, folder: Path
) -> tuple[list[np.ndarray], dict[str, dict[str, Any]], list[str]]:
    """Images and masks (good ones first, in order), findings by name, and a note where they are not kept.

    Findings: 'bad': why files are bad; 'remarks': what a person has to know of others.
    """
    count = len(files.rows)
    identity = [CACHE_VERSION, PIL.__version__, settings, [(*_parts(row), digests[row.name]) for row in files.rows]]
    key = _fingerprint([*identity, picture.ENHANCER] if "enhancement" in settings else identity)
    square = (count, spec.image_size, spec.image_size)
    shapes = [(*square, spec.channels), square] if files.with_masks else [(*square, spec.channels)]
    store, wanted = ArrayStore(folder / "images", DAMAGED), [jax.ShapeDtypeStruct(shape, np.uint8) for shape in shapes]
    arrays: Any = store.open(key, wanted)
    if arrays is not None:
        found = store.notes(key)
        say(f"{files.split}: {count - len(found['bad'])} images from the cache {store.folder / key}")
        return arrays, found, []

    def decode_row(row: int) -> tuple[str, tuple[str, ...]]:
        parts = _parts(files.rows[row])
        try:
            contents = [files.read(name) for name in parts]
        except OSError as error:
            raise UserError(f"{parts[0]} was readable and no longer is ({error}): start again") from error
        if " ".join(hashlib.sha256(content).hexdigest() for content in contents) != digests[parts[0]]:
            raise UserError(f"{parts[0]} changed while it was being read: start again")
        try:
            if files.with_masks:
                arrays[0][row], arrays[1][row], remarks = decode_pair(
                    contents[0], contents[1], parts[1], len(files.classes), spec
                )
                for content, name in zip(contents[2:], parts[2:], strict=True):  # further masks of the same image
                    np.maximum(
                        arrays[1][row],
                        decode_pair(contents[0], content, name, len(files.classes), spec)[1],
                        out=arrays[1][row],
                    )
            else:
                arrays[0][row], remarks = decode_image(contents[0], spec)
        except BadImageError as error:
            return str(error), ()
        return "", remarks

    def decode_rows() -> dict[str, dict[str, Any]]:
        progress = Progress(f"{files.split}: decoding", count)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what decoders warn of is refused, or is a remark
            rows = in_parallel(decode_row, count, progress)
        good = [row for row, (reason, _) in enumerate(rows) if not reason]
        progress.finish(f"{files.split}: decoded {len(good)} images")
        for target, row in enumerate(good):
            for array in arrays if target != row else ():
                array[target] = array[row]
        named = list(zip(files.names, rows, strict=True))
        bad = {name: reason for name, (reason, _) in named if reason}
        return {"bad": bad, "remarks": {name: remarks for name, (_, remarks) in named if remarks}}

    found, notes = {}, []
    try:
        with store.writing(key, wanted, found) as arrays:
            found |= decode_rows()
        for array in arrays:
            array.flags.writeable = False
    except OSError as error:
        notes = [f"no image cache: {store.folder} cannot be written ({error.strerror or type(error).__name__})"]
        if arrays is None:
            arrays = [np.empty(shape, np.uint8) for shape in shapes]
            found |= decode_rows()
    return arrays, found, notes


def remark_notes(remarks: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each remark, with the number of the images that have it, and ten of their names.

    remarks: those of each image, by its name; see `covidjax.data.levels.remarks`.
    """
    named: dict[str, list[str]] = {}
    for name, own in sorted(remarks.items()):
        for remark in own:
            named.setdefault(remark, []).append(name)
    return [f"{len(names)} images {remark}: {some_of(names)}" for remark, names in named.items()]


def _without(files: ImageFiles, bad: dict[str, str]) -> ImageFiles:
    return dataclasses.replace(files, rows=tuple(row for row in files.rows if row.name not in bad))


def _parts(row: Row) -> tuple[str, ...]:
    """The names of an image and, where there are masks, of its masks."""
    return (row.name, *(row.masks or ()))


def _fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _digest_files(files: ImageFiles) -> tuple[dict[str, str], dict[str, str]]:
    """By name of the image: the SHA-256 of each file (with that of its mask), and why others cannot be read."""

    def digest(index: int) -> tuple[str, str]:
        row = files.rows[index]
        if row.fault:
            return "", row.fault
        digests, reasons = [], []
        for name in _parts(row):
            try:
                digests.append(hashlib.sha256(files.read(name)).hexdigest())
            except OSError as error:
                which = "" if name == row.name else f"its mask {name}: "
                reasons.append(which + (error.strerror or type(error).__name__))
        return " ".join(digests), "; ".join(reasons)

    count = len(files.rows)
    found = in_parallel(digest, count, Progress(f"{files.split}: reading", count, patience=5))
    named = list(zip(files.names, found, strict=True))
    return {name: own for name, (own, bad) in named if not bad}, {name: bad for name, (_, bad) in named if bad}


def _bad_files(files: ImageFiles, bad: dict[str, str]) -> UserError:
    listed = some_of((f"{files.root / name} ({reason})" for name, reason in sorted(bad.items())), "; ")
    advice = "mend or remove them, or set dataset.skip_bad=true to drop them"
    if len(bad) == len(files.rows):
        advice = "no good file is left: check dataset.root"
    return UserError(f"{len(bad)} of {len(files.rows)} {files.split} files are bad: {listed}; {advice}")


def in_parallel(work: Callable[[int], Result], count: int, progress: Progress) -> list[Result]:
    """[work(0), ..., work(count - 1)], computed in one thread per core that this process may use."""
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    results: list[Result] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for result in pool.map(work, range(count)):
            results.append(result)
            progress.show(len(results))
    return results
