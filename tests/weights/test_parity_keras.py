"""Networks filled from files of Keras beside Keras' own, at every stage."""

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import jax
import numpy as np
import pytest

from covidjax.data import sources
from covidjax.evaluate import network as evaluation
from covidjax.models.resnet import PREACTIVATED
from covidjax.train.setup import prepare
from covidjax.weights.start import initial_variables
from tests.support import small_config
from tests.weights import parity
from tests.weights.parity import TOLERANCE, RandomWeights, error, load, network

keras = pytest.importorskip("keras", reason="Keras is not installed: the port is compared with it")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras under NumPy 2

NUM_CLASSES = 7
SMALL, ODD, FULL = (33, 65), (97, 107), (224, 224)
SHALLOW = {"resnet50": (2, 1, 1, 1), "resnet50v2": (2, 2, 2, 2)}
SUFFIXES = (".h5", ".weights.h5", ".model.h5")
APPLICATIONS = {
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "resnet50v2": "ResNet50V2",
}


def shallow_resnet(num_blocks: tuple[int, ...], preactivated: bool, **options: Any) -> Any:
    """As `keras.applications` makes its ResNets, of so many blocks."""
    from keras.src.applications import resnet  # noqa: PLC0415

    stack = resnet.stack_residual_blocks_v2 if preactivated else resnet.stack_residual_blocks_v1
    strides = (2, 2, 2, 1) if preactivated else (1, 2, 2, 2)

    def stacks(x: Any) -> Any:
        for index, count in enumerate(num_blocks):
            x = stack(x, 64 * 2**index, count, stride1=strides[index], name=f"conv{index + 2}")
        return x

    return resnet.ResNet(stacks, preactivated, True, **options)


@functools.cache
def keras_model(
    name: str,
    size: tuple[int, int] = SMALL,
    num_blocks: tuple[int, ...] = (),
    include_top: bool = True,
    num_classes: int = NUM_CLASSES,
) -> Any:
    """The model of `keras.applications`, giving logits, with random weights and statistics."""
    keras.backend.clear_session()  # layers without a name are numbered from the start
    options: dict[str, Any] = {"weights": None, "input_shape": (*size, 3), "include_top": include_top}
    options |= {"classes": num_classes, "classifier_activation": None} if include_top else {}
    with mock.patch.object(keras.initializers.VarianceScaling, "__call__", lambda _, shape, dtype: np.zeros(shape)):
        if num_blocks:
            model = shallow_resnet(num_blocks, name in PREACTIVATED, **options)
        else:
            model = getattr(keras.applications, APPLICATIONS[name])(**options)
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


def boundaries(name: str, num_blocks: tuple[int, ...]) -> list[str]:
    """The Keras layers whose outputs leave our stages, but for the head."""
    if name == "vgg16":
        return [f"block{number}_pool" for number in range(1, 6)]
    ends = [f"conv{layer}_block{count}_out" for layer, count in enumerate(num_blocks, start=2)]
    return ["pool1_pool", *ends[:3], "post_relu" if name in PREACTIVATED else ends[3]]


def outputs_of(model: Any, images: np.ndarray) -> Any:
    """As `model([images])`, compiled as a whole."""
    values = [
        [variable.value for variable in kind] for kind in (model.trainable_variables, model.non_trainable_variables)
    ]
    return jax.jit(lambda trained, fixed, images: model.stateless_call(trained, fixed, images)[0])(*values, images)


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


def ours(name: str, num_blocks: tuple[int, ...] = (), **options: Any) -> Any:
    return network(name, NUM_CLASSES, num_blocks, arrangement="keras", **options)


def assert_parity(name: str, source: Any, model: Any, path: Path) -> None:
    layers = [*boundaries(name, getattr(model, "num_blocks", ())), source.layers[-1].name]
    assert len(layers) == len(model.stages)
    staged = keras.Model(source.inputs, [source.get_layer(layer).output for layer in layers])
    parity.assert_parity(model, path, "keras", source.input_shape[1:3], lambda images: outputs_of(staged, images))


def assert_same_arrays(*trees: Any) -> None:
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))


