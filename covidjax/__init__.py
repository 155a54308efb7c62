"""Transfer learning on medical images with JAX: frozen means free. Research use only.

Each line imports only from those above it:

- errors, files, console, process, command, journal: what every part needs
- ops, data, checkpoint, mesh, optim, losses, freeze: operations, images, files of a run, devices, and what trains
- targets: devices that are not here, and programs compiled for them
- models, metrics: networks as named stages, figures of predictions
- config, tasks: every key with its default, kinds of labels
- weights, report: pretrained weights, pages
- evaluate, train: networks in inference, the training step and its loop
- runs, study: one function for each command, comparisons of freeze strategies; runs.library: `covidjax.load` and
  `covidjax.train`, for notebooks and programs

`ops, models, freeze, optim, losses, mesh` and `train.step` need jax, flax, optax and numpy alone.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: a part such as `ops` is of use without what training needs.
    if name in ("Ensemble", "Network", "load"):
        return getattr(import_module("covidjax.runs.library"), name)
    if name == "train":
        return import_module("covidjax.train")
    raise AttributeError(f"module 'covidjax' has no attribute {name!r}")
