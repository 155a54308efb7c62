"""The recipes of the classification papers, as their configs have them, step by step beside Keras in float64.

The rules on their own are held against Keras in tests/optim and test_losses.py.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import models
from covidjax.data.examples import Examples
from covidjax.mesh import make_mesh
from covidjax.models.layers import Staged
from covidjax.models.resnet import KERAS, ResNet
from covidjax.tasks import weighting
from covidjax.train import loop, setup
from covidjax.train.phases import initial_state, make_phases
from covidjax.train.step import train_step
from covidjax.weights.keras import entries
from covidjax.weights.load import Entry
from covidjax.weights.start import InitialVariables
from tests.support import make_preprocessing
from tests.weights.parity import fill
from tests.weights.test_parity_keras import shallow_resnet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras under NumPy 2

FOLDER = Path(__file__).parents[2] / "configs"
STEPS, TOLERANCE = 10, 1e-6
CHANGES = (
    "dataset.image_size=32",
    "precision=float64",
    "augment.flip=false",
    "augment.rotate=0",
    "augment.shift=0",
    "augment.brightness=0",
)
SMALL_BATCH = "batch_size=2"  # convolutions in double precision take their time
# Smaller, BatchNorm has so few numbers at the end of a ResNet that it makes signs of them: at 32 pixels, batches of 2,
# Keras with weights changed by 1e-15 parts from itself by 4e-7 at step 4 and 3e-3 at step 5. Here by 2e-12 at most.
STABLE = ("dataset.image_size=64", "batch_size=4")
RULES = {"adam": "Adam", "adamax": "Adamax", "rmsprop": "RMSprop"}


@pytest.fixture
def keras64(keras: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Keras in double precision, also in BatchNorm and in means, for which it takes single precision on JAX."""
    from keras.src.backend.common import dtypes  # noqa: PLC0415

    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    before = keras.config.floatx(), keras.config.dtype_policy()
    with jax.enable_x64(True):
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        keras.utils.set_random_seed(0)
        yield keras
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def load_config(spec: str, *overrides: str) -> ConfigDict:
    return configs.load(str(FOLDER / spec), [f"--config.{override}" for override in (*CHANGES, *overrides)])


def make_split(config: ConfigDict, classes: tuple[str, ...]) -> Examples:
    """STEPS batches of coarse noise, which tells images apart after many convolutions; brighter from class to class."""
    count, channels, scale = STEPS * config.batch_size, config.dataset.channels, config.dataset.image_size // 4
    random = np.random.default_rng(0)
    labels = random.choice(len(classes), count, p=np.arange(len(classes), 0, -1) / np.arange(1, 1 + len(classes)).sum())
    coarse = random.integers(0, 200, (count, 4, 4, channels)) + 20 * labels[:, None, None, None]
    images = coarse.repeat(scale, 1).repeat(scale, 2)
    names = tuple(map(str, range(count)))
    return Examples(
        "train", images.astype(np.uint8), labels.astype(np.int32), names, names, False, classes, "", masks=None
    )


# ---- The networks as they are written in Keras, but for the last activation, which the losses have ----


def li2023(keras: Any, layers: Any, config: ConfigDict) -> Any:
    model = keras.Sequential([keras.Input((config.dataset.image_size, config.dataset.image_size, 1))])
    for number in range(config.model.num_blocks):
        model.add(layers.Conv2D(config.model.width * 2**number, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dense(2))
    return model


def ljung2020(keras: Any, layers: Any, config: ConfigDict) -> Any:
    shape = (config.dataset.image_size, config.dataset.image_size, 3)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=shape)
    x = layers.Flatten()(base.output)
    for _ in range(2):
        x = layers.Dense(1024, activation="relu")(x)
    return keras.Model(base.input, layers.Dense(3)(x))


def pandiyan2023(keras: Any, layers: Any, config: ConfigDict, blocks: tuple[int, ...]) -> Any:
    shape = (config.dataset.image_size, config.dataset.image_size, 3)
    base = shallow_resnet(blocks, False, include_top=False, weights=None, input_shape=shape, pooling="max")
    for layer in base.layers:
        if layer.name.endswith("_3_bn"):  # small branches, as trained ones are: else rounding grows 1e4 times a step
            layer.gamma.assign(0.1 * layer.gamma)
    return keras.Model(base.input, layers.Dense(2)(base.output))


