"""Tensors out of weight files of four formats. A file is data: nothing in it is ever executed."""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes  # makes bfloat16 known to NumPy, which safetensors asks for
import numpy as np
from safetensors import SafetensorError, safe_open

from covidjax.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".h5", ".weights.h5")
Tensors = dict[str, np.ndarray]


def read(path: Path) -> Tensors:
    """All tensors of a file by name, on the host.

    `.safetensors` and `.pth` by tensor name; a Keras `.h5` as 'layer_name/0', 'layer_name/1', ... in the file's own
    order of layers and weights; `.weights.h5` as 'layers/conv2d_10/vars/0'.
    Raises UserError where the file is missing, truncated, of another kind, would execute code, or holds a number that
    is not finite.
    """
    if not path.is_file():
        raise UserError(f"there is no weight file {path}: allowed are files in {', '.join(SUFFIXES)}")
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path} is no weight file that is known: allowed are files in {', '.join(SUFFIXES)}")
    tensors = reader(path)
    if not tensors:
        raise UserError(f"{path} holds no tensors: give the file of a network's weights")
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise UserError(f"{path}: the tensor {name} holds NaN or infinity: the file is damaged or its training was")
    return tensors


def metadata(path: Path) -> dict[str, str]:
    """The text entries in the header of a `.safetensors`; none for other formats. Raises UserError as `read`."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _is_finite(tensor: np.ndarray) -> bool:
    if tensor.dtype.kind in "biu":
        return True
    parts = (tensor,) if tensor.ndim == 0 else (tensor[start : start + 256] for start in range(0, len(tensor), 256))
    return all(bool(np.isfinite(part).all()) for part in parts)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"{path} cannot be read as {path.suffix}: {reason}: it is truncated or of another kind, get it anew"
    )


# ---- safetensors ----


def _read_safetensors(path: Path) -> Tensors:
    tensors: Tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.offset_keys():
                if (kind := file.get_slice(name).get_dtype()) not in _SAFETENSORS_TYPES:
                    raise UserError(f"{path}: the tensor {name} has the type {kind}: convert the file to float32")
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return tensors


_SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL")


# ---- PyTorch ----


def _read_pth(path: Path) -> Tensors:
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is no zip archive: it is truncated, or older than PyTorch 1.6; in the latter case load it in "
            "PyTorch once and torch.save it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UserError(f"{path} is compressed: torch.save compresses nothing, get the original file")
            index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if index is None:
                raise UserError(f"{path} holds no data.pkl: it is not what torch.save writes")
            folder = index.removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise UserError(f"{path} is big-endian: save it again on an ordinary machine")
            with archive.open(index) as opened:
                content = _Unpickler(opened, archive, folder).load()
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise _damaged(path, error) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, np.ndarray) for value in content.values()):
        raise UserError(f"{path} is no state_dict: save model.state_dict() with torch.save")
    return {str(name): value for name, value in content.items()}


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries and tensors and nothing else; a tensor is a NumPy view of its storage."""

    def __init__(self, opened: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(opened)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _PTH_NAMES.get((module, name))
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


def _rebuild_tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
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
_PTH_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
    **{("torch", name): name for name in _STORAGES},  # text: nothing that a pickle could call or change
}


# ---- Keras ----


def _read_h5(path: Path) -> Tensors:
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if "layer_names" in root.attrs or "layer_names0" in root.attrs:
                pairs = _legacy(root)
            elif "layers" in root or "_layer_checkpoint_dependencies" in root:
                pairs = _numbered(root)
            else:
                raise UserError(f"{path} is HDF5, but no weight file of Keras: it has neither layer_names nor layers")
            return dict(pairs)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _legacy(root: Any) -> Iterator[tuple[str, np.ndarray]]:
    for layer in _texts(root.attrs, "layer_names"):
        for index, weight in enumerate(_texts(root[layer].attrs, "weight_names")):
            yield f"{layer}/{index}", _stored(root[layer][weight], root)


def _texts(attributes: Any, name: str) -> Iterator[str]:
    """An attribute of names; Keras cuts a long one in pieces `name0`, `name1`, ..."""
    pieces = [attributes[name]] if name in attributes else []
    while f"{name}{len(pieces)}" in attributes:
        pieces.append(attributes[f"{name}{len(pieces)}"])
    for piece in pieces:
        yield from (text.decode() if isinstance(text, bytes) else str(text) for text in piece)


def _stored(dataset: Any, root: Any) -> np.ndarray:
    """The content of a dataset that lies in this very file."""
    if dataset.external or dataset.file.filename != root.file.filename:
        raise ValueError(f"{dataset.name} refers to another file")
    if dataset.size and dataset.id.get_storage_size() == 0:
        raise ValueError(f"{dataset.name} is declared but was never written")
    return dataset[()]


def _numbered(root: Any) -> Iterator[tuple[str, np.ndarray]]:
    found: Tensors = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and not name.startswith("optimizer/"):
            found[name.replace("_layer_checkpoint_dependencies", "layers")] = _stored(node, root)

    root.visititems(visit)
    return iter(found.items())


_READERS: dict[str, Callable[[Path], Tensors]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_pth,
    ".h5": _read_h5,
}
