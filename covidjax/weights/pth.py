"""Tensors out of what torch.save writes. A file is data: nothing in it is ever executed."""

import math
import pickle
import re
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from covidjax.errors import UserError, some_of

Tensors = dict[str, np.ndarray]
# Beside a network in a checkpoint of a training: what optimizes and counts.
NO_NETWORK = re.compile(r"(^|_)(optim|sched|scaler|callbacks|loops|hyper_parameters|args|config|rng|criterion|loss)")
AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|momentum)([._]|\d|$)")  # of the weights, kept beside them


def read_pth(path: Path) -> tuple[Tensors, str]:
    """The tensors of the network in a file of torch.save, and what was left in the file, in words, or ''.

    The network is a dictionary of tensors, or is found in dictionaries of dictionaries under the only name that holds
    tensors, a moving average and an optimizer apart. Raises UserError where that is not one, or code would run.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is no zip archive: it is truncated, or older than PyTorch 1.6; in the latter case load it in "
            "PyTorch once and torch.save it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _network(_content(archive), "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _content(archive: zipfile.ZipFile) -> Any:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise UserError("it is compressed: torch.save compresses nothing, get the original file")
    index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if index is None:
        raise UserError("it holds no data.pkl: it is not what torch.save writes")
    folder = index.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise UserError("it is big-endian: save it again on an ordinary machine")
    with archive.open(index) as opened:
        return _Unpickler(opened, archive, folder).load()


def _network(content: Any, place: str) -> tuple[Tensors, str]:
    """The dictionary of tensors in nested dictionaries; place: the keys that lead to `content`, for messages."""
    if not isinstance(content, dict):
        raise UserError(f"it holds {_kind(content)} and no state_dict: save model.state_dict() with torch.save")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
    inner = {str(name): value for name, value in content.items() if _holds_tensors(value)}
    networks = [name for name in inner if not NO_NETWORK.search(name)]
    averages = [name for name in networks if AVERAGE.search(name)]
    chosen = [name for name in networks if name not in averages] or averages
    if tensors and not any("." in name for name in tensors) and chosen:
        tensors = {}  # a best figure, or a queue, beside the network
    if tensors:
        left = [str(name) for name, value in content.items() if not isinstance(value, np.ndarray)]
        return tensors, "; ".join(filter(None, (place and f"tensors of {place}", _left(left))))
    if len(chosen) != 1:
        held = some_of(f"{str(name)!r} ({_kind(value)})" for name, value in content.items()) or "nothing"
        raise UserError(
            f"it is no state_dict, and not one of its entries alone holds a network: {held}: save "
            "model.state_dict() with torch.save"
        )
    found, told = _network(inner[chosen[0]], f"{place}[{chosen[0]!r}]")
    beside = [name for name in averages if name not in chosen]
    left = [str(name) for name in content if name not in (*chosen, *beside)]
    return found, "; ".join(filter(None, (told, f"not its average {some_of(beside)}" * bool(beside), _left(left))))


def _left(names: list[str]) -> str:
    return f"left beside: {some_of(names)}" if names else ""


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(
        isinstance(item, np.ndarray) or _holds_tensors(item) for item in value.values()
    )


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    return f"a {type(value).__name__}"


class _Unpickler(pickle.Unpickler):
    """Knows containers and tensors and nothing else; a tensor is a NumPy view of its storage."""

    def __init__(self, opened: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(opened)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise UserError(
                f"it asks to run {module}.{name}, which could do anything on this machine: nothing was run; only "
                "tensors are read, so save model.state_dict() with torch.save"
            )
        return found

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, size = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        if key not in self._storages:
            data = self._archive.read(f"{self._folder}data/{key}")  # checks the CRC
            self._storages[key] = np.frombuffer(data, _STORAGES[storage], count=size)
        return self._storages[key]


class _RebuildTensor:
    """Has no attribute that a pickle could set."""

    __slots__ = ()

    def __call__(
        self, storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
    ) -> np.ndarray:
        """A read-only view. strides and offset: in elements; `rest` is about gradients."""
        size = math.prod(shape)
        last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or size > len(storage) or (size and last >= len(storage)):
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        if not size:
            return np.empty(shape, storage.dtype)
        byte_strides = tuple(stride * storage.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides, writeable=False)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor: np.ndarray, *rest: Any) -> np.ndarray:
        return tensor


_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Containers without code of their own, whose types a pickle cannot change; what they hold beside tensors is left.
_CONTAINERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("collections", "Counter"): dict,
    ("argparse", "Namespace"): types.SimpleNamespace,
    ("torch", "Size"): tuple,
    **{(module, kind.__name__): kind for kind in (dict, list, set, tuple) for module in ("builtins", "__builtin__")},
}
_NAMES: dict[tuple[str, str], Any] = {
    **_CONTAINERS,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): name for name in _STORAGES},  # text: nothing that a pickle could call or change
}
