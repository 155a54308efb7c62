"""What differs between networks that label images and networks that label pixels (`models.task`)."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covidjax import losses
from covidjax.data.examples import Examples
from covidjax.data.sources import Task
from covidjax.errors import UserError
from covidjax.losses import LossFunction, mask_loss_function


def targets(examples: Examples, task: Task) -> np.ndarray:
    """What logits are held against: labels [n] int32, or class ids of pixels [n, height, width] uint8.

    Raises UserError where pixels are to be labelled and there are no masks.
    """
    if task == "classification":
        return examples.labels
    if examples.masks is None:
        raise UserError(
            f"the {examples.split} split has no masks: choose another data set, or a network for classification"
        )
    return examples.masks


def epoch_targets(examples: Examples, task: Task) -> np.ndarray:
    """The targets of an epoch of training, each as often as it counts: what balanced class weights go by."""
    once = targets(examples, task)
    return once if examples.repeats is None else once[examples.turns()]


def loss_function(loss_config: Any, task: Task, class_weights: Any) -> LossFunction:
    """The loss of a config section: (logits, targets) -> [batch]. class_weights: of `losses.class_weights`."""
    make = losses.loss_function if task == "classification" else mask_loss_function
    return make(loss_config, class_weights)


def plain_loss(loss_config: ConfigDict, task: Task) -> LossFunction:
    """The loss as it is reported: without class weights and label smoothing."""
    return loss_function(ConfigDict({**loss_config.to_dict(), "label_smoothing": 0.0}), task, None)