@pytest.mark.parametrize("name", ["resnet50", "resnet50v2"])
def test_resnet_of_every_kind_of_keras_file_gives_the_activations_of_keras(name: str, tmp_path: Path) -> None:
    source, model, images = keras_model(name, SMALL, SHALLOW[name]), ours(name, SHALLOW[name]), np.zeros((1, *SMALL, 3))
    legacy, *others = (saved(source, tmp_path, suffix) for suffix in SUFFIXES)
    filled = load(model, legacy, "keras", images)
    for other in others:
        assert_same_arrays(filled, load(model, other, "keras", images))
    assert_parity(name, source, model, legacy)
    headless = keras.Model(source.inputs, source.get_layer(boundaries(name, SHALLOW[name])[-1]).output)
    filled["params"]["head"] = jax.tree.map(np.zeros_like, filled["params"]["head"])
    for suffix in SUFFIXES[:2]:
        assert_same_arrays(filled, load(model, saved(headless, tmp_path, suffix), "keras", images))


def test_vgg16_with_the_papers_head_gives_the_activations_of_keras(tmp_path: Path) -> None:
    base = keras_model("vgg16", SMALL, include_top=False)
    x = keras.layers.Flatten()(base.output)
    for _ in range(2):
        x = keras.layers.Dense(1024, activation="relu")(x)
    source = randomise(keras.Model(base.inputs, keras.layers.Dense(NUM_CLASSES)(x)), gain=1.0)
    model, images = ours("vgg16", head="paper"), np.zeros((1, *SMALL, 3))
    legacy, numbered = (saved(source, tmp_path, suffix) for suffix in SUFFIXES[:2])
    assert_same_arrays(*(load(model, path, "keras", images) for path in (legacy, numbered)))
    assert_parity("vgg16", source, model, legacy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "suffix"),
    [
        ("vgg16", FULL, ".weights.h5"),
        ("resnet50", ODD, ".weights.h5"),
        ("resnet50", FULL, ".h5"),
        ("resnet101", ODD, ".h5"),
        ("resnet152", (197, 211), ".weights.h5"),
        ("resnet50v2", FULL, ".h5"),
    ],
)
def test_published_network_equals_that_of_keras(name: str, size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    source = keras_model(name, size)
    assert_parity(name, source, ours(name), saved(source, tmp_path, suffix))


@pytest.mark.parametrize("pooling", ["max", "flatten"])
def test_pooling_before_the_head_is_that_of_keras(pooling: str, tmp_path: Path) -> None:
    """With a head that somebody else named, after Pandiyan's maximum or a flatten."""
    name, num_blocks = "resnet50v2", SHALLOW["resnet50v2"]
    base = keras_model(name, SMALL, num_blocks, include_top=False)
    pool = {"max": keras.layers.GlobalMaxPooling2D, "flatten": keras.layers.Flatten}[pooling]()
    head = keras.layers.Dense(NUM_CLASSES, name="covid_or_not")
    source = keras.Model(base.inputs, head(pool(base.output)))
    head.set_weights([RandomWeights(2).kernel(head.kernel.shape, 2048), RandomWeights(2).bias(NUM_CLASSES)])
    model = ours(name, num_blocks, pooling=pooling)
    variables = load(model, saved(source, tmp_path), "keras", np.zeros((1, *SMALL, 3)))
    maps = np.maximum(RandomWeights(1).kernel((1, *base.output.shape[1:]), 2), 0)
    assert error(model.apply(variables, maps, start="head"), head(pool(maps))) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "vgg16"])
def test_first_evaluation_of_a_run_gives_the_logits_of_keras(tmp_path: Path, name: str) -> None:
    changes = {"dataset__image_size": 32, "dataset__channels": 3, "dataset__num_images": 16, "batch_size": 4}
    config = small_config(name, model__arrangement="keras", freeze="backbone", **changes)
    images = sources.load(config.dataset, "val").images
    source = keras_model(name, (32, 32), num_classes=3)
    legacy, numbered = (saved(source, tmp_path, suffix) for suffix in SUFFIXES[:2])
    config.pretrained = str(legacy)
    job = prepare(config)
    assert any("every parameter filled" in note for note in job.notes)
    forward = evaluation.make_forward(job.recipes[0].model, job.recipes[0].preprocessing, job.mesh)
    found = evaluation.predict(forward, job.variables, images, 2, job.mesh)
    preprocess = getattr(keras.applications, name).preprocess_input
    wanted, unprepared = (
        outputs_of(source, pixels) for pixels in (preprocess(images.astype(np.float32)), images.astype(np.float32))
    )
    assert error(found, wanted) < TOLERANCE
    assert error(unprepared, wanted) > 0.01  # the network feels the preprocessing
    config.pretrained = str(numbered)
    assert_same_arrays(initial_variables(config, job.recipes[0].model, images.shape[1:]).variables, job.variables)
