"""What both parity tests need: weights that hide nothing, a network filled from a file, and the comparison."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from covidjax.models.layers import Staged
from covidjax.weights import files, keras, torchvision
from covidjax.weights.foreign import COUNTERS
from covidjax.weights.load import Entry, LoadReport, match, place
from tests.support import make_model, small_config

TOLERANCE = 1e-4  # largest absolute error over largest absolute value
GRADIENT_TOLERANCE = 1e-3
GAIN = 0.7  # keeps a residual branch smaller than what it is added to, so that depth does not blow activations up


class RandomWeights:
    """Random weights under which every mistake of a port shows: no symmetric, neutral or tiny part."""

    def __init__(self, seed: int, gain: float = GAIN) -> None:
        self._random = np.random.default_rng(seed)
        self._gain = gain

    def kernel(self, shape: Sequence[int], fan_in: int) -> np.ndarray:
        """He et al. 2015, times the gain."""
        return self._normal(shape, self._gain * np.sqrt(2 / fan_in))

    def bias(self, features: int) -> np.ndarray:
        """About zero."""
        return self._normal((features,), 0.1)

    def norm(self, features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scale (of both signs), bias, mean and variance (1e-3 to 100); the scale keeps the size of signals."""
        var = 10 ** self._random.uniform(-3, 2, features)
        signs = self._random.choice((-1, 1), features)
        scale = signs * self._random.uniform(0.5, 1.5, features) * np.sqrt(var)
        mean = self._normal((features,), 0.5)
        return scale.astype(np.float32), self.bias(features), mean, var.astype(np.float32)

    def images(self, batch_size: int, height: int, width: int) -> np.ndarray:
        """[batch_size, height, width, 3] float32 of both signs."""
        return self._normal((batch_size, height, width, 3), 1.0)

    def _normal(self, shape: Sequence[int], spread: float) -> np.ndarray:
        return (self._random.normal(size=tuple(shape)) * spread).astype(np.float32)


def network(name: str, num_classes: int, num_blocks: tuple[int, ...] = (), **options: Any) -> Staged:
    """Our network; options are keys of `config.model`. num_blocks: of the layers of a ResNet; (): as it is published.

    Names and shapes of the published depths are in test_manifest.py: a block of each kind tells the arithmetic.
    """
    model = make_model(small_config(name, **{f"model__{key}": value for key, value in options.items()}), num_classes)
    return dataclasses.replace(model, num_blocks=num_blocks) if num_blocks else model  # type: ignore[call-arg]


def entries_for(source_format: str, model: Staged, names: Collection[str] | None = None) -> tuple[Entry, ...]:
    """The name map of a network for files of a format; names: see `weights.torchvision.entries`."""
    return (torchvision if source_format in ("torchvision", "timm") else keras).entries(model, names)


def fill(
    variables: Mapping[str, Any],
    entries: Collection[Entry],
    tensors: Mapping[str, np.ndarray],
    *,
    new_stages: tuple[str, ...] = ("head",),
) -> tuple[dict[str, Any], LoadReport]:
    """`variables` with the arrays that `entries` find in `tensors`, and an account of both sides.

    variables: {'params', 'batch_stats'} of arrays or shapes; what the file has nothing for stays as it is.
    new_stages, and when UserError is raised: see `match`.
    """
    used, account = match(variables, entries, tensors, new_stages=new_stages)
    leaves = traverse_util.flatten_dict(dict(variables), sep="/")
    leaves |= {path: place(tensors[entry.source], entry.layout, leaves[path].dtype) for path, entry in used.items()}
    nested = traverse_util.unflatten_dict(leaves, sep="/")
    return {collection: nested.get(collection, {}) for collection in variables}, account


def load(model: Staged, path: Path, source_format: str, images: np.ndarray) -> dict[str, Any]:
    """The variables of a network out of a file. All of the file is used; zeros stand where it has no head."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    tensors, _ = files.read(path)
    variables, filled = fill({"batch_stats": {}, **empty}, entries_for(source_format, model, tensors), tensors)
    assert all(name.endswith(COUNTERS) for name in filled.unused), filled
    assert not filled.new or not any("head" in entry.path for entry in entries_for(source_format, model, tensors))
    return variables


def stage_outputs(model: Staged, variables: Any, images: np.ndarray) -> dict[str, jax.Array]:
    """What leaves each stage."""

    @jax.jit
    def run(variables: Any, flowing: Any) -> dict[str, Any]:
        outputs = {}
        for stage, following in zip(model.stages, (*model.stages[1:], None), strict=True):
            flowing = outputs[stage] = model.apply(variables, flowing, start=stage, stop=following)
        return outputs

    return run(variables, jnp.asarray(images))


def error(ours: Any, theirs: Any) -> float:
    """Largest absolute error over largest absolute value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max()
    assert np.isfinite(largest) and np.std(theirs) > 1e-3 * largest, "the reference says nothing"
    return float(np.abs(ours - theirs).max() / largest)


def assert_parity(
    model: Staged, path: Path, source_format: str, size: tuple[int, ...], outputs: Callable[[np.ndarray], Iterable[Any]]
) -> None:
    """Every stage boundary and the logits of a network out of a file are those of its source within TOLERANCE.

    outputs: from images what leaves each stage of the source, in their order.
    """
    images = RandomWeights(1).images(1, *size)
    ours = stage_outputs(model, load(model, path, source_format, images), images)
    errors = {stage: error(ours[stage], theirs) for stage, theirs in zip(model.stages, outputs(images), strict=False)}
    print({stage: f"{value:.1e}" for stage, value in errors.items()}, flush=True)
    assert max(errors.values()) < TOLERANCE, errors
