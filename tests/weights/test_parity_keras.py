import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.models.layers import Staged
from covidjax.models.resnet import LAYERS, PREACTIVATED
from tests.weights.parity import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    RandomWeights,
    assert_equal_outputs,
    error,
    load,
    network,
    stage_outputs,
)

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras", reason="Keras is not installed: the port is compared with it")
h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras under NumPy 2

NUM_CLASSES = 7
ODD = (97, 107)
FULL = (224, 224)
APPLICATIONS = {
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "resnet50v2": "ResNet50V2",
}


def keras_model(name: str, size: tuple[int, int], **options: Any) -> Any:
    """The model of `keras.applications`, giving logits, with random weights and statistics."""
    keras.backend.clear_session()  # layers without a name are numbered from the start
    options = {"classes": NUM_CLASSES, "classifier_activation": None, **options}
    model = getattr(keras.applications, APPLICATIONS[name])(weights=None, input_shape=(*size, 3), **options)
    return randomise(model, gain=1.0 if name == "vgg16" else 0.7)


def randomise(model: Any, gain: float) -> Any:
    weights = RandomWeights(0, gain)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(weights.norm(layer.gamma.shape[0]))
        elif layer.weights:
            shape = tuple(layer.kernel.shape)
            kernel = weights.kernel(shape, int(np.prod(shape[:-1])))
            layer.set_weights([kernel, weights.bias(shape[-1])][: len(layer.weights)])
    return model


def boundaries(name: str) -> list[str]:
    """The Keras layers whose outputs leave our stages, the head left out."""
    if name == "vgg16":
        return [f"block{number}_pool" for number in range(1, 6)]
    num_blocks = LAYERS[PREACTIVATED.get(name, name)]
    ends = [f"conv{layer}_block{count}_out" for layer, count in enumerate(num_blocks, start=2)]
    return ["pool1_pool", *ends[:3], "post_relu" if name in PREACTIVATED else ends[3]]


def saved(model: Any, folder: Path, suffix: str = ".h5") -> Path:
    """A file of the model: '.h5' as the published ones are laid out, '.model.h5' with the architecture."""
    path = folder / f"weights{suffix}"
    if suffix == ".h5":
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group  # noqa: PLC0415

        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)
    elif suffix == ".weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    return path


def ours(name: str, **options: Any) -> Staged:
    return network(name, NUM_CLASSES, arrangement="keras", **options)


@pytest.mark.parametrize(
    ("name", "size", "suffix"),
    [
        ("vgg16", ODD, ".h5"),
        ("resnet50", ODD, ".weights.h5"),
        ("resnet50v2", ODD, ".h5"),
        pytest.param("resnet50", FULL, ".h5", marks=pytest.mark.slow),
        pytest.param("resnet101", ODD, ".h5", marks=pytest.mark.slow),
        pytest.param("resnet152", ODD, ".weights.h5", marks=pytest.mark.slow),
        pytest.param("vgg16", FULL, ".weights.h5", marks=pytest.mark.slow),
        pytest.param("resnet50v2", FULL, ".weights.h5", marks=pytest.mark.slow),
        pytest.param("resnet101", FULL, ".weights.h5", marks=pytest.mark.slow),
        pytest.param("resnet152", FULL, ".h5", marks=pytest.mark.slow),
        pytest.param("resnet152", (197, 211), ".h5", marks=pytest.mark.slow),
    ],
)
def test_network_of_a_keras_file_gives_the_activations_of_keras(
    name: str, size: tuple[int, int], suffix: str, tmp_path: Path
) -> None:
    source, model, images = keras_model(name, size), ours(name), RandomWeights(1).images(1, *size)
    variables = load(model, saved(source, tmp_path, suffix), "keras", images)
    names = [*boundaries(name), "predictions"]
    theirs = keras.Model(source.inputs, [source.get_layer(layer).output for layer in names])([images])
    assert_equal_outputs(stage_outputs(model, variables, images), dict(zip(model.stages, theirs, strict=True)))


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "resnet50v2"])
def test_every_kind_of_keras_file_fills_the_same_arrays(name: str, tmp_path: Path) -> None:
    source, model, images = keras_model(name, (32, 32)), ours(name), np.zeros((1, 32, 32, 3), np.float32)
    legacy, *others = (
        load(model, saved(source, tmp_path, suffix), "keras", images) for suffix in (".h5", ".weights.h5", ".model.h5")
    )
    for other in others:
        assert jax.tree.all(jax.tree.map(np.array_equal, legacy, other))


