"""Weight files made without the libraries that usually make them."""

import collections
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from covidjax.models.layers import Staged
from tests.weights.parity import entries_for

STORAGE_NAMES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "float64": "DoubleStorage",
}


class _Storage:
    def __init__(self, key: str, values: np.ndarray) -> None:
        self.key, self.values = key, values


class _Tensor:
    """What a pickle of torch.save rebuilds: a view of a storage."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments: tuple[Any, ...] = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        kind = getattr(sys.modules["torch"], STORAGE_NAMES[obj.values.dtype.name])
        return ("storage", kind, obj.key, "cpu", obj.values.size)


@contextmanager
def _pretended_torch() -> Iterator[None]:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGE_NAMES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        yield


def write_pth(path: Path, tensors: Mapping[str, np.ndarray], *, extra: Mapping[str, Any] | None = None) -> Path:
    """A file as torch.save writes it; arrays keep their strides, as views of their bases do in PyTorch."""
    return write_checkpoint(path, collections.OrderedDict(tensors) | dict(extra or {}))


def write_checkpoint(path: Path, saved: Any) -> Path:
    """A file as torch.save writes it, of dictionaries, lists and tensors in one another."""
    storages: list[_Storage] = []

    def tensor_of(tensor: np.ndarray) -> _Tensor:
        base = tensor if tensor.base is None else tensor.base
        assert isinstance(base, np.ndarray)
        known = next((storage for storage in storages if storage.values is base), None)
        if known is None:
            known = _Storage(str(len(storages)), base)
            storages.append(known)
        offset = (tensor.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // base.itemsize
        strides = tuple(stride // base.itemsize for stride in tensor.strides)
        return _Tensor(known, offset, tensor.shape, strides)

    def made(value: Any) -> Any:
        if type(value) in (dict, collections.OrderedDict):
            return type(value)((key, made(item)) for key, item in value.items())
        if isinstance(value, list):
            return [made(item) for item in value]
        return tensor_of(value) if hasattr(value, "__array_interface__") else value

    content = made(saved)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, _pretended_torch():
        with archive.open("archive/data.pkl", "w") as opened:
            _Pickler(opened, protocol=2).dump(content)
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.values.tobytes())
    return path


def write_h5(path: Path, layers: Mapping[str, list[np.ndarray]]) -> Path:
    """A legacy Keras file; the names of weights are those of Keras 2 in an order that is not the alphabet's."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, weights in layers.items():
            group = file.create_group(layer)
            names = [f"{layer}/w{len(weights) - index}:0" for index in range(len(weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, weights, strict=True):
                group[name] = weight
    return path


def invented(model: Staged, source_format: str, image_size: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of a file that fits a network on three-channel images, of random numbers, in the file's layouts.

    source_format: 'torchvision', 'keras', or 'numbered' (Keras' `.weights.h5`).
    """
    random = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    leaves = traverse_util.flatten_dict(dict(jax.eval_shape(model.init, jax.random.key(0), images)), sep="/")
    tensors = {}
    for entry in entries_for(source_format, model, ("layers/dense/vars/0",) if source_format == "numbered" else None):
        shape = leaves[entry.path].shape
        values = random.standard_normal(shape, np.float32) / np.sqrt(max(np.prod(shape[:-1]), 1)).astype(np.float32)
        values = np.abs(values) + 0.5 if entry.path.endswith("/var") else values
        if entry.layout == "conv_oihw":
            values = np.ascontiguousarray(values.transpose(3, 2, 0, 1))
        elif entry.layout == "dense_oi":
            values = np.ascontiguousarray(values.T)
        else:
            assert entry.layout == "same", entry
        tensors[entry.source] = values
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """The file that the suffix says."""
    if path.suffix == ".pth":
        return write_pth(path, tensors)
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path)
        return path
    if path.name.endswith(".weights.h5"):
        with h5py.File(path, "w") as file:
            for name, tensor in tensors.items():
                file[name] = tensor
        return path
    layers: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        layers.setdefault(name.rpartition("/")[0], []).append(tensor)
    return write_h5(path, layers)
