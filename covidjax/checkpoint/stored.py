"""One stored step as orbax reads it: by a path that is taken literally, and proven to come back bit for bit."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from covidjax.errors import UserError

OPEN_FOLDERS = Path("/proc/self/fd")
PLAIN = re.compile(r"[A-Za-z0-9_./,+=@ -]*")


def check_path(folder: Path) -> None:
    """Raises UserError for a path that orbax, TensorStore and etils would read as a pattern or another place."""
    if not PLAIN.fullmatch(str(folder)) and not OPEN_FOLDERS.is_dir():
        wrong = "".join(sorted(set(PLAIN.sub("", str(folder)))))
        raise UserError(
            f"{folder}: checkpoints cannot lie below a name with {wrong!r} on this system: use letters, digits and "
            "_ . , + = @ - in the path"
        )


@contextlib.contextmanager
def literal(folder: Path) -> Iterator[Path]:
    """A path of an existing folder without a character that has a meaning.

    etils globs below the whole path, in which `[a]` and `**` are patterns; TensorStore reads a backslash, `gs:` and
    bytes that are no UTF-8 in ways of its own. The link that the system has to a folder that is open is plain.
    """
    check_path(folder)
    if PLAIN.fullmatch(str(folder)):
        yield folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield OPEN_FOLDERS / str(descriptor)
    finally:
        os.close(descriptor)


def read(directory: Path, step: int, target: Any, *, partial: bool = False) -> Any:
    """The state and the progress of a step. target: of `jax.ShapeDtypeStruct`; partial: see `Checkpoints.restore`."""
    state_args: ocp.args.CheckpointArgs = ocp.args.StandardRestore(target)
    if partial:
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        state_args = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
    return _restore(directory, step, state=state_args, progress=ocp.args.JsonRestore())


def prove(directory: Path, step: int, state: Any) -> None:
    """Reads a step back into the memory of the host. Raises UserError where it is not the state, bit for bit.

    state: what was saved, of which each process compares the parts that it holds.
    """
    how = jax.tree.map(_to_host, state)
    try:
        found = _restore(directory, step, state=ocp.args.PyTreeRestore(state, restore_args=how)).state
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise _unproven(directory, step, f"{type(error).__name__}: {reason}") from error
    pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(found), strict=True)
    for (path, saved), came in pairs:
        if not _same_bits(saved, came):
            raise _unproven(directory, step, f"{jax.tree_util.keystr(path)} came back with other bits")


def _restore(directory: Path, step: int, **items: ocp.args.CheckpointArgs) -> Any:
    with literal(directory) as path, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(path / str(step), args=ocp.args.Composite(**items))


def _unproven(directory: Path, step: int, reason: str) -> UserError:
    return UserError(
        f"checkpoint {step} in {directory} cannot be read back ({reason}), so nothing of this run could be kept: use a "
        "--workdir on another disk or with another name"
    )


def _is_key(leaf: jax.Array) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: jax.Array) -> ocp.RestoreArgs:
    if _is_key(leaf):  # orbax knows keys as arrays of jax alone
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _same_bits(saved: jax.Array, came: Any) -> bool:
    if _is_key(saved):
        saved, came = jax.random.key_data(saved), np.asarray(jax.random.key_data(came).addressable_shards[0].data)
    parts = {str(shard.index): shard for shard in saved.addressable_shards}.values()
    return came.dtype == saved.dtype and all(
        np.asarray(part.data).tobytes() == np.ascontiguousarray(came[part.index]).tobytes() for part in parts
    )
