"""Random changes of images on the device, from a key: one affine map by one bilinear gather, then grey levels."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from covidjax.errors import UserError
from covidjax.registry import Own, Registry

Change = TypeVar("Change", bound=Callable[[jax.Array, jax.Array, Any], jax.Array])


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; the fields are those of `config.augment`.

    rotate: degrees either way. shift: fraction of the side either way. scale: size factor in 1 - scale .. 1 + scale.
    zoom: size factor in 1 .. 1 + zoom, of a part of the image at a random place.
    flip: left and right with probability one half. brightness: factor in 1 - brightness .. 1 + brightness.
    contrast: factor in 1 - contrast .. 1 + contrast on the distance from the image's mean.
    sharpen: factor in 1 - sharpen .. 1 + sharpen on the distance from the smoothed image.
    affine_probability: of each of rotate, shift, scale and zoom in an image; lighting_probability: of each of
    brightness, contrast and sharpen (as in fastai 1's `get_transforms`, where every transform draws for itself).
    crop_scale: the image is a random part of itself, of at least this share of its area; 0: the whole.
    mixup, cutmix: alphas of `data.mix.mix`, which mixes the images of a batch; 0: not.
    registered: names of AUGMENTATIONS with their functions and amounts, none of which is 0.
    """

    rotate: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    zoom: float = 0.0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    sharpen: float = 0.0
    affine_probability: float = 1.0
    lighting_probability: float = 1.0
    crop_scale: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    registered: tuple[tuple[str, Callable[[jax.Array, jax.Array, Any], jax.Array], Any], ...] = ()

    @property
    def moves(self) -> bool:
        """Whether pixels change place."""
        return bool(self.rotate or self.shift or self.scale or self.zoom or self.flip or self.crop_scale)

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed."""
        return bool(self.mixup or self.cutmix)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnAugmentation(Own):
    """A registered augmentation, and its key of the config: its default, its range, and a line on what it is."""

    default: Any
    low: float
    high: float
    text: str


AUGMENTATIONS: Registry[OwnAugmentation] = Registry("augmentation", {})


def register_augmentation(
    name: str, *, default: Any = 0.0, low: float = 0.0, high: float = 1e9, text: str = ""
) -> Callable[[Change], Change]:
    """Makes a function (key, image, amount) -> image an augmentation, and `augment.<name>` a key: a decorator.

    It is given one image [height, width, channels], floating, 0..255, and changes its values, not where things are:
    masks stay. amount: of the config, a Python value; 0 or False is off. It comes after the augmentations of the
    package; what it gives is kept within 0..255. default, low, high, text: of the key, see `config.kinds.Key`.
    Raises UserError for a name that another augmentation has.
    """

    def register(function: Change) -> Change:
        if name in (field.name for field in dataclasses.fields(Augmentation)):
            raise UserError(f"an augmentation is registered as {name!r}, which the package has: choose another name")
        own = OwnAugmentation(function, {}, default, low, high, text or (function.__doc__ or name).partition("\n")[0])
        AUGMENTATIONS.add(name, own, function, form=r"[a-z_][a-z0-9_]*")
        return function

    return register


def augmentation_of(section: Mapping[str, Any]) -> Augmentation:
    """The augmentation of `config.augment`."""
    values = dict(section)
    own = [(name, part.function, values.pop(name, 0)) for name, part in AUGMENTATIONS.items()]
    return Augmentation(**values, registered=tuple(each for each in own if each[2]))


def _ranges(**ranges: float) -> dict[str, Any]:
    """The keys of the package's augmentations; those that are not given are off."""
    off = {field.name: field.default for field in dataclasses.fields(Augmentation) if field.name != "registered"}
    return off | ranges


# What the names that `config.augment` takes stand for; none flips, as the heart has a side.
PRESETS = {
    "none": _ranges(),
    "light": _ranges(rotate=5.0, shift=0.05, scale=0.05, brightness=0.1, contrast=0.1),
    "strong": _ranges(rotate=15.0, shift=0.1, scale=0.2, brightness=0.2, contrast=0.3, sharpen=0.5),
}


