"""The config of a run: defaults, a file and the command line that change them, and its form as JSON."""

import ast
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from covidjax.config.schema import EITHER, check, check_value, flatten, unknown_key
from covidjax.errors import UserError


def default_config() -> ConfigDict:
    """Every key that exists, with its default; the type of the default is the type of the key."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 32  # images per optimizer step, over all devices
    config.epochs = 10
    config.evaluate_every_steps = 0  # validation within epochs, for the curves; 0: at the end of each epoch only
    config.precision = "float32"
    config.pretrained = ""  # an id of the catalog, a file of weights, or the workdir of an earlier run
    config.preprocessing = "auto"  # of pixel values: what belongs to the weights, or 'unit': divided by 255
    config.freeze = FieldReference("none", field_type=object)  # strategies joined with '+', or a tuple of patterns
    config.batch_norm = FieldReference("auto", field_type=object)  # a mode, or pairs of a stage and its mode
    config.lr_scale = ()  # pairs of a pattern and a factor on the learning rate; the first that matches holds
    config.weight_decays = ()  # pairs of a pattern and a decay; for all else optimizer.weight_decay holds
    config.phases = ()  # dicts of what each phase changes; `steps` may stand in one instead of `epochs`
    config.accumulation_steps = 1
    config.ema_decay = 0.0  # 0: no moving average of the trained parameters
    config.ema_decays = ()  # pairs of a pattern and a decay; for all else ema_decay holds
    config.features = "auto"  # whether what the frozen prefix makes of an image is kept: on where it is legal and fits
    config.feature_views = 0  # augmented views of each image that features are kept of; 0: no augmentation before them
    config.prefix_precision = ""  # of the frozen prefix; '' is that of the rest
    config.steps_per_call = 0  # optimizer steps of one call of the compiled program; 0: chosen
    config.remat = ()  # trained stages whose activations are computed again in the backward pass instead of kept
    config.ops = "auto"  # of a CPU: 'native' (oneDNN, Winograd) where it is built and passes its check, else 'xla'
    config.parallel = "jit"  # how a step is spread over devices
    config.sync_batch_norm = True  # statistics over the images of all devices, not of each its own

    config.dataset = ConfigDict()
    config.dataset.name = "phantom"
    config.dataset.root = ""
    config.dataset.fold = -1
    config.dataset.image_size = 128
    config.dataset.channels = 1
    config.dataset.crop = "center"
    config.dataset.enhancement = "none"  # of the decoded image: 'clahe' evens out its contrast, part by part
    config.dataset.oversample = ()  # pairs of a class and how often each training image of it counts in an epoch
    config.dataset.placement = "auto"
    config.dataset.skip_bad = False
    config.dataset.cache_dir = ""
    config.dataset.seed = 0
    config.dataset.num_images = 600
    config.dataset.mask_classes = ("background", "foreground")  # names of the class ids in the masks of 'folder'

    config.model = ConfigDict()
    config.model.name = "cnn"
    config.model.width = 16
    config.model.num_blocks = 4
    config.model.normalisation = "batch"  # of cnn; 'none': convolutions with biases, as Keras initialises them
    config.model.dropout = 0.0
    config.model.arrangement = "torchvision"  # of resnet50, resnet101, resnet152: where stride and biases are
    config.model.pooling = "average"  # before the head of a ResNet or cnn
    config.model.head = "original"  # of vgg16: 4096, 4096, or the paper's 1024, 1024 units before the logits
    config.model.normalised_features = False  # of classifiers: features of one, learned length before the logits
    config.model.stem = "replicate"  # one-channel images under three-channel weights: repeat them, or fold the kernels
    config.model.upsampling = "transposed"  # of unet
    config.model.attention = False  # of unet_resnet18, unet_resnet34, unet_resnet50

    config.ensemble = ConfigDict()  # of the network 'ensemble'
    config.ensemble.members = ()  # workdirs of trained classifiers, two or more
    config.ensemble.mix = "probabilities"  # or their 'logits'
    config.ensemble.weights = "accuracy"  # raised every round by each member's accuracy, by 'gradient', or 'equal'
    config.ensemble.weights_from = "val"  # the split that decides them; 'test' is a leak, and the report says so

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    # A number, or a pair (low, high): low in the first stage, high in the last, spread geometrically between.
    config.optimizer.learning_rate = FieldReference(1e-3, field_type=object)
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.schedule = "constant"
    config.optimizer.schedule_from = "start"  # of the phase, or where that of the 'previous' phase is
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.pct_start = 0.3
    config.optimizer.step_epochs = ()
    config.optimizer.step_factor = 0.1
    config.optimizer.plateau_factor = 0.1
    config.optimizer.plateau_patience = 10
    config.optimizer.plateau_min_delta = 1e-4
    config.optimizer.plateau_min_learning_rate = 0.0

    config.loss = ConfigDict()
    config.loss.name = "softmax_cross_entropy"
    config.loss.class_weights = FieldReference("none", field_type=object)  # a name, numbers, or pairs (class, weight)
    config.loss.label_smoothing = 0.0  # of the two cross-entropies
    config.loss.focal_gamma = 2.0  # of focal: how far pixels that are right already count less
    config.loss.tversky_beta = 0.7  # of tversky: the weight of missed pixels; 1 - beta is that of false ones

    config.augment = ConfigDict()
    config.augment.rotate = 0.0  # degrees either way
    config.augment.shift = 0.0  # fraction of the side, either way
    config.augment.scale = 0.0  # size between 1 - scale and 1 + scale
    config.augment.flip = False  # left and right: the heart has a side
    config.augment.brightness = 0.0  # factor between 1 - brightness and 1 + brightness
    config.augment.contrast = 0.0  # factor on the distance from the image's mean
    config.augment.sharpen = 0.0  # factor on the distance from the smoothed image, between 1 - sharpen and 1 + sharpen

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.keep = 2
    config.checkpoint.best = "loss"  # the validation figure that names the best checkpoint
    return config.lock()


def load(spec: str, overrides: Sequence[str]) -> ConfigDict:
    """The validated config of `path.py[:argument]` with `--config.key=value` overrides.

    Raises UserError, naming the key, what is allowed and the nearest existing name.
    """
    path, _, argument = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config: there is no file {path!r}: give a config such as configs/quickstart.py")
    module_spec = importlib.util.spec_from_file_location("covidjax_run_config", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"--config: {path} could not be evaluated: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config in {path} returns {type(config).__name__}: it has to return the ConfigDict of "
            "covidjax.config.default_config(), changed"
        )
    for override in overrides:
        _apply(config, override)
    validate(config)
    return config


def validate(config: ConfigDict) -> None:
    """Checks every key and value against the defaults. Raises UserError at the first that is wrong."""
    check(config, dict(flatten(default_config())))


def from_json(values: dict[str, Any]) -> ConfigDict:
    """The config that `to_json` wrote. Raises UserError for one with other keys, of another version or edited."""
    config = default_config()
    try:
        with config.ignore_type():
            config.update(_tuples(values))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"config.json is not a config of this version: {' '.join(str(error).split())}") from error
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def _apply(config: ConfigDict, override: str) -> None:
    name, equals, text = override.removeprefix("--config.").partition("=")
    known = dict(flatten(default_config()))
    if name not in known:
        raise UserError(unknown_key(name, known))
    if not equals:
        raise UserError(f"--config.{name} has no value: write --config.{name}=VALUE (default {known[name]!r})")
    value: Any = text
    if not isinstance(known[name], str) or (name in EITHER and text.startswith(("(", "["))):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            value = text
    owner, _, leaf = name.rpartition(".")
    target = config[owner] if owner else config
    check_value(f"config.{name}", name, value, known[name])
    with target.ignore_type():
        target[leaf] = _floats(value) if isinstance(known[name], float) else _tuples(value)


def _floats(value: Any) -> Any:
    return tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)
