"""Every published set of weights that is known by name: where it is, what proves it, what it asks of images.

Sources: torchvision 0.29 `models/` (urls, transforms), timm 1.0.31 `models/resnet.py` and `vgg.py` (`default_cfgs`),
Keras 3.15 `applications/` (urls, md5). What timm names test size and crop is what its figures were measured with.
"""

import dataclasses
import difflib

from covidjax.console import format_table
from covidjax.errors import UserError
from covidjax.models.preprocessing import CAFFE, HALF, IMAGENET, SYMMETRIC, Preprocessing

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
TORCHVISION_URL = "https://download.pytorch.org/models"
HUB_FILE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Source:
    """A published file of weights and what belongs to it.

    model, arrangement: what `config.model` has to say; '' where a network is arranged in one way only.
    hub: repository on huggingface.co that holds HUB_FILE, or ''. url: of the file that the checksum is of.
    checksum: 'md5:' and all of it, 'sha256:' and its first digits, or '' where none is published.
    resize: the shorter side in pixels before the centre crop of `input_size` pixels.
    """

    id: str
    model: str
    url: str
    license: str
    preprocessing: Preprocessing
    checksum: str = ""
    hub: str = ""
    arrangement: str = ""
    input_size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"

    @property
    def crop_fraction(self) -> float:
        """The part of the resized shorter side that the crop keeps."""
        return round(self.input_size / self.resize, 3)

    @property
    def file_name(self) -> str:
        """The name of the file in the cache folder."""
        return self.url.rpartition("/")[2] if self.checksum else f"{self.id.replace('/', '--')}.safetensors"


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
            f"huggingface.co/{source.hub}" if source.hub else source.url,
        )
        for source in CATALOG.values()
    ]
    return format_table((head, *rows), "<" * len(head))


# name: (IMAGENET1K_V1, IMAGENET1K_V2) with the first digits of the SHA-256, as torchvision puts them in the file name
_TORCHVISION = {
    "vgg16": ("397923af", ""),
    "resnet18": ("f37072fd", ""),
    "resnet34": ("b627a593", ""),
    "resnet50": ("0676ba61", "11ad3fa6"),
    "resnet101": ("63fe2227", "cd907fc2"),
    "resnet152": ("394f9c45", "f82ba261"),
}
_DEEPLAB = {"deeplabv3_resnet50": "cd0a2569", "deeplabv3_resnet101": "586e9e4e"}
# name: (md5 with top, md5 without)
_KERAS = {
    "vgg16": ("64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc"),
    "resnet50": ("2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
    "resnet101": ("f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
    "resnet152": ("100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    "resnet50v2": ("3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"),
    "resnet101v2": ("6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5"),
    "resnet152v2": ("a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33"),
}
_BSD, _APACHE, _NONCOMMERCIAL = "BSD-3-Clause", "Apache-2.0", "CC-BY-NC-4.0"
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def _torchvision(name: str, version: int, digits: str) -> Source:
    return Source(
        id=f"torchvision/{name}" + ("" if version == 1 else ".imagenet1k_v2"),
        model=name,
        arrangement=_arrangement(name),
        url=f"{TORCHVISION_URL}/{name}-{digits}.pth",
        checksum=f"sha256:{digits}",
        hub=f"timm/{name}.{'tv' if version == 1 else 'tv2'}_in1k",
        license=_BSD,
        preprocessing=IMAGENET,
        resize=256 if version == 1 else 232,
    )


def _arrangement(name: str) -> str:
    return "torchvision" if name in _RESNETS else ""


def _deeplab(name: str, digits: str) -> Source:
    return Source(
        id=f"torchvision/{name}",
        model=name,
        url=f"{TORCHVISION_URL}/{name}_coco-{digits}.pth",
        checksum=f"sha256:{digits}",
        license=_BSD,
        preprocessing=IMAGENET,
        input_size=520,
        resize=520,
    )


def _keras(name: str, checksum: str, *, top: bool) -> Source:
    folder = "vgg16" if name == "vgg16" else "resnet"
    return Source(
        id=f"keras/{name}" + ("" if top else "_notop"),
        model=name,
        arrangement="" if name == "vgg16" or name.endswith("v2") else "keras",
        url=f"{KERAS_URL}/{folder}/{name}_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5",
        checksum=f"md5:{checksum}",
        license="CC-BY-4.0" if name == "vgg16" else _BSD if name.endswith("v2") else "MIT",
        preprocessing=SYMMETRIC if name.endswith("v2") else CAFFE,
        resize=224,
    )


def _timm(name: str, tag: str, size: int, crop: float, **changes: object) -> Source:
    values: dict = {
        "id": f"timm/{name}.{tag}",
        "model": name,
        "arrangement": _arrangement(name),
        "hub": f"timm/{name}.{tag}",
        "url": f"https://huggingface.co/timm/{name}.{tag}/resolve/main/{HUB_FILE}",
        "license": _APACHE,
        "preprocessing": IMAGENET,
        "input_size": size,
        "resize": int(size / crop),
        "interpolation": "bicubic",
    }
    return Source(**values | changes)


def _sources() -> list[Source]:
    found = []
    for name, digits in _TORCHVISION.items():
        found += [_torchvision(name, version, known) for version, known in enumerate(digits, start=1) if known]
    found += [_deeplab(name, digits) for name, digits in _DEEPLAB.items()]
    bilinear_bsd = {"interpolation": "bilinear", "license": _BSD}
    found += [_timm(name, "tv_in1k", 224, 0.875, **bilinear_bsd) for name in _TORCHVISION]
    found += [_timm(name, "tv2_in1k", 224, 0.965, **bilinear_bsd) for name in _RESNETS[2:]]
    found += [_timm(name, "a1_in1k", 288, 1.0) for name in _RESNETS]
    found += [_timm("resnet50", "a1h_in1k", 224, 1.0)]
    found += [_timm(name, "a1h_in1k", 288, 1.0) for name in _RESNETS[3:]]
    found += [_timm("resnet34", "ra4_e3600_r224_in1k", 288, 1.0, preprocessing=HALF)]
    for name in ("resnet18", "resnet50"):
        for tag in ("fb_ssl_yfcc100m_ft_in1k", "fb_swsl_ig1b_ft_in1k"):
            found.append(_timm(name, tag, 224, 0.875, interpolation="bilinear", license=_NONCOMMERCIAL))
    for name, (with_top, without) in _KERAS.items():
        found += [_keras(name, with_top, top=True), _keras(name, without, top=False)]
    return found


CATALOG: dict[str, Source] = {source.id: source for source in _sources()}
