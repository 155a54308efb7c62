"""What the samples of a mask mean: the class of each pixel, by the kind of the file and never by what occurs in it.

Gray of 1, 2, 4, 8 or 16 bits: samples are class ids. Where there are two classes, white is the second one as well, and
so is 255 (the white of 8 bits) in 16 bits. Equal channels are gray. A palette: indices are class ids; but one that is
gray from black to white is gray, and for two classes one of nothing but black and white goes by its colours.
"""

import numpy as np

from covidjax.data.formats.base import BadImageError, Picture


def class_ids(mask: Picture, num_classes: int) -> np.ndarray:
    """The class ids of a mask: [height, width] uint8. Raises BadImageError, naming values that the file holds."""
    if mask.lossy:
        raise BadImageError("lossy JPEG, which blurs class ids: draw it anew, or export it as PNG")
    values, bits = _values(mask, num_classes)
    found = np.unique(values)
    whites = {255, 2**bits - 1} if num_classes == 2 and bits else set[int]()
    allowed = set(range(num_classes)) | whites
    wrong = [value for value in found.tolist() if value not in allowed]
    words = f"0 to {num_classes - 1}" + (f", or 0 and {2**bits - 1}" if len(allowed) > num_classes else "")
    seconds = [str(value) for value in found.tolist() if value in {1, *whites}]
    if not wrong and len(seconds) > 1:
        raise BadImageError(f"{' and '.join(seconds)} stand for the same class (allowed: {words}); draw it with one")
    if wrong:
        shown = ", ".join(map(str, wrong[:4])) + (", ..." if len(wrong) > 4 else "")
        # Class ids are few and far from all values between black and white; what JPEG or a smooth resize leaves is not.
        advice = f"dataset.mask_classes names {num_classes} classes"
        if len(found) > max(num_classes, 8):
            advice = f"its {len(found)} values look like lossy JPEG or a smooth resize before it was saved"
        raise BadImageError(f"class ids {shown} are out of range (allowed: {words}); {advice}")
    return np.where(values == 0, 0, 1).astype(np.uint8) if num_classes == 2 else values.astype(np.uint8)


def _values(mask: Picture, num_classes: int) -> tuple[np.ndarray, int]:
    """The values of a mask, [height, width] of an integer type, and the bits of gray ones; 0 of indices."""
    samples, bits = mask.samples, mask.bits
    if mask.format == "DICOM":
        raise BadImageError("DICOM, which is read as an image: export the mask as PNG")
    if samples.dtype.kind == "f":
        raise BadImageError("floating-point values: save it as whole numbers")
    if mask.alpha is not None and mask.alpha.dtype != bool and (mask.alpha != 2**bits - 1).any():
        raise BadImageError("transparent pixels: save it without transparency")
    if mask.palette is not None:
        return _of_palette(mask, num_classes)
    if samples.ndim == 3:
        if (samples != samples[..., :1]).any():
            raise BadImageError("colours: class ids are values of one channel, or of equal ones")
        samples = samples[..., 0]
    if mask.white_is_zero:
        if bits > 1:
            raise BadImageError("white is 0 (PhotometricInterpretation): save it with black as 0")
        samples = 1 - samples
    return samples, 8 if mask.no_range else bits


def _of_palette(mask: Picture, num_classes: int) -> tuple[np.ndarray, int]:
    assert mask.palette is not None
    colours = mask.palette[:, :3].astype(int)
    count, gray = len(colours), (colours == colours[:, :1]).all()
    if gray and count in (2, 4, 16, 256) and (colours[:, 0] == 255 * np.arange(count) // (count - 1)).all():
        return mask.samples, count.bit_length() - 1
    if gray and num_classes == 2 and set(colours[:, 0].tolist()) <= {0, 255}:
        return colours[mask.samples, 0] // 255, 0
    if gray and count > 1 and (np.diff(colours[:, 0]) < 0).all():
        raise BadImageError("its palette goes from white to black, so that its white is 0: save it as gray values")
    return mask.samples, 0