def augment(
    key: jax.Array,
    images: jax.Array,
    augmentation: Augmentation,
    masks: jax.Array | None = None,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Changes each image (and its mask, in the same way) at random.

    images: [batch, height, width, channels] floating, values 0..255, kept in that range; masks: [batch, height,
    width] integer class ids, moved to the nearest position. Outside the image its edge is continued.
    axis: the mapped axis over whose devices the images are a part of the batch; they change as in the whole of it.
    """
    geometry_key, grey_key = jax.random.split(key)
    if augmentation.moves:
        rows, columns = _source_positions(geometry_key, images.shape, images.dtype, augmentation, axis)
        images = jax.vmap(bilinear)(images, rows, columns)
        if masks is not None:
            masks = jax.vmap(nearest)(masks, rows, columns)
    shape, dtype = (images.shape[0], 1, 1, 1), images.dtype

    def factors(number: int, key: jax.Array, spread: float) -> jax.Array:
        values = _uniform(key, shape, dtype, 1, spread, axis)
        return _sometimes(grey_key, number, values, 1, augmentation.lighting_probability, axis)

    if augmentation.sharpen:
        sharpen_key = jax.random.fold_in(grey_key, 2)  # beside the two below, which are those of runs without it
        factor = factors(0, sharpen_key, augmentation.sharpen)
        images = jnp.clip(images + (factor - 1) * detail(images), 0.0, 255.0)
    if augmentation.brightness or augmentation.contrast:
        brightness_key, contrast_key = jax.random.split(grey_key)
        brightness = factors(1, brightness_key, augmentation.brightness)
        contrast = factors(2, contrast_key, augmentation.contrast)
        mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
        images = jnp.clip(((images - mean) * contrast + mean) * brightness, 0.0, 255.0)
    for name, change, amount in augmentation.registered:
        keys = jax.random.split(jax.random.fold_in(grey_key, zlib.crc32(name.encode())), _whole(len(images), axis))
        own = _own_part(keys, len(images), axis)
        changed = jax.vmap(lambda key, image, change=change, amount=amount: change(key, image, amount))(own, images)
        if changed.shape != images.shape:
            made, given = list(changed.shape[1:]), list(images.shape[1:])
            raise UserError(f"the augmentation {name} makes images of {made} of {given}: allowed is the same shape")
        images = jnp.clip(changed.astype(images.dtype), 0.0, 255.0)
    return images, masks


def detail(images: jax.Array) -> jax.Array:
    """Images [batch, height, width, channels], of two pixels a side and more, less their smoothed form.

    Smoothed as by Pillow's ImageFilter.SMOOTH, which ImageEnhance.Sharpness takes: the mean of 3 x 3 pixels in which
    the middle one counts five times; the outermost pixels stay as they are.
    """
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    neighbours = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = images[:, 1:-1, 1:-1]
    return jnp.pad(inner - (neighbours + 4 * inner) / 13, ((0, 0), (1, 1), (1, 1), (0, 0)))


def bilinear(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Values of one image between its pixels, by one gather with flat indices.

    image: [height, width, channels]; rows, columns: [out_height, out_width] in pixels, clamped to the image.
    """
    height, width, channels = image.shape
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    top = jnp.minimum(jnp.floor(rows).astype(jnp.int32), max(height - 2, 0))
    left = jnp.minimum(jnp.floor(columns).astype(jnp.int32), max(width - 2, 0))
    down, right = rows - top, columns - left
    bottom_step, right_step = (width if height > 1 else 0), (1 if width > 1 else 0)
    corner = top * width + left
    indices = jnp.stack([corner, corner + right_step, corner + bottom_step, corner + bottom_step + right_step])
    weights = jnp.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right])
    values = image.reshape(height * width, channels)[indices]
    return jnp.sum(values * weights[..., None], axis=0)


