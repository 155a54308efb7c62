"""Chest radiographs with masks of the lungs.

jsrt: Shiraishi et al., American Journal of Roentgenology 174 (2000), masks of van Ginneken et al., Medical Image
Analysis 10 (2006). montgomery, shenzhen: Jaeger et al., Quantitative Imaging in Medicine and Surgery 4 (2014), masks of
Shenzhen by Stirenko et al. 2018.
"""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record, inside
from covidjax.data.datasets.stored import png
from covidjax.data.formats.base import BadImageError
from covidjax.errors import some_of

JSRT_SIDE = 2048
SIDES = ("left", "right")


class Montgomery(ManualBuilder):
    """138 radiographs of Montgomery County; the masks of the left and of the right lung are joined."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "put MontgomerySet of https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets into "
        "MANUAL_DIR: CXR_png/*.png, ManualMask/leftMask/*.png, ManualMask/rightMask/*.png"
    )
    MASK_CLASSES = ("background", "lung")
    PUBLISHED = {"all": {"": 138}}

    def list_records(self, root: Path) -> Listing:
        listing, root = Listing(), inside(root, "MontgomerySet")
        for image in listing.images(root / "CXR_png", (".png",)):
            masks = [root / "ManualMask" / f"{side}Mask" / image.name for side in SIDES]
            if missing := [f"{path.parent.name}/{path.name}" for path in masks if not path.is_file()]:
                listing.faults.append(f"{image.name} has no mask {some_of(missing)}")
                continue
            mask = functools.partial(joined, masks)
            listing.records.append(Record(image.name, image, patient=image.stem, source="montgomery", mask=mask))
        return listing


class Shenzhen(ManualBuilder):
    """662 radiographs of Shenzhen, of which 566 have masks; the others are left out."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "put ChinaSet_AllFiles of https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets into "
        "MANUAL_DIR: CXR_png/*.png, and the masks of https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask: "
        "mask/*_mask.png"
    )
    MASK_CLASSES = ("background", "lung")
    PUBLISHED = {"all": {"": 566}}

    def list_records(self, root: Path) -> Listing:
        listing, root = Listing(), inside(root, "ChinaSet_AllFiles")
        folder = root / "mask" / "mask" if (root / "mask" / "mask").is_dir() else root / "mask"
        masks, bare = {path.name: path for path in listing.images(folder, (".png",))}, []
        for image in listing.images(root / "CXR_png", (".png",)):
            mask = masks.pop(f"{image.stem}_mask.png", None)
            if mask is None:
                bare.append(image.name)
            else:
                listing.records.append(Record(image.name, image, patient=image.stem, source="shenzhen", mask=mask))
        listing.faults += [f"{name} has no image" for name in masks]
        if bare:
            listing.notes.append(f"{len(bare)} images have no mask, and are left out: {some_of(bare)}")
        return listing


class Jsrt(ManualBuilder):
    """247 radiographs of JSRT with the masks of both lungs of SCR, which are joined and brought to the images' size.

    The files hold 12 bits, in which air is bright: they are turned, so that air is dark.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "put All247images.zip of http://db.jsrt.or.jp/eng.php, unpacked, into MANUAL_DIR: All247images/*.IMG, and the "
        "masks of SCR (https://zenodo.org/records/7056076): fold1/masks/left lung/*.gif, fold1/masks/right lung/*.gif, "
        "and those of fold2"
    )
    MASK_CLASSES = ("background", "lung")
    PUBLISHED = {"all": {"": 247}}

    def list_records(self, root: Path) -> Listing:
        listing = Listing()
        for image in listing.images(root / "All247images", (".img",)):
            found = [sorted(root.glob(f"fold[12]/masks/{side} lung/{image.stem}.gif")) for side in SIDES]
            if missing := [side for side, paths in zip(SIDES, found, strict=True) if not paths]:
                listing.faults.append(f"{image.name} has no mask of the {' and the '.join(missing)} lung")
                continue
            pixels = functools.partial(jsrt_pixels, image)
            mask = functools.partial(joined, [paths[0] for paths in found], JSRT_SIDE)
            listing.records.append(Record(image.name, pixels, patient=image.stem, source="jsrt", mask=mask))
        return listing


def jsrt_pixels(path: Path) -> bytes:
    """A file of JSRT, 2048 x 2048 big-endian values of 12 bits, as PNG of 16 bits with air dark.

    Raises BadImageError for a file of another size.
    """
    values = np.fromfile(path, ">u2")
    if len(values) != JSRT_SIDE**2:
        raise BadImageError(f"{2 * len(values)} bytes are not those of 2048 x 2048 values of 16 bits")
    deep = np.rint((4095 - np.minimum(values, 4095)) * (65535 / 4095)).astype(np.uint16)
    return png(Image.fromarray(deep.reshape(JSRT_SIDE, JSRT_SIDE)))


def joined(paths: Sequence[Path], side: int = 0) -> bytes:
    """What any of some masks has, as PNG of 0 and 1, enlarged to squares of `side` pixels a side unless that is 0.

    Raises BadImageError for masks of other sizes, and for one that is no image.
    """
    try:
        parts = [np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("L")) > 0 for path in paths]
    except UnidentifiedImageError as error:
        raise BadImageError("a mask is no image") from error
    if len({part.shape for part in parts}) > 1:
        raise BadImageError(f"its masks are of {' and '.join('x'.join(map(str, part.shape)) for part in parts)} pixels")
    mask = np.any(parts, axis=0)
    if side:
        if mask.shape[0] != mask.shape[1] or side % len(mask):
            raise BadImageError(f"its masks are of {'x'.join(map(str, mask.shape))} pixels, which do not divide {side}")
        mask = np.kron(mask, np.ones((side // len(mask),) * 2, bool))
    return png(Image.fromarray(mask.astype(np.uint8)))
