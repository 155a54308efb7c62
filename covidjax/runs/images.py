"""The images that a command is to look at: a file, a folder, or what a pattern of names matches; decoded in batches."""

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from covidjax.console import Progress
from covidjax.data import facts
from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.base import Picture as Opened
from covidjax.data.formats.read import SUFFIXES, open_picture
from covidjax.data.picture import ImageSpec, network_pixels, own_pixels
from covidjax.data.walk import is_pattern, masks_among, matching, walk
from covidjax.errors import UserError, some_of
from covidjax.files import printable
from covidjax.tasks import pictures

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
    """One image file, all of a folder and the folders in it, linked ones too, or all that a pattern matches.

    A pattern has *, ? or [ in it, and ** stands for folders in folders. The masks among the images are left out.
    Raises UserError where there is none.
    """
    if path.is_file():
        name = printable(path.name)
        return _sources(path.parent, (name,), 0, {name: path.name}, ())
    if not path.is_dir() and not is_pattern(path):
        raise UserError(
            f"--images: there is no {path}: give an image file, a folder of images, or a pattern such as 'scans/*.png'"
        )
    found = walk(path) if path.is_dir() else matching(path)
    masks = masks_among(found.images)
    notes = list(found.notes)
    if masks:
        notes.append(f"{len(masks)} files are masks of images, and were left out: {some_of(sorted(masks))}")
    if not found.images:
        holds = "holds" if path.is_dir() else "matches"
        raise UserError(f"--images: {path} {holds} no image: allowed are files ending in {' '.join(SUFFIXES)}")
    names = tuple(sorted(set(found.images) - masks))
    return _sources(found.root, names, len(found.others), found.paths, tuple(notes))


def _sources(
    root: Path, names: tuple[str, ...], ignored: int, paths: Mapping[str, str], notes: tuple[str, ...]
) -> Sources:
    found = facts.columns(root, names, paths)
    if found:
        found = {"patient": facts.numbered(found.pop("patient_id")), **found}
    told = {column: texts for column, texts in found.items() if any(texts)}
    return Sources(root, names, ignored, paths, notes, told)


def decoded(
    sources: Sources,
    dataset: ConfigDict,
    batch_size: int,
    bad: dict[str, str],
    *,
    strict: bool,
    shown: bool = False,
    own_size: bool = False,
) -> Iterator[list[Picture]]:
    """The good images in batches, the next one read while one is used, and progress on standard error.

    bad: takes the names of the bad ones, with the reasons. strict: after a bad one the rest is read for other bad ones
    only. Raises UserError in the end where all are bad or, if strict, one is.
    """
    read = partial(_read, sources, dataset=dataset, shown=shown, own_size=own_size)
    progress = Progress("predicting", len(sources.names), patience=2)
    starts = range(0, len(sources.names), batch_size)
    batches = [sources.names[start : start + batch_size] for start in starts]
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # open_picture refuses those by itself

        def begin(names: tuple[str, ...]) -> list[Future[Picture | str]]:
            return [pool.submit(read, name) for name in names]

        ahead = begin(batches[0])
        done = 0
        for names, following in zip(batches, [*batches[1:], ()], strict=True):
            reading, ahead = ahead, begin(following)
            results = [each.result() for each in reading]
            bad |= {name: result for name, result in zip(names, results, strict=True) if isinstance(result, str)}
            good = [result for result in results if isinstance(result, Picture)]
            if good and not (strict and bad):
                yield good
            done += len(names)
            progress.show(done)
    if bad and (strict or len(bad) == len(sources.names)):
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
