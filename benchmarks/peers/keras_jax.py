"""Keras 3 on JAX: functional models and the train step of `Model.fit`, jitted as `fit` does, on data on the device."""

import os

os.environ["KERAS_BACKEND"] = "jax"

from typing import Any

import jax
import keras
import numpy as np
from keras import layers

from benchmarks import work
from benchmarks.case import Case
from benchmarks.jax_subject import JaxSubject, inference_subject, parameter_counts, train_subject
from covidjax.errors import UserError

# our leaf names, in the order of the weights of a Keras layer
WEIGHTS = {
    layers.BatchNormalization: ("params/{}/scale", "params/{}/bias", "batch_stats/{}/mean", "batch_stats/{}/var"),
    layers.Layer: ("params/{}/kernel", "params/{}/bias"),
}


def conv(x: Any, features: int, size: int, name: str, *, strides: int = 1, bias: bool = False) -> Any:
    """A convolution with symmetric padding, which 'same' is not where it strides. name: our path, dots for slashes."""
    if strides > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2)(x)
    padding = "same" if strides == 1 else "valid"
    return layers.Conv2D(features, size, strides, padding, use_bias=bias, name=name)(x)


def norm(x: Any, name: str) -> Any:
    """BatchNorm with the constants that all share."""
    return layers.BatchNormalization(momentum=work.MOMENTUM, epsilon=work.EPSILON, name=name)(x)


def conv_norm_relu(x: Any, features: int, stage: str, number: str) -> Any:
    """3x3 convolution, BatchNorm, ReLU."""
    return layers.ReLU()(norm(conv(x, features, 3, f"{stage}.conv{number}"), f"{stage}.norm{number}"))


def cnn(x: Any, case: Case) -> Any:
    """Convolution, BatchNorm, ReLU, maximum; over and over."""
    for level in range(work.CNN_BLOCKS):
        x = conv_norm_relu(x, work.width(case) * 2**level, f"block{level + 1}", "")
        x = layers.MaxPooling2D(2)(x)
    return layers.GlobalAveragePooling2D()(x)


def resnet(x: Any, case: Case) -> Any:
    """As torchvision arranges it: symmetric padding, the stride of a bottleneck in its 3x3 convolution."""
    x = layers.ReLU()(norm(conv(x, 64, 7, "stem.conv1", strides=2), "stem.norm1"))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for index, count in enumerate(work.BLOCKS[case.model]):
        for number in range(1, count + 1):
            strides = 2 if index > 0 and number == 1 else 1
            x = residual_block(
                x, 64 * 2**index, strides, f"layer{index + 1}.block{number}", bottleneck=case.model == "resnet50"
            )
    return layers.GlobalAveragePooling2D()(x)


def residual_block(x: Any, features: int, strides: int, name: str, *, bottleneck: bool) -> Any:
    """A basic block or a bottleneck."""
    out, shortcut = features * (4 if bottleneck else 1), x
    size, first, second = (1, 1, strides) if bottleneck else (3, strides, 1)
    y = layers.ReLU()(norm(conv(x, features, size, f"{name}.conv1", strides=first), f"{name}.norm1"))
    y = norm(conv(y, features, 3, f"{name}.conv2", strides=second), f"{name}.norm2")
    if bottleneck:
        y = norm(conv(layers.ReLU()(y), out, 1, f"{name}.conv3"), f"{name}.norm3")
    if strides > 1 or x.shape[-1] != out:
        shortcut = conv(x, out, 1, f"{name}.shortcut_conv", strides=strides)
        shortcut = norm(shortcut, f"{name}.shortcut_norm")
    return layers.ReLU()(layers.Add()([shortcut, y]))


def vgg(x: Any, case: Case) -> Any:
    """Configuration D with the head of the paper."""
    for number, (features, count) in enumerate(work.VGG_BLOCKS, start=1):
        for index in range(1, count + 1):
            x = layers.ReLU()(conv(x, features, 3, f"block{number}.conv{index}", bias=True))
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    for number, features in enumerate(work.VGG_HIDDEN, start=1):
        x = layers.Dense(features, activation="relu", name=f"head.dense{number}")(x)
    return x


def unet(x: Any, case: Case) -> Any:
    """The U-Net with BatchNorm and transposed convolutions."""
    skips = []
    for level in range(work.UNET_LEVELS):
        x = two_convolutions(x, work.width(case) * 2**level, f"down{level + 1}")
        skips.append(x)
        x = layers.MaxPooling2D(2)(x)
    x = two_convolutions(x, work.width(case) * 2**work.UNET_LEVELS, "middle")
    for level in range(work.UNET_LEVELS):
        stage, features = f"up{level + 1}", work.width(case) * 2 ** (work.UNET_LEVELS - 1 - level)
        x = layers.Conv2DTranspose(features, 2, 2, name=f"{stage}.up_conv")(x)
        x = two_convolutions(layers.Concatenate()([skips.pop(), x]), features, stage)
    return x


