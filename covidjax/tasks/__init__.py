"""Kinds of labels: the tasks, and which of them a network and a loss belong to."""

from covidjax import models
from covidjax.tasks.base import Task
from covidjax.tasks.classification import CLASSIFICATION
from covidjax.tasks.segmentation import SEGMENTATION

TASKS: tuple[Task, ...] = (CLASSIFICATION, SEGMENTATION)
LOSSES = tuple(dict.fromkeys(name for task in TASKS for name in task.losses))
BEST = tuple(dict.fromkeys(name for task in TASKS for name in task.best))


def of(model_name: str, loss_name: str = "") -> Task:
    """The task of a network and a loss of these names: of the tasks for what the network labels the one with the loss.

    Where none has it, the first of them.
    """
    fitting = [task for task in TASKS if task.labels == models.labels(model_name)]
    return next((task for task in fitting if loss_name in task.losses), fitting[0])
