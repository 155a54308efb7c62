"""Arrays on disk under a key, verified when they are opened again: decoded images, outputs of a frozen prefix."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from covidjax import files
from covidjax.console import say

RECORD, NOTES = "record.json", "notes.json"
ABANDONED_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True)
class ArrayStore:
    """A folder with one subfolder a key: `leaf0.npy ...`, notes, and a record with the SHA-256 of these files.

    A subfolder appears whole, by a rename, or not at all.
    damaged: what to say of one that is not what was written, with `{folder}` and `{reason}`.
    """

    folder: Path
    damaged: str

    def open(self, key: str, shapes: Any) -> Any | None:
        """The arrays of a key as read-only memory maps, or None where they are missing or not what was written.

        shapes: the tree of `jax.ShapeDtypeStruct` that is expected; the result has its structure.
        """
        folder, leaves = self.folder / key, []
        if not os.path.exists(folder):  # nor where the cache of another user is not to be looked into
            return None
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if record["key"] != key:
                raise ValueError("they belong to other weights or images")
            for name in (NOTES, *_names(shapes)):
                if record["sha256"][name] != files.digest(folder / name):
                    raise ValueError(f"the checksum of {name} differs")
            for name, shape in _names(shapes).items():
                leaf = np.load(folder / name, mmap_mode="r")
                if leaf.shape != shape.shape or leaf.dtype != _kept_as(shape.dtype):
                    raise ValueError(f"{name} holds {leaf.dtype} {leaf.shape}")
                leaves.append(leaf.view(shape.dtype))
            return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(self.damaged.format(folder=folder, reason=error))
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def notes(self, key: str) -> Any:
        """The notes that `writing` kept beside the arrays of a key."""
        return files.read_json(self.folder / key / NOTES)

    def room(self, size: int) -> str:
        """Why there is no room for so many bytes; empty where there is."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            return f"{self.folder}: {error.strerror}"
        return "" if size <= free else f"{self.folder} has {free / 2**20:,.0f} MiB free"

    @contextlib.contextmanager
    def writing(self, key: str, shapes: Any, notes: Any = None) -> Iterator[Any]:
        """Writable memory maps of the given shapes; they get the name of the key when the block ends well.

        notes: what JSON can hold, kept as it is at the end of the block.
        Raises OSError where the disk is too full: all of the room is taken before the first row is written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.tmp"):  # by a process that was killed
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(left)
        temporary = Path(tempfile.mkdtemp(prefix=f"{key[:16]}.", suffix=".tmp", dir=self.folder))
        try:
            leaves = [_reserved(temporary / name, shape) for name, shape in _names(shapes).items()]
            yield jax.tree.unflatten(jax.tree.structure(shapes), leaves)
            for leaf in leaves:
                leaf.flush()
            (temporary / NOTES).write_text(json.dumps(notes), encoding="utf-8")
            checksums = {name: files.digest(temporary / name) for name in (NOTES, *_names(shapes))}
            (temporary / RECORD).write_text(json.dumps({"key": key, "sha256": checksums}), encoding="utf-8")
            try:
                os.rename(temporary, self.folder / key)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process was first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _names(shapes: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The file of each leaf."""
    return {f"leaf{index}.npy": shape for index, shape in enumerate(jax.tree.leaves(shapes))}


def _kept_as(dtype: np.dtype) -> np.dtype:
    """A type that NumPy's format does not know, such as bfloat16, is kept as the integers of its bits."""
    return dtype if dtype.kind in "fiub" else np.dtype(f"u{dtype.itemsize}")


def _reserved(path: Path, shape: jax.ShapeDtypeStruct) -> np.memmap:
    leaf = np.lib.format.open_memmap(path, mode="w+", dtype=_kept_as(shape.dtype), shape=shape.shape)
    if hasattr(os, "posix_fallocate"):  # a hole in a memory map on a full disk kills the process when written
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return leaf.view(shape.dtype)
