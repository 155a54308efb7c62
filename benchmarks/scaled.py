"""covidjax's step over several devices, under each engine, as subjects of measurements."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import ours, work
from benchmarks.case import Case, Subject
from benchmarks.jax_subject import parameter_counts, train_subject
from covidjax.errors import UserError
from covidjax.freeze import flops
from covidjax.mesh import divide, replicated
from covidjax.train import parallel
from covidjax.train.step import train_step

# engine: (config.parallel, config.sync_batch_norm)
ENGINES = {"jit": ("jit", True), "pmap": ("pmap", True), "pmap_local": ("pmap", False)}


def build(case: Case) -> Subject:
    """A `case.Subject`. options: devices, engine (a key of ENGINES).

    facts has first_loss beside what all have: equal for all numbers of devices that divide one batch among them,
    where statistics are those of the whole batch. Raises UserError where there are fewer devices.
    """
    work.check(case)
    options = dict(case.options)
    count, (engine, synchronised) = options["devices"], ENGINES[options["engine"]]
    if count > jax.local_device_count():
        raise UserError(f"--devices has {count}, and there are {jax.local_device_count()} devices here: lower it")
    if case.batch_size % count:
        raise UserError(f"batch size {case.batch_size} does not divide over {count} devices: take a multiple")
    mesh = jax.make_mesh((count,), ("data",), devices=jax.local_devices()[:count], axis_types=(AxisType.Auto,))
    variables = ours.make_variables(case)
    recipe = dataclasses.replace(ours.make_recipe(case, variables), sync_batch_norm=synchronised)
    state = jax.device_put(ours.make_state(recipe, variables), replicated(mesh))
    images, labels = work.batch(case)
    batch = divide({"image": images, "label": labels}, mesh, engine)
    if engine == "pmap":  # the axis of devices is the first
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    counts = parameter_counts(state.params, recipe.plan.split(state.params)[0], state.opt_state)
    counts["flops"] = flops.count(partial(train_step, recipe=recipe), state, {"image": images, "label": labels})
    step = parallel.mapped_step(recipe, mesh, engine, resident=False)
    subject = train_subject(step, state, (batch,), counts, devices=count)
    subject.run(1)
    first_loss = float(np.asarray(subject.carry.metrics.loss))
    known: dict[str, Any] = {**subject.known, "first_loss": first_loss}
    return dataclasses.replace(subject, known=known)
