"""What a kind of label decides, from the targets of a split to the words of the report."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covidjax import losses
from covidjax.data.examples import Examples
from covidjax.data.mix import Mixed
from covidjax.errors import UserError
from covidjax.losses import LossFunction, Weights, correct_share, loss_function
from covidjax.metrics.comparison import Judged
from covidjax.metrics.validated import Chosen
from covidjax.tasks.weighting import class_counts, class_weights

# Batches of a split in inference: logits [batch, ...], targets [batch, ...] and how many of both are real.
Answers = Iterable[tuple[jax.Array, jax.Array, int]]
RESEARCH_USE = "research use only"  # stands in every table and picture of predictions


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Keys of metrics.jsonl and evaluation_<split>.json, and words, by which a study compares runs.

    value: what strategies are compared by; name: it within a sentence; limits: the least and the greatest that it and
        the figures beside it, but for the loss, can be
    beside: another figure that tables show
    recorded: those of the validation split in study.csv; with_interval: of these, the ones whose bounds are there too
    interval: how the interval of a single run's value is made
    titles: the figures of the test split, as they stand at the head of a column
    """

    value: str
    name: str
    beside: str
    recorded: tuple[str, ...]
    with_interval: tuple[str, ...]
    interval: str
    titles: Mapping[str, str]
    limits: tuple[float, float] = (0, 1)

    @property
    def column(self) -> str:
        """Where study.csv has the value."""
        return f"val_{self.value}"


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one new image. answer: of `Task.answer`, one row of it, or the rows of the image's own pixels.

    size: width and height of the file's picture; shown: the picture for an overlay, [height, width, 3] uint8, if one
    was asked for; remarks: what its user has to know of it, see `data.levels.remarks`; called: 1 or 0 by operating
    point, for further columns of the table.
    """

    name: str
    size: tuple[int, int]
    answer: np.ndarray
    shown: np.ndarray | None = None
    remarks: tuple[str, ...] = ()
    called: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be written of predictions. table: its path, .csv; overlays, spacing: see `runs.predict.predict`.

    crop: `config.dataset.crop`; tiled: whether images were taken at their own size; facts: further columns
    of the table, by the names of the images. inside: a folder of masks of the same images, or None; of each image at
    least the part `inside_at_least` of what is found has to lie in its mask.
    """

    table: Path
    crop: str
    overlays: Path | None = None
    spacing: tuple[float, ...] | None = None
    tiled: bool = False
    facts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    inside: Path | None = None
    inside_at_least: float = 0.0


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What was predicted and written. counts: images by class, which `counted` puts in words; files: by their titles.

    notes: sentences for the person who asked; num_bad: images that were left out because they could not be read.
    """

    num_images: int
    counted: str
    counts: Mapping[str, int]
    files: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    num_bad: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task(abc.ABC):
    """A kind of label: what it is, how a network learns it, how well it does, and what is written of that.

    labels: 'images' or 'pixels', whichever a network of the task labels, see `models.labels`
    words: what its networks do, after their name; of: what its losses and figures are of
    losses: functions by names of `config.loss.name`
    best: names of `config.checkpoint.best`, with 1 where higher is better, else -1
    shown: those in every progress line; (): all of them
    offers: what it can do beside: 'operating_points' (`by_validation`), 'oversample', 'mix' (mixup, cutmix),
        'ensemble', 'sweep', 'findings', 'hausdorff', 'explain', 'overlays' (tiles and volumes too)
    masks: whether the data source reads masks
    correct, step_figure: (logits, targets) -> [batch] float32, a figure of a training step and its key
    page: (evaluation, workdir, examples or None) -> variables of templates/<template>, which tells of a split
    counted: what `class_counts` counts; comparison: how a study compares runs
    headline: figures at the head of a report, beside the one of `comparison`
    """

    name: str
    labels: str
    words: str
    of: str
    losses: Mapping[str, Callable[..., jax.Array]]
    best: Mapping[str, int]
    shown: tuple[str, ...] = ()
    offers: frozenset[str]
    masks: bool
    correct: Callable[[jax.Array, jax.Array], jax.Array] = correct_share
    step_figure: str = "accuracy"
    template: str
    page: Callable[[Mapping[str, Any], Path, Examples | None], Mapping[str, Any]]
    counted: str
    headline: tuple[str, ...]
    comparison: Comparison

    @property
    def direction(self) -> int:
        """1 where a higher value of `comparison` is better, else -1."""
        return self.best[self.comparison.value]

    # ---- Training ----

    @abc.abstractmethod
    def targets(self, examples: Examples) -> np.ndarray:
        """What logits are held against: an array [n, ...]. Raises UserError where the split has none."""

    def epoch_targets(self, examples: Examples) -> np.ndarray:
        """The targets of an epoch of training, each as often as it counts: what balanced class weights go by."""
        once = self.targets(examples)
        return once if examples.repeats is None else once[examples.turns()]

    @abc.abstractmethod
    def label(self, target: np.ndarray, classes: Sequence[str]) -> str | np.ndarray:
        """What a picture of an image shows of its target: a text, or a mask [height, width] uint8."""

    def shown_labels(self, targets: Any, classes: Sequence[str]) -> list[str | np.ndarray]:
        """What pictures of the images of a training batch show. targets: those of `train.inputs.first_batch`."""
        if not isinstance(targets, Mixed):
            return [self.label(target, classes) for target in targets]
        return [
            f"{share:.2f} {self.label(first, classes)} + {1 - share:.2f} {self.label(second, classes)}"
            for first, second, share in zip(*targets, strict=True)
        ]

    def num_outputs(self, classes: Sequence[str]) -> int:
        """How many numbers the network gives for an image or a pixel."""
        return len(classes)

    def train_loss(self, loss: Any, examples: Examples) -> LossFunction:
        """The loss that a section `config.loss` describes: (logits, targets) -> [batch]. examples: of training."""
        return loss_function(loss, self.class_weights(loss.class_weights, examples), self.losses)

    def class_weights(self, spec: Any, examples: Examples) -> Weights:
        """The weight of each class that `config.loss.class_weights` asks for. Raises UserError."""
        return class_weights(spec, self.epoch_targets(examples), examples.classes)

    def plain_loss(self, loss: ConfigDict) -> LossFunction:
        """The loss as it is reported: without class weights and label smoothing."""
        return loss_function(ConfigDict({**loss.to_dict(), "label_smoothing": 0.0}), None, self.losses)

    def check(self, model_name: str, dataset: Any, loss: Any) -> None:
        """Checks what a config has for this task alone. Raises UserError."""
        own = isinstance(self.losses.get(loss.name), losses.OwnLoss)  # which says itself what it takes
        if loss.label_smoothing and loss.name not in losses.SMOOTHED and not own:
            raise UserError(
                f"loss.label_smoothing is {loss.label_smoothing}, which {loss.name} does not have; set it to 0, or "
                f"choose one of {', '.join(name for name in losses.SMOOTHED if name in self.losses)}"
            )

    def class_counts(self, examples: Examples) -> dict[str, int]:
        """How often each class occurs in a split, in `counted`, for run.json."""
        counts = class_counts(self.targets(examples), len(examples.classes))
        return {name: int(count) for name, count in zip(examples.classes, counts, strict=True)}

    def split_notes(self, train: Examples, val: Examples) -> list[str]:
        """Sentences on classes that the splits have too few examples of."""
        return []

    def num_bytes(self, examples: Examples) -> int:
        """Bytes of the images of a split, and of its masks."""
        return int(examples.images.nbytes) + (int(self.targets(examples).nbytes) if self.masks else 0)

    # ---- Figures ----

    @abc.abstractmethod
    def measure(self, answers: Answers, loss: LossFunction, loss_name: str) -> dict[str, float]:
        """The figures of a split during training, those of `best` among them; NaN of undefined ones.

        loss: the same object in every call; loss_name: its `config.loss.name`.
        """

    @abc.abstractmethod
    def evaluate(
        self, answers: Answers, examples: Examples, loss: ConfigDict, workdir: Path, *, hausdorff: bool = False
    ) -> dict[str, Any]:
        """Writes predictions_<split>.csv and what belongs to it; returns the content of evaluation_<split>.json.

        loss: `config.loss`; hausdorff: whether distances between borders are measured, where that is offered.
        """

    @abc.abstractmethod
    def summary(self, evaluation: Mapping[str, Any]) -> Iterator[str]:
        """The lines on an evaluation for the person who asked for it."""

    def format_figures(self, figures: Mapping[str, float], by: str) -> str:
        """The figures of a line of a running training. by: `config.checkpoint.best`."""
        return " ".join(
            f"{key} {figures[key]:{'.4f' if key == 'loss' else '.3f'}}"
            for key in dict.fromkeys((*(self.shown or self.best), by))
            if key in figures
        )

    def chosen(self, workdir: Path) -> Chosen:
        """What the table of validation predictions decides, where 'operating_points' is offered."""
        raise UserError(f"the task {self.name!r} has no temperature and no operating points")

    def by_validation(self, workdir: Path, examples: Examples, *, calibrated: bool = False) -> dict[str, Any]:
        """What joins an evaluation of `examples` by choices made on the validation split; {} where nothing does.

        workdir: with the tables of predictions of both splits, of the same checkpoint.
        calibrated: whether predictions_<split>_calibrated.csv is written, with the temperature applied.
        """
        return {}

    def judged(self, evaluation: Mapping[str, Any], workdir: Path) -> Judged:
        """What a comparison of runs takes of an evaluation. Raises UserError where there is no such thing."""
        raise UserError(f"{workdir}: runs of the task {self.name!r} cannot be compared: leave it out")

    def pooled(self, evaluations: Sequence[Mapping[str, Any]], workdirs: Sequence[Path]) -> Judged:
        """The answers of several runs, each on images of its own, as those of one network. Raises UserError."""
        raise UserError(f"{workdirs[0]}: runs of the task {self.name!r} cannot be pooled")

    # ---- New images ----

    @abc.abstractmethod
    def respond(self, logits: jax.Array, loss: ConfigDict) -> jax.Array:
        """What a prediction keeps of logits [n, ...], as a part of a program. loss: `config.loss` of the network."""

    def answer(self, logits: np.ndarray, loss: ConfigDict) -> np.ndarray:
        """The same of arrays on the host."""
        return np.asarray(self.respond(jnp.asarray(logits), loss))

    def explained(self, answer: np.ndarray) -> tuple[int, ...]:
        """The classes whose places in an image are shown. answer: one row of `answer`."""
        return (int(answer.argmax()),)

    def pictured(self, workdir: Path, examples: Examples) -> list[tuple[str, int]]:
        """Images of an evaluated split that its page shows, by name, and the class whose place in each is shown."""
        raise UserError(f"runs of the task {self.name!r} have no images to explain: leave --explain out")

    @abc.abstractmethod
    def write_predictions(
        self, predictions: Iterable[Prediction], names: Sequence[str], classes: Sequence[str], request: Request
    ) -> Predicted:
        """Writes the table and what belongs to it; `runs.predict.predict` says what that is.

        predictions: of the images `names`, each made when it is asked for, after what is wrong with `request` is said.
        """


def with_interval(scores: Mapping[str, Any], key: str) -> str:
    """A figure of an evaluation and its interval, for a line on a terminal."""
    bounds = scores[f"{key}_ci95"]
    between = f" (95 % interval {bounds[0]:.4f} to {bounds[1]:.4f})" if bounds else ""
    return f"{scores[key]:.4f}{between}"
