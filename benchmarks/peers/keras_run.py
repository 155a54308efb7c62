"""A whole run as Keras' users write it: VGG-16 frozen, the paper's head, Model.fit on decoded images.

Started by benchmarks/whole_run.py; prints one JSON line {'val_accuracy': [of each epoch]}.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import argparse
import csv
import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers
from keras.applications import vgg16
from PIL import Image

from covidjax.process import keep_memory


def main() -> None:
    """Decodes, builds, trains."""
    parser = argparse.ArgumentParser()
    for name in ("root", "weights", "make_weights"):
        parser.add_argument(f"--{name}", default="")
    for name, default in (("epochs", 12), ("batch_size", 8), ("image_size", 224), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--augment", action="store_true", help="turn by 10 degrees and shift by 0.1, anew every epoch")
    flags = parser.parse_args()
    keep_memory()
    keras.utils.set_random_seed(flags.seed)
    shape = (flags.image_size, flags.image_size, 3)
    backbone = vgg16.VGG16(include_top=False, weights=None, input_shape=shape)
    if flags.make_weights:
        backbone.save_weights(flags.make_weights)
        return
    backbone.load_weights(flags.weights)
    backbone.trainable = False
    inputs = x = keras.Input(shape)
    if flags.augment:
        x = layers.RandomTranslation(0.1, 0.1, fill_mode="nearest")(layers.RandomRotation(10 / 360)(x))
    x = layers.Flatten()(backbone(x))
    for units in (1024, 1024):
        x = layers.Dense(units, activation="relu")(x)
    splits = {split: load(Path(flags.root), split, flags.image_size) for split in ("train", "val")}
    outputs = layers.Dense(1 + int(splits["train"][1].max()), activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(2e-5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        *splits["train"],
        batch_size=flags.batch_size,
        epochs=flags.epochs,
        validation_data=splits["val"],
        verbose=2 if sys.stderr.isatty() else 0,
    )
    print(json.dumps({"val_accuracy": [float(value) for value in history.history["val_accuracy"]]}))


def load(root: Path, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, size, size, 3] float32 in the Caffe form that VGG-16 expects, and labels [n]."""
    rows = [row for row in csv.DictReader((root / "folds.csv").open()) if row["split"] == split]
    classes = sorted({row["label"] for row in rows})
    images = np.empty((len(rows), size, size, 3), np.float32)
    for index, row in enumerate(rows):
        with Image.open(root / split / row["label"] / row["file"]) as image:
            images[index] = np.asarray(image.convert("L").convert("RGB").resize((size, size)))
    return vgg16.preprocess_input(images), np.array([classes.index(row["label"]) for row in rows])


if __name__ == "__main__":
    main()
