"""Predictions for new images from a finished run: a table, and for networks that answer with masks PNG files."""

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from covidjax import config as configs
from covidjax.checkpoint.checkpoint import Which
from covidjax.command import prepare_process
from covidjax.console import Progress
from covidjax.data import facts
from covidjax.data.decode import remark_notes
from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.base import Picture as Opened
from covidjax.data.formats.read import SUFFIXES, open_picture
from covidjax.data.picture import ImageSpec, network_pixels, own_pixels
from covidjax.data.walk import masks_among, walk
from covidjax.errors import UserError, some_of
from covidjax.evaluate import tiles
from covidjax.evaluate.members import Mixture, load_network
from covidjax.evaluate.network import inference
from covidjax.evaluate.tiles import Tiling
from covidjax.files import printable
from covidjax.tasks import pictures
from covidjax.tasks.base import Predicted, Prediction, Request
from covidjax.weights.workdir import Trained

OVERLAY_SIDE = 1024  # longest side of an image in an overlay, which is for looking at


@dataclasses.dataclass(frozen=True)
class Sources:
    """Images to predict: `names` below the folder `root`, sorted; `ignored`: how many other files lie there.

    paths: the files of names that are not those of their files; notes: what was passed over; facts: of 'patient',
    'view', 'spacing' and 'source' those that any file tells, n each.
    """

    root: Path
    names: tuple[str, ...]
    ignored: int
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """The bytes of an image. Raises OSError."""
        return (self.root / self.paths.get(name, name)).read_bytes()


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """One decoded image.

    pixels: [height, width, channels] uint8 as the network takes them; size: width and height of the file's picture;
    shown: the picture for an overlay, [height, width, 3] uint8, if one was asked for; remarks: what its user has to
    know of it.
    """

    name: str
    pixels: np.ndarray
    size: tuple[int, int]
    shown: np.ndarray | None
    remarks: tuple[str, ...]


def list_images(path: Path) -> Sources:
    """One image file, or all of a folder and the folders in it, linked ones too, but for the masks among them.

    Raises UserError where there is none.
    """
    if path.is_file():
        name = printable(path.name)
        return _sources(path.parent, (name,), 0, {name: path.name}, ())
    if not path.is_dir():
        raise UserError(f"--images: there is no {path}: give an image file or a folder of images")
    found = walk(path)
    masks = masks_among(found.images)
    notes = list(found.notes)
    if masks:
        notes.append(f"{len(masks)} files are masks of images, and were left out: {some_of(sorted(masks))}")
    if not found.images:
        raise UserError(f"--images: {path} holds no image: allowed are files ending in {' '.join(SUFFIXES)}")
    names = tuple(sorted(set(found.images) - masks))
    return _sources(path, names, len(found.others), found.paths, tuple(notes))


def _sources(
    root: Path, names: tuple[str, ...], ignored: int, paths: Mapping[str, str], notes: tuple[str, ...]
) -> Sources:
    found = facts.columns(root, names, paths)
    if found:
        found = {"patient": facts.numbered(found.pop("patient_id")), **found}
    told = {column: texts for column, texts in found.items() if any(texts)}
    return Sources(root, names, ignored, paths, notes, told)


