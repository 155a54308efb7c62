"""Preprocessing of pixels, which belongs to weights: of a new run from its config, of an old one from its record."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from covidjax.errors import UserError
from covidjax.files import read_json
from covidjax.models.preprocessing import CAFFE, IMAGENET, SYMMETRIC, Preprocessing, folded, fresh, unit
from covidjax.models.resnet import PREACTIVATED
from covidjax.process import path_of
from covidjax.weights import catalog, files

# The names of first convolutions, and what they contain where they are of a later block.
STEM = re.compile(
    r"(^|[./])((conv1|features\.(0|0\.0|conv0)|stem\.0|conv_proj|patch_embed\.proj|patch_embeddings\.projection)\.weight"
    r"|conv1_conv/0|block1_conv1/0|conv2d/vars/0)$"
)
INNER = re.compile(r"layer\d")


@dataclasses.dataclass(frozen=True)
class RunPreprocessing:
    """of_weights: what belongs to the weights; unfolded: what `config.preprocessing` makes of it; network: with
    `model.stem` 'fold', one-channel images and weights for several channels the folded form of that.
    """

    of_weights: Preprocessing
    unfolded: Preprocessing
    network: Preprocessing


def of_run(model: Any, channels: int, pretrained: str, preprocessing: str) -> RunPreprocessing:
    """The preprocessing of a run. model: the section of the config; channels: of the images.

    Raises UserError where the file or workdir that it depends on is gone.
    """
    weights = of_weights(pretrained, model.name, channels)
    unfolded = unit(weights) if preprocessing == "unit" else weights
    folds = model.stem == "fold" and channels == 1 and len(unfolded.mean) > 1
    return RunPreprocessing(weights, unfolded, folded(unfolded) if folds else unfolded)


def of_weights(pretrained: str, model_name: str, channels: int) -> Preprocessing:
    """The preprocessing that belongs to the weights that a run starts from."""
    if not pretrained:
        return fresh(channels)
    if pretrained in catalog.CATALOG:
        return catalog.CATALOG[pretrained].preprocessing
    path = files.located(path_of(pretrained))
    return recorded(split_checkpoint(path)[0]) if path.is_dir() else of_file(path, model_name, channels)


def recorded(workdir: Path) -> Preprocessing:
    """The preprocessing of a workdir, as its run.json says: the weights it started from may be gone.

    Raises UserError for the workdir of an ensemble.
    """
    run = read_json(workdir / "run.json")
    if "ensemble" in run:
        members = ", ".join(member["workdir"] for member in run["ensemble"]["members"])
        raise UserError(
            f"{workdir} is an ensemble, which has no network of its own: name one of its members, {members}"
        )
    return decode(json.dumps(run.get("preprocessing")))


def of_file(path: Path, model_name: str, channels: int) -> Preprocessing:
    """The preprocessing of a local file: what its header says, else that of the published file of its name, else that
    of the family its tensors' names are from.

    Keras' VGG and ResNet v1 take the Caffe form, its ResNet v2 -1..1; names of torchvision take ImageNet's mean. For
    gray images, where the first convolution of the file takes one channel, the mean over the family's channels.
    """
    check_known(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise UserError(f"there is no {path}: the preprocessing of the run is in this file of weights: put it back")
        header = files.metadata(path)
        if "preprocessing" in header:
            return decode(header["preprocessing"])
    if published := next((source for source in catalog.CATALOG.values() if source.file_name == path.name), None):
        return published.preprocessing
    family = (SYMMETRIC if model_name in PREACTIVATED else CAFFE) if path.suffix == ".h5" else IMAGENET
    return dataclasses.replace(folded(family), inside=False) if channels == 1 and takes_gray(path) else family


def takes_gray(path: Path) -> bool:
    """Whether the first convolution in a file takes one channel. False where there is no file."""
    shapes = files.shapes(path) if path.is_file() else {}
    stem = next((name for name in shapes if STEM.search(name) and not INNER.search(name)), "")
    return bool(stem) and shapes[stem][-2 if "/" in stem else 1] == 1


def check_known(path: Path) -> None:
    """Raises UserError, with the nearest ids, where a name is neither a folder nor that of a weight file."""
    if not path.exists() and not files.has_suffix(path):
        catalog.find(str(path))


def split_checkpoint(path: Path) -> tuple[Path, Any]:
    """The workdir and the checkpoint that a folder names: DIR (what its run evaluates) or DIR/checkpoints/STEP."""
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        return path.parent.parent, int(path.name)
    return path, None


def encode(preprocessing: Preprocessing) -> str:
    """The text that the header of a converted file keeps."""
    return json.dumps(dataclasses.asdict(preprocessing))


def decode(text: str) -> Preprocessing:
    """The inverse of `encode`. Raises UserError for other text."""
    try:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()
        }
        return Preprocessing(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"the preprocessing that is recorded with the weights cannot be read: {error}: convert or train again"
        ) from error
