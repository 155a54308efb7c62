"""Kinds of labels: the tasks, and which of them a network and a loss belong to."""

from collections.abc import Callable

from covidjax import models
from covidjax.errors import UserError
from covidjax.registry import Registry
from covidjax.tasks.base import Task
from covidjax.tasks.classification import CLASSIFICATION
from covidjax.tasks.multilabel import MULTILABEL
from covidjax.tasks.segmentation import SEGMENTATION

TASKS: Registry[Task] = Registry("task", {task.name: task for task in (CLASSIFICATION, SEGMENTATION, MULTILABEL)})


def register_task(make: Callable[[], Task]) -> Callable[[], Task]:
    """Makes the task that a function gives one of those that losses choose: a decorator.

    A registered task is that of the losses in its `losses`, whatever the network, if both label the same; none of its
    losses is another task's. Raises UserError for a name that another task has, and for a loss that has a task already.
    """
    task = make()
    others = [other for other in TASKS.values() if other.labels == task.labels and other.name != task.name]
    if taken := [name for other in others for name in other.losses if name in task.losses]:
        raise UserError(f"the task {task.name!r} has the loss {taken[0]!r} of another task: give it a name of its own")
    TASKS.add(task.name, task, make)
    return make


def losses() -> tuple[str, ...]:
    """The names of all losses."""
    return tuple(dict.fromkeys(name for task in TASKS.values() for name in task.losses))


def best() -> tuple[str, ...]:
    """The validation figures that may name the best checkpoint."""
    return tuple(dict.fromkeys(name for task in TASKS.values() for name in task.best))


def of(model_name: str, loss_name: str = "") -> Task:
    """The task of a network and a loss of these names: of the tasks for what the network labels the one with the loss.

    Where none has it, the first of them.
    """
    fitting = [task for task in TASKS.values() if task.labels == models.labels(model_name)]
    return next((task for task in fitting if loss_name in task.losses), fitting[0])
