"""The weights that a run starts from: random, published, a file, or an earlier run."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from covidjax import models
from covidjax.errors import UserError, some_of
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing, fold_kernel
from covidjax.process import cache_dir, path_of
from covidjax.weights import catalog, files, inputs, keras, torchvision
from covidjax.weights.catalog import Source
from covidjax.weights.fetch import fetch
from covidjax.weights.foreign import OWN
from covidjax.weights.inputs import RunPreprocessing
from covidjax.weights.load import Entry, match, own_entries, place
from covidjax.weights.positions import fitted
from covidjax.weights.workdir import load_trained
from covidjax.weights.wrapped import Unwrapped, described, unwrap

LAST_OF_ENCODER = "layer4"


@dataclasses.dataclass(frozen=True, eq=False)
class InitialVariables:
    """variables: {'params', 'batch_stats'}; preprocessing: theirs; notes: where they come from, for the record."""

    variables: dict[str, Any]
    preprocessing: Preprocessing
    notes: tuple[str, ...]


def initial_variables(config: ConfigDict, model: Staged, image_shape: tuple[int, int, int]) -> InitialVariables:
    """The variables before the first step and the preprocessing that belongs to them.

    image_shape: height, width, channels of the images of the data set.
    Raises UserError, in one line, for all that is wrong with `config.pretrained`.
    """
    # The run's own key makes augmentation and dropout; the weights come from a key folded out of it.
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)
    pixels = inputs.of_run(config.model, config.dataset.channels, config.pretrained, config.preprocessing)
    if len(pixels.of_weights.mean) == 1 < image_shape[-1] and config.pretrained:
        raise UserError(
            f"config.pretrained {config.pretrained} is of gray images and these have {image_shape[-1]} channels: set "
            "config.dataset.channels to 1"
        )
    init = models.initialiser(model, pixels.network, image_shape)
    if not config.pretrained:
        notes = () if pixels.unfolded == pixels.of_weights else (f"preprocessing: {pixels.unfolded}",)
        return InitialVariables(jax.jit(init)(key), pixels.network, ("weights: random initialisation", *notes))
    abstract = jax.eval_shape(models.initialiser(model, pixels.unfolded, image_shape), key)
    if config.pretrained in catalog.CATALOG:
        _check_model(config.model, catalog.CATALOG[config.pretrained])
    tensors, facts = obtain(config.pretrained, config.dataset.cache_dir)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    known: tuple[Entry, ...] = ()
    try:
        inner = unwrapped(model, abstract, tensors)
        tensors = inner.tensors
        known = entries(model, abstract, tensors)
        outside = inner.outside | left_out(model, abstract, tensors)
        tensors, resized = fitted(known, traverse_util.flatten_dict(abstract, sep="/"), tensors)
        used, account = match(abstract, known, tensors, new_stages=replaceable(model.stages), outside=outside)
    except UserError as error:
        expected = f"; expected {some_of(entry.source for entry in known)}" if known else ""
        raise UserError(
            f"config.pretrained {config.pretrained} does not fit {config.model.name}: {error}; found "
            f"{described(found)}{expected}"
        ) from error
    # Each tensor is let go as its array is made, so that the weights are never held twice.
    targets = traverse_util.flatten_dict(abstract, sep="/")
    last = {entry.source: path for path, entry in used.items()}  # of several arrays of one tensor
    leaves = {
        path: place(
            (tensors.pop if last[e.source] == path else tensors.__getitem__)(e.source), e.layout, targets[path].dtype
        )
        for path, e in used.items()
    }
    if pixels.network is not pixels.unfolded:  # kernels for several channels, and gray images
        wanted = traverse_util.flatten_dict(jax.eval_shape(init, key), sep="/")
        leaves = {
            path: leaf if leaf.shape == wanted[path].shape else fold_kernel(leaf, pixels.unfolded)
            for path, leaf in leaves.items()
        }

    # Only what the file has nothing for is drawn at random.
    def drawn(key: jax.Array) -> dict[str, jax.Array]:
        fresh = traverse_util.flatten_dict(init(key), sep="/")
        return {path: fresh[path] for path in account.new}

    if account.new:
        leaves |= jax.jit(drawn)(key)
    nested = traverse_util.unflatten_dict(leaves, sep="/")
    variables = {kind: nested.get(kind, {}) for kind in abstract}
    gray = "its first convolution takes one channel" if len(pixels.of_weights.mean) == 1 else ""
    told = filter(
        None, (_origin(config.pretrained, facts), facts.get("unwrapped"), inner.told, resized, gray, str(account))
    )
    origin = f"weights: {'; '.join(told)}"
    return InitialVariables(variables, pixels.network, (origin, _on_pixels(pixels)))


def expected_variables(
    model: Staged, preprocessing: Preprocessing, image_shape: tuple[int, int, int]
) -> InitialVariables:
    """Shapes in place of the variables of a run that goes on from a checkpoint, which holds them."""
    shapes = jax.eval_shape(models.initialiser(model, preprocessing, image_shape), jax.random.key(0))
    return InitialVariables(
        {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}, preprocessing, ()
    )


def replaceable(stages: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that weights need not fit: the last one, or all behind the encoder where the network has one."""
    return stages[stages.index(LAST_OF_ENCODER) + 1 :] if LAST_OF_ENCODER in stages else stages[-1:]


