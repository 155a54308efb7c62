"""Tensors out of weight files of four formats. A file is data: nothing in it is ever executed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401 - makes bfloat16 known to NumPy, which safetensors asks for
import numpy as np
from safetensors import SafetensorError, safe_open

from covidjax.errors import UserError, some_of
from covidjax.weights.hdf5 import read_h5
from covidjax.weights.pth import read_pth

INDEX = ".safetensors.index.json"  # of a network in several files
SUFFIXES = (".safetensors", ".pth", ".h5", ".weights.h5", ".pt", ".ckpt", ".pth.tar", INDEX)
PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
Tensors = dict[str, np.ndarray]


def read(path: Path) -> tuple[Tensors, str]:
    """All tensors of a network by name, on the host, and what they were unwrapped from, in words, or ''.

    `.safetensors`, also in parts with an index, and files of torch.save by tensor name; a Keras `.h5` as
    'layer_name/0', 'layer_name/1', ... in the file's own order of layers and weights; `.weights.h5` as
    'layers/conv2d_10/vars/0'.
    Raises UserError where the file is missing, truncated, of another kind, would execute code, or holds a number that
    is not finite.
    """
    tensors, told = _read(path)
    if not tensors:
        raise UserError(f"{path} holds no tensors: give the file of a network's weights")
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise UserError(f"{path}: the tensor {name} holds NaN or infinity: the file is damaged or its training was")
    return tensors, told


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a file. Raises UserError as `read`."""
    return {name: tensor.shape for name, tensor in _read(path)[0].items()}


def has_suffix(path: Path) -> bool:
    """Whether a name ends as that of a weight file does."""
    return path.name.endswith(SUFFIXES)


def located(path: Path) -> Path:
    """The path, or of a folder that holds a network in several files their index."""
    indices = sorted(path.glob(f"*{INDEX}")) if path.is_dir() else []
    if len(indices) > 1:
        raise UserError(f"{path} holds several networks: name one of {some_of(index.name for index in indices)}")
    return indices[0] if indices else path


def _read(path: Path) -> tuple[Tensors, str]:
    if not path.is_file():
        raise UserError(f"there is no weight file {path}: allowed are files in {', '.join(SUFFIXES)}")
    reader = next((reader for suffix, reader in _READERS.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise UserError(f"{path} is no weight file that is known: allowed are files in {', '.join(SUFFIXES)}")
    try:
        return reader(path)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise _damaged(path, error) from error


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


def _read_safetensors(path: Path) -> Tensors:
    tensors: Tensors = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.offset_keys():
            if (kind := file.get_slice(name).get_dtype()) not in _SAFETENSORS_TYPES:
                raise UserError(f"{path}: the tensor {name} has the type {kind}: convert the file to float32")
            tensors[name] = file.get_tensor(name)
    return tensors


_SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL")


def _whole_safetensors(path: Path) -> tuple[Tensors, str]:
    if (part := PART.fullmatch(path.name)) and (index := path.with_name(f"{part[1]}{INDEX}")).is_file():
        raise UserError(f"{path} is a part of a network: give {index}, or its folder")
    return _read_safetensors(path), ""


def _read_parts(path: Path) -> tuple[Tensors, str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
        raise UserError(f"{path} has no weight_map: it is no index of a network in several files")
    parts = sorted(set(places.values()))
    if away := [part for part in parts if Path(part).name != part]:
        raise UserError(f"{path} names files outside its folder: {some_of(away)}: the parts lie beside their index")
    if missing := [part for part in parts if not path.with_name(part).is_file()]:
        raise UserError(f"{path.parent} lacks {len(missing)} of the {len(parts)} parts: {some_of(missing)}")
    tensors: Tensors = {}
    for part in parts:
        found = _read_safetensors(path.with_name(part))
        if differ := sorted(found.keys() ^ {name for name, place in places.items() if place == part}):
            raise UserError(f"{path.with_name(part)} and {path.name} differ in {some_of(differ)}: get both anew")
        tensors |= found
    return tensors, f"{len(parts)} parts, by {path.name}"


def _without_words(reader: Callable[[Path], Tensors]) -> Callable[[Path], tuple[Tensors, str]]:
    return lambda path: (reader(path), "")


_READERS: dict[str, Callable[[Path], tuple[Tensors, str]]] = {
    INDEX: _read_parts,
    ".safetensors": _whole_safetensors,
    ".h5": _without_words(read_h5),
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".pth.tar"), read_pth),
}
