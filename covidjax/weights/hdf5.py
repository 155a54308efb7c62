"""Tensors out of the two kinds of HDF5 file that Keras writes."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from covidjax.errors import UserError

Tensors = dict[str, np.ndarray]


def read_h5(path: Path) -> Tensors:
    """The tensors as 'layer/0', 'layer/1', ...; of a model in a model as 'model/layer/0'; or as 'layers/dense/vars/0',
    'attribute/layers/dense/vars/0'.

    Raises UserError where it is no file of Keras, and what h5py raises where it is damaged.
    """
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            return dict(_legacy(root))
        if {"layers", "_layer_checkpoint_dependencies", "vars"} & root.keys():
            return dict(_numbered(root))
    raise UserError(f"{path} is HDF5, but no weight file of Keras: it has neither layer_names nor layers nor vars")


def _legacy(root: Any) -> Iterator[tuple[str, np.ndarray]]:
    for layer in _texts(root.attrs, "layer_names"):
        weights = list(_texts(root[layer].attrs, "weight_names"))
        owners = [weight.rpartition("/")[0] for weight in weights]
        nested = len(set(owners)) > 1  # a model in a model: its layers are told apart by the names of their weights
        numbers: dict[str, Iterator[int]] = defaultdict(count)
        for weight, owner in zip(weights, owners, strict=True):
            name = f"{layer}/{owner}" if nested else layer
            yield f"{name}/{next(numbers[name])}", _stored(root[layer][weight], root)


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