def two_convolutions(x: Any, features: int, stage: str) -> Any:
    """Twice a 3x3 convolution, BatchNorm, ReLU."""
    return conv_norm_relu(conv_norm_relu(x, features, stage, "1"), features, stage, "2")


BODIES = {"cnn": cnn, "resnet18": resnet, "resnet34": resnet, "resnet50": resnet, "vgg16": vgg, "unet": unet}


def make_model(case: Case, variables: Any = None) -> Any:
    """The compiled model of a case, frozen as it says. variables: our start weights; None: its own."""
    work.check(case)
    if case.model not in BODIES:
        raise UserError(f"keras has no {case.model} here: allowed are {', '.join(BODIES)}")
    keras.mixed_precision.set_global_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[case.precision])
    net, frozen = work.network(case.model), work.frozen_stages(case)
    images = keras.Input((case.image_size, case.image_size, net.channels), dtype="uint8")
    x = layers.Rescaling(work.SCALE / work.STD, -work.MEAN / work.STD)(images)
    x = BODIES[case.model](x, case)
    if net.pixelwise:
        logits = conv(x, net.classes, 1, "head.conv", bias=True)
    else:
        logits = layers.Dense(
            net.classes, name=f"head.dense{len(work.VGG_HIDDEN) + 1 if case.model == 'vgg16' else ''}"
        )(x)
    model = keras.Model(images, layers.Activation("linear", dtype="float32")(logits))
    for layer in model.layers:
        layer.trainable = layer.name.split(".")[0] not in frozen
    if variables is not None:
        load(model, variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(work.LEARNING_RATE), loss)
    model.optimizer.build(model.trainable_variables)
    return model


def load(model: Any, variables: Any) -> None:
    """Our variables into a model's layers; its transposed convolutions have their last two axes exchanged."""
    for layer in model.layers:
        if layer.weights:
            values = [_leaf(variables, path) for path in _paths(layer)[: len(layer.weights)]]
            if isinstance(layer, layers.Conv2DTranspose):
                values[0] = values[0].swapaxes(2, 3)
            layer.set_weights(values)


def _paths(layer: Any) -> list[str]:
    kind = layers.BatchNormalization if isinstance(layer, layers.BatchNormalization) else layers.Layer
    return [pattern.format(layer.name.replace(".", "/")) for pattern in WEIGHTS[kind]]


def _leaf(variables: Any, path: str) -> np.ndarray:
    node = variables
    for name in path.split("/"):
        node = node[name]
    return np.asarray(node)


def build(case: Case, variables: Any = None) -> JaxSubject:
    """A `case.Subject`. variables: our start weights; None: fresh ones of its own."""
    model = make_model(case, variables)
    data = jax.device_put(work.batch(case))
    trainable, fixed, slots, metrics = state_of(model)
    if case.mode == "inference":
        predict = jax.jit(lambda state, images: model.predict_step(state, (images,))[0])
        return inference_subject(predict, (trainable, fixed), data[0], parameter_counts(_parameters(model), (), ()))
    counts = parameter_counts(_parameters(model), trainable, slots)
    carry = jax.tree.map(lambda array: array + 0, ((trainable, fixed, slots, metrics), np.float32(0)))
    return train_subject(make_step(model), carry, data, counts)


def make_step(model: Any, **shardings: Any) -> Any:
    """The jitted step, (carry, images, labels) -> carry, its carry donated. shardings: as `jax.jit` takes them."""

    def step(carry: Any, images: Any, labels: Any) -> Any:
        logs, state = model.train_step(carry[0], (images, labels))
        return state, logs["loss"]

    return jax.jit(step, donate_argnums=0, **shardings)


def state_of(model: Any) -> tuple[list[Any], ...]:
    """What `Model.fit` carries from step to step: weights that train, others, optimizer slots, metrics."""
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    return tuple([variable.value for variable in group] for group in groups)


def _parameters(model: Any) -> list[Any]:
    """All weights but the statistics of BatchNorm."""
    return [
        variable.value for variable in model.weights if "moving_" not in variable.path and "seed" not in variable.path
    ]


def loss_and_gradients(case: Case, variables: Any) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the first step from our variables, and its gradients by our paths and in our layout."""
    model = make_model(case, variables)
    images, labels = jax.device_put(work.batch(case))
    trainable, fixed, slots, metrics = state_of(model)
    compute = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)

    def both(trainable: Any) -> Any:
        return compute(trainable, fixed, metrics, images, labels, None, training=True, optimizer_variables=slots)

    (loss, _), found = jax.jit(both)(trainable)
    by_variable = {id(variable): value for variable, value in zip(model.trainable_variables, found, strict=True)}
    gradients = {}
    for layer in model.layers:
        for path, weight in zip(_paths(layer), layer.weights, strict=False):
            if id(weight) in by_variable:
                value = np.asarray(by_variable[id(weight)])
                turned = isinstance(layer, layers.Conv2DTranspose) and value.ndim == 4
                gradients[path.removeprefix("params/")] = value.swapaxes(2, 3) if turned else value
    return float(loss), gradients
