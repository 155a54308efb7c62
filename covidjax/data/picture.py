"""The bytes of one image file, or of an image and its mask, to what a network takes: one uint8 array."""

import dataclasses
from importlib import metadata

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from skimage.exposure import equalize_adapthist

from covidjax.data import levels
from covidjax.data.formats.base import BadImageError, Picture, one_line_reasons
from covidjax.data.formats.read import open_picture
from covidjax.data.masks import class_ids

CROPS = ("center", "pad", "squash")
ENHANCEMENTS = ("none", "clahe")
ENHANCER = f"scikit-image {metadata.version('scikit-image')}"
TILES = 8  # along a side, of an image whose contrast is enhanced
SMALLEST_TILE = 16  # pixels a side: of fewer pixels a histogram is so thin that its limit no longer limits anything
CLIP_LIMIT = 0.01  # of a tile's pixels in one of the 256 bins: 2.6 times what a flat histogram has there
MODES = {1: "L", 3: "RGB"}  # by the number of channels


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How a file becomes what a network takes: [image_size, image_size, channels] uint8.

    In this order: orientation; gray of any depth by the full range of its bits (value / (2^bits - 1), so a 12-bit
    picture stored as 16 bits stays dark) or by `window`, see `covidjax.data.levels`; of 16-bit colour the high byte;
    transparency flattened over black; luminance (ITU-R 601) for 1 channel, RGB for 3; `crop` 'center' = the centre
    square, 'pad' = letterbox with black, 'squash' = both sides.
    Of a DICOM file with several frames number `frame`, from 1; with 0 it is refused.
    One resizer for all: Pillow's BILINEAR, whose filter widens when it shrinks (antialiased). No JPEG draft mode.
    enhancement 'clahe' evens out the contrast of the luminance, with all levels of gray (`equalised`).
    That comes after the resizing, so that it costs the same for files of any size and does not raise the noise that
    shrinking removes, and before the letterbox, which stays black.
    """

    image_size: int
    channels: int
    crop: str
    enhancement: str = "none"
    window: str = ""
    frame: int = 0

    @classmethod
    def of(cls, dataset: ConfigDict) -> "ImageSpec":
        """The fields of these names of `config.dataset`."""
        crop, enhancement, window = (str(dataset[name]) for name in ("crop", "enhancement", "window"))
        return cls(int(dataset.image_size), int(dataset.channels), crop, enhancement, window, int(dataset.frame))


def decode_image(content: bytes, spec: ImageSpec) -> tuple[np.ndarray, tuple[str, ...]]:
    """One image file as `network_pixels` returns it. Raises BadImageError with the reason."""
    return network_pixels(open_picture(content, spec.frame), spec)


def decode_pair(
    content: bytes, mask_content: bytes, mask_name: str, num_classes: int, spec: ImageSpec
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """An image, as `decode_image` decodes it, and its mask with the same crop, by the nearest pixel.

    The mask has no lossy compression, is as large as the image (both upright), and holds class ids as
    `covidjax.data.masks` says.
    Returns the image, [image_size, image_size] uint8, and remarks on the image. Raises BadImageError with the reasons,
    those of the mask with `mask_name`.
    """
    image, ids = open_pair(content, mask_content, mask_name, num_classes, spec.frame)
    pixels, remarks = network_pixels(image, spec)
    return pixels, mask_pixels(ids, spec), remarks


def mask_pixels(ids: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Class ids of a picture as the network sees the picture, by the nearest pixel.

    ids: [height, width] uint8 -> [image_size, image_size] uint8.
    """
    return np.asarray(_letterboxed(_resize(Image.fromarray(ids), spec, Image.Resampling.NEAREST)))


def open_pair(
    content: bytes, mask_content: bytes, mask_name: str, num_classes: int, frame: int = 0
) -> tuple[Picture, np.ndarray]:
    """The loaded picture, and the class ids of its mask as `decode_pair` demands them. Raises BadImageError as that."""
    reasons: list[str] = []
    picture = ids = None
    try:
        picture = open_picture(content, frame)
    except BadImageError as error:
        reasons.append(str(error))
    try:
        mask = open_picture(mask_content)
        if picture is not None and mask.size != picture.size:
            sizes = [f"{width} x {height}" for width, height in (mask.size, picture.size)]
            raise BadImageError(f"{sizes[0]} pixels, but the image has {sizes[1]}")
        ids = class_ids(mask, num_classes)
    except BadImageError as error:
        reasons.append(f"its mask {mask_name}: {error}")
    if picture is None or ids is None:
        raise BadImageError("; ".join(reasons))
    return picture, ids


