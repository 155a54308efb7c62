"""Name maps: which tensor of a file becomes which array of a network."""

from collections.abc import Collection

from covidjax.errors import UserError
from covidjax.models.deeplab import DeepLabV3
from covidjax.models.layers import Staged
from covidjax.weights import deeplab, keras, torchvision
from covidjax.weights.entry import Entry

__all__ = ["SOURCE_FORMATS", "Entry", "entries_for"]

# timm keeps torchvision's names but for the head of VGG, which the torchvision map knows as well.
SOURCE_FORMATS = ("torchvision", "timm", "keras")


def entries_for(source_format: str, model: Staged, names: Collection[str] | None = None) -> tuple[Entry, ...]:
    """The name map of a network for files of a format.

    names: the tensors of the file, in its order; they tell apart the variants of a format and whether the file has a
    head. None: the names of the published file with its head.
    Raises UserError for an unknown format, and for a network or an arrangement that the format has no names for.
    """
    if source_format not in SOURCE_FORMATS:
        raise UserError(f"there is no weight format {source_format!r}: allowed are {', '.join(SOURCE_FORMATS)}")
    if source_format == "keras":
        return keras.entries(model, names)
    if isinstance(model, DeepLabV3):
        return deeplab.entries(model, names)
    return torchvision.entries(model, names)
