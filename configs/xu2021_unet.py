"""Xu 2021: fastai's U-Net with a ResNet-34 encoder and self-attention on brain MRI, first frozen, then fine-tuned.

python launch/train.py --config=configs/xu2021_unet.py --workdir=runs/xu2021_unet --config.dataset.root=FOLDER

FOLDER: the LGG brain MRI set, one folder for each patient with <name>.tif beside <name>_mask.tif; or, with
--config.dataset.name=tfds, what launch/prepare.py --dataset=lgg_mri wrote.
The thesis reports Dice 0.444 and a validation loss of 0.0242 after its first phase, 0.451 and 0.0238 after the second,
in 100 s an epoch on a GPU. It validates on a random fifth of the images; here patients are held out. What it leaves to
fastai 1 (Adam, the loss, augmentation) is as there, but for the warp and the cycle of momentum.
No run of this config was made: the images are not at hand.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config


def get_config() -> ConfigDict:
    """Phases of 1 and 5 epochs, each one cycle, with rates that grow from the first stage to the last."""
    config = default_config()
    config.dataset.name = "folder"
    config.dataset.root = os.path.join(os.environ.get("COVIDJAX_DATA_DIR", "data"), "lgg_mri")
    config.dataset.image_size = 256
    config.dataset.channels = 3
    config.dataset.mask_classes = ("background", "abnormality")
    config.model.name = "unet_resnet34"
    config.model.attention = True
    config.pretrained = "torchvision/resnet34"  # with ImageNet's normalisation
    config.batch_size = 32
    config.precision = "bfloat16"  # Xu: half precision, float16; --config.precision=float16 scales the loss for it
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "one_cycle"
    config.phases = (
        # fastai goes on training the BatchNorm of what it freezes: that would be "until:layer4+norm".
        {
            "epochs": 1,
            "freeze": "until:layer4",
            "optimizer": {"learning_rate": (6.92e-4, 1e-3), "pct_start": 0.7},
        },
        # The thesis prints slice(6.68e-06, 8e-09), which is the wrong way round: it would train the first layers most.
        {
            "epochs": 5,
            "freeze": "none",
            "optimizer": {"learning_rate": (8e-9, 6.68e-6), "pct_start": 0.8},
        },
    )
    config.augment.flip = True
    config.augment.rotate = 10.0
    config.augment.scale = 0.1
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.checkpoint.best = "loss"  # Xu saves at every improvement of the validation loss
    return config
