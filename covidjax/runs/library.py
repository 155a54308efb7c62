"""covidjax from Python: train what a config says, and ask a trained network. `docs/library.md` shows it."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax.data.picture import BadImageError, ImageSpec, decode_image
from covidjax.errors import UserError, some_of
from covidjax.evaluate import explain
from covidjax.evaluate.members import Mixture, load_network
from covidjax.evaluate.network import padded_batches
from covidjax.losses import at_least_float32
from covidjax.mesh import by_example, local_mesh, replicated
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.process import path_of
from covidjax.runs.train import run
from covidjax.weights.workdir import Trained, Which

Images = np.ndarray | Sequence[str | Path]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The trained network of a workdir. Made by `load`.

    Where a method takes images, these are what the network takes, [n, image_size, image_size, channels] uint8, or paths
    of image files, which are decoded as those of the run were. Raises UserError for other arrays and for bad files.

    >>> network = covidjax.load("runs/example")
    >>> network.classes
    ('covid19', 'normal', 'pneumonia')
    >>> images = np.zeros((5, 32, 32, 1), np.uint8)
    >>> network.predict(images).shape
    (5, 3)
    >>> network.features(images, "block2").shape
    (5, 8, 8, 4)
    >>> network.explain(images).shape
    (5, 4, 4)
    """

    trained: Trained
    mesh: Mesh
    compiled: Callable[..., Any]

    @property
    def config(self) -> ConfigDict:
        """The config of the run."""
        return self.trained.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the columns of `predict`."""
        return self.trained.classes

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, input first."""
        return self.trained.model.stages

    @property
    def preprocessing(self) -> Preprocessing:
        """The network's own scaling of pixels: [n, height, width, channels], values 0 to 255 -> in the same shape."""
        return self.trained.preprocessing

    @property
    def variables(self) -> dict[str, Any]:
        """{'params', 'batch_stats'}; where the run kept a moving average, that."""
        return self.trained.variables

    def decode(self, paths: Sequence[str | Path]) -> np.ndarray:
        """Image files as the network takes them: [n, image_size, image_size, channels] uint8."""
        spec = ImageSpec.of(self.config.dataset)

        def pixels(path: str | Path) -> np.ndarray:
            try:
                found, notes = decode_image(path_of(path).read_bytes(), spec)
            except BadImageError as error:
                raise UserError(f"{path}: {error}") from error
            except OSError as error:
                raise UserError(f"{path}: {error.strerror or error}") from error
            for note in notes:
                warnings.warn(f"{path}: {note}", stacklevel=3)
            return found

        if isinstance(paths, str | Path):
            raise UserError(f"images are arrays, or a list of paths of files: give [{str(paths)!r}]")
        if not paths:
            raise UserError("no image was named: give paths of image files")
        return np.stack([pixels(path) for path in paths])

    def logits(self, images: Images) -> np.ndarray:
        """[n, classes] of at least float32; for masks [n, height, width, classes]."""
        return self._flowing(images, None)

    def predict(self, images: Images) -> np.ndarray:
        """The probabilities [n, classes] of a classifier; class ids [n, height, width] uint8 of one of masks."""
        return self.trained.task.answer(self.logits(images), self.config.loss)

    def features(self, images: Images, stage: str) -> Any:
        """What flows out of a stage: [n, height, width, features] of at least float32, or a tree of such arrays.

        Raises UserError for a stage that the network does not have.
        """
        if stage not in self.stages:
            raise UserError(f"there is no stage {stage!r}: the stages are {', '.join(self.stages)}")
        return self._flowing(images, (*self.stages, None)[self.stages.index(stage) + 1])

    def explain(
        self,
        images: Images,
        classes: Sequence[str] | None = None,
        *,
        method: str = "grad_cam",
        stage: str | None = None,
    ) -> np.ndarray:
        """Where a classifier sees a class in each image: maps [n, rows, columns] of at least float32.

        classes: one for each image; None: those that it predicts. method: of `evaluate.explain.METHODS`, 'grad_cam',
        'integrated_gradients' or 'occlusion'; stage: of Grad-CAM, None for the last before the head.
        Raises UserError for a network of masks, and for a class, method or stage that there is not.
        """
        if "explain" not in self.trained.task.offers:
            raise UserError(f"{self.config.model.name} {self.trained.task.words}: only a classifier is explained")
        pixels = self._pixels(images)
        run = explain.make_explain(
            self.trained.model, self.preprocessing, self.mesh, method, stage or explain.last_map(self.trained.model)
        )
        if classes is None:
            chosen = self.logits(pixels).argmax(-1)
        elif len(classes) == len(pixels) and set(classes) <= set(self.classes):
            chosen = np.array([self.classes.index(name) for name in classes])
        else:
            unknown = [name for name in dict.fromkeys(classes) if name not in self.classes]
            given = f"classes have {some_of(unknown)}" if unknown else f"there are {len(classes)} classes"
            raise UserError(f"{given}: give one of {', '.join(self.classes)} for each of the {len(pixels)} images")
        parts = []
        for batch, count in padded_batches((pixels, chosen), self._batch_size):
            parts.append(np.asarray(run(self.variables, *jax.device_put(batch, by_example(self.mesh))))[:count])
        return np.concatenate(parts)

    @property
    def _batch_size(self) -> int:
        """That of the run, rounded up to one that the devices divide."""
        return -(-self.config.batch_size // self.mesh.size) * self.mesh.size

    def _pixels(self, images: Images) -> np.ndarray:
        """What the network takes: [n, image_size, image_size, channels] uint8. Raises UserError for anything else."""
        pixels = images if isinstance(images, np.ndarray) else self.decode(images)
        size, channels = self.config.dataset.image_size, self.config.dataset.channels
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 4
            or pixels.shape[1:] != (size, size, channels)
            or not len(pixels)
        ):
            shape = list(pixels.shape)
            raise UserError(
                f"images are {shape} {pixels.dtype}: the network takes [n, {size}, {size}, {channels}] uint8"
            )
        return pixels

    def _flowing(self, images: Images, stop: str | None) -> Any:
        parts = []
        for batch, count in padded_batches(self._pixels(images), self._batch_size):
            flowing = self.compiled(self.variables, jax.device_put(batch, by_example(self.mesh)), stop)
            parts.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], flowing))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """A mixture of trained classifiers. Made by `load`.

    members: its networks, each with its own image size; weights: [members] float64, sum 1.
    """

    mixture: Mixture
    members: tuple[Network, ...]

    @property
    def config(self) -> ConfigDict:
        """The config of the ensemble."""
        return self.mixture.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the columns of `predict`."""
        return self.mixture.classes

    @property
    def weights(self) -> np.ndarray:
        """Those of the members."""
        return self.mixture.weights

    def predict(self, images: Images) -> np.ndarray:
        """The probabilities [n, classes] of the mixture.

        images: paths of image files, which each member decodes as it was trained, or an array that all members take.
        """
        return self.mixture.mix(np.stack([member.predict(images) for member in self.members]))


def load(workdir: str | Path, checkpoint: Which | None = None) -> Network | Ensemble:
    """The network of a run, or the mixture of an ensemble.

    checkpoint: of a run 'best', 'latest' or a step; None: what the run evaluates. A plugin that has
    changed since is a warning. Raises UserError where the workdir holds no trained network.
    """
    folder = path_of(workdir)
    _check_precision(configs.of_workdir(folder))
    found = load_network(folder, checkpoint)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    if isinstance(found, Mixture):
        return Ensemble(found, tuple(_network(member.trained) for member in found.members))
    return _network(found)


def _network(trained: Trained) -> Network:
    mesh = local_mesh(jax.local_device_count())
    variables = jax.device_put(trained.variables, replicated(mesh))
    compiled = _compiled(trained.model, trained.preprocessing, mesh)
    return Network(dataclasses.replace(trained, variables=variables), mesh, compiled)


def _compiled(model: Staged, preprocessing: Preprocessing, mesh: Mesh) -> Callable[..., Any]:
    """(variables, images [n, height, width, channels] uint8, the stage before which to stop) -> what flows there."""

    def forward(variables: Any, images: jax.Array, stop: str | None) -> Any:
        flowing = model.apply(variables, preprocessing(images.astype(model.numerics.param_dtype)), stop=stop)
        return jax.tree.map(at_least_float32, flowing)

    whole, parts = replicated(mesh), by_example(mesh)
    return jax.jit(forward, static_argnums=2, in_shardings=(whole, parts), out_shardings=parts)


def train(config: ConfigDict | str | Path, workdir: str | Path) -> Network | Ensemble:
    """Trains as launch/train.py does, or makes an ensemble, and loads it. The same call again resumes, or only loads.

    config: of `covidjax.config.default_config()`, changed, or the path of a config file, `path.py[:argument]`.
    Raises UserError for a mistake in the config or the data.
    """
    if not isinstance(config, ConfigDict):
        config = configs.load(str(config), ())
    configs.validate(config)
    _check_precision(config)
    folder = path_of(workdir)
    run(config, folder, "default")
    return load(folder)


def _check_precision(config: ConfigDict) -> None:
    if config.precision == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("the config has precision float64: call jax.config.update('jax_enable_x64', True) first")
