"""Image files to one uint8 array: decoded once, in parallel, and kept in a cache keyed by the content of the files."""

import dataclasses
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from covidjax.data.examples import Examples
from covidjax.data.image_cache import cache_dir, load_cache, reserve_cache, store_cache
from covidjax.data.progress import Progress, say
from covidjax.errors import UserError

FORMAT_VERSION = 1
FORMATS = ("JPEG", "PNG", "BMP")
CROPS = ("center", "pad", "squash")
MAX_PIXELS = 1024**3 // 12  # where Pillow begins to suspect a decompression bomb: 89 million
FILES_PER_TASK = 16
Result = TypeVar("Result")


class BadImageError(ValueError):
    """The bytes are no image that can be decoded; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The image files of one split, listed but not opened.

    names: n paths below `root`, with '/'
    labels: n indices into `classes`
    patients: n patient identifiers (the names, where `patients_known` is False)
    notes: sentences that go to `Examples.notes`
    """

    root: Path
    split: str
    names: tuple[str, ...]
    labels: tuple[int, ...]
    patients: tuple[str, ...]
    patients_known: bool
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def decode_image(content: bytes, image_size: int, channels: int, crop: str) -> np.ndarray:
    """Decode one JPEG, PNG or BMP file to [image_size, image_size, channels] uint8.

    In this order: EXIF orientation; 16-bit gray by its full range (value / 257, so a 12-bit picture in a 16-bit file
    stays dark; of 16-bit colour Pillow keeps the high byte); transparency flattened over black; luminance (ITU-R 601)
    for 1 channel, RGB for 3; `crop` 'center' = the centre square, 'pad' = letterbox with black, 'squash' = both sides.
    One resizer for all: Pillow's BILINEAR, whose filter widens when it shrinks (antialiased). No JPEG draft mode.

    Raises BadImageError with the reason.
    """
    if not content:
        raise BadImageError("the file is empty")
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width} x {image.height} pixels: taken for a decompression bomb")
            if 0 in image.size:
                raise BadImageError(f"{image.width} x {image.height} pixels")
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            picture = _to_mode(image, mode)
    except (BadImageError, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        raise BadImageError("not a JPEG, PNG or BMP image") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on damaged bytes
        raise BadImageError(" ".join(str(error).split()) or type(error).__name__) from error
    pixels = np.asarray(_resize(picture, image_size, crop))
    return pixels.reshape(image_size, image_size, channels)


def decode(files: ImageFiles, dataset: ConfigDict) -> Examples:
    """Decode the files of one split, or load what an earlier start decoded.

    images: [n, image_size, image_size, channels] uint8, a read-only memory map of the cache file where there is one
    Reads `dataset.{image_size, channels, crop, skip_bad, cache_dir}`. Says its progress on stderr.
    Raises UserError for a setting that is not allowed and for bad files: all of them at once, each with its reason.
    With `dataset.skip_bad` bad files are dropped and noted, unless all are bad.
    """
    settings = _settings(dataset)
    bad, digests = _digest_files(files)
    readable = [index for index in range(len(files.names)) if index not in bad]
    if not readable:
        raise _bad_files(files, bad)
    notes = list(files.notes)
    shape = (len(readable), settings["image_size"], settings["image_size"], settings["channels"])
    identity = [FORMAT_VERSION, PIL.__version__, settings, [(files.names[i], digests[i]) for i in readable]]
    cache = cache_dir(dataset.cache_dir) / f"{_fingerprint(identity)}.npy"
    cached = load_cache(cache, shape)
    if cached is not None:
        images, undecodable = cached
        say(f"{files.split}: {len(readable) - len(undecodable)} images from the cache {cache}")
    else:
        images, undecodable, problem = _decode_and_store(
            files, readable, digests, settings=settings, cache=cache, shape=shape
        )
        if problem:
            notes.append(f"no image cache: {cache.parent} cannot be written ({problem})")
    bad.update({readable[row]: reason for row, reason in undecodable.items()})
    if bad and (len(bad) == len(files.names) or not dataset.skip_bad):
        raise _bad_files(files, bad)
    if bad:
        dropped = "; ".join(f"{files.names[index]} ({reason})" for index, reason in sorted(bad.items()))
        notes.append(f"{files.split}: {len(bad)} bad files were dropped: {dropped}")
    kept = [index for index in range(len(files.names)) if index not in bad]
    names, patients, labels = zip(*((files.names[i], files.patients[i], files.labels[i]) for i in kept), strict=True)
    content = [digests[index] for index in kept]
    return Examples(
        split=files.split,
        images=images[: len(kept)],
        labels=np.array(labels, np.int32),
        names=names,
        patients=patients,
        patients_known=files.patients_known,
        classes=files.classes,
        fingerprint=_fingerprint([FORMAT_VERSION, settings, names, labels, files.classes, patients, content]),
        notes=tuple(notes),
    )


def _settings(dataset: ConfigDict) -> dict:
    if dataset.image_size < 1:
        raise UserError(f"dataset.image_size is {dataset.image_size}; allowed: 1 or more")
    if dataset.channels not in (1, 3):
        raise UserError(f"dataset.channels is {dataset.channels}; allowed: 1 (luminance) or 3 (RGB)")
    if dataset.crop not in CROPS:
        raise UserError(f"dataset.crop is {dataset.crop!r}; allowed: {', '.join(CROPS)}")
    return {"image_size": int(dataset.image_size), "channels": int(dataset.channels), "crop": str(dataset.crop)}


def _fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _resize(picture: Image.Image, image_size: int, crop: str) -> Image.Image:
    width, height = picture.size
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    if crop != "pad":
        return picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
    scale = image_size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new(picture.mode, (image_size, image_size))
    offset = ((image_size - inner[0]) // 2, (image_size - inner[1]) // 2)
    canvas.paste(picture.resize(inner, Image.Resampling.BILINEAR), offset)
    return canvas


def _digest_files(files: ImageFiles) -> tuple[dict[int, str], list[str]]:
    """Return the reasons why files cannot be read, by index, and the SHA-256 of each file."""

    def digest(index: int) -> tuple[str, str]:
        try:
            with (files.root / files.names[index]).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest(), ""
        except OSError as error:
            return "", error.strerror or type(error).__name__

    results = _in_parallel(digest, len(files.names), Progress(f"{files.split}: reading", len(files.names), patience=5))
    return {index: reason for index, (_, reason) in enumerate(results) if reason}, [digest for digest, _ in results]


def _decode_and_store(
    files: ImageFiles, readable: list[int], digests: list[str], *, settings: dict, cache: Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, dict[int, str], str]:
    """Return the images (good ones first, in order), the reasons of the bad rows, and why there is no cache, or ''."""
    temporary, problem = reserve_cache(cache, shape)
    try:
        images = np.empty(shape, np.uint8) if temporary is None else np.lib.format.open_memmap(temporary, mode="r+")

        def decode_row(row: int) -> str:
            index = readable[row]
            try:
                content = (files.root / files.names[index]).read_bytes()
            except OSError as error:
                raise UserError(f"{files.names[index]} was readable and no longer is ({error}): start again") from error
            if hashlib.sha256(content).hexdigest() != digests[index]:
                raise UserError(f"{files.names[index]} changed while it was being read: start again")
            try:
                images[row] = decode_image(content, **settings)
            except BadImageError as error:
                return str(error)
            return ""

        progress = Progress(f"{files.split}: decoding", len(readable))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode_image refuses those by itself
            reasons = _in_parallel(decode_row, len(readable), progress)
        good = [row for row, reason in enumerate(reasons) if not reason]
        progress.finish(f"{files.split}: decoded {len(good)} images")
        undecodable = {row: reason for row, reason in enumerate(reasons) if reason}
        for target, row in enumerate(good):
            if target != row:
                images[target] = images[row]
        if temporary is not None:
            try:
                images = store_cache(images, temporary, cache, undecodable)
            except OSError as error:
                problem = error.strerror or type(error).__name__
        return images, undecodable, problem
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _bad_files(files: ImageFiles, bad: dict[int, str]) -> UserError:
    listed = "; ".join(f"{files.root / files.names[index]} ({reason})" for index, reason in sorted(bad.items()))
    advice = "mend or remove them, or set dataset.skip_bad=true to drop them"
    if len(bad) == len(files.names):
        advice = "no good file is left: check dataset.root"
    return UserError(f"{len(bad)} of {len(files.names)} {files.split} files are bad: {listed}; {advice}")


def _in_parallel(work: Callable[[int], Result], count: int, progress: Progress) -> list[Result]:
    """Return [work(0), ..., work(count - 1)], computed in one thread per core that this process may use."""

    def block(start: int) -> list[Result]:
        return [work(index) for index in range(start, min(start + FILES_PER_TASK, count))]

    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    results: list[Result] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for part in pool.map(block, range(0, count, FILES_PER_TASK)):
            results += part
            progress.show(len(results))
    return results
