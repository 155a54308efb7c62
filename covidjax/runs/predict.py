"""Predictions for new images from a finished run: a table, and for networks that answer with masks PNG files."""

import collections
import contextlib
import csv
import dataclasses
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin

from covidjax import files, losses, models
from covidjax.console import Progress
from covidjax.data.picture import SUFFIXES, BadImageError, network_pixels, open_picture, own_pixels, place_back
from covidjax.errors import UserError
from covidjax.evaluate import tiles, volumes
from covidjax.evaluate.network import inference
from covidjax.evaluate.tiles import Tiling
from covidjax.evaluate.volumes import Slice
from covidjax.metrics import mask_files
from covidjax.metrics.classification import PROBABILITY
from covidjax.report import pictures as overlays
from covidjax.runs.ensemble import Mixture
from covidjax.weights.workdir import Trained

OVERLAY_SIDE = 1024  # longest side of an image in an overlay, which is for looking at
USE = "use"  # the last column of each table


@dataclasses.dataclass(frozen=True)
class Sources:
    """Images to predict: `names` below the folder `root`, sorted; `ignored`: how many other files lie there."""

    root: Path
    names: tuple[str, ...]
    ignored: int


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """One decoded image.

    pixels: [height, width, channels] uint8 as the network takes them; size: width and height of the file's picture;
    shown: the picture for an overlay, [height, width, 3] uint8, if one was asked for.
    """

    name: str
    pixels: np.ndarray
    size: tuple[int, int]
    shown: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How many images were predicted as each class or, of masks, in how many it was found; what else was written."""

    num_images: int
    counts: dict[str, int]
    masks: Path | None = None
    volumes: Path | None = None


def list_images(path: Path) -> Sources:
    """One image file, or all of a folder and the folders in it; names that begin with a dot are passed over.

    Raises UserError where there is none.
    """
    if path.is_file():
        return Sources(path.parent, (path.name,), 0)
    if not path.is_dir():
        raise UserError(f"--images: there is no {path}: give an image file or a folder of images")
    found: list[str] = []
    ignored = 0
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        visible = [name for name in names if not name.startswith(".")]
        images = [name for name in visible if Path(name).suffix.lower() in SUFFIXES]
        found += [(Path(folder) / name).relative_to(path).as_posix() for name in images]
        ignored += len(visible) - len(images)
    if not found:
        raise UserError(f"--images: {path} holds no image: allowed are files ending in {' '.join(SUFFIXES)}")
    return Sources(path, tuple(sorted(found)), ignored)


def predict(
    trained: Trained | Mixture,
    sources: Sources,
    output: Path,
    overlays_folder: Path | None = None,
    tiling: Tiling | None = None,
    spacing: tuple[float, ...] | None = None,
) -> Outcome:
    """Predicts images; writes the table `output` and, for masks, the folder <stem of output>_masks beside it.

    The table of a classifier or a mixture: file, predicted, probability_<class>. Of masks: file, width, height, mask,
    and pixels_<class>, the area of each class in pixels of the image. Masks are PNG files of the image's own size:
    class ids, or 0 and 255 for two classes. overlays_folder: takes each image beside the image with its mask.
    tiling: images are taken at their own size, in tiles, rather than brought to `dataset.image_size`.
    spacing: millimetres between slices, rows and columns: each folder of images is a stack, and its volumes go to
    <stem of output>_volumes.csv, see `volumes.write_table`.

    What is written has a temporary name until it is whole. Raises UserError, with all bad files, where one cannot
    be decoded; where a folder of results is not empty; and for what a classifier does not have.
    """
    if output.suffix != ".csv" or output.is_dir():
        raise UserError(f"--output is {output}: name the table that is to be written, such as predictions.csv")
    if isinstance(trained, Trained) and models.task(trained.config.model.name) == "segmentation":
        return _predict_masks(trained, sources, output, overlays_folder, tiling, spacing)
    if (overlays_folder, tiling, spacing) != (None, None, None):
        name = trained.config.model.name
        raise UserError(f"{name} labels whole images: --overlays, --tile and --spacing are for masks")
    return _predict_labels(trained, sources, output)


def _predict_labels(trained: Trained | Mixture, sources: Sources, output: Path) -> Outcome:
    if isinstance(trained, Mixture):
        table = trained.mix([_probabilities(member.trained, sources) for member in trained.members])
    else:
        table = _probabilities(trained, sources)
    classes = trained.classes
    rows = [
        [name, classes[int(row.argmax())], *row.tolist(), overlays.RESEARCH_USE]
        for name, row in zip(sources.names, table.astype(np.float64), strict=True)
    ]
    _write_table(output, ["file", "predicted", *(PROBABILITY + name for name in classes), USE], rows)
    counts = collections.Counter(row[1] for row in rows)
    return Outcome(len(rows), {name: counts[name] for name in classes})


def _probabilities(trained: Trained, sources: Sources) -> np.ndarray:
    """What a classifier answers to each image: [n, classes]."""
    config, found = trained.config, []
    run = inference(*trained.network, min(config.batch_size, len(sources.names)), jax.local_device_count())
    for pictures in _pictures(sources, config, config.batch_size):
        logits = _finite(run(np.stack([picture.pixels for picture in pictures])), trained)
        found.append(np.asarray(losses.probabilities(jnp.asarray(logits), config.loss.name)))
    return np.concatenate(found)


def _predict_masks(
    trained: Trained,
    sources: Sources,
    output: Path,
    overlays_folder: Path | None,
    tiling: Tiling | None,
    spacing: tuple[float, ...] | None,
) -> Outcome:
    classes = trained.classes
    masks_folder = output.with_name(f"{output.stem}_masks")
    if overlays_folder is not None and overlays_folder.resolve() == masks_folder.resolve():
        raise UserError(f"--overlays: {overlays_folder} is where the masks go: choose another folder")
    mask_names = dict(zip(sources.names, _mask_names(sources), strict=True))
    if spacing is not None:
        volumes.check_spacing(spacing)
    slices: list[Slice] = []
    with contextlib.ExitStack() as stack:
        new_masks = stack.enter_context(files.new_folder(masks_folder))
        new_overlays = None if overlays_folder is None else stack.enter_context(files.new_folder(overlays_folder))
        for picture, mask in _masks(trained, sources, tiling, shown=new_overlays is not None):
            name = mask_names[picture.name]
            _save(Image.fromarray(overlays.values(mask, len(classes))), new_masks / name)
            if new_overlays is not None:
                assert picture.shown is not None
                height, width = picture.shown.shape[:2]
                small = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
                beside = overlays.side_by_side(picture.shown, overlays.paint(picture.shown, small))
                _save(overlays.with_legend(beside, classes), new_overlays / name)
            areas = np.bincount(mask.reshape(-1), minlength=len(classes)).tolist()
            slices.append(Slice(picture.name, picture.size, tuple(areas)))
        if spacing is not None:
            volumes.stacks(slices)  # what is wrong with them is told before anything is there
    header = ["file", "width", "height", "mask", *(f"pixels_{name}" for name in classes), USE]
    rows = [
        [one.name, *one.size, f"{masks_folder.name}/{mask_names[one.name]}", *one.areas, overlays.RESEARCH_USE]
        for one in slices
    ]
    _write_table(output, header, rows)
    table = None
    if spacing is not None:
        table = output.with_name(f"{output.stem}_volumes.csv")
        volumes.write_table(table, slices, classes, spacing)
    found = {name: sum(one.areas[number] > 0 for one in slices) for number, name in enumerate(classes) if number}
    return Outcome(len(rows), found, masks_folder, table)


def _masks(
    trained: Trained, sources: Sources, tiling: Tiling | None, *, shown: bool
) -> Iterator[tuple[Picture, np.ndarray]]:
    """Each image with its class ids at its own size, [height, width] uint8."""
    config = trained.config
    if tiling is None:
        run = inference(*trained.network, min(config.batch_size, len(sources.names)), jax.local_device_count())
        for pictures in _pictures(sources, config, config.batch_size, shown=shown):
            logits = _finite(run(np.stack([picture.pixels for picture in pictures])), trained)
            for picture, mask in zip(pictures, logits.argmax(-1).astype(np.uint8), strict=True):
                yield picture, place_back(mask, picture.size, config.dataset.crop)
        return
    run = inference(*trained.network, 1, 1)
    for (picture,) in _pictures(sources, config, 1, shown=shown, own_size=True):
        bands = tiles.blended_logits(lambda tile: run(tile[None])[0], picture.pixels, tiling)
        yield picture, np.concatenate([_finite(band, trained).argmax(-1).astype(np.uint8) for band in bands])


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
    read = partial(_read, sources.root, dataset=config.dataset, shown=shown, own_size=own_size)
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
        listed = "; ".join(f"{sources.root / name} ({reason})" for name, reason in bad.items())
        raise UserError(
            f"{len(bad)} of {len(sources.names)} images are bad: {listed}; mend or remove them: nothing was written"
        )


def _read(root: Path, name: str, *, dataset: ConfigDict, shown: bool, own_size: bool) -> Picture | str:
    """The decoded image, or why it is bad."""
    try:
        image = open_picture((root / name).read_bytes())
        if own_size:
            pixels = own_pixels(image, dataset.channels, dataset.enhancement)
        else:
            pixels = network_pixels(image, dataset.image_size, dataset.channels, dataset.crop, dataset.enhancement)
        return Picture(name, pixels, image.size, _thumbnail(image) if shown else None)
    except BadImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__


def _thumbnail(image: Image.Image) -> np.ndarray:
    picture = Image.fromarray(overlays.as_rgb(own_pixels(image, 3)))
    picture.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    return np.asarray(picture)


def _mask_names(sources: Sources) -> Sequence[str]:
    names = mask_files.mask_names(sources.names)
    twins = {name for name, count in collections.Counter(names).items() if count > 1}
    if twins:
        listed = [image for image, name in zip(sources.names, names, strict=True) if name in twins]
        raise UserError(f"masks of these images would have the same name: {', '.join(listed)}; rename some of them")
    return names


def _save(picture: Image.Image, path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", overlays.RESEARCH_USE)
    picture.save(path, format="png", pnginfo=info)


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    csv.writer(table).writerows([header, *rows])
    files.write_text(path, table.getvalue())
