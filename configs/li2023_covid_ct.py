"""Li 2023: the CNN of li2023_pneumonia.py fine-tuned on CT images with and without COVID-19.

python launch/train.py --config=configs/li2023_covid_ct.py:transfer --workdir=runs/transfer --config.dataset.root=FOLDER
python launch/evaluate.py --workdir=runs/transfer --split=test

The argument: transfer (all trains, from the workdir of li2023_pneumonia.py, its head too, as the paper does), frozen
(the head alone trains), fresh (all trains, from random initialisation). The test accuracies of transfer less those of
fresh, over several --config.seed, are the gain. --config.pretrained=DIR for another source than runs/li2023_pneumonia.
FOLDER: what launch/prepare.py --dataset=covid_ct wrote, in the split of the set's authors (425, 118 and 203 images);
or, with --config.dataset.name=folder, two class folders, the ill one second in the order of their names. With
`,printed` behind the argument it is what --dataset=covid_ct_printed wrote: 400 images for training, 98 for validation,
200 for test, as the paper has them. It contradicts itself on validation, "98 images ... 200 ... and 200": here they are
49 and 49, as 349 images of COVID-19 less 200 and 100 leave 49. Which images they are is drawn by a fixed seed.
Network, optimizer and epochs are those of li2023_pneumonia.py. The optimizer starts fresh: the paper compiles again
after loading. It judges the network after the last epoch, and so does this config (config.checkpoint.evaluate='last').
The paper reports an accuracy of "about 70 %" in its abstract, and of 63 % at its peak in its section 3, of which split
it does not say; both are of the transfer. It trains no fresh network: "the correct rate might have been lower".
No run of this config on its own data was made: the images are not at hand. On normal against COVID-19 of cxr3, at 64
pixels, transfer less fresh is +0.029 (-0.001 to +0.060) on test, over the seeds 0, 1, 2: the interval includes zero.
docs/papers.md has the other figures, and how they were made; they are of the epoch of the least validation loss, which
this config then judged.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config
from covidjax.errors import UserError

FREEZE = {"transfer": "none", "frozen": "backbone", "fresh": "none"}


def get_config(argument: str = "transfer") -> ConfigDict:
    """argument: transfer, frozen or fresh, also with ',printed' behind it."""
    start, comma, split = argument.partition(",")
    if start not in FREEZE or split != ("printed" if comma else ""):
        allowed = f"{', '.join(FREEZE)}, each also with ,printed"
        raise UserError(f"configs/li2023_covid_ct.py:{argument}: allowed are {allowed}")
    config = default_config()
    config.dataset.name = "tfds"
    config.dataset.root = os.path.join(os.environ.get("COVIDJAX_DATA_DIR", "data"), "covid_ct")
    config.dataset.root += "_printed" if split else ""
    config.dataset.image_size = 128
    config.dataset.crop = "squash"
    config.preprocessing = "unit"
    config.pretrained = "" if start == "fresh" else "runs/li2023_pneumonia"
    config.freeze = FREEZE[start]
    config.model.name = "cnn"
    config.model.width = 32
    config.model.num_blocks = 4
    config.model.normalisation = "none"
    config.model.pooling = "flatten"
    config.loss.name = "sigmoid_cross_entropy"
    config.optimizer.name = "rmsprop"
    config.optimizer.learning_rate = 1e-3
    config.batch_size = 32
    config.epochs = 10
    config.checkpoint.evaluate = "last"
    return config