def nearest(mask: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Values of one mask [height, width] at the nearest positions; rows, columns as in `bilinear`."""
    height, width = mask.shape
    row = jnp.clip(jnp.round(rows), 0, height - 1).astype(jnp.int32)
    column = jnp.clip(jnp.round(columns), 0, width - 1).astype(jnp.int32)
    return mask.reshape(-1)[row * width + column]


def _uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, center: float, spread: float, axis: str | None
) -> jax.Array:
    """Numbers in center - spread .. center + spread; with an axis, the own part of those of the whole batch."""
    whole = (_whole(shape[0], axis), *shape[1:])
    return _own_part(jax.random.uniform(key, whole, dtype, center - spread, center + spread), shape[0], axis)


def _sometimes(
    key: jax.Array, number: int, values: jax.Array, neutral: float, probability: float, axis: str | None
) -> jax.Array:
    """Values [batch, ...], or `neutral` with the rest of the probability. number: of the change, for its own draws."""
    if probability == 1:
        return values
    drawn = _uniform(jax.random.fold_in(key, 100 + number), values.shape, values.dtype, 0.5, 0.5, axis)
    return jnp.where(drawn < probability, values, neutral)


def _whole(count: int, axis: str | None) -> int:
    """The images of the whole batch, of which `count` are here."""
    return count * (lax.axis_size(axis) if axis else 1)


def _own_part(values: jax.Array, count: int, axis: str | None) -> jax.Array:
    """Of values for the whole batch those of the `count` images here."""
    return lax.dynamic_slice_in_dim(values, lax.axis_index(axis) * count, count) if axis else values


def _source_positions(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, augmentation: Augmentation, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """For each output pixel the place in the input that it shows: two arrays [batch, height, width] in pixels."""
    batch, height, width = shape[:3]
    keys = jax.random.split(key, 5)

    def symmetric(key: jax.Array, spread: float) -> jax.Array:
        return _uniform(key, (batch, 1, 1), dtype, 0, spread, axis)

    def sometimes(number: int, values: jax.Array) -> jax.Array:
        return _sometimes(key, number, values, 0, augmentation.affine_probability, axis)

    angle = sometimes(0, symmetric(keys[0], augmentation.rotate * jnp.pi / 180))
    size = 1 + sometimes(1, symmetric(keys[1], augmentation.scale))
    shift_rows = sometimes(2, symmetric(keys[2], augmentation.shift * height))
    shift_columns = sometimes(2, symmetric(keys[3], augmentation.shift * width))
    mirror = jnp.ones((batch, 1, 1), dtype)
    if augmentation.flip:
        mirror = jnp.where(symmetric(keys[4], 1.0) < 0, -mirror, mirror)
    rows = (jnp.arange(height, dtype=dtype) - (height - 1) / 2)[None, :, None] / size
    columns = (jnp.arange(width, dtype=dtype) - (width - 1) / 2)[None, None, :] / size
    if augmentation.zoom:
        zoom_keys = jax.random.split(jax.random.fold_in(key, 6), 3)
        half = augmentation.zoom / 2
        part = 1 / (1 + sometimes(3, _uniform(zoom_keys[0], (batch, 1, 1), dtype, half, half, axis)))
        rows, columns = rows * part, columns * part
        shift_rows += (1 - part) * symmetric(zoom_keys[1], height / 2)
        shift_columns += (1 - part) * symmetric(zoom_keys[2], width / 2)
    if augmentation.crop_scale:
        crop_key = jax.random.fold_in(key, 5)  # beside the five above, which are those of runs without it
        (high, wide), (down, right) = _crop(crop_key, batch, dtype, augmentation.crop_scale, axis)
        rows, columns = rows * high, columns * wide
        shift_rows, shift_columns = shift_rows - down * height, shift_columns - right * width
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    source_rows = cosine * rows - sine * columns + (height - 1) / 2 - shift_rows
    source_columns = (sine * rows + cosine * columns) * mirror + (width - 1) / 2 - shift_columns
    return source_rows, source_columns


def _crop(
    key: jax.Array, batch: int, dtype: jnp.dtype, least: float, axis: str | None
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Height and width of random crops as parts of the sides, and how far their centers lie from the image's.

    As torchvision's RandomResizedCrop: an area of `least` to all of the image, sides 3:4 to 4:3; a side that would
    exceed the image is that of the image. Four arrays [batch, 1, 1].
    """
    keys = jax.random.split(key, 4)

    def draw(key: jax.Array, center: float, spread: float) -> jax.Array:
        return _uniform(key, (batch, 1, 1), dtype, center, spread, axis)

    area = draw(keys[0], (1 + least) / 2, (1 - least) / 2)
    ratio = jnp.exp(draw(keys[1], 0.0, math.log(4 / 3)))
    high, wide = jnp.minimum(jnp.sqrt(area / ratio), 1), jnp.minimum(jnp.sqrt(area * ratio), 1)
    down, right = (draw(key, 0.0, 0.5) * (1 - side) for key, side in ((keys[2], high), (keys[3], wide)))
    return (high, wide), (down, right)
