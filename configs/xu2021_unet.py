"""Xu 2021: fastai's U-Net with a ResNet-34 encoder and self-attention on brain MRI, first frozen, then fine-tuned.

python launch/train.py --config=configs/xu2021_unet.py --workdir=runs/xu2021_unet --config.dataset.root=FOLDER

FOLDER: the LGG brain MRI set, one folder for each patient with <name>.tif beside <name>_mask.tif; or, with
--config.dataset.name=tfds, what launch/prepare.py --dataset=lgg_mri wrote.
:covid is the same network on the COVID lesions of xu2021_deeplabv3.py, which the thesis tried too ("also not very
good"). The thesis reports Dice 0.443 and a validation loss of 0.0242 after its first phase, 0.451 and 0.0238 after the
second, in 100 s an epoch on a GPU. It validates on a random fifth of the images; here patients are held out. What it
leaves to fastai 1 (network, Adam, cycle of rate and momentum, groups of rates, probabilities of augmentation) is as
there; what is not stands in docs/papers.md.
Ours: docs/papers.md, on lung fields: the images of the thesis are not at hand.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config
from covidjax.errors import UserError

COVID = ("background", "ground_glass", "consolidation", "pleural_effusion")
LOW, HIGH = 8e-9, 6.68e-6


def get_config(images: str = "mri") -> ConfigDict:
    """Phases of 1 and 5 epochs, each one cycle. images: 'mri', or 'covid': 30 slices of CT, as the thesis had."""
    if images not in ("mri", "covid"):
        raise UserError(f"configs/xu2021_unet.py:{images}: allowed are mri, covid")
    config = default_config()
    data = os.environ.get("COVIDJAX_DATA_DIR", "data")
    config.dataset.name = "folder"
    config.dataset.root = os.path.join(data, "lgg_mri")
    config.dataset.mask_classes = ("background", "abnormality")
    config.batch_size = 32
    if images == "covid":
        config.dataset.name = "tfds"
        config.dataset.root = os.path.join(data, "covid_ct_seg", "slices")
        config.dataset.mask_classes = COVID
        config.dataset.subset = 30
        config.batch_size = 8
    config.dataset.image_size = 256
    config.dataset.channels = 3
    config.model.name = "unet_resnet34"
    config.model.decoder = "fastai"
    config.model.attention = True
    config.pretrained = "torchvision/resnet34"  # with ImageNet's normalisation
    config.precision = "bfloat16"  # Xu: half precision, float16; --config.precision=float16 scales the loss for it
    config.optimizer.name = "adamw"
    config.optimizer.beta_2 = 0.99
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "fastai_one_cycle"
    config.phases = (
        # fastai goes on training the BatchNorm of what it freezes: that would be "until:layer4+norm".
        # slice(6.92e-04, 1e-03): its high end is the rate of decoder and head, which alone train.
        {
            "epochs": 1,
            "freeze": "until:layer4",
            "optimizer": {"learning_rate": 1e-3, "pct_start": 0.7},
        },
        # The thesis prints slice(6.68e-06, 8e-09), which is the wrong way round: it would train the first layers most.
        # fastai has three groups of layers, with rates in geometric steps.
        {
            "epochs": 5,
            "freeze": "none",
            "optimizer": {"learning_rate": HIGH, "pct_start": 0.8},
            "lr_scale": (("^(stem|layer[12])/", LOW / HIGH), ("^layer[34]/", (LOW / HIGH) ** 0.5)),
        },
    )
    config.augment.flip = True
    config.augment.rotate = 10.0
    config.augment.zoom = 0.1
    config.augment.affine_probability = 0.75
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.lighting_probability = 0.75
    config.checkpoint.best = "loss"  # Xu saves at every improvement of the validation loss
    return config