def unwrapped(model: Staged, variables: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> Unwrapped:
    """The tensors by the names that the network has in its format. Raises UserError as `unwrap` and `entries`."""
    if is_own(tensors):
        return Unwrapped(tensors)
    if source_format(tensors) == "keras":
        forms = ((), (keras.NUMBERED,), (keras.BY_BLOCK,))
        alternatives = tuple(keras.entries(model, names, variables) for names in forms)
    else:
        alternatives = tuple(torchvision.alternatives(model, variables))
    wanted = ([e.source for e in known if e.path.split("/")[1] != model.stages[-1]] for known in alternatives)
    return unwrap(tensors, wanted)


def left_out(model: Staged, variables: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> set[str]:
    """The names in a file of the stages that the published network has and this one has not."""
    if is_own(tensors) or model.whole.stages == model.stages:
        return set()
    return {entry.source for entry in entries(model.whole, None, tensors)} - {
        entry.source for entry in entries(model, variables, tensors)
    }


def is_own(names: Collection[str]) -> bool:
    """Whether tensors bear our own names."""
    return all(name.startswith(OWN) for name in names)


def entries(model: Staged, variables: Mapping[str, Any] | None, tensors: Mapping[str, np.ndarray]) -> tuple[Entry, ...]:
    """The name map for the tensors of a file, whose names tell the format. variables: see `layers.layers`."""
    if is_own(tensors):
        return own_entries(variables or {})
    return (keras if source_format(tensors) == "keras" else torchvision).entries(model, tensors, variables)


def source_format(tensors: Mapping[str, np.ndarray]) -> str:
    """'keras' or 'torchvision', which also timm's names are."""
    return "keras" if all("/" in name for name in tensors) else "torchvision"


def obtain(pretrained: str, configured_cache: str = "") -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors that `config.pretrained` names, and facts on where they are from.

    A published source: its license, revision and SHA-256, once its file is in the user's cache folder or the one that
    a config names; an earlier run: its checkpoint; another file: what it was unwrapped from, if anything.
    """
    if pretrained in catalog.CATALOG:
        source = catalog.CATALOG[pretrained]
        fetched = fetch(source, cache_dir(configured_cache) / "weights")
        facts = {"license": source.license, "revision": fetched.revision, "source_sha256": fetched.sha256}
        return files.read(fetched.path)[0], {name: fact for name, fact in facts.items() if fact}
    path = files.located(path_of(pretrained))
    if not path.is_dir():
        tensors, told = files.read(path)
        return tensors, {"unwrapped": told} if told else {}
    workdir, which = inputs.split_checkpoint(path)
    trained = load_trained(workdir, which)
    checkpoint = f"{workdir}, {trained.which} at step {trained.step}"
    return traverse_util.flatten_dict(trained.variables, sep="/"), {"checkpoint": checkpoint}


def _origin(pretrained: str, facts: Mapping[str, str]) -> str:
    """The facts of `obtain` in words."""
    if "source_sha256" not in facts:
        return facts.get("checkpoint", pretrained)
    revision = f", revision {facts['revision']}" if "revision" in facts else ""
    return f"{pretrained} ({facts['license']}{revision}, SHA-256 {facts['source_sha256']})"


def _check_model(model: Any, source: Source) -> None:
    if model.name != source.model and not model.name.endswith(f"_{source.model}"):
        raise UserError(
            f"config.pretrained {source.id} is a {source.model} and config.model.name is {model.name!r}: set it to "
            f"{source.model!r}, or choose other weights (launch/convert.py --list)"
        )
    if source.arrangement and source.arrangement != model.arrangement:
        raise UserError(
            f"config.pretrained {source.id} is arranged as in {source.arrangement}: set config.model.arrangement to "
            f"{source.arrangement!r}"
        )


def _on_pixels(pixels: RunPreprocessing) -> str:
    """The line of the record on the preprocessing, and whether it is the one that the weights were trained with."""
    if pixels.unfolded == pixels.of_weights:
        return f"preprocessing, which belongs to the weights: {pixels.network}"
    return (
        f"preprocessing, by config.preprocessing: {pixels.network}; this differs from that of the weights, "
        f"which is {pixels.of_weights}"
    )
