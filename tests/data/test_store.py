"""Arrays on disk: bit for bit, whole or not at all, and what is damaged is never used."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.data import store as module
from covidjax.data.store import ABANDONED_SECONDS, RECORD, ArrayStore
from tests.commands import ROOT, contents
from tests.disk import small_disk

KEY = "0123456789abcdef" * 4
OTHER_KEY = "f" * 64
# A map that skips ahead, one that flows on, and a type that NumPy's format does not know.
SHAPES = (
    jax.ShapeDtypeStruct((7, 4, 4, 2), jnp.float32),
    (jax.ShapeDtypeStruct((7, 5), jnp.float64), jax.ShapeDtypeStruct((7, 3), jnp.bfloat16)),
)
WRITER = """
import sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from covidjax.data.store import ArrayStore

with ArrayStore(Path(sys.argv[1]), "").writing(sys.argv[2], jax.ShapeDtypeStruct((1000, 8), jnp.float32)) as rows:
    rows[:500] = 1.0
    print("half of them", flush=True)
    time.sleep(600)
"""


def store_in(folder: Path) -> ArrayStore:
    return ArrayStore(folder, "{folder} is damaged ({reason}): made again")


def values(seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: generator.normal(size=shape.shape).astype(shape.dtype), SHAPES)


def write(store: ArrayStore, key: str = KEY, seed: int = 0) -> None:
    with store.writing(key, SHAPES) as arrays:
        jax.tree.map(np.copyto, arrays, values(seed))


def assert_holds(store: ArrayStore, key: str = KEY, seed: int = 0) -> None:
    found, expected = (
        jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape, leaf.tobytes()), tree)
        for tree in (store.open(key, SHAPES), values(seed))
    )
    assert found == expected


def test_arrays_and_notes_of_each_key_come_back_bit_for_bit_as_read_only_maps(tmp_path: Path) -> None:
    store, notes = store_in(tmp_path / "features"), ["before"]
    assert store.open(KEY, SHAPES) is None
    write(store, KEY, seed=0)
    with store.writing(OTHER_KEY, SHAPES, notes) as arrays:
        jax.tree.map(np.copyto, arrays, values(1))
        notes.append("the last row is bad")  # notes are kept as they are at the end
    assert_holds(store, KEY, seed=0)
    assert_holds(store, OTHER_KEY, seed=1)
    assert (store.notes(KEY), store.notes(OTHER_KEY)) == (None, notes)
    found = jax.tree.leaves(store.open(KEY, SHAPES))
    assert all(isinstance(leaf, np.memmap) for leaf in found)
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 0


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def swap_two_files(path: Path) -> None:
    os.replace(path, path.with_name("spare"))
    os.replace(path.with_name("leaf1.npy"), path)
    os.replace(path.with_name("spare"), path.with_name("leaf1.npy"))


def forget_a_checksum(path: Path) -> None:
    record = json.loads(path.read_text())
    del record["sha256"]["leaf1.npy"]
    path.write_text(json.dumps(record))


def come_from_another_key(path: Path) -> None:
    write(store_in(path.parents[1]), OTHER_KEY, seed=1)
    shutil.rmtree(path.parent)
    shutil.copytree(path.parents[1] / OTHER_KEY, path.parent)


# The file of a key that is damaged, how, and the reason that is told.
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("leaf1.npy", flip_a_byte, "the checksum of leaf1.npy differs"),
    ("leaf0.npy", lambda path: path.write_bytes(path.read_bytes().replace(b"'<f4'", b"'<i4'")), "leaf0.npy differs"),
    ("leaf2.npy", lambda path: os.truncate(path, 0), "the checksum of leaf2.npy differs"),
    ("leaf1.npy", Path.unlink, "No such file or directory"),
    ("notes.json", lambda path: path.write_text('["others"]'), "the checksum of notes.json differs"),
    (RECORD, Path.unlink, "No such file or directory"),
    (RECORD, lambda path: os.truncate(path, 40), "Unterminated string"),
    (RECORD, lambda path: path.write_text("[1, 2]"), "list indices must be integers"),
    (RECORD, lambda path: path.write_bytes(b"\xff\xfe"), "codec can't decode"),
    (RECORD, forget_a_checksum, "'leaf1.npy'"),
    ("leaf0.npy", swap_two_files, "the checksum of leaf0.npy differs"),
    (RECORD, come_from_another_key, "they belong to other weights or images"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_damage_is_told_in_one_line_and_never_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], object], reason: str
) -> None:
    store = store_in(tmp_path)
    write(store)
    damage(tmp_path / KEY / name)
    assert store.open(KEY, SHAPES) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / KEY} is damaged (")
    assert reason in line
    assert line.endswith("): made again")
    write(store)
    assert_holds(store)
    assert capsys.readouterr().err == ""


def test_arrays_of_another_shape_or_type_are_not_used(tmp_path: Path) -> None:
    store, shape = store_in(tmp_path), jax.ShapeDtypeStruct((7, 5), jnp.float32)
    for sizes, dtype in (((8, 5), jnp.float32), ((5, 7), jnp.float32), ((7, 5), jnp.int32), ((7, 10), jnp.bfloat16)):
        with store.writing(KEY, shape) as rows:
            rows[:] = 1.0
        assert store.open(KEY, shape) is not None
        assert store.open(KEY, jax.ShapeDtypeStruct(sizes, dtype)) is None


def test_block_that_fails_leaves_nothing_and_of_two_writers_of_a_key_the_first_counts(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with pytest.raises(RuntimeError), store.writing(KEY, SHAPES) as arrays:
        jax.tree.leaves(arrays)[0][:3] = 1.0
        raise RuntimeError
    assert contents(tmp_path) == {}
    with store.writing(KEY, SHAPES) as arrays:
        write(store)
        jax.tree.map(np.copyto, arrays, values(1))
    assert [path.name for path in tmp_path.iterdir()] == [KEY]
    assert_holds(store)


def test_killed_writer_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), KEY]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "half of them\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"

    store = store_in(tmp_path)
    assert store.open(KEY, SHAPES) is None
    write(store)
    assert_holds(store)
    assert left.exists(), "it could belong to a process that is at work"
    os.utime(left, (time.time() - ABANDONED_SECONDS - 60,) * 2)
    write(store, OTHER_KEY)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((KEY, OTHER_KEY))


def test_room_is_told_in_bytes_that_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path / "features")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    assert store.room(3 * 2**20) == ""
    assert store.room(3 * 2**20 + 1) == f"{tmp_path / 'features'} has 3 MiB free"
    (tmp_path / "file").write_text("")
    assert store_in(tmp_path / "file" / "features").room(1) == f"{tmp_path / 'file' / 'features'}: Not a directory"


def test_full_disk_is_an_error_before_the_first_row_and_leaves_nothing(tmp_path: Path) -> None:
    small, large = (jax.ShapeDtypeStruct((count, 2**10), jnp.float32) for count in (100, 200))
    with small_disk(tmp_path / "disk", 2**20) as disk:
        store = store_in(disk / "features")
        with store.writing(OTHER_KEY, small) as rows:
            rows[:] = 1.0
        assert store.room(200 * 2**12)
        with pytest.raises(OSError) as caught, store.writing(KEY, large):
            raise AssertionError("the block is not reached")
        assert caught.value.errno == errno.ENOSPC
        assert [path.name for path in (disk / "features").iterdir()] == [OTHER_KEY]
        assert store.open(OTHER_KEY, small) is not None
