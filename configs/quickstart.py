"""The whole way on synthetic X-rays, in about a minute on two cores.

make train     or     python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from covidjax.config import default_config


def get_config() -> ConfigDict:
    """A small network on 64-pixel phantoms."""
    config = default_config()
    config.dataset.name = "phantom"
    config.dataset.image_size = 64
    config.dataset.num_images = 600
    config.model.name = "cnn"
    config.batch_size = 32
    config.epochs = 20
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "one_cycle"
    config.augment.rotate = 5.0
    config.augment.shift = 0.05
    return config
