"""Networks that give logits for every pixel, by name."""

from typing import Any

from covidjax.errors import UserError
from covidjax.models.deeplab import BACKBONES, DeepLabV3
from covidjax.models.layers import Staged
from covidjax.models.unet import ENCODERS, UNet, UNetResNet
from covidjax.models.upsampling import UPSAMPLINGS

NAMES = ("unet", *ENCODERS, *BACKBONES)


def build_segmentation(model: Any, num_classes: int, dtype: Any, param_dtype: Any, native: bool = False) -> Staged:
    """The network that `config.model` names; its logits are [batch, height, width, num_classes].

    model: name, width (unet), upsampling (unet, unet_resnet*), attention (unet_resnet*), dropout, arrangement.
    Raises UserError for an unknown name or upsampling, and for a Keras encoder, of which there is none here.
    """
    common = {
        "num_classes": num_classes,
        "dropout": model.dropout,
        "dtype": dtype,
        "param_dtype": param_dtype,
        "native": native,
    }
    if model.name not in NAMES:
        raise UserError(f"model.name is {model.name!r}: for segmentation allowed are {', '.join(NAMES)}")
    if model.upsampling not in UPSAMPLINGS:
        raise UserError(f"model.upsampling is {model.upsampling!r}: allowed are {', '.join(UPSAMPLINGS)}")
    if model.name == "unet":
        return UNet(width=model.width, upsampling=model.upsampling, **common)
    if model.arrangement != "torchvision":
        raise UserError(
            f"model.arrangement is {model.arrangement!r}, which {model.name} does not have: allowed is 'torchvision'"
        )
    if model.name in BACKBONES:
        return DeepLabV3(backbone=BACKBONES[model.name], **common)
    encoder = ENCODERS[model.name]
    return UNetResNet(encoder=encoder, upsampling=model.upsampling, attention=model.attention, **common)
