"""Wang 2020: ResNet-50, 101 or 152 from ImageNet on chest X-rays, normal, pneumonia or COVID-19.

python launch/train.py --config=configs/wang2020.py:resnet101 --workdir=runs/wang_resnet101 --config.dataset.root=FOLDER
python launch/evaluate.py --workdir=runs/wang_resnet101 --split=test

The paper's table of three networks and their fusion: these two for each of resnet50, resnet101 and resnet152, then
python launch/train.py --config=configs/ensemble.py --workdir=runs/wang_fusion
    --config.ensemble.members="('runs/wang_resnet101', 'runs/wang_resnet152')"
and launch/evaluate.py for it, which prints the fusion beside both members on the same images, with paired tests. The
table of all four, with intervals, paired tests and what each cost, once all are evaluated on the test split:
python launch/compare.py runs/wang_resnet50 runs/wang_resnet101 runs/wang_resnet152 runs/wang_fusion

FOLDER: what launch/prepare.py --dataset=rsna_cohen/boxes wrote (an example for each box of pneumonia, as the paper's
counts have it; rsna_cohen/images has each image once); or, with --config.dataset.name=folder, class folders, that of
COVID-19 being called covid19. configs/ensemble.py mixes the runs of resnet101 and resnet152, as the paper does.
The paper calls itself "based on COVID-Net", yet describes ResNets alone: nothing of COVID-Net is here.
Of the paper: batch 64, a rate of 1e-4, then 1e-5 once it is stable, loss and accuracy every 50 steps, which are in the
curves of training and of validation (config.evaluate_every_steps=50), 17 times as many images of COVID-19 by rotation,
sharpening, brightness and translation, contrast enhancement, a fixed seed, 9:1 of train and test. Our reading of what
it leaves open: Adam, 30 epochs at the first rate and 10 at the second, everything trains, torchvision's weights, CLAHE
for the contrast, the ranges of the augmentation, which changes all images, and 224 pixels, to which the middle of an
image is cut (config.dataset.crop='center'; the paper does not say whether it cuts or squashes). An eighth of train is
held out for validation, and the epoch of its least loss is judged; the paper looks at the test set while it trains, and
does not say which step it judges.
The paper reports test accuracies of 0.924, 0.956 and 0.942 for ResNet-50, 101 and 152, and 0.961 for the fusion.
No run of this config with the real weights or on its own data was made: neither is at hand. The figure of resnet50 on
cxr3 in docs/papers.md was made with --config.dataset.name=folder --config.dataset.image_size=64
--config.pretrained= --config.phases="({'epochs': 1, 'optimizer': {'learning_rate': 1e-4}}, {'epochs': 1, 'optimizer':
{'learning_rate': 1e-5}})", and says nothing about the paper.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config
from covidjax.errors import UserError

MODELS = ("resnet50", "resnet101", "resnet152")


def get_config(model: str = "resnet101") -> ConfigDict:
    """model: resnet50, resnet101 or resnet152."""
    if model not in MODELS:
        raise UserError(f"configs/wang2020.py:{model}: allowed are {', '.join(MODELS)}")
    config = default_config()
    config.seed = 0
    config.dataset.name = "tfds"
    config.dataset.root = os.path.join(os.environ.get("COVIDJAX_DATA_DIR", "data"), "rsna_cohen", "boxes")
    config.dataset.image_size = 224
    config.dataset.enhancement = "clahe"
    config.dataset.oversample = (("covid19", 17),)
    config.model.name = model
    config.pretrained = f"torchvision/{model}"
    config.optimizer.name = "adam"
    config.batch_size = 64
    config.evaluate_every_steps = 50
    config.phases = (
        {"epochs": 30, "optimizer": {"learning_rate": 1e-4}},
        {"epochs": 10, "optimizer": {"learning_rate": 1e-5}},
    )
    config.augment.rotate = 10.0
    config.augment.shift = 0.1
    config.augment.brightness = 0.2
    config.augment.sharpen = 0.5
    return config