@pytest.mark.parametrize(("name", "suffix"), [("resnet50", ".h5"), ("resnet50v2", ".weights.h5")])
def test_file_without_a_head_fills_the_backbone(name: str, suffix: str, tmp_path: Path) -> None:
    source, model = keras_model(name, ODD, include_top=False), ours(name)
    images = RandomWeights(1).images(1, *ODD)
    variables = load(model, saved(source, tmp_path, suffix), "keras", images)
    assert error(model.apply(variables, images, stop="head"), source(images)) < TOLERANCE


@pytest.mark.parametrize("pooling", ["max", "flatten"])
def test_pooling_before_the_head_is_that_of_keras(pooling: str, tmp_path: Path) -> None:
    """With a head that somebody else named, after Pandiyan's maximum or a flatten."""
    base = keras_model("resnet50v2", ODD, include_top=False)
    pool = {"max": keras.layers.GlobalMaxPooling2D, "flatten": keras.layers.Flatten}[pooling]()
    head = keras.layers.Dense(NUM_CLASSES, name="covid_or_not")(pool(base.output))
    source = randomise(keras.Model(base.inputs, head), gain=0.7)
    model, images = ours("resnet50v2", pooling=pooling), RandomWeights(1).images(1, *ODD)
    variables = load(model, saved(source, tmp_path), "keras", images)
    assert error(model.apply(variables, images), source([images])) < TOLERANCE


def test_vgg16_with_the_papers_head_gives_the_logits_of_keras(tmp_path: Path) -> None:
    base = keras_model("vgg16", ODD, include_top=False)
    x = keras.layers.Flatten()(base.output)
    for _ in range(2):
        x = keras.layers.Dense(1024, activation="relu")(x)
    source = randomise(keras.Model(base.inputs, keras.layers.Dense(NUM_CLASSES)(x)), gain=1.0)
    model, images = ours("vgg16", head="paper"), RandomWeights(1).images(1, *ODD)
    for suffix in (".h5", ".weights.h5"):
        variables = load(model, saved(source, tmp_path, suffix), "keras", images)
        assert error(model.apply(variables, images), source([images])) < TOLERANCE


def test_gradients_are_those_of_keras(tmp_path: Path) -> None:
    source, model, images = keras_model("resnet50", ODD), ours("resnet50"), RandomWeights(1).images(1, *ODD)
    variables, target = load(model, saved(source, tmp_path), "keras", images), 3

    def cross_entropy(logits: Any) -> jax.Array:
        return -jnp.mean(jax.nn.log_softmax(logits)[:, target])

    def our_loss(params: Any) -> jax.Array:
        return cross_entropy(model.apply({**variables, "params": params}, images))

    fixed = [variable.value for variable in source.non_trainable_variables]

    def their_loss(values: Any) -> jax.Array:
        return cross_entropy(source.stateless_call(values, fixed, images, training=False)[0])

    gradients = jax.jit(jax.grad(our_loss))(variables["params"])
    values = jax.jit(jax.grad(their_loss))([variable.value for variable in source.trainable_variables])
    theirs = {variable.path: value for variable, value in zip(source.trainable_variables, values, strict=True)}
    errors = {
        "stem": error(gradients["stem"]["conv1"]["kernel"], theirs["conv1_conv/kernel"]),
        "strided": error(gradients["layer3"]["block1"]["conv1"]["kernel"], theirs["conv4_block1_1_conv/kernel"]),
        "scale": error(gradients["layer4"]["block3"]["norm2"]["scale"], theirs["conv5_block3_2_bn/gamma"]),
        "head": error(gradients["head"]["dense"]["kernel"], theirs["predictions/kernel"]),
    }
    assert max(errors.values()) < GRADIENT_TOLERANCE, errors