def keras_losses(
    keras: Any, model: Any, config: ConfigDict, examples: Examples, preprocess: Callable[[np.ndarray], np.ndarray]
) -> list[float]:
    """The loss of each step by `train_on_batch`; where the schedule is 'plateau' a step is an epoch of Keras' rule.

    The losses are of logits: probabilities would be clipped at 1e-7, after which a chaotic network goes another way.
    """
    rate = float(np.float32(config.optimizer.learning_rate))  # as we keep it
    rule = getattr(keras.optimizers, RULES[config.optimizer.name])(rate)
    sigmoid = config.loss.name == "sigmoid_cross_entropy"
    loss_class = keras.losses.BinaryCrossentropy if sigmoid else keras.losses.CategoricalCrossentropy
    model.compile(rule, loss_class(from_logits=True))
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss",
        factor=config.optimizer.plateau_factor,
        patience=config.optimizer.plateau_patience,
        min_delta=config.optimizer.plateau_min_delta,
    )
    plateau.set_model(model)
    plateau.on_train_begin()
    weights = weighting.class_weights(config.loss.class_weights, examples.labels, examples.classes)
    images = np.repeat(examples.images.astype(np.float64), 3 // examples.images.shape[-1], -1)
    targets, found = np.eye(len(examples.classes))[examples.labels], []
    for step, part in enumerate(batches(config)):
        model.reset_metrics()
        loss = model.train_on_batch(
            preprocess(images[part].copy()), targets[part], class_weight=weights and dict(enumerate(weights))
        )
        found.append(float(np.ravel(loss)[0]))
        if config.optimizer.schedule == "plateau":
            plateau.on_epoch_end(step, {"loss": found[-1]})
    return found


def our_losses(config: ConfigDict, model: Staged, variables: Any, examples: Examples) -> list[float]:
    """The loss of each step of a run of the config; where the schedule is 'plateau' a step is an epoch."""
    epoch_steps = 1 if config.optimizer.schedule == "plateau" else STEPS
    phase, *_ = make_phases(config, epoch_steps)
    begin = InitialVariables(variables, make_preprocessing(config), ())
    recipe = setup.make_recipe(config, phase, model, begin, examples, epoch_steps)
    recipe = dataclasses.replace(recipe, prefix=model)
    state = initial_state(recipe, variables, jax.random.key(0))
    take_step, found = jax.jit(partial(train_step, recipe=recipe)), []
    for part in batches(config):
        state = take_step(state, {"image": examples.images[part], "label": examples.labels[part]})
        found.append(float(state.metrics.loss))
        state = loop.next_epoch(state, found[-1], phase.optimizer, make_mesh(config.batch_size, 1))
    return found


def batches(config: ConfigDict) -> list[slice]:
    return [slice(step * config.batch_size, (step + 1) * config.batch_size) for step in range(STEPS)]


def ported(source: Any, model: Staged, config: ConfigDict) -> dict[str, Any]:
    """Our variables with the weights of a Keras model."""
    size, channels = config.dataset.image_size, config.dataset.channels
    init = models.initialiser(model, make_preprocessing(config), (size, size, channels))
    shapes = jax.eval_shape(init, jax.random.key(0))
    tensors = {
        f"{layer.name}/{index}": weight for layer in source.layers for index, weight in enumerate(layer.get_weights())
    }
    if config.model.name == "cnn":  # which has no names in Keras
        layers = [*(f"block{number + 1}/conv" for number in range(config.model.num_blocks)), "head/dense"]
        paths = [f"params/{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias")]
        known = tuple(Entry(path, name) for path, name in zip(paths, tensors, strict=True))
    else:
        known = entries(model, tensors)
    variables, account = fill(shapes, known, tensors)
    assert not account.new and not account.unused
    assert {leaf.dtype for leaf in traverse_util.flatten_dict(variables).values()} == {np.dtype(np.float64)}
    return variables


def assert_trains_alike(
    keras: Any,
    config: ConfigDict,
    source: Any,
    model: Staged,
    classes: tuple[str, ...],
    preprocess: Callable[[np.ndarray], np.ndarray],
) -> None:
    examples, variables = make_split(config, classes), ported(source, model, config)
    theirs = keras_losses(keras, source, config, examples, preprocess)
    assert len(set(np.round(theirs, 12))) == STEPS
    np.testing.assert_allclose(our_losses(config, model, variables, examples), theirs, rtol=TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        ("model.width=4", "model.num_blocks=1", "batch_size=4", "dataset.image_size=16"),
        pytest.param((), id="whole", marks=pytest.mark.slow),
    ],
)
def test_li2023_trains_as_keras_does(keras64: Any, changes: tuple[str, ...]) -> None:
    config = load_config("li2023_pneumonia.py:printed", *changes)
    source = li2023(keras64, keras64.layers, config)
    model, classes = models.build(config.model, 2, config.precision), ("normal", "pneumonia")
    assert_trains_alike(keras64, config, source, model, classes, lambda images: images[..., :1] / 255)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "changes"),
    [("1", (SMALL_BATCH,)), *((name, ()) for name in ("1", "2", "3", "4", "1,as_coded", "2,as_coded", "2,caffe"))],
)
def test_ljung2020_trains_as_keras_does(keras64: Any, argument: str, changes: tuple[str, ...]) -> None:
    falling = "optimizer.plateau_min_delta=1e9"  # no epoch is better than the first, so that the rate falls
    config = load_config(f"ljung2020.py:{argument}", falling, *changes)
    source, model = ljung2020(keras64, keras64.layers, config), models.build(config.model, 3, config.precision)
    for layer in source.layers[:-4] if config.freeze == "backbone" else ():
        layer.trainable = False
    caffe = keras64.applications.vgg16.preprocess_input
    preprocess = caffe if config.preprocessing == "auto" else lambda images: images / 255
    assert_trains_alike(keras64, config, source, model, ("normal", "pneumonia", "covid19"), preprocess)
    assert float(source.optimizer.learning_rate) < 0.8 * config.optimizer.learning_rate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reading", "blocks"),
    [
        ("frozen,printed", (1, 1, 1, 1)),  # a block a stage in place of ResNet-101's 33
        ("all", (1, 1, 1, 1)),
        ("all", (3, 4, 23, 3)),
    ],
)
def test_pandiyan2023_trains_as_keras_does(keras64: Any, reading: str, blocks: tuple[int, int, int, int]) -> None:
    config = load_config(f"pandiyan2023.py:{reading}", *STABLE)
    source = pandiyan2023(keras64, keras64.layers, config, blocks)
    model = models.build(config.model, 2, config.precision)
    assert isinstance(model, ResNet) and model.arrangement == KERAS
    model = dataclasses.replace(model, num_blocks=blocks)
    for layer in source.layers[:-1] if config.freeze == "backbone" else ():
        layer.trainable = False
    preprocess = keras64.applications.resnet.preprocess_input
    assert_trains_alike(keras64, config, source, model, ("noncovid", "covid"), preprocess)
