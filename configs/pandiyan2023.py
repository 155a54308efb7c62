"""Pandiyan 2023: Keras' ResNet-101 with a global maximum and a dense softmax on CT slices with and without SARS-CoV-2.

python launch/train.py    --config=configs/pandiyan2023.py:all --workdir=runs/pandiyan2023 --config.dataset.root=FOLDER
python launch/evaluate.py --workdir=runs/pandiyan2023 --split=train      (and val, and test)

FOLDER: what launch/prepare.py --dataset=sars_cov2_ct wrote; or, with --config.dataset.name=folder, class folders.
The argument is one of two readings: frozen (the paper's text: the pre-trained layers "are not modified", 4 098
parameters train) or all (its table of the model: 42 556 930 of 42 662 274 parameters train, the others being statistics
of BatchNorm). Of the paper as well: ImageNet's weights, 224x224x3, horizontal flips, Adamax, batch 16, an evaluation on
train, val and test. Our reading of what it leaves open: 20 epochs, Keras' rate of 1e-3, images squashed, the
preprocessing of the weights.
The paper reports accuracies of 1.0, 0.988 and 0.956 (its figure 5) and of 0.996, 0.972 and 0.952 (its section 5) on
train, val and test. These are 248 and 249 of 2481 slices, drawn by slice; here train, val and test are 70, 10 and 20 %.
No patients are known: slices of one are on all sides, and the figures say little of new patients.
No run of this config with the real weights or on its own data was made: neither is at hand. The figures of 2 epochs of
frozen on two classes of cxr3 in docs/papers.md were made with --config.dataset.name=folder
--config.dataset.image_size=64 --config.pretrained= --config.epochs=2, and say nothing about the paper.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config
from covidjax.errors import UserError

FREEZE = {"frozen": "backbone", "all": "none"}


def get_config(reading: str = "frozen") -> ConfigDict:
    """reading: frozen or all."""
    if reading not in FREEZE:
        raise UserError(f"configs/pandiyan2023.py:{reading}: allowed are {', '.join(FREEZE)}")
    config = default_config()
    config.dataset.name = "tfds"
    config.dataset.root = os.path.join(os.environ.get("COVIDJAX_DATA_DIR", "data"), "sars_cov2_ct")
    config.dataset.image_size = 224
    config.dataset.channels = 3
    config.dataset.crop = "squash"
    config.model.name = "resnet101"
    config.model.arrangement = "keras"
    config.model.pooling = "max"
    config.pretrained = "keras/resnet101_notop"
    config.freeze = FREEZE[reading]
    config.optimizer.name = "adamax"
    config.optimizer.learning_rate = 1e-3
    config.batch_size = 16
    config.epochs = 20
    config.augment.flip = True
    return config
