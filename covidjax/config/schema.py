"""Every key of the config: its default, what it may be, and what it is for (`docs/config.md` is made from it)."""

from covidjax import losses, mesh, models, optim, tasks
from covidjax.config.kinds import (
    CLASS_NAMES,
    CLASS_WEIGHTS,
    EPOCHS,
    FINDING_POLICIES,
    MESH_AXES,
    NAME_OR_TUPLE,
    OPTIONS,
    PATTERNS,
    PLUGINS,
    RATE,
    RATE_FACTORS,
    STAGE_MODES,
    STAGES,
    TIMES,
    WINDOW,
    WORKDIRS,
    WRITER_NAMES,
    Key,
    decays,
)
from covidjax.data import augment, picture, resident, sources
from covidjax.data.findings import POLICIES
from covidjax.freeze.plan import BATCH_NORM_MODES
from covidjax.models import cnn, layers, mixture, preprocessing, resnet, unet, vgg
from covidjax.ops import choose as operations

KEYS = {
    "seed": Key(0, "Decides initialisation, augmentation, dropout and order.", low=0, high=2**31 - 1),
    "batch_size": Key(32, "Images per optimizer step, over all devices.", low=1),
    "epochs": Key(10, "Passes over the training images.", low=1),
    "evaluate_every_steps": Key(0, "Measure within epochs too, for the curves; 0: at their ends only.", low=0),
    "precision": Key("float32", "Of activations; parameters are never in half precision.", tuple(models.PRECISIONS)),
    "pretrained": Key("", "An id of the catalog, a file of weights, or the workdir of an earlier run."),
    "preprocessing": Key("auto", "Of pixels: what belongs to the weights, or 'unit': / 255.", preprocessing.CHOICES),
    "freeze": Key("none", "Strategies joined with '+', or a tuple of patterns.", kind=NAME_OR_TUPLE, elements=PATTERNS),
    "batch_norm": Key(
        "auto",
        "Statistics in use; 'auto': running ones in frozen stages.",
        BATCH_NORM_MODES,
        kind=NAME_OR_TUPLE,
        elements=STAGE_MODES,
    ),
    "lr_scale": Key((), "On the learning rate; the first pattern that matches holds.", elements=RATE_FACTORS),
    "weight_decays": Key((), "By parameter; for all else optimizer.weight_decay holds.", elements=decays(1e6, 0.1)),
    "phases": Key((), "Dicts of what each phase changes, one after the other; empty: one phase."),
    "accumulation_steps": Key(1, "Equal parts of a batch that are computed one after the other.", low=1),
    "ema_decay": Key(0.0, "Of the moving average of the trained parameters; 0: none.", low=0, high=0.99999),
    "ema_decays": Key((), "By parameter; for all else ema_decay holds.", elements=decays(0.99999, 0.99)),
    "features": Key(
        "auto",
        "Train from cached outputs of the frozen prefix; 'auto': where they may and fit.",
        ("off", "auto", "on"),
    ),
    "feature_views": Key(0, "Augmented views of each image that features are kept of; 0: none.", low=0, high=1000),
    "prefix_precision": Key("", "Of the frozen prefix; '' is that of the rest.", ("", "float32", "bfloat16")),
    "steps_per_call": Key(0, "Optimizer steps of one call of the compiled program; 0: chosen.", low=0, high=1e6),
    "remat": Key(
        "none",
        "What the backward pass computes again; 'lean': normalisation and ReLU; 'auto': that, where the batch does not "
        "fit else; or all of these stages.",
        ("none", "lean", "auto"),
        kind=NAME_OR_TUPLE,
        elements=STAGES,
    ),
    "ops": Key("auto", "Of a CPU: 'native' (oneDNN, Winograd) where built and sound, else 'xla'.", operations.CHOICES),
    "mesh": Key(mesh.DATA, "Axes of the mesh of devices; 'fsdp' divides the state too.", elements=MESH_AXES),
    "parallel": Key("jit", "How a step is spread over devices.", mesh.ENGINES),
    "sync_batch_norm": Key(True, "Statistics over the images of all devices, not of each its own."),
    "watchdog_seconds": Key(
        1800, "Without progress of one of several processes after which all end; 0: never.", low=0, high=1e6
    ),
    "nonfinite": Key(
        "stop",
        "A loss or gradient that is not finite: end the run, leave out the step, or go back to a checkpoint before it.",
        ("stop", "skip", "rewind"),
    ),
    "plugins": Key((), "Modules or .py files that register parts: see add-a-model.md.", elements=PLUGINS),
    "audit": Key("", "The audit.json whose verdict the run tells; '': that of the workdir, if there is one."),
    "writers": Key((), "Registered writers that get the rows of metrics.jsonl.", elements=WRITER_NAMES),
    # Several processes.
    "processes.start_seconds": Key(300, "Until all of several processes have to be there.", low=1, high=86400),
    "processes.heartbeat_seconds": Key(100, "Without a sign of one of them after which all end.", low=10, high=86400),
    # Images.
    "dataset.name": Key("phantom", "Source of the images; phantoms are synthetic X-rays.", sources.NAMES),
    "dataset.root": Key("", "The folder of the images, or the one that launch/prepare.py wrote."),
    "dataset.fold": Key(-1, "The fold that is the test split; -1: the split as it is.", low=-1),
    "dataset.split_seed": Key(
        0, "Of the split that is drawn where a folder of classes has none, and of subset.", low=0, high=2**31 - 1
    ),
    "dataset.subset": Key(0, "Training images that are drawn of all, patient by patient; 0: all.", low=0),
    "dataset.image_size": Key(128, "Pixels a side.", low=16, high=1e5),
    "dataset.channels": Key(1, "1 (gray) or 3 (RGB)."),
    "dataset.crop": Key("center", "To a square: cut, filled up with black, or squashed.", picture.CROPS),
    "dataset.enhancement": Key("none", "'clahe' evens out the contrast, part by part.", picture.ENHANCEMENTS),
    "dataset.window": Key(
        "", "Gray values that become black and white; '': the full range of their bits.", kind=WINDOW
    ),
    "dataset.frame": Key(0, "Of DICOM files with several: which one, from 1; 0: they are refused.", low=0, high=1e6),
    "dataset.oversample": Key((), "How often training images of a class count in an epoch.", elements=TIMES),
    "dataset.uncertain": Key(
        "ignore",
        "What uncertain findings of training images are taken for; pairs: of each finding.",
        tuple(POLICIES),
        kind=NAME_OR_TUPLE,
        elements=FINDING_POLICIES,
    ),
    "dataset.placement": Key("auto", "Of the training images; 'auto': on the device if they fit.", resident.PLACEMENTS),
    "dataset.skip_bad": Key(False, "Leave out images that cannot be decoded instead of ending."),
    "dataset.cache_dir": Key("", "Of decoded images, features and weights; '': the user's cache."),
    "dataset.seed": Key(0, "Of the images of phantoms.", low=0),
    "dataset.num_images": Key(600, "Training images of phantoms.", low=12),
    "dataset.mask_classes": Key(
        ("background", "foreground"), "Names of the class ids in the masks of 'folder'.", elements=CLASS_NAMES
    ),
    # The network.
    "model.name": Key("cnn", "The network, or a mixture of trained ones.", lambda: (*models.MODELS, models.ENSEMBLE)),
    "model.width": Key(16, "Of cnn, unet: features of the first block.", low=1, high=1e5),
    "model.num_blocks": Key(4, "Of cnn.", low=1, high=16),
    "model.normalisation": Key("batch", "Of cnn; 'none': biases, initialised as by Keras.", cnn.NORMALISATIONS),
    "model.dropout": Key(0.0, "Before the logits.", low=0, high=0.99),
    "model.arrangement": Key(
        "torchvision", "Of resnet50, 101, 152: where stride and biases are.", tuple(resnet.ARRANGEMENTS)
    ),
    "model.pooling": Key("average", "Before the head of a ResNet or cnn.", layers.POOLINGS),
    "model.head": Key(
        "original", "Of vgg16: 4096, 4096 units, 1024, 1024 units, or an average before the logits.", tuple(vgg.HIDDEN)
    ),
    "model.blocks": Key(5, "Of vgg16: how many of its blocks, from the first on, are before the head.", low=1, high=5),
    "model.normalised_features": Key(False, "Of classifiers: features of one, learned length before the logits."),
    "model.stem": Key(
        "replicate", "Gray images under three-channel weights: repeated, or kernels folded.", preprocessing.STEMS
    ),
    "model.upsampling": Key("transposed", "Of unet and unet_resnet*.", unet.UPSAMPLINGS),
    "model.attention": Key(False, "Of unet_resnet*."),
    "model.decoder": Key("unet", "Of unet_resnet*; 'fastai': that of fastai 1's unet_learner.", unet.DECODERS),
    "model.stochastic_depth": Key(
        0.0, "Of convnext_*, vit_*: examples that train without the last branch; less before.", low=0, high=0.99
    ),
    "model.options": Key((), "Of a registered network.", elements=OPTIONS),
    # The network 'ensemble'.
    "ensemble.members": Key((), "Two or more trained classifiers.", elements=WORKDIRS),
    "ensemble.mix": Key("probabilities", "What is mixed.", mixture.MIXES),
    "ensemble.weights": Key("accuracy", "What raises the weight of a member.", mixture.RULES),
    "ensemble.weights_from": Key("val", "The split that decides them; 'test' is a leak, and said so.", ("val", "test")),
    "optimizer.name": Key("adam", "The rule, as Keras has it.", lambda: optim.OPTIMIZERS),
    "optimizer.learning_rate": Key(
        1e-3, "A pair: low in the first stage, high in the last, geometric between.", above=0, high=1e6, kind=RATE
    ),
    "optimizer.momentum": Key(0.9, "Of sgd.", low=0, below=1),
    "optimizer.nesterov": Key(False, "Of sgd."),
    "optimizer.beta_1": Key(0.9, "Of adam, adamw, adamax: decay of the mean of the gradient.", low=0, below=1),
    "optimizer.beta_2": Key(0.999, "Of adam, adamw, adamax: decay of the gradient's size.", low=0, below=1),
    "optimizer.weight_decay": Key(0.0, "Decoupled, of kernels.", low=0, high=1e6),
    "optimizer.clip_norm": Key(0.0, "Largest norm of the trainable gradient; 0: not clipped.", low=0),
    "optimizer.schedule": Key(
        "constant", "Of the learning rate; fastai_one_cycle also moves beta_1: 0.95, 0.85, 0.95.", optim.SCHEDULES
    ),
    "optimizer.schedule_from": Key(
        "start", "Of the phase, or where that of the phase before is.", ("start", "previous")
    ),
    "optimizer.warmup_epochs": Key(0.0, "Of cosine: the rate rises linearly from 0.", low=0),
    "optimizer.pct_start": Key(0.3, "Of both one-cycles: the part in which the rate rises.", above=0, below=1),
    "optimizer.step_epochs": Key((), "Of step: finished epochs after which the rate falls.", elements=EPOCHS),
    "optimizer.step_factor": Key(0.1, "Of step: factor on the rate.", above=0),
    "optimizer.plateau_factor": Key(0.1, "Of plateau: factor on the rate.", above=0, below=1),
    "optimizer.plateau_patience": Key(10, "Of plateau: epochs without a better loss.", low=0),
    "optimizer.plateau_min_delta": Key(1e-4, "Of plateau: how much lower a better loss is.", low=0),
    "optimizer.plateau_min_learning_rate": Key(0.0, "Of plateau: the rate falls no further.", low=0),
    "optimizer.options": Key((), "Of a registered optimizer.", elements=OPTIONS),
    "loss.name": Key(
        "softmax_cross_entropy",
        "Of labels of images: one of the first three; of several findings: findings_* and asymmetric.",
        tasks.losses,
    ),
    "loss.class_weights": Key(
        "none",
        "A weight for each class, 'balanced', 'effective' or 'none'.",
        kind=NAME_OR_TUPLE,
        elements=CLASS_WEIGHTS,
    ),
    "loss.label_smoothing": Key(0.0, f"Of {', '.join(losses.SMOOTHED)}.", low=0, high=0.99),
    "loss.focal_gamma": Key(2.0, "Of focal: how far what is right already counts less.", low=0, high=10),
    "loss.tversky_beta": Key(0.7, "Of tversky: weight of missed pixels, 1 - beta of false ones.", low=0, high=1),
    "loss.options": Key((), "Of a loss of findings, or a registered one.", elements=OPTIONS),
    "augment.rotate": Key(0.0, "Degrees either way.", low=0, high=180),
    "augment.shift": Key(0.0, "Part of the side, either way.", low=0, high=1),
    "augment.scale": Key(0.0, "Size between 1 - scale and 1 + scale.", low=0, high=0.9),
    "augment.zoom": Key(0.0, "Size between 1 and 1 + zoom, at a random place in the image.", low=0, high=9),
    "augment.affine_probability": Key(1.0, "Of each of rotate, shift, scale and zoom in an image.", above=0, high=1),
    "augment.flip": Key(False, "Left and right: the heart has a side."),
    "augment.brightness": Key(0.0, "Factor between 1 - brightness and 1 + brightness.", low=0, high=1),
    "augment.contrast": Key(0.0, "Factor on the distance from the image's mean.", low=0, high=1),
    "augment.sharpen": Key(0.0, "Factor on the distance from the smoothed image.", low=0, high=1),
    "augment.lighting_probability": Key(
        1.0, "Of each of brightness, contrast and sharpen in an image.", above=0, high=1
    ),
    "augment.crop_scale": Key(
        0.0, "Least part of the area that a random crop shows, sides 3:4 to 4:3; 0: no crop.", low=0, high=1
    ),
    "augment.mixup": Key(
        0.0, "Alpha of weighted means of two images and of their losses; 0: none. Not of masks.", low=0, high=100
    ),
    "augment.cutmix": Key(
        0.0, "Alpha of boxes from another image, whose label counts by area; 0: none. Not of masks.", low=0, high=100
    ),
    "checkpoint.every_epochs": Key(1, "Epochs from one checkpoint to the next.", low=1),
    "checkpoint.keep": Key(2, "The latest that stay, beside the best one.", low=2),
    "checkpoint.best": Key("loss", "The validation figure that names the best one.", tasks.best),
    "checkpoint.evaluate": Key("best", "The one that is evaluated, predicts and starts later runs.", ("best", "last")),
    "early_stopping.patience": Key(
        0,
        "Epochs of the last phase without a better checkpoint.best after which the run ends; 0: never.",
        low=0,
        high=1e6,
    ),
}
# Names for the values of a whole section; what is recorded are the values.
PRESETS = {"augment": augment.PRESETS}


def keys() -> dict[str, Key]:
    """KEYS, and those of registered augmentations."""
    own = {
        f"augment.{name}": Key(part.default, part.text, low=part.low, high=part.high)
        for name, part in augment.AUGMENTATIONS.items()
    }
    return KEYS | own


# What a phase may change, keys and sections, and the keys that stand in phases only.
PHASE_KEYS = ("epochs", "steps", "freeze", "batch_norm", "optimizer", "lr_scale", "weight_decays", "split")
PHASE_ONLY = {
    "steps": Key(100, "Optimizer steps of the phase, instead of its epochs.", low=1),
    "split": Key("train", "What the phase trains on; 'train+val' is for the last ones.", ("train", "train+val")),
}
