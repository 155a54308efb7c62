"""The leaves of a state by name, and whether those of a checkpoint are the ones that are asked for."""

from typing import Any

import jax
from jax.tree_util import keystr, tree_leaves_with_path

from covidjax.errors import UserError


def describe(tree: Any) -> dict[str, str]:
    """Name -> dtype and shape, such as "params/head/kernel" -> "float32[512, 3]"."""
    leaves = tree_leaves_with_path(tree)
    return {keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def check_fit(checkpoint: str, there: dict[str, str], here: dict[str, str], *, partial: bool) -> None:
    """Raises UserError where a leaf of a checkpoint has another name, shape or dtype than here.

    there, here: what `describe` gave; partial: whether the checkpoint may have more leaves.
    """
    # Orbax would cast another dtype silently, and report another shape with pages of text.
    for name in sorted(here if partial else there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{checkpoint} does not fit: {name} is {there.get(name, 'missing')} there, "
                f"{here.get(name, 'missing')} here; use the config and the revision of covidjax it was trained with "
                "(git_revision in run.json), or another workdir"
            )


def target(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding that a leaf is restored to."""
    if leaf.sharding is None:  # orbax would take the sharding that was saved, whatever devices there are now
        raise ValueError("every leaf of the abstract state needs a sharding")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