def run(
    workdir: Path,
    images: Path,
    output: Path,
    *,
    overlays: Path | None,
    checkpoint: Which | None,
    tile: int | None,
    overlap: int | None,
    spacing: tuple[float, ...] | None,
    inside: Path | None,
    inside_at_least: float | None,
) -> None:
    """Predicts images with the network of a run, or the mixture of an ensemble, and prints what was written.

    images: see `list_images`; tile, overlap: in pixels, see `Tiling`; the rest: see `predict`.
    Raises UserError as these do, and for an overlap without tiles.
    """
    if tile is None and overlap is not None:
        raise UserError("--overlap is that of tiles: give --tile as well")
    if inside is None and inside_at_least is not None:
        raise UserError("--inside_at_least is a part of what lies in masks: give their folder as --inside")
    least = 0.9 if inside_at_least is None else inside_at_least
    if not 0 < least <= 1:
        raise UserError(f"--inside_at_least is {least:g}: allowed is above 0 to 1")
    tiling = None if tile is None else Tiling(tile, tile // 4 if overlap is None else overlap)
    prepare_process(configs.of_workdir(workdir).precision)
    sources = list_images(images)
    trained = load_network(workdir, checkpoint)
    found = predict(trained, sources, output, overlays, tiling, spacing, inside, least)
    ignored = f", {sources.ignored} files that are no images passed over" if sources.ignored else ""
    print(f"{found.num_images} images{ignored}; {trained.origin}")
    if tiling is not None:
        trained_at = f"the network learnt from images brought to {trained.config.dataset.image_size} pixels"
        print(f"taken at their own size: {trained_at}, and is at a loss where things are of another size in pixels")
    counts = ", ".join(f"{name} {count}" for name, count in found.counts.items())
    written = [f"{title}: {path}" for title, path in found.files.items()]
    print(*trained.notes, *sources.notes, *found.notes, f"{found.counted}: {counts}", *written, sep="\n")
    print("Research use only - not for clinical decisions.")


def predict(
    trained: Trained | Mixture,
    sources: Sources,
    output: Path,
    overlays_folder: Path | None = None,
    tiling: Tiling | None = None,
    spacing: tuple[float, ...] | None = None,
    inside: Path | None = None,
    inside_at_least: float = 0.9,
) -> Predicted:
    """Predicts images; writes the table `output` and, for masks, the folder <stem of output>_masks beside it.

    The table of a classifier or a mixture: file, predicted, probability_<class>. Of masks: file, width, height, mask,
    and pixels_<class>, the area of each class in pixels of the image. Masks are PNG files of the image's own size:
    class ids, or 0 and 255 for two classes. Where DICOM files tell them: patient (a number), view, spacing, source.
    overlays_folder: takes each image beside the image with its mask.
    tiling: images are taken at their own size, in tiles, rather than brought to `dataset.image_size`.
    spacing: millimetres between slices, rows and columns: each folder of images is a stack, and its volumes go to
    <stem of output>_volumes.csv, see `volumes.write_table`.
    inside: a folder of masks that `predict` wrote of the same images with another network. An image of which less than
    `inside_at_least` of the labelled pixels lie in its mask there is dropped: it goes to <stem of output>_dropped.csv
    with that part. One without a labelled pixel has none outside, and is kept.

    What is written has a temporary name until it is whole. Raises UserError, with all bad files, where one cannot
    be decoded; where a folder of results is not empty; and for what a classifier does not have.
    """
    if output.suffix != ".csv" or output.is_dir():
        raise UserError(f"--output is {output}: name the table that is to be written, such as predictions.csv")
    if "overlays" not in trained.task.offers and any((overlays_folder, tiling, spacing, inside)):
        name = trained.config.model.name
        raise UserError(f"{name} {trained.task.words}: --overlays, --tile, --spacing and --inside are for masks")
    if spacing and inside:
        raise UserError("--inside drops images, and --spacing needs all of a volume: give one of them")
    told = {column: dict(zip(sources.names, texts, strict=True)) for column, texts in sources.facts.items()}
    crop = trained.config.dataset.crop
    request = Request(output, crop, overlays_folder, spacing, tiling is not None, told, inside, inside_at_least)
    if isinstance(trained, Mixture):
        found = _mixed(trained, sources)
    elif tiling is None:
        found = _answers(trained, sources, shown=overlays_folder is not None)
    else:
        found = _tiled_answers(trained, sources, tiling, shown=overlays_folder is not None)
    remarks: dict[str, tuple[str, ...]] = {}

    def noted() -> Iterator[Prediction]:
        for one in found:
            if one.remarks:
                remarks[one.name] = one.remarks
            yield one

    written = trained.task.write_predictions(noted(), sources.names, trained.classes, request)
    return dataclasses.replace(written, notes=(*written.notes, *remark_notes(remarks)))


def _answers(trained: Trained, sources: Sources, *, shown: bool = False) -> Iterator[Prediction]:
    """What a network answers to each image at the size that it sees."""
    config = trained.config
    run = inference(*trained.network, min(config.batch_size, len(sources.names)), jax.local_device_count())
    for batch in _pictures(sources, config, config.batch_size, shown=shown):
        logits = _finite(run(np.stack([picture.pixels for picture in batch])), trained)
        for picture, answer in zip(batch, trained.task.answer(logits, config.loss), strict=True):
            yield Prediction(picture.name, picture.size, answer, picture.shown, picture.remarks)


def _tiled_answers(trained: Trained, sources: Sources, tiling: Tiling, *, shown: bool) -> Iterator[Prediction]:
    """What a network answers to each image at the image's own size."""
    run = inference(*trained.network, 1, 1)
    for (picture,) in _pictures(sources, trained.config, 1, shown=shown, own_size=True):
        bands = tiles.blended_logits(lambda tile: run(tile[None])[0], picture.pixels, tiling)
        parts = [trained.task.answer(_finite(band, trained), trained.config.loss) for band in bands]
        yield Prediction(picture.name, picture.size, np.concatenate(parts), picture.shown, picture.remarks)


def _mixed(mixture: Mixture, sources: Sources) -> Iterator[Prediction]:
    """The mixture of what the members answer to each image."""
    answers = [list(_answers(member.trained, sources)) for member in mixture.members]
    table = mixture.mix(np.array([[one.answer for one in own] for own in answers]))
    for one, answer in zip(answers[0], table, strict=True):
        yield dataclasses.replace(one, answer=answer)


def _finite(logits: np.ndarray, trained: Trained) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise UserError(f"the network of step {trained.step} answers with what is no number: take another --checkpoint")
    return logits


def _pictures(
    sources: Sources, config: ConfigDict, batch_size: int, *, shown: bool = False, own_size: bool = False
) -> Iterator[list[Picture]]:
    """Decoded images in batches, and progress on standard error.

    After a bad file the rest is read for other bad ones only. Raises UserError with all of them in the end.
    """
    read = partial(_read, sources, dataset=config.dataset, shown=shown, own_size=own_size)
    bad: dict[str, str] = {}
    progress = Progress("predicting", len(sources.names), patience=2)
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # open_picture refuses those by itself
        for start in range(0, len(sources.names), batch_size):
            names = sources.names[start : start + batch_size]
            results = list(pool.map(read, names))
            bad |= {name: result for name, result in zip(names, results, strict=True) if isinstance(result, str)}
            if not bad:
                yield [result for result in results if isinstance(result, Picture)]
            progress.show(start + len(names))
    if bad:
        listed = some_of((f"{sources.root / name} ({reason})" for name, reason in bad.items()), "; ")
        raise UserError(
            f"{len(bad)} of {len(sources.names)} images are bad: {listed}; mend or remove them: nothing was written"
        )


def _read(sources: Sources, name: str, *, dataset: ConfigDict, shown: bool, own_size: bool) -> Picture | str:
    """The decoded image, or why it is bad."""
    try:
        image = open_picture(sources.read(name), dataset.frame)
        pixels, remarks = network_pixels(image, ImageSpec.of(dataset))
        if own_size:
            pixels = own_pixels(image, dataset.channels, dataset.enhancement, dataset.window)
        return Picture(name, pixels, image.size, _thumbnail(image, dataset.window) if shown else None, remarks)
    except BadImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__


def _thumbnail(image: Opened, window: str) -> np.ndarray:
    picture = Image.fromarray(pictures.as_rgb(own_pixels(image, 3, window=window)))
    picture.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    return np.asarray(picture)
