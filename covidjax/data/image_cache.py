"""Decoded images on disk, verified when they are loaded again."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from covidjax.console import say


def reserve_cache(cache: Path, shape: tuple[int, ...]) -> tuple[Path | None, str]:
    """A new temporary .npy file with room for the images, and ''; else None and why there is none."""
    temporary = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{cache.stem}.", suffix=".tmp", dir=cache.parent)
        os.close(handle)
        temporary = Path(name)
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a hole in a memory map on a full disk kills the process when written
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        return temporary, ""
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        return None, error.strerror or type(error).__name__


def store_cache(images: np.ndarray, temporary: Path, cache: Path, undecodable: dict[int, str]) -> np.ndarray:
    """The images as a memory map of the finished temporary file, which gets its name and a checksum beside it."""
    if isinstance(images, np.memmap):
        images.flush()
    record = {"undecodable": list(undecodable.items())}
    record_text = json.dumps(record | {"sha256": _checksum(temporary, record)})
    os.replace(temporary, cache)
    temporary.write_text(record_text)
    os.replace(temporary, cache.with_suffix(".json"))
    return np.load(cache, mmap_mode="r")


def load_cache(cache: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, dict[int, str]] | None:
    """The images and the reasons of the bad rows, or None if nothing usable is there."""
    if not (cache.exists() and cache.with_suffix(".json").exists()):
        return None
    try:
        record = json.loads(cache.with_suffix(".json").read_text())
        if record.pop("sha256") != _checksum(cache, record):
            raise ValueError("its checksum differs")
        images = np.load(cache, mmap_mode="r")
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"it holds {images.dtype} {images.shape}")
        return images, dict(record["undecodable"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"the cache file {cache} is damaged ({error}): decoding again")
        return None


def _checksum(path: Path, record: dict) -> str:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256")
    checksum.update(json.dumps(record).encode())
    return checksum.hexdigest()
