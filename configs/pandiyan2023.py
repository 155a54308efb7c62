"""Pandiyan 2023: Keras' ResNet-101 with a global maximum and a dense softmax on CT slices with and without SARS-CoV-2.

python launch/train.py    --config=configs/pandiyan2023.py:frozen --workdir=runs/pandiyan --config.dataset.root=FOLDER
python launch/evaluate.py --workdir=runs/pandiyan --split=train      (and val, and test)

FOLDER: what launch/prepare.py --dataset=sars_cov2_ct wrote; or, with --config.dataset.name=folder, class folders.
The argument is one of two readings: frozen (the default, and the paper's text: the pre-trained layers "are not
modified", 4 098 parameters train) or all (its table of the model: 42 556 930 of 42 662 274 parameters train, the others
being statistics of BatchNorm). Of the paper as well: ImageNet's weights, 224x224x3, horizontal flips, Adamax, batch 16,
an evaluation on train, val and test. Our reading of what it leaves open: 20 epochs, Keras' rate of 1e-3, images
squashed, the preprocessing of the weights, and that the epoch of the least validation loss is judged.
`,printed` behind it: the split that the paper's figures imply, of --dataset=sars_cov2_ct_printed, 1984, 248 and 249 of
2481 slices, in place of our 70, 10 and 20 %; and its section 6, "a final combined training step", as a last phase on
train and val together, of 5 epochs by our reading. After it validation measures images that were trained on: it chooses
nothing, the last epoch is judged, and only the test figures say anything.
The paper reports accuracies of 1.0, 0.988 and 0.956 (its figure 5: 245 of 248, 238 of 249) and of 0.996, 0.972 and
0.952 (its section 5: 1975 of 1984, 241 of 248, 237 of 249) on train, val and test, and on test a precision and recall
of 0.97 and 0.94 for COVID-19, of 0.94 and 0.97 for the others. No patients are known: slices of one are on all sides,
and the figures say little of new patients.
No run of this config with the real weights or on its own data was made: neither is at hand. The figures of 2 epochs of
frozen on two classes of cxr3 in docs/papers.md were made with --config.dataset.name=folder
--config.dataset.image_size=64 --config.pretrained= --config.epochs=2, and say nothing about the paper.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config
from covidjax.errors import UserError

FREEZE = {"frozen": "backbone", "all": "none"}


def get_config(argument: str = "frozen") -> ConfigDict:
    """argument: frozen or all, also with ',printed' behind it."""
    reading, comma, variant = argument.partition(",")
    if reading not in FREEZE or variant != ("printed" if comma else ""):
        allowed = f"{', '.join(FREEZE)}, each also with ,printed"
        raise UserError(f"configs/pandiyan2023.py:{argument}: allowed are {allowed}")
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
    if variant:
        config.dataset.root += "_printed"
        config.checkpoint.evaluate = "last"
        config.phases = ({}, {"epochs": 5, "split": "train+val"})
    return config
