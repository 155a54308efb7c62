"""The bytes of one image file, or of an image and its mask, to one uint8 array."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import PIL
from ml_collections import ConfigDict
from PIL import Image, ImageOps
from skimage.exposure import equalize_adapthist

FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
CROPS = ("center", "pad", "squash")
ENHANCEMENTS = ("none", "clahe")
ENHANCER = f"scikit-image {metadata.version('scikit-image')}"
TILES = 8  # along a side, of an image whose contrast is enhanced
SMALLEST_TILE = 16  # pixels a side: of fewer pixels a histogram is so thin that its limit no longer limits anything
CLIP_LIMIT = 0.01  # of a tile's pixels in one of the 256 bins: 2.6 times what a flat histogram has there
MAX_PIXELS = 1024**3 // 12  # where Pillow begins to suspect a decompression bomb: 89 million
BLACK_AND_WHITE = (0, 255)
MODES = {1: "L", 3: "RGB"}  # by the number of channels


class BadImageError(ValueError):
    """The bytes are no image that can be decoded; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How a file becomes what a network takes: [image_size, image_size, channels] uint8.

    In this order: EXIF orientation; 16-bit gray by its full range (value / 257, so a 12-bit picture in a 16-bit file
    stays dark; of 16-bit colour Pillow keeps the high byte); transparency flattened over black; luminance (ITU-R 601)
    for 1 channel, RGB for 3; `crop` 'center' = the centre square, 'pad' = letterbox with black, 'squash' = both sides.
    One resizer for all: Pillow's BILINEAR, whose filter widens when it shrinks (antialiased). No JPEG draft mode.
    enhancement 'clahe' evens out the contrast of the luminance, with all levels of 16-bit gray (`equalised`).
    That comes after the resizing, so that it costs the same for files of any size and does not raise the noise that
    shrinking removes, and before the letterbox, which stays black.
    """

    image_size: int
    channels: int
    crop: str
    enhancement: str = "none"

    @classmethod
    def of(cls, dataset: ConfigDict) -> "ImageSpec":
        """The fields of these names of `config.dataset`."""
        return cls(int(dataset.image_size), int(dataset.channels), str(dataset.crop), str(dataset.enhancement))


def decode_image(content: bytes, spec: ImageSpec) -> np.ndarray:
    """One JPEG, PNG, BMP or TIFF file as `ImageSpec` says. Raises BadImageError with the reason."""
    return network_pixels(open_picture(content), spec)


def decode_pair(
    content: bytes, mask_content: bytes, mask_name: str, num_classes: int, spec: ImageSpec
) -> tuple[np.ndarray, np.ndarray]:
    """An image, as `decode_image` decodes it, and its mask with the same crop, by the nearest pixel.

    The mask is PNG, BMP or TIFF without lossy compression, as large as the image (both after EXIF orientation), of 1
    channel or of equal ones. Its values are the class ids 0 to num_classes - 1, or, for two classes, 0 and 255; those
    of a palette are its indices, unless all its colours in use are black or white.
    Returns the image and [image_size, image_size] uint8. Raises BadImageError with the reasons, those of the mask with
    `mask_name`.
    """
    image, ids = open_pair(content, mask_content, mask_name, num_classes)
    small = _resize(Image.fromarray(ids), spec, Image.Resampling.NEAREST)
    return network_pixels(image, spec), np.asarray(_letterboxed(small))


def open_pair(content: bytes, mask_content: bytes, mask_name: str, num_classes: int) -> tuple[Image.Image, np.ndarray]:
    """The loaded picture, and the class ids of its mask as `decode_pair` demands them. Raises BadImageError as that."""
    reasons: list[str] = []
    picture = ids = None
    try:
        picture = open_picture(content)
    except BadImageError as error:
        reasons.append(str(error))
    try:
        mask = open_picture(mask_content)
        if picture is not None and mask.size != picture.size:
            sizes = [f"{one.width} x {one.height}" for one in (mask, picture)]
            raise BadImageError(f"{sizes[0]} pixels, but the image has {sizes[1]}")
        ids = class_ids(mask, num_classes)
    except BadImageError as error:
        reasons.append(f"its mask {mask_name}: {error}")
    if picture is None or ids is None:
        raise BadImageError("; ".join(reasons))
    return picture, ids


def open_picture(content: bytes) -> Image.Image:
    """The loaded picture, turned as its EXIF orientation says. Raises BadImageError with the reason."""
    if not content:
        raise BadImageError("the file is empty")
    with one_line_reasons():
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImageError(f"{image.width} x {image.height} pixels: taken for a decompression bomb")
        if 0 in image.size:
            raise BadImageError(f"{image.width} x {image.height} pixels")
        if image.format == "TIFF" and (pages := getattr(image, "n_frames", 1)) > 1:
            raise BadImageError(f"{pages} pages: save each as a file of its own")
        image.load()  # before the turn: Pillow turns a TIFF by itself when it loads it
        ImageOps.exif_transpose(image, in_place=True)
        return image


@contextlib.contextmanager
def one_line_reasons() -> Iterator[None]:
    """Within it what Pillow raises becomes a BadImageError."""
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        raise BadImageError("not a JPEG, PNG, BMP or TIFF image") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on damaged bytes
        raise BadImageError(" ".join(str(error).split()) or type(error).__name__) from error


def network_pixels(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """A picture as `decode_image` returns it: [image_size, image_size, channels] uint8."""
    mode = MODES[spec.channels]
    with one_line_reasons():
        small = _resize(_levels(image, mode, spec.enhancement), spec, Image.Resampling.BILINEAR)
        picture = _letterboxed(_enhanced(small, mode, spec.enhancement))
        return np.asarray(picture).reshape(spec.image_size, spec.image_size, spec.channels)


def own_pixels(image: Image.Image, channels: int, enhancement: str = "none") -> np.ndarray:
    """A picture at its own size: [height, width, channels] uint8, as `decode_image` without crop and resizing."""
    mode = MODES[channels]
    with one_line_reasons():
        picture = _enhanced(_levels(image, mode, enhancement), mode, enhancement)
        return np.asarray(picture).reshape(image.height, image.width, channels)


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


def _levels(image: Image.Image, mode: str, enhancement: str) -> Image.Image:
    """The picture in a mode; to be enhanced, 16-bit gray has all its levels, in mode F."""
    if enhancement == "none" or not _has_16_bits(image):
        return _to_mode(image, mode)
    return Image.fromarray(_of_16_bits(image).astype(np.float32))


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


def _has_16_bits(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _of_16_bits(image: Image.Image) -> np.ndarray:
    return np.clip(np.asarray(image).astype(np.int64), 0, 65535)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise BadImageError("floating-point pixels: save it with 8 or 16 bits")
    if _has_16_bits(image):
        image = Image.fromarray(((_of_16_bits(image) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def class_ids(mask: Image.Image, num_classes: int) -> np.ndarray:
    """The class ids of a mask, as `decode_pair` reads them: [height, width] uint8. Raises BadImageError."""
    if mask.format in ("JPEG", "MPO") or mask.info.get("compression") in ("jpeg", "tiff_jpeg"):
        raise BadImageError("lossy JPEG, which blurs class ids: draw it anew, or export it as PNG")
    with one_line_reasons():
        values = _values(mask)
    found = np.unique(values)
    if num_classes == 2 and set(found.tolist()) <= set(BLACK_AND_WHITE):
        return (values != 0).astype(np.uint8)
    wrong = found[(found < 0) | (found >= num_classes)]
    if len(wrong):
        allowed = f"0 to {num_classes - 1}" + (", or 0 and 255" if num_classes == 2 else "")
        shown = ", ".join(map(str, wrong[:4].tolist())) + (", ..." if len(wrong) > 4 else "")
        # Class ids are few and far from all values between black and white; what JPEG or a smooth resize leaves is not.
        advice = f"dataset.mask_classes names {num_classes} classes"
        if len(found) > max(num_classes, 8):
            advice = f"its {len(found)} values look like lossy JPEG or a smooth resize before it was saved"
        raise BadImageError(f"class ids {shown} are out of range (allowed: {allowed}); {advice}")
    return values.astype(np.uint8)


def _values(mask: Image.Image) -> np.ndarray:
    """The values of a mask, [height, width] of an integer type."""
    if mask.mode == "F":
        raise BadImageError("floating-point values: save it as whole numbers")
    if mask.mode == "P":
        colors = mask.convert("RGB")
        extremes = (0, 0, 0), (255, 255, 255)
        if {color for _, color in colors.getcolors(mask.width * mask.height) or ()} <= set(extremes):
            return np.asarray(colors)[..., 0]
    values = np.asarray(mask)
    if mask.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if (values[..., -1] != 255).any():
            raise BadImageError("transparent pixels: save it without transparency")
        values = values[..., :-1]
    elif mask.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise BadImageError(f"{mask.mode} colours: save it as gray values")
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise BadImageError("colours: class ids are values of one channel, or of equal ones")
        values = values[..., 0]
    return values.astype(np.int64)


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
