"""Li 2023: a small CNN on chest X-rays of children, normal or pneumonia; li2023_covid_ct.py starts from its workdir.

python launch/train.py --config=configs/li2023_pneumonia.py --workdir=runs/li2023_pneumonia --config.dataset.root=FOLDER
python launch/evaluate.py --workdir=runs/li2023_pneumonia --split=test

FOLDER: what launch/prepare.py --dataset=chest_xray_pneumonia wrote, which holds an eighth of train out for validation,
by patient; or, with --config.dataset.name=folder, two class folders, the ill one second in the order of their names, as
in the data set of li2023_covid_ct.py. With :printed it is what --dataset=chest_xray_pneumonia_printed wrote: 23 images
for validation, 8 normal and 15 ill, as the paper has them. Its 5232 for training and 624 for test are all 5856 images
of the set, so that its 23 were trained on, or are of elsewhere: here they are out of train, drawn by a fixed seed.
Of the paper: 128x128x1 with the images squashed, pixels / 255, convolutions and pooling by turns, two sigmoid outputs
with binary cross-entropy, rmsprop, batch 32, 10 epochs. Our reading of what it leaves open: four 3x3 convolutions of
32, 64, 128 and 256 features with ReLU, each followed by a 2x2 maximum, then one dense layer on the flattened map; all
else as Keras has it without being asked (rate 1e-3, rho 0.9, biases, Glorot's initialisation), but for the padding,
which is 'same' here.
The network that is judged and transferred is the final one, after 10 epochs (config.checkpoint.evaluate='last'): the
paper saves it with model.save after model.fit, and watches no validation.
The paper reports a training accuracy of 0.9859 and a training loss of 0.0423 after 10 epochs of about 140 s each on a
laptop's CPU, and no test figure. The "164 images" of each of its epochs are 164 batches of 32 (5232 / 32 = 163.5).
No run of this config on its own data was made: the images are not at hand. On normal against pneumonia of cxr3 its test
accuracy is 0.730 (seed 0), at 64 pixels 0.747 (0.647 to 0.846, seeds 0, 1, 2), of the epoch of the least
validation loss, which this config then judged: docs/papers.md.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config
from covidjax.errors import UserError


def get_config(split: str = "") -> ConfigDict:
    """The network from random initialisation; li2023_covid_ct.py says the same of it. split: '' or printed."""
    if split not in ("", "printed"):
        raise UserError(f"configs/li2023_pneumonia.py:{split}: allowed are printed, or nothing")
    config = default_config()
    config.dataset.name = "tfds"
    config.dataset.root = os.path.join(os.environ.get("COVIDJAX_DATA_DIR", "data"), "chest_xray_pneumonia")
    config.dataset.root += "_printed" if split else ""
    config.dataset.image_size = 128
    config.dataset.crop = "squash"
    config.preprocessing = "unit"
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
