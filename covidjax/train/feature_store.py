"""Outputs of a frozen prefix on disk, verified when they are opened again."""

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

RECORD = "features.json"
ABANDONED_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True)
class FeatureStore:
    """A folder with one subfolder a key: `leaf0.npy ...` and a record of what each file holds, with its SHA-256.

    A subfolder appears whole, by a rename, or not at all.
    """

    folder: Path

    def open(self, key: str, shapes: Any) -> Any | None:
        """The arrays of a key as read-only memory maps, or None where they are missing or not what was written.

        shapes: the tree of `jax.ShapeDtypeStruct` that is expected; the result has its structure.
        """
        folder = self.folder / key
        if not folder.exists():
            return None
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if record["key"] != key:
                raise ValueError("they belong to other weights or images")
            leaves = []
            for index, shape in enumerate(jax.tree.leaves(shapes)):
                path = folder / _name(index)
                if record["sha256"][index] != files.digest(path):
                    raise ValueError(f"the checksum of {path.name} differs")
                leaf = np.load(path, mmap_mode="r")
                if leaf.shape != shape.shape or leaf.dtype != _kept_as(shape.dtype):
                    raise ValueError(f"{path.name} holds {leaf.dtype} {leaf.shape}")
                leaves.append(leaf.view(shape.dtype))
            return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            say(f"the cached features in {folder} are damaged ({error}): they are computed again")
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def room(self, size: int) -> str:
        """Why there is no room for so many bytes; empty where there is."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            return f"{self.folder}: {error.strerror}"
        return "" if size <= free else f"{self.folder} has {free / 2**20:,.0f} MiB free"

    @contextlib.contextmanager
    def writing(self, key: str, shapes: Any) -> Iterator[Any]:
        """Writable memory maps of the given shapes; they get the name of the key when the block ends well.

        Raises OSError where the disk is too full: all of the room is taken before the first row is written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.tmp"):  # by a process that was killed
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(left)
        temporary = Path(tempfile.mkdtemp(prefix=f"{key[:16]}.", suffix=".tmp", dir=self.folder))
        try:
            leaves = [_reserved(temporary / _name(i), shape) for i, shape in enumerate(jax.tree.leaves(shapes))]
            yield jax.tree.unflatten(jax.tree.structure(shapes), leaves)
            for leaf in leaves:
                leaf.flush()
            checksums = [files.digest(temporary / _name(index)) for index in range(len(leaves))]
            (temporary / RECORD).write_text(json.dumps({"key": key, "sha256": checksums}), encoding="utf-8")
            try:
                os.rename(temporary, self.folder / key)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process was first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _name(index: int) -> str:
    return f"leaf{index}.npy"


def _kept_as(dtype: np.dtype) -> np.dtype:
    """A type that NumPy's format does not know, such as bfloat16, is kept as the integers of its bits."""
    return dtype if dtype.kind in "fiub" else np.dtype(f"u{dtype.itemsize}")


def _reserved(path: Path, shape: jax.ShapeDtypeStruct) -> np.memmap:
    leaf = np.lib.format.open_memmap(path, mode="w+", dtype=_kept_as(shape.dtype), shape=shape.shape)
    if hasattr(os, "posix_fallocate"):  # a hole in a memory map on a full disk kills the process when written
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return leaf.view(shape.dtype)