def network_pixels(picture: Picture, spec: ImageSpec) -> tuple[np.ndarray, tuple[str, ...]]:
    """[image_size, image_size, channels] uint8, and what a person has to know of it (`levels.remarks`)."""
    mode = MODES[spec.channels]
    with one_line_reasons():
        plain, deep = _levels(picture, spec.enhancement, spec.window)
        small = _resize(deep or _in(plain, mode), spec, Image.Resampling.BILINEAR)
        pixels = np.asarray(_letterboxed(_enhanced(small, mode, spec.enhancement)))
        remarks = levels.remarks(picture, plain, pixels if spec.crop != "pad" else np.asarray(small), spec.window)
        return pixels.reshape(spec.image_size, spec.image_size, spec.channels), remarks


def own_pixels(picture: Picture, channels: int, enhancement: str = "none", window: str = "") -> np.ndarray:
    """A picture at its own size: [height, width, channels] uint8, as `network_pixels` without crop and resizing."""
    mode = MODES[channels]
    with one_line_reasons():
        plain, deep = _levels(picture, enhancement, window)
        pixels = np.asarray(_enhanced(deep or _in(plain, mode), mode, enhancement))
        return pixels.reshape(*picture.samples.shape[:2], channels)


def place_back(mask: np.ndarray, size: tuple[int, int], crop: str) -> np.ndarray:
    """A mask of what the network saw, at the size of the picture that it was made from, by the nearest pixel.

    mask: [image_size, image_size] uint8; size: width and height of the picture -> [height, width] uint8. What `crop`
    'center' had cut off is 0, the background.
    """
    picture, nearest = Image.fromarray(mask), Image.Resampling.NEAREST
    if crop == "squash":
        return np.asarray(picture.resize(size, nearest))
    if crop == "pad":
        return np.asarray(picture.crop(_letterbox(size, len(mask))).resize(size, nearest))
    left, top, right, bottom = _centre(size)
    canvas = Image.new(picture.mode, size)
    canvas.paste(picture.resize((right - left, bottom - top), nearest), (left, top))
    return np.asarray(canvas)


def _levels(picture: Picture, enhancement: str, window: str) -> tuple[Image.Image, Image.Image | None]:
    """The picture in L or RGB and, where it is to be enhanced and has more levels, in F."""
    deep = None if enhancement == "none" else levels.to_16_bits(picture, window)
    return levels.to_8_bits(picture, window), deep


def _in(picture: Image.Image, mode: str) -> Image.Image:
    return picture if picture.mode == mode else picture.convert(mode)


def _enhanced(picture: Image.Image, mode: str, enhancement: str) -> Image.Image:
    """The picture that `_levels` gives, resized or not, in the mode and with its luminance enhanced."""
    if enhancement == "none":
        return picture
    if picture.mode == "RGB":
        _, *colours = picture.convert("YCbCr").split()
        equal = Image.fromarray(equalised(np.asarray(picture.convert("L"))))
        return Image.merge("YCbCr", (equal, *colours)).convert("RGB")
    levels = np.rint(np.asarray(picture)).astype(np.uint16 if picture.mode == "F" else np.uint8)
    return Image.fromarray(equalised(levels)).convert(mode)


def equalised(luminance: np.ndarray) -> np.ndarray:
    """Grey levels [height, width] uint8 or uint16 -> uint8 with the contrast of each part of the image evened out.

    The result spans 0 to 255, whatever the range of the image; one of a single grey level stays as it is.
    Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994, as scikit-image has it.
    """
    if luminance.min() == luminance.max():
        return (luminance // (257 if luminance.dtype == np.uint16 else 1)).astype(np.uint8)
    tile = [max(length // TILES, SMALLEST_TILE) for length in luminance.shape]
    equal = equalize_adapthist(luminance, kernel_size=tile, clip_limit=CLIP_LIMIT)
    return np.rint(255 * equal).astype(np.uint8)


def _resize(picture: Image.Image, spec: ImageSpec, filter_: Image.Resampling) -> Image.Image:
    """The picture at the size that it has within the square that the network takes."""
    if spec.crop == "center":
        picture = picture.crop(_centre(picture.size))
    width, height = spec.image_size, spec.image_size
    if spec.crop == "pad":
        left, top, right, bottom = _letterbox(picture.size, spec.image_size)
        width, height = right - left, bottom - top
    return picture.resize((width, height), filter_)


def _letterboxed(picture: Image.Image) -> Image.Image:
    """The picture in the square that holds it whole, with black around it."""
    side = max(picture.size)
    canvas = Image.new(picture.mode, (side, side))
    canvas.paste(picture, _letterbox(picture.size, side)[:2])
    return canvas


def _centre(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The centre square of a picture of a width and height: left, top, right, bottom."""
    width, height = size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _letterbox(size: tuple[int, int], image_size: int) -> tuple[int, int, int, int]:
    """Where a picture of a width and height lies in the square that holds it whole: left, top, right, bottom."""
    width, height = size
    scale = image_size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (image_size - inner[0]) // 2, (image_size - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]
