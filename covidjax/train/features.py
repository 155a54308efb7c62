"""Cached features: what the frozen prefix makes of each image, computed once and trained on in its place."""

import dataclasses
import hashlib
import math
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from covidjax.console import Progress
from covidjax.data.examples import Examples
from covidjax.data.resident import device_room, host_room
from covidjax.data.store import ArrayStore
from covidjax.distributed.processes import Processes
from covidjax.errors import UserError
from covidjax.evaluate.network import padded_batches
from covidjax.mesh import by_example, place, replicated
from covidjax.process import cache_dir
from covidjax.train.programs import Programs
from covidjax.train.step import Recipe, augmented, run_prefix
from covidjax.weights.workdir import update_digest

PATIENCE_SECONDS = 2.0
DAMAGED = "the cached features in {folder} are damaged ({reason}): they are computed again"


@dataclasses.dataclass(frozen=True)
class Caching:
    """The features that a phase caches.

    placement: of the training features, 'device' | 'host' | 'disk', or '' where the phase trains on images.
    views: of each training image. validation: whether the validation split is measured from features.
    train_bytes, val_bytes: of the features. note: what is done and why, for the person who runs this.
    """

    placement: str
    views: int
    validation: bool
    train_bytes: int
    val_bytes: int
    note: str


def decide(
    recipe: Recipe,
    epochs: float,
    train_split: Examples,
    val_split: Examples,
    *,
    mode: str,
    max_views: int,
    configured_cache: str,
) -> Caching:
    """Whether a phase of so many epochs trains from cached features, and where they live.

    mode, max_views: `config.features` and `config.feature_views`; configured_cache: `config.dataset.cache_dir`.

    That is legal where the first stages are frozen, their BatchNorm on running statistics, and no augmentation comes
    before them, or config.feature_views fixed views of each image are agreed. Validation images are never augmented.
    Raises UserError where config.features is 'on' and it cannot be.
    """
    prefix = recipe.plan.frozen_prefix
    if mode == "off" or not prefix:
        why = "config.features is off" if prefix else "the first stage trains"
        return Caching("", 1, False, 0, 0, f"features: not cached ({why})")
    # An example that counts several times in an epoch sees another view each time.
    turns = 1 if train_split.repeats is None else int(train_split.repeats.max())
    views = min(max_views, math.ceil(epochs) - 1 + turns) if recipe.augments else 1
    each = _bytes(shapes(recipe, (1, *train_split.images.shape[1:])))
    train_bytes, val_bytes = each * len(train_split) * views, each * len(val_split)
    placement, where = _place(configured_cache, train_bytes + val_bytes)
    mixes = recipe.augmentation.mixes
    if mixes or not views or not placement:
        why = where
        if mixes:
            why = "config.augment.mixup and cutmix mix images, and features are of single ones"
        elif not views:
            why = (
                "augmentation changes every image anew; config.feature_views=K caches K augmented views of each "
                "instead, which take turns from epoch to epoch"
            )
        if mode == "on":
            raise UserError(f"config.features is on, but {why}; config.features=off trains through the whole network")
        validation = bool(_place(configured_cache, val_bytes)[0])
        kept = "those of the validation images are" if validation else "nor are those of the validation images"
        return Caching("", 1, validation, 0, val_bytes, f"features: not cached for training ({why}); {kept}")
    seen = f"{views} augmented view(s) of each" if recipe.augments else "each"
    note = (
        f"features: {', '.join(prefix)} run once for {len(train_split)} training images, {seen}, and {len(val_split)} "
        f"validation images; {_mebibytes(train_bytes + val_bytes)} stay on the {placement} ({where})"
    )
    return Caching(placement, views, True, train_bytes, val_bytes, note)


def _place(configured_cache: str, size: int) -> tuple[str, str]:
    """The place for so many bytes of features, and whose room that is; or '' and why there is none."""
    room, where = device_room()
    if size <= room:
        return "device", where
    if size <= host_room():
        return "host", "this machine's memory"
    store = feature_store(configured_cache)
    if reason := store.room(size):
        return "", f"{_mebibytes(size)} fit neither in memory nor on disk: {reason}"
    return "disk", str(store.folder)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def shapes(recipe: Recipe, images: tuple[int, ...]) -> Any:
    """Shapes and dtypes of the features of images [n, height, width, channels]."""
    abstract = jax.ShapeDtypeStruct(images, recipe.model.numerics.param_dtype)
    variables = jax.eval_shape(
        lambda image: recipe.model.init(jax.random.key(0), recipe.preprocessing(image)), abstract
    )
    return jax.eval_shape(lambda variables, image: run_prefix(recipe, variables, image), variables, abstract)


def feature_store(configured_cache: str) -> ArrayStore:
    """The store of the features of all runs: in the folder that a config names, or the user's cache."""
    return ArrayStore(cache_dir(configured_cache) / "features", DAMAGED)


