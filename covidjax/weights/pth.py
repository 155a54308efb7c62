"""Tensors out of what torch.save writes. A file is data: nothing in it is ever executed."""

import io
import math
import pickle
import re
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from covidjax.errors import UserError, some_of

Tensors = dict[str, np.ndarray]
OLD = 0x1950A86A20F9469CFC6C  # how files from before PyTorch 1.6 begin
MODULES = re.compile(r"(torch\.nn|torchvision|torchxrayvision)\.")  # whose classes may stand in a file, as names alone
# Beside a network in a checkpoint of a training: what optimizes and counts.
NO_NETWORK = re.compile(r"(^|_)(optim|sched|scaler|callbacks|loops|hyper_parameters|args|config|rng|criterion|loss)")
AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|momentum)([._]|\d|$)")  # of the weights, kept beside them


def read_pth(path: Path) -> tuple[Tensors, str]:
    """The tensors of the network in a file of torch.save, and what was left in the file, in words, or ''.

    The network is a dictionary of tensors, or is found in dictionaries of dictionaries under the only name that holds
    tensors, a moving average and an optimizer apart. Raises UserError where that is not one, or code would run.
    """
    try:
        if not zipfile.is_zipfile(path):
            return _network(_old_content(path), "")
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

    def storage(key: str, dtype: Any, size: int) -> np.ndarray:
        return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, count=size)  # checks the CRC

    with archive.open(index) as opened:
        return _Unpickler(opened, storage).load()


def _old_content(path: Path) -> Any:
    """What torch.save wrote before PyTorch 1.6: pickles in a row, then the storages, their lengths before them."""
    data = path.read_bytes()
    opened = io.BytesIO(data)
    seen: dict[str, Any] = {}

    def empty(key: str, dtype: Any, size: int) -> np.ndarray:
        seen[key] = np.dtype(dtype)
        return np.zeros(size, dtype)

    try:
        if _Unpickler(opened, empty).load() != OLD:
            raise pickle.UnpicklingError("another beginning")
    except (pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UserError("it is nothing that torch.save writes, or it is truncated: get it anew") from error
    _, system, place = _Unpickler(opened, empty).load(), _Unpickler(opened, empty).load(), opened.tell()
    if not system.get("little_endian", True):
        raise UserError("it is big-endian: save it again on an ordinary machine")
    _Unpickler(opened, empty).load()
    found: dict[str, np.ndarray] = {}
    for key in _Unpickler(opened, empty).load():
        size = int.from_bytes(opened.read(8), "little")
        found[key] = np.frombuffer(data, seen[key], size, opened.tell())
        opened.seek(size * seen[key].itemsize, io.SEEK_CUR)
    opened.seek(place)
    return _Unpickler(opened, lambda key, dtype, size: found[key]).load()


def _network(content: Any, place: str) -> tuple[Tensors, str]:
    """The dictionary of tensors in nested dictionaries; place: the keys that lead to `content`, for messages."""
    if isinstance(content, _Module):
        return dict(content.tensors()), f"a whole {type(content).__name__}, of which the tensors alone were read"
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

    def __init__(self, opened: Any, storage: Callable[[str, Any, int], np.ndarray]) -> None:
        super().__init__(opened)
        self._storage = storage
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None and MODULES.match(f"{module}."):
            return type(name, (_Module,), {})  # a new one each time: a pickle can change no other's
        if found is None:
            raise UserError(
                f"it asks to run {module}.{name}, which could do anything on this machine: nothing was run; only "
                "tensors are read, so save model.state_dict() with torch.save"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class, and its source code, which nobody runs
            return pid[1]
        kind, storage, key, _, size, *view = pid
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        if key not in self._storages:
            self._storages[key] = self._storage(key, _STORAGES[storage], size)
        return self._storages[key]


class _Module:
    """A network that was pickled whole, without its class: what its parts hold, and no code."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """Its tensors by the names that its state_dict would have."""
        for kind in ("_parameters", "_buffers"):
            for name, value in vars(self).get(kind, {}).items():
                if isinstance(value, np.ndarray):
                    yield prefix + name, value
        for name, part in vars(self).get("_modules", {}).items():
            if isinstance(part, _Module):
                yield from part.tensors(f"{prefix}{name}.")


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
