"""Pictures of where a classifier looks in new images, and the part of it that lies in the lungs."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, PngImagePlugin

from covidjax import files
from covidjax.data.examples import Examples
from covidjax.data.picture import ImageSpec, mask_pixels
from covidjax.errors import UserError
from covidjax.evaluate import explain
from covidjax.evaluate.network import padded_batches
from covidjax.mesh import local_mesh
from covidjax.metrics import mask_files
from covidjax.runs.images import Picture, Sources
from covidjax.tasks import pictures
from covidjax.tasks.base import RESEARCH_USE
from covidjax.tasks.classification_page import maps_path
from covidjax.weights.workdir import Trained

SIDE = 224  # least side of a picture


@dataclasses.dataclass(frozen=True, eq=False)
class Explanations:
    """Grad-CAM of the predicted classes (`Task.explained`), on the stage before the head, as it is written.

    run: of `evaluate.explain.make_explain`; names: of the pictures by the images; folder: where they will lie, `part`
    where they are written before all is done; masks: folder of masks of the lungs, or None; rows: of the table.
    """

    trained: Trained
    run: explain.Explain
    names: Mapping[str, str]
    folder: Path
    part: Path
    masks: Path | None
    rows: list[list[Any]]

    def add(self, batch: Sequence[Picture], answers: np.ndarray) -> None:
        """Writes the pictures of a batch. answers: probabilities [n, classes]."""
        each = [self.trained.task.explained(answer) for answer in answers]
        chosen = [(row, label) for row, labels in enumerate(each) for label in labels]
        inputs = np.stack([batch[row].pixels for row, _ in chosen]), np.array([label for _, label in chosen])
        maps: list[np.ndarray] = []
        for rows, count in padded_batches(inputs, self.trained.config.batch_size):
            maps += list(np.asarray(self.run(self.trained.variables, *rows))[:count])
        for (row, label), map_ in zip(chosen, maps, strict=True):
            self._add(batch[row], map_, label, float(answers[row, label]))

    def _add(self, picture: Picture, map_: np.ndarray, number: int, probability: float) -> None:
        shown = pictures.as_rgb(pictures.enlarge(picture.pixels, SIDE))
        beside = pictures.side_by_side(shown, pictures.heat(shown, map_))
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", RESEARCH_USE)
        path, label = self.part / self.names[picture.name], self.trained.classes[number]
        mask = path.name
        if "findings" in self.trained.task.offers:
            path = path.with_stem(f"{path.stem}_{number}_{re.sub(r'[^A-Za-z0-9]+', '-', label)}")
        pictures.with_caption(beside, f"{label}, p = {probability:.2f}").save(path, format="png", pnginfo=info)
        inside = [] if self.masks is None else [self._inside(picture, map_, self.masks / mask)]
        self.rows.append([picture.name, label, probability, path.name, *inside, RESEARCH_USE])

    def _inside(self, picture: Picture, map_: np.ndarray, path: Path) -> float | str:
        """The part of the map inside the mask of an image, '' of an empty map. Raises UserError without such a mask."""
        seen = mask_pixels(
            mask_files.read_mask_of(path, picture.size, "--masks"), ImageSpec.of(self.trained.config.dataset)
        )
        large = Image.fromarray(map_.astype(np.float32)).resize(seen.shape[::-1], Image.Resampling.BILINEAR)
        return float(explain.share_inside(np.asarray(large)[None], seen[None])[0]) if map_.any() else ""

    def write_table(self) -> Iterator[str]:
        """Writes explanations.csv beside the pictures. Yields a sentence on what the masks hold, where there are."""
        header = ["file", "class", "probability", "picture", *(["inside"] if self.masks else []), "use"]
        files.write_csv(self.part / "explanations.csv", header, self.rows)
        if self.masks is not None:
            parts = [row[4] for row in self.rows if row[4] != ""]
            mean = f"{np.mean(parts):.3f} on average" if parts else "undefined"
            yield (
                f"the part of Grad-CAM inside the masks is {mean}, of {len(parts)} of {len(self.rows)} images; "
                "of the others nothing speaks for the class"
            )


def write_maps(workdir: Path, trained: Trained, examples: Examples, checkpoint: Mapping[str, Any]) -> None:
    """Writes Grad-CAM of the images of a split that its page shows, for the page. checkpoint: as the evaluation has it.

    Raises UserError where the network is no classifier.
    """
    _check(trained)
    chosen = trained.task.pictured(workdir, examples)
    position = {name: index for index, name in enumerate(examples.names)}
    names = [name for name, _ in chosen]
    inputs = examples.images[[position[name] for name in names]], np.array([label for _, label in chosen], np.int32)
    run = explain.make_explain(*trained.network[:2], local_mesh(1), "grad_cam", explain.last_map(trained.model))
    maps: list[Any] = []
    for batch, count in padded_batches(inputs, trained.config.batch_size):
        maps += np.asarray(run(trained.variables, *batch), np.float64)[:count].round(5).tolist()
    content = {"checkpoint": dict(checkpoint), "maps": dict(zip(names, maps, strict=True))}
    files.write_json(maps_path(workdir, examples.split), content)


def _check(trained: Trained) -> None:
    if "explain" not in trained.task.offers:
        raise UserError(f"{trained.config.model.name} {trained.task.words}: --explain is for classifiers")


@contextlib.contextmanager
def explaining(trained: Trained, sources: Sources, folder: Path, masks: Path | None) -> Iterator[Explanations]:
    """Within it explanations of images are written, which lie in `folder` if all goes well.

    Each is <stem of the image>.png, the image as the network sees it beside it with Grad-CAM of the predicted class; of
    findings <stem>_<number>_<finding>.png for each that is above 0.5, or the likeliest;
    explanations.csv has their classes, probabilities and, with masks, the part of the map that lies inside.
    masks: a folder of masks that launch/predict.py wrote of the same images, with another network.
    Raises UserError where the network answers with masks, or the folder is not empty.
    """
    _check(trained)
    names = dict(zip(sources.names, mask_files.mask_names(sources.names), strict=True))
    mesh, stage = local_mesh(1), explain.last_map(trained.model)
    run = explain.make_explain(trained.model, trained.preprocessing, mesh, "grad_cam", stage)
    placed = dataclasses.replace(trained, variables=jax.device_put(trained.variables, jax.local_devices()[0]))
    with files.new_folder(folder) as part:
        yield Explanations(placed, run, names, folder, part, masks, [])