@dataclasses.dataclass(eq=False)
class PrefixFeatures:
    """Runs the frozen prefix over splits, or finds on disk what an earlier run made.

    computed, reused: passes over a split so far; seconds, compile_seconds: what they took, and compiling them; notes:
    for the person who runs this.
    """

    store: ArrayStore
    mesh: Mesh
    programs: Programs
    processes: Processes = dataclasses.field(default_factory=Processes)
    computed: int = 0
    reused: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)
    _lowered: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def features(self, recipe: Recipe, variables: Any, images: np.ndarray, view: int | None = None) -> Any:
        """The features of images [n, height, width, channels] uint8: a tree of arrays [n, ...], possibly memory maps.

        view: which augmented view; None for the images as they are.
        They are kept under a hash of the program, which holds network, preprocessing, augmentation, precision and
        formulation, and of weights and pixels: what changes any of them is computed anew.
        """
        began, compiling = time.monotonic(), self.compile_seconds
        prefix = recipe.plan.frozen_prefix
        own = {kind: {stage: tree[stage] for stage in prefix if stage in tree} for kind, tree in variables.items()}
        if self.mesh.size > 1:
            own = place(own, replicated(self.mesh))
        features = self._find_or_run(recipe, own, images, view)
        self.seconds += time.monotonic() - began - (self.compile_seconds - compiling)
        return features

    def targets(self, recipe: Recipe, targets: np.ndarray, view: int | None = None) -> np.ndarray:
        """The labels or masks that belong to `features`: masks have moved as the images of the view have."""
        if view is None or targets.ndim != 3:
            return targets

        @jax.jit
        def moved(masks: jax.Array, key: jax.Array) -> jax.Array:
            blank = jnp.zeros((*masks.shape, 1), recipe.model.numerics.param_dtype)
            return augmented(key, {"image": blank, "label": masks}, recipe)[1]

        size = self._batch_size()
        return np.concatenate(
            [
                np.asarray(moved(batch, _key_of_view(view, number * size)))[:count]
                for number, (batch, count) in enumerate(padded_batches(targets, size))
            ]
        )

    def account(self, former: dict[str, Any]) -> dict[str, Any]:
        """For run.json: {'computed', 'reused', 'seconds'}, with what an earlier part of the run had."""
        mine = {"computed": self.computed, "reused": self.reused, "seconds": self.seconds}
        return {name: round(former.get(name, 0) + value, 2) for name, value in mine.items()}

    def _find_or_run(self, recipe: Recipe, variables: Any, images: np.ndarray, view: int | None) -> Any:
        batch = jax.ShapeDtypeStruct((self._batch_size(), *images.shape[1:]), images.dtype)
        # The training and the validation split take the same program.
        same = (recipe.prefix, recipe.plan, recipe.preprocessing, recipe.augmentation, batch.shape, view is None)
        if same not in self._lowered:
            program = _program(recipe, self.mesh, augments=view is not None)
            self._lowered[same] = program.lower(variables, batch, jax.eval_shape(jax.random.key, 0))
        lowered = self._lowered[same]
        key = _key(lowered.as_text(), variables, images, view)
        wanted = shapes(recipe, images.shape)
        found = self.store.open(key, wanted)
        if len(set(self.processes.gather("features", "" if found is None else "found"))) > 1:
            found = None  # all compute together what one of them lacks
        if found is not None:
            self.reused += 1
            self.notes.append(f"features: reused {self.store.folder / key}")
            return found
        self.computed += 1
        compiled = self.programs.find(lambda: lowered)
        self.compile_seconds += compiled.seconds
        run = partial(self._run, compiled.call, variables, images, view or 0)
        size = _bytes(wanted)
        reason = self.store.room(size)
        if not reason:
            try:
                with self.store.writing(key, wanted) as arrays:
                    run(arrays)
                kept = self.store.open(key, wanted)
                if kept is not None:
                    return kept
                reason = f"what was written to {self.store.folder} is not what it holds"
            except OSError as error:
                reason = error.strerror or str(error)
        if size > host_room():
            raise UserError(
                f"the features take {_mebibytes(size)}, more than memory and disk have ({reason}): free space, "
                "set config.dataset.cache_dir to another disk, or config.features=off"
            )
        self.notes.append(f"features: not kept for later runs ({reason})")
        arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)
        run(arrays)
        return arrays

    def _batch_size(self) -> int:
        return -(-(32 if jax.default_backend() == "cpu" else 256) // self.mesh.size) * self.mesh.size

    def _run(self, program: Any, variables: Any, images: np.ndarray, view: int, arrays: Any) -> None:
        """Fills arrays [n, ...] with the features of images [n, ...]."""
        parts, whole, size = by_example(self.mesh), replicated(self.mesh), self._batch_size()
        on_device = place(variables, whole)
        progress = Progress("features", len(images), PATIENCE_SECONDS)
        for number, (batch, count) in enumerate(padded_batches(images, size)):
            start = number * size
            key = place(_key_of_view(view, start), whole)
            outputs = program(on_device, place(batch, parts), key)
            self.processes.step(f"features, image {start}")
            for array, output in zip(jax.tree.leaves(arrays), jax.tree.leaves(outputs), strict=True):
                array[start : start + count] = np.asarray(output)[:count]
            progress.show(start + count)


def _key_of_view(view: int, start: int) -> jax.Array:
    """That of the batch that begins at an image. It is the same in every run, whatever its seed: runs share views."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), view), start)


def _program(recipe: Recipe, mesh: Mesh, *, augments: bool) -> Any:
    def features(variables: Any, images: jax.Array, key: jax.Array) -> Any:
        if not augments:
            return run_prefix(recipe, variables, images.astype(recipe.model.numerics.param_dtype))
        images, _ = augmented(key, {"image": images, "label": jnp.zeros(len(images), jnp.int32)}, recipe)
        return run_prefix(recipe, variables, images)

    whole, parts = replicated(mesh), by_example(mesh)
    made = whole if mesh.is_multi_process else parts  # each process keeps all of them
    return jax.jit(features, in_shardings=(whole, parts, whole), out_shardings=made, keep_unused=True)


def _key(program: str, variables: Any, images: np.ndarray, view: int | None) -> str:
    digest = hashlib.sha256(f"{jax.__version__} {jax.devices()[0].device_kind} {program} {view}".encode())
    update_digest(digest, variables)
    digest.update(str(images.shape).encode())
    for start in range(0, len(images), 256):
        digest.update(np.ascontiguousarray(images[start : start + 256]).tobytes())
    return digest.hexdigest()


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
