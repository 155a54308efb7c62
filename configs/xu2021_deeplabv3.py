"""Xu 2021: DeepLabV3 on about 30 CT slices with COVID lesions, first with a frozen encoder, then fine-tuned.

python launch/train.py --config=configs/xu2021_deeplabv3.py --workdir=runs/xu2021_deeplabv3 --config.dataset.root=FOLDER

FOLDER: what launch/prepare.py --dataset=covid_ct_seg/slices wrote; or, with --config.dataset.name=folder, images/,
masks/, whose pixels are the ids of mask_classes, and splits.csv with the patients.
The thesis names the network and the number of images and reports no figure ("not good"). Our reading: the backbone,
which it does not name, is the ResNet-50 of torchvision's weights; the recipe is that of its U-Net, with stronger
augmentation, which is what it plans for so few images, and as many epochs as make up for them; 30 training slices are
drawn.
Ours: docs/papers.md, on lung fields: the images of the thesis are not at hand.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config

LOW, HIGH = 8e-9, 6.68e-6


def get_config() -> ConfigDict:
    """Three kinds of lesions, a ResNet-50 encoder from COCO, phases of 20 and 40 epochs."""
    config = default_config()
    config.dataset.name = "tfds"
    config.dataset.root = os.path.join(os.environ.get("COVIDJAX_DATA_DIR", "data"), "covid_ct_seg", "slices")
    config.dataset.image_size = 256
    config.dataset.channels = 3
    config.dataset.mask_classes = ("background", "ground_glass", "consolidation", "pleural_effusion")
    config.dataset.subset = 30
    config.model.name = "deeplabv3_resnet50"
    config.model.dropout = 0.5  # torchvision's
    config.pretrained = "torchvision/deeplabv3_resnet50"
    config.batch_size = 8
    config.precision = "bfloat16"  # Xu: half precision, float16; --config.precision=float16 scales the loss for it
    config.optimizer.name = "adamw"
    config.optimizer.beta_2 = 0.99  # these and the schedule: fastai's, as in xu2021_unet.py
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "fastai_one_cycle"
    config.phases = (
        {
            "epochs": 20,
            "freeze": "until:layer4",
            "optimizer": {"learning_rate": 1e-3, "pct_start": 0.7},
        },
        {
            "epochs": 40,
            "freeze": "none",
            "optimizer": {"learning_rate": HIGH, "pct_start": 0.8},
            "lr_scale": (("^(stem|layer[12])/", LOW / HIGH), ("^layer[34]/", (LOW / HIGH) ** 0.5)),
        },
    )
    config.augment.flip = True
    config.augment.rotate = 20.0
    config.augment.shift = 0.1
    config.augment.zoom = 0.2
    config.augment.affine_probability = 0.75
    config.augment.brightness = 0.2
    config.augment.contrast = 0.3
    config.augment.lighting_probability = 0.75
    config.checkpoint.best = "loss"
    return config
