"""One class for each pixel of an image."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin

from covidjax import files, losses
from covidjax.data.examples import Examples
from covidjax.data.picture import place_back
from covidjax.errors import UserError, some_of
from covidjax.losses import LossFunction
from covidjax.metrics import mask_files, segmentation
from covidjax.metrics.comparison import Judged
from covidjax.tasks import pictures, volumes
from covidjax.tasks.base import RESEARCH_USE, Answers, Comparison, Predicted, Prediction, Request, Task, with_interval
from covidjax.tasks.segmentation_page import segmentation_page
from covidjax.tasks.volumes import Slice


def segmented(answers: Answers, loss: LossFunction) -> tuple[np.ndarray, np.ndarray, float]:
    """Predicted masks of n examples, and what follows from them and the true ones.

    -> class ids [n, height, width] uint8, `metrics.segmentation.overlap_counts` [n, classes, 3] int64, the mean loss.
    """
    parts = []
    for logits, masks, count in answers:
        parts.append([np.asarray(array)[:count] for array in _mask_figures(logits, masks, loss)])
    predicted, counts, losses = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return predicted, counts.astype(np.int64), float(np.mean(losses.astype(np.float64)))


@jax.jit(static_argnames="loss")
def _mask_figures(logits: jax.Array, masks: jax.Array, loss: LossFunction) -> tuple[jax.Array, jax.Array, jax.Array]:
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
    return predicted, segmentation.overlap_counts(logits, masks), loss(logits, masks)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation(Task):
    """Masks [n, height, width] uint8 of class ids, the background first; an answer is the class id of each pixel."""

    def targets(self, examples: Examples) -> np.ndarray:
        if examples.masks is None:
            raise UserError(
                f"the {examples.split} split has no masks: choose another data set, or a network for classification"
            )
        return examples.masks

    def label(self, target: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        return target

    def check(self, model_name: str, dataset: Any, loss: Any) -> None:
        if dataset.oversample:
            raise UserError(
                f"config.dataset.oversample repeats images of a class, and config.model.name is {model_name!r}, whose "
                "images have masks and no class: leave it empty"
            )
        super().check(model_name, dataset, loss)

    def measure(self, answers: Answers, loss: LossFunction, loss_name: str) -> dict[str, float]:
        """Mean loss, the part of all pixels that is right, and the means of Dice and IoU without the background."""
        _, counts, mean_loss = segmented(answers, loss)
        shared, _, true = np.moveaxis(counts, -1, 0)
        foreground = counts[:, 1:]
        return {
            "loss": mean_loss,
            "accuracy": float(shared.sum() / true.sum()),
            "dice": float(segmentation.dice(foreground).mean()),
            "iou": float(segmentation.iou(foreground).mean()),
        }

    def evaluate(
        self, answers: Answers, examples: Examples, loss: ConfigDict, workdir: Path, *, hausdorff: bool = False
    ) -> dict[str, Any]:
        predicted, counts, mean_loss = segmented(answers, self.plain_loss(loss))
        split, distances = examples.split, None
        if hausdorff:
            distances = segmentation.hausdorff95_of(predicted, self.targets(examples), len(examples.classes))
        result = segmentation.report_from_counts(counts, examples, mean_loss, distances=distances)
        mask_files.write_masks(workdir / f"masks_{split}", examples.names, predicted)
        mask_files.write_predictions(workdir / f"predictions_{split}.csv", result["per_image"], examples.facts)
        return result

    def judged(self, evaluation: Mapping[str, Any], workdir: Path) -> Judged:
        return self.pooled([evaluation], [workdir])

    def pooled(self, evaluations: Sequence[Mapping[str, Any]], workdirs: Sequence[Path]) -> Judged:
        images = [image for evaluation in evaluations for image in evaluation["per_image"]]
        values = {name: np.array([image[name] for image in images]) for name in ("dice", "iou")}

        def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
            return {name: weights @ value / weights.sum(axis=1) for name, value in values.items()}

        names, patients = (tuple(image[key] for image in images) for key in ("file", "patient"))
        return Judged(names, patients, (), None, figures)

    def summary(self, evaluation: Mapping[str, Any]) -> Iterator[str]:
        yield f"Dice {with_interval(evaluation, 'dice')}"
        yield f"IoU {with_interval(evaluation, 'iou')}"
        if evaluation.get("hausdorff95") is not None:
            yield f"Hausdorff 95: {evaluation['hausdorff95']:.2f} pixels"
        for name, scores in evaluation["per_class"].items():
            yield f"  {name}: Dice {with_interval(scores, 'dice')}"

    def respond(self, logits: jax.Array, loss: ConfigDict) -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    def answer(self, logits: np.ndarray, loss: ConfigDict) -> np.ndarray:
        return logits.argmax(-1).astype(np.uint8)  # bands of images come in many sizes, each a program of its own

    def write_predictions(
        self, predictions: Iterable[Prediction], names: Sequence[str], classes: Sequence[str], request: Request
    ) -> Predicted:
        folder = request.table.with_name(f"{request.table.stem}_masks")
        if request.overlays is not None and request.overlays.resolve() == folder.resolve():
            raise UserError(f"--overlays: {request.overlays} is where the masks go: choose another folder")
        file_names = dict(zip(names, mask_files.mask_names(names), strict=True))
        if request.spacing is not None:
            volumes.check_spacing(request.spacing)
        slices: list[Slice] = []
        dropped: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            new_masks = stack.enter_context(files.new_folder(folder))
            new_overlays = None if request.overlays is None else stack.enter_context(files.new_folder(request.overlays))
            for one in predictions:
                mask = one.answer if request.tiled else place_back(one.answer, one.size, request.crop)
                if request.inside is not None:
                    inside = mask_files.read_mask_of(request.inside / file_names[one.name], one.size, "--inside") > 0
                    part = float(inside[mask > 0].mean()) if mask.any() else 1.0  # of nothing found, none is outside
                    if part < request.inside_at_least:
                        dropped[one.name] = part
                        continue
                _save(Image.fromarray(pictures.values(mask, len(classes))), new_masks / file_names[one.name])
                if new_overlays is not None:
                    _save(_overlay(one, mask, classes), new_overlays / file_names[one.name])
                areas = np.bincount(mask.reshape(-1), minlength=len(classes)).tolist()
                slices.append(Slice(one.name, one.size, tuple(areas)))
            if request.spacing is not None:
                volumes.stacks(slices)  # what is wrong with them is told before anything is there
        header = ["file", "width", "height", "mask", *(f"pixels_{name}" for name in classes), *request.facts, "use"]
        rows = [
            [
                *(one.name, *one.size, f"{folder.name}/{file_names[one.name]}", *one.areas),
                *(request.facts[column][one.name] for column in request.facts),
                RESEARCH_USE,
            ]
            for one in slices
        ]
        files.write_csv(request.table, header, rows)
        written = {"table": request.table, "masks": folder}
        if request.overlays is not None:
            written["overlays"] = request.overlays
        if request.spacing is not None:
            written["volumes"] = request.table.with_name(f"{request.table.stem}_volumes.csv")
            volumes.write_table(written["volumes"], slices, classes, request.spacing)
        notes, table_of_dropped = [], request.table.with_name(f"{request.table.stem}_dropped.csv")
        if not dropped:
            table_of_dropped.unlink(missing_ok=True)  # of an earlier prediction
        else:
            written["dropped"] = table_of_dropped
            files.write_csv(
                table_of_dropped,
                ["file", "inside", "use"],
                [[name, f"{part:.4f}", RESEARCH_USE] for name, part in dropped.items()],
            )
            notes.append(
                f"{len(dropped)} of {len(names)} images were dropped: of what was found in them, less than "
                f"{request.inside_at_least:g} lies inside the masks of {request.inside}: {some_of(dropped)}"
            )
        counts = {name: sum(one.areas[number] > 0 for one in slices) for number, name in enumerate(classes) if number}
        if request.crop == "center" and not request.tiled:
            notes.append("what lies outside the centre square was not seen, and is background in the masks")
        return Predicted(len(rows), "images in which a class was found", counts, written, tuple(notes))


def _overlay(one: Prediction, mask: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """The image beside the image with its mask."""
    assert one.shown is not None
    height, width = one.shown.shape[:2]
    small = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return pictures.with_legend(pictures.side_by_side(one.shown, pictures.paint(one.shown, small)), classes)


def _save(picture: Image.Image, path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", RESEARCH_USE)
    picture.save(path, format="png", pnginfo=info)


SEGMENTATION = Segmentation(
    name="segmentation",
    labels="pixels",
    words="answers with masks",
    of="masks",
    losses=losses.MASK_LOSSES,
    best={"loss": -1, "accuracy": 1, "dice": 1},
    shown=("loss", "accuracy", "dice"),
    offers=frozenset({"hausdorff", "overlays"}),
    masks=True,
    template="segmentation.html",
    page=segmentation_page,
    counted="Pixels",
    headline=("iou", "dice_pooled"),
    comparison=Comparison(
        value="dice",  # accuracy is near 1 for any network: the background makes it so
        name="Dice",
        beside="iou",
        recorded=("dice", "loss", "iou", "dice_pooled", "iou_pooled"),
        with_interval=("dice", "iou", "dice_pooled", "iou_pooled"),
        interval="bootstrap by patient, or by image where patients are unknown",
        titles={
            "dice": "Dice",
            "iou": "IoU",
            "dice_pooled": "Dice, pooled",
            "iou_pooled": "IoU, pooled",
            "loss": "Loss",
        },
    ),
)
