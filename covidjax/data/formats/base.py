"""What every reader of image files ends in: the samples of one picture, upright, with what its tags say of them."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import PIL
from PIL import Image

from covidjax.errors import UserError

MAX_PIXELS = 1024**3 // 12  # where Pillow begins to suspect a decompression bomb: 89 million


class BadImageError(ValueError):
    """The bytes are no image that can be decoded; the message is the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """One picture with its samples as the file holds them.

    samples: [height, width], gray or the indices of a palette, or [height, width, 3], RGB; integers, or floats of TIFF
        and of DICOM's modality values
    bits: of a sample, whose black is 0 and whose white 2**bits - 1
    black_white: the values that are black and white, where they are others
    no_range: where the file does not say which values these are: what it holds, in words
    shades: [height, width] from 0 to 1, where the file says for every value how bright it is
    palette: [n, 3] or, with alpha, [n, 4] uint8
    alpha: [height, width], from 0 to 2**bits - 1; or bool, False where a pixel has the colour that is transparent
    white_is_zero: whether a gray picture is inverted
    lossy: whether the compression changes samples
    remarks: what its user has to know, in words that go behind 'n images'
    """

    samples: np.ndarray
    bits: int
    format: str
    black_white: tuple[float, float] | None = None
    no_range: str = ""
    shades: np.ndarray | None = None
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None
    white_is_zero: bool = False
    lossy: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.samples.shape[1], self.samples.shape[0]

    @property
    def is_gray(self) -> bool:
        """Whether a pixel has one sample of brightness."""
        return self.samples.ndim == 2 and self.palette is None

    def turned(self, orientation: object) -> "Picture":
        """Upright, for the number that EXIF and TIFF have for how it is stored; any other number changes nothing."""
        if not isinstance(orientation, int) or not 2 <= orientation <= 8:
            return self

        def turn(array: np.ndarray) -> np.ndarray:
            array = np.swapaxes(array, 0, 1) if orientation >= 5 else array
            array = array[::-1] if orientation in (3, 4, 7, 8) else array
            return np.ascontiguousarray(array[:, ::-1] if orientation in (2, 3, 6, 7) else array)

        alpha, shades = (None if array is None else turn(array) for array in (self.alpha, self.shades))
        return dataclasses.replace(self, samples=turn(self.samples), alpha=alpha, shades=shades)


def check_size(width: int, height: int) -> None:
    """Raises BadImageError where there are no pixels, or so many that the file is taken for a decompression bomb."""
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels: taken for a decompression bomb")
    if min(width, height) < 1:
        raise BadImageError(f"{width} x {height} pixels")


@contextlib.contextmanager
def one_line_reasons() -> Iterator[None]:
    """Within it what decoders raise becomes a BadImageError."""
    try:
        yield
    except (BadImageError, UserError, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        raise BadImageError("its first bytes are those of an image, and what follows is not") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damaged bytes
        raise BadImageError(" ".join(str(error).split()) or type(error).__name__) from error


def opened(content: bytes, kind: str) -> Image.Image:
    """The picture as Pillow loads it, not turned."""
    image = Image.open(io.BytesIO(content), formats=(kind,))
    check_size(*image.size)
    image.load()
    return image
