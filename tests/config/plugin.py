"""A plugin with a part of every kind, and the flags that ask for its parts."""

import sys
from typing import Any

from covidjax.config.plugins import REGISTRIES

PARTS = """
import contextlib
import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from covidjax.config.writers import register_writer
from covidjax.data.augment import register_augmentation
from covidjax.freeze.strategies import register_strategy
from covidjax.losses import register_loss
from covidjax.models import register_model
from covidjax.models.layers import Staged
from covidjax.optim import register_optimizer
from covidjax.tasks import CLASSIFICATION, register_task


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, *, train, use_batch_statistics):
        x = nn.LayerNorm(name="norm")(nn.Conv(self.features, (4, 4), strides=4, name="conv")(x))
        return x + nn.Dense(self.features, name="dense")(nn.gelu(x))


class Logits(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, *, train, use_batch_statistics):
        return nn.Dense(self.num_classes, name="dense")(x.mean((1, 2)))


@register_model("patches", features=(1, 64))
class Patches(Staged):
    num_classes: int
    features: tuple[int, ...] = (4, 8)

    @property
    def stages(self):
        return ("first", "second", "head")

    def setup(self):
        self.first, self.second = map(Block, self.features)
        self.head = Logits(self.num_classes)


@register_optimizer("lion", b1=(0, 1))
def lion(b1=0.9, b2=0.99):
    return optax.scale_by_lion(b1, b2)


@register_loss("squared", power=(1, 4))
def squared(logits, labels, *, power=2.0):
    return jnp.sum(abs(jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])) ** power, axis=-1)


@register_augmentation("cutout", default=0, low=0, high=8, text="Side of a black square.")
def cutout(key, image, side):
    row, column = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
    rows, columns = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])
    inside = (abs(rows - row) < side) & (abs(columns - column) < side)
    return jnp.where(inside[:, :, None], 0.0, image)


@register_strategy("every:<n>", "every n-th stage trains, from the last")
def every(argument, stages):
    return stages[:: -int(argument)]


def margin(logits, labels, *, class_weights=None):
    right = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return jnp.max(logits + 1 - jax.nn.one_hot(labels, logits.shape[-1]), axis=-1) - right[:, 0]


@register_task
def margins():
    return dataclasses.replace(CLASSIFICATION, name="margins", losses={"margin": margin})


@register_writer("lines")
@contextlib.contextmanager
def lines(workdir, config):
    with (workdir / f"{config['model']['name']}.txt").open("w") as file:
        yield lambda row: print(json.dumps(row), file=file)
"""
OWN = {
    "model.name": "patches",
    "optimizer.name": "lion",
    "loss.name": "squared",
    "loss.options": (("power", 3.0),),
    "augment.cutout": 3,
    "freeze": "until:first",
    "dataset.image_size": 16,
    "dataset.num_images": 24,
    "batch_size": 12,
    "epochs": 1,
}


def forget_plugins() -> None:
    """What was registered and imported, as in a new process."""
    for name in [name for name in sys.modules if name.startswith("covidjax_plugin_") or name == "own_parts"]:
        del sys.modules[name]
    for registry, state in zip(REGISTRIES, PACKAGE, strict=True):
        registry.reset(state)


PACKAGE = [registry.state() for registry in REGISTRIES]


def overrides(plugin: str = "own_parts.py", **changes: Any) -> list[str]:
    values = {"plugins": (plugin,), **OWN, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [
        f"--config.{key}={value!r}" if isinstance(value, tuple) else f"--config.{key}={value}"
        for key, value in values.items()
    ]
