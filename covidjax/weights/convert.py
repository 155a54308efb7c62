"""Weights of any source as one safetensors file in our own names."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save

from covidjax import config as configs
from covidjax import models
from covidjax.errors import UserError
from covidjax.files import digest, write_bytes
from covidjax.models.preprocessing import Preprocessing
from covidjax.process import path_of
from covidjax.weights import catalog, files, inputs
from covidjax.weights.foreign import HEADS
from covidjax.weights.layers import shapes
from covidjax.weights.load import LoadReport, arrange, match
from covidjax.weights.start import entries, is_own, obtain, replaceable, source_format, unwrapped
from covidjax.weights.wrapped import described

FORMAT = "covidjax"


def convert(pretrained: str, output: Path) -> tuple[dict[str, str], LoadReport]:
    """Writes what `pretrained` names (an id, a file, a workdir) to `output`; returns the header and an account.

    A head that the source has not is left out. Raises UserError for all that is wrong with the source or the output.
    """
    if output.suffix != ".safetensors":
        raise UserError(f"--output is {str(output)!r}: allowed is a name that ends in .safetensors")
    path = files.located(path_of(pretrained))
    inputs.check_known(path)
    tensors, facts = obtain(pretrained)
    if pretrained in catalog.CATALOG:
        model = model_config(catalog.CATALOG[pretrained].model, catalog.CATALOG[pretrained].arrangement)
    elif path.is_dir():
        model = configs.of_workdir(inputs.split_checkpoint(path)[0]).model
    elif files.metadata(path).get("format") == FORMAT:
        raise UserError(f"--pretrained {path} is in our names already: copy it")
    else:
        model, facts = identify(tensors, path), {"source_sha256": digest(path), **facts}
    # For gray images only a file whose first convolution takes gray has a preprocessing of its own.
    gray = pretrained not in catalog.CATALOG and path.is_file() and inputs.takes_gray(path)
    preprocessing = inputs.of_weights(pretrained, model.name, channels=1 if gray else 3)
    arrays, account, told = in_our_names(model, tensors, preprocessing)
    facts |= {"names": told} if told else {}
    header = {
        "format": FORMAT,
        "model": model.name,
        "arrangement": model.arrangement,
        "preprocessing": inputs.encode(preprocessing),
        "source": pretrained,
        **facts,
    }
    write_bytes(output, save(arrays, header))
    return header, account


def in_our_names(
    model: ConfigDict, tensors: dict[str, np.ndarray], preprocessing: Preprocessing
) -> tuple[dict[str, np.ndarray], LoadReport, str]:
    """The arrays of a network by path, its head as the file has it, and of their names. model: `config.model`."""
    if is_own(tensors):
        return {name: np.asarray(tensor) for name, tensor in tensors.items()}, LoadReport((), ()), ""
    built = models.build(model, 1000, "float32")
    shape = (224, 224, len(preprocessing.mean))
    abstract = jax.eval_shape(models.initialiser(built, preprocessing, shape), jax.random.key(0))
    inner = unwrapped(built, abstract, tensors)
    tensors, known = inner.tensors, entries(built, abstract, inner.tensors)
    _, account = match(abstract, known, tensors, new_stages=replaceable(built.stages), outside=inner.outside)
    # A head for other classes or another image size does not fit this network, and is written as it is.
    taken = {entry.path: entry for entry in known if entry.source in tensors}
    sources = {entry.source for entry in taken.values()}
    arrays = {path: np.array(arrange(tensors[e.source], e.layout), order="C") for path, e in taken.items()}
    unused = tuple(name for name in account.unused if name not in sources)
    return arrays, LoadReport(unused, tuple(path for path in account.new if path not in taken)), inner.told


def identify(tensors: dict[str, np.ndarray], path: Path) -> ConfigDict:
    """`config.model` of the first network whose names are those of a file, or of most of it.

    Raises UserError where none fits.
    """
    fitting: list[tuple[int, ConfigDict]] = []
    for name in models.NAMES:
        model = model_config(name, source_format(tensors))
        try:
            built = models.build(model, 1000, "float32")
            traced = shapes(built)
            inner = unwrapped(built, traced, tensors)
            known = () if is_own(tensors) else entries(built, traced, inner.tensors)
        except UserError:
            continue
        backbone = [entry.source for entry in known if entry.path.split("/")[1] not in replaceable(built.stages)]
        convolutions = {
            name
            for name, tensor in inner.tensors.items()
            if tensor.ndim == 4 and name not in inner.outside and not name.startswith(HEADS)
        }
        if backbone and set(backbone) <= inner.tensors.keys() and convolutions <= {entry.source for entry in known}:
            fitting.append((len(inner.outside), model))
            if not inner.outside:  # nothing fits better, and the large networks take a second each to look at
                break
    if fitting:
        return min(fitting, key=lambda each: each[0])[1]
    raise UserError(
        f"{path} has the names of no network here: found {described({name: t.shape for name, t in tensors.items()})}; "
        f"allowed are weights of {', '.join(models.NAMES[1:])}"
    )


def model_config(name: str, arrangement: str) -> ConfigDict:
    """`config.model` with its defaults for a network."""
    model = configs.default_config().model
    model.name = name
    model.arrangement = arrangement or model.arrangement
    return model
