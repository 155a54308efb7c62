"""Tensors of a file into the arrays of a network: each is accounted for, or the file is refused."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from covidjax.errors import UserError, some_of
from covidjax.weights.foreign import COUNTERS, foreign
from covidjax.weights.layers import ADAPTERS


@dataclasses.dataclass(frozen=True)
class Entry:
    """The origin of one array of a network.

    path: ours, from 'params' or 'batch_stats' down. source: the name of the tensor in the file.
    layout: how the tensor becomes the array:
    'same'; 'conv_oihw' [out, in, height, width] to [height, width, in, out]; 'dense_oi' [out, in] to [in, out];
    'dense_from_chw:C,H,W' [out, C * H * W] to [H * W * C, out]; 'conv_as_dense' [out, in, height, width], a convolution
    that covers the whole map, to [height * width * in, out]; 'part:I,N' the I-th of N equal parts of the first axis, of
    [out, in] as 'dense_oi'; 'flat' [features, 1, 1] to [features].
    """

    path: str
    source: str
    layout: str = "same"


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The account of a file. unused: names of its tensors; new: paths of parameters that it had nothing for."""

    unused: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        """One sentence, the counters of training steps in one word."""
        counters = [name for name in self.unused if name.endswith(COUNTERS)]
        others = [name for name in self.unused if not name.endswith(COUNTERS)]
        parts = [f"newly initialised: {some_of(self.new)}"] if self.new else ["every parameter filled"]
        if others:
            parts.append(f"unused tensors: {some_of(others)}")
        if counters:
            parts.append(f"{len(counters)} tensors {COUNTERS} ignored by design")
        return "; ".join(parts)


def match(
    variables: Mapping[str, Any],
    entries: Collection[Entry],
    tensors: Mapping[str, np.ndarray],
    *,
    new_stages: tuple[str, ...] = ("head",),
    outside: Collection[str] = (),
) -> tuple[dict[str, Entry], LoadReport]:
    """The entry of each array that the file fills, by path, and an account of both sides; no number is touched.

    new_stages: the stages that a file need not fit. In these, from the first layer that does not fit on (in the order
    of `entries`) all is left new: what follows a new layer was trained for another input.
    outside: names of tensors that belong to no part of the network.
    Raises UserError, with both names, where a shape differs; where a tensor or a parameter is missing; and where the
    file has a learnt tensor in a stage that is used for which the network has no place (`foreign`).
    """
    leaves = traverse_util.flatten_dict(dict(variables), sep="/")
    wanted = [entry for entry in entries if _stage(entry.path) not in new_stages]
    if absent := [f"{entry.source} for {entry.path}" for entry in wanted if entry.source not in tensors]:
        raise UserError(
            f"{len(absent)} of the {len(wanted)} tensors that it needs are not in the file: {some_of(absent)}"
        )
    new_layers: set[str] = set()
    broken_stages: set[str] = set()
    for entry in entries:
        stage, complaint = _stage(entry.path), _complaint(entry, leaves, tensors)
        if complaint and stage not in new_stages:
            raise UserError(complaint)
        if complaint or stage in broken_stages:
            broken_stages.add(stage)
            new_layers.add(_layer(entry.path))
    used = {entry.path: entry for entry in entries if _layer(entry.path) not in new_layers}
    needed = [path for path in leaves if _stage(path) not in new_stages and not path.endswith(ADAPTERS)]
    if missing := [path for path in needed if path not in used]:
        raise UserError(f"nothing in the file is for {some_of(missing)}")
    taken = {entry.source: _stage(path) for path, entry in used.items()}
    unused = tuple(name for name in tensors if name not in taken)
    replaced = {entry.source for entry in entries}
    left = [name for name in unused if name not in outside]
    stages = {_stage(path) for path in leaves}
    if strange := foreign(left, tensors, taken, replaced=replaced, stages=stages, new_stages=new_stages):
        raise UserError(f"the network has no place for {some_of(strange)}: the file is of another network")
    return used, LoadReport(unused, tuple(sorted(path for path in leaves if path not in used)))


def own_entries(variables: Mapping[str, Any]) -> tuple[Entry, ...]:
    """The name map for tensors that bear our own names."""
    return tuple(Entry(path, path) for path in traverse_util.flatten_dict(dict(variables), sep="/"))


def place(tensor: np.ndarray, layout: str, dtype: Any) -> jax.Array:
    """The tensor in our layout and type, on the device."""
    return jax.device_put(np.array(arrange(tensor, layout), dtype, order="C"))


def arrange(tensor: np.ndarray, layout: str) -> np.ndarray:
    """The tensor in our layout (see `Entry`); a view where that is possible."""
    kind, _, sizes = layout.partition(":")
    if kind == "same":
        return tensor
    if kind == "part":
        index, count = map(int, sizes.split(","))
        return np.split(tensor, count)[index].T
    if kind == "flat":
        return tensor.reshape(-1)
    if kind == "dense_oi":
        return tensor.T
    if kind == "dense_from_chw":
        tensor = tensor.reshape(len(tensor), *map(int, sizes.split(",")))
    image_first = tensor.transpose(2, 3, 1, 0)
    return image_first if kind == "conv_oihw" else image_first.reshape(-1, image_first.shape[-1])


def arranged_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...] | None:
    """The shape after `arrange`, or None where a tensor of this shape has not the layout."""
    try:
        return arrange(np.broadcast_to(np.uint8(0), shape), layout).shape
    except (ValueError, TypeError):
        return None


def _complaint(entry: Entry, leaves: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Why the tensor cannot become the array; '' where it can."""
    if entry.source not in tensors:
        return f"the tensor {entry.source} for {entry.path} is not in the file"
    if entry.path not in leaves:
        return f"the tensor {entry.source} is for {entry.path}, which this network has not"
    theirs, ours = tensors[entry.source].shape, leaves[entry.path].shape
    if arranged_shape(theirs, entry.layout) != ours:
        return (
            f"the tensor {entry.source} is {list(theirs)} ({entry.layout}) and does not fit {entry.path}, which is "
            f"{list(ours)}"
        )
    return ""


def _stage(path: str) -> str:
    return path.split("/")[1]


def _layer(name: str) -> str:
    """The layer that a tensor belongs to, without the collection of our own names."""
    name = name.split("/", 1)[1] if name.startswith(("params/", "batch_stats/")) else name
    return name[: max(name.rfind("/"), name.rfind("."))]


def restore(array: np.ndarray, layout: str) -> np.ndarray:
    """The tensor that `arrange` made an array of; of 'conv_as_dense' the height and width are not known any more."""
    kind, _, sizes = layout.partition(":")
    if kind in ("same", "dense_oi"):  # each its own inverse
        return arrange(array, layout)
    if kind == "part":  # one of several, which belong one behind the other
        return array.T
    if kind == "flat":
        return array.reshape(-1, 1, 1)
    if kind == "dense_from_chw":
        channels, height, width = map(int, sizes.split(","))
        array = array.reshape(height, width, channels, -1)
    image_last = array.transpose(3, 2, 0, 1)
    return image_last if kind == "conv_oihw" else image_last.reshape(len(image_last), -1)


def restored(entries: Collection[Entry], leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a file of arrays by path, by their names: the inverse of what `arrange` did."""
    parts: dict[str, list[np.ndarray]] = {}
    for entry in sorted(entries, key=lambda entry: entry.layout):  # those of one tensor in their order
        parts.setdefault(entry.source, []).append(restore(np.asarray(leaves[entry.path]), entry.layout))
    return {
        name: np.ascontiguousarray(every[0] if len(every) == 1 else np.concatenate(every))
        for name, every in parts.items()
    }
