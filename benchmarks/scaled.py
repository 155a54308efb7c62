"""covidjax's step over several devices or processes, under each engine, as subjects of measurements."""

import dataclasses
import os
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import ours, work
from benchmarks.case import Case, Subject
from benchmarks.jax_subject import JaxSubject, parameter_counts, train_subject
from covidjax.errors import UserError
from covidjax.freeze import flops
from covidjax.mesh import DATA, divide, mesh_of, own_rows, place
from covidjax.targets.child import Child
from covidjax.train import parallel
from covidjax.train.step import train_step

# engine: (config.parallel, config.sync_batch_norm, the axes of config.mesh)
ENGINES = {
    "jit": ("jit", True, DATA),
    "fsdp": ("jit", True, (("data", 1), ("fsdp", -1))),
    "processes": ("jit", True, DATA),
    "pmap": ("pmap", True, DATA),
    "pmap_local": ("pmap", False, DATA),
}


def build(case: Case) -> Subject:
    """A `case.Subject`. options: devices, engine (a key of ENGINES); of 'processes' address and rank, in the others.

    facts has first_loss beside what all have: equal for all numbers of devices that divide one batch among them,
    where statistics are those of the whole batch. Raises UserError where there are fewer devices.
    """
    work.check(case)
    options = dict(case.options)
    count, (engine, synchronised, axes) = options["devices"], ENGINES[options["engine"]]
    if case.batch_size % count:
        raise UserError(f"batch size {case.batch_size} does not divide over {count} devices: take a multiple")
    if options["engine"] == "processes" and count > 1:
        return _one_of(case, count) if "rank" in options else _together(case, count)
    if count > jax.local_device_count():
        raise UserError(f"--devices has {count}, and there are {jax.local_device_count()} devices here: lower it")
    return _subject(case, mesh_of(jax.local_devices()[:count], axes), engine, synchronised=synchronised)


def _subject(case: Case, mesh: Mesh, engine: str, *, synchronised: bool) -> JaxSubject:
    variables = ours.make_variables(case)
    recipe = dataclasses.replace(ours.make_recipe(case, variables), sync_batch_norm=synchronised)
    state = ours.make_state(recipe, variables)
    placed = parallel.shardings(state, mesh)
    images, labels = work.batch(case)
    own = own_rows(mesh, case.batch_size)
    batch = divide({"image": images[own], "label": labels[own]}, mesh, engine)
    if engine == "pmap":  # the axis of devices is the first
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    counts = parameter_counts(state.params, recipe.plan.split(state.params)[0], state.opt_state)
    counts["flops"] = flops.count(partial(train_step, recipe=recipe), state, {"image": images, "label": labels})
    step = parallel.mapped_step(recipe, mesh, engine, resident=False, placed=placed)
    subject = train_subject(step, place(state, placed), (batch,), counts, devices=mesh.size)
    subject.run(1)
    first_loss = float(np.asarray(subject.carry.metrics.loss))
    known: dict[str, Any] = {**subject.known, "first_loss": first_loss}
    return dataclasses.replace(subject, known=known)


# ---- Processes of one device each ----


@dataclasses.dataclass
class Together:
    """A `case.Subject` of the first of several processes: what it does the others do at the same time."""

    subject: JaxSubject
    others: Sequence[Child]

    def facts(self) -> dict[str, Any]:
        """See `case.Subject`."""
        return {**self.subject.facts(), "processes": 1 + len(self.others)}

    def run(self, steps: int) -> None:
        """See `case.Subject`."""
        _while_others(self.others, {"do": "sample", "steps": steps}, partial(self.subject.run, steps))

    def peak_bytes(self) -> int | None:
        """See `case.Subject`."""
        return self.subject.peak_bytes()

    def profile(self, steps: int, folder: str) -> None:
        """See `case.Subject`."""
        work = partial(self.subject.profile, steps, folder)
        _while_others(self.others, {"do": "sample", "steps": steps}, work)


def _together(case: Case, count: int) -> Together:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    others = [Child(sys.executable, ["benchmarks.worker"], os.environ) for _ in range(1, count)]

    def member(rank: int) -> Case:
        return dataclasses.replace(case, options=(*case.options, ("address", address), ("rank", rank)))

    def begin() -> JaxSubject:
        subject = _one_of(member(0), count)
        subject.run(1)  # as the workers of the others do
        return subject

    requests = [
        {"do": "prepare", "case": dataclasses.asdict(member(rank)), "warm_up_steps": 0, "min_sample_seconds": 0}
        for rank in range(1, count)
    ]
    return Together(_while_others(others, requests, begin), others)


def _one_of(case: Case, count: int) -> JaxSubject:
    options = dict(case.options)
    jax.distributed.initialize(
        options["address"], count, options["rank"], local_device_ids=[options["rank"]], heartbeat_timeout_seconds=10
    )
    return _subject(case, mesh_of(jax.devices()), "jit", synchronised=True)


def _while_others(others: Sequence[Child], requests: Any, work: Any) -> Any:
    """What `work` gives, done while the others do what they are asked. requests: one for all, or one each."""
    requests = requests if isinstance(requests, list) else [requests] * len(others)
    with ThreadPoolExecutor(len(others)) as pool:
        replies = [pool.submit(child.reply, request) for child, request in zip(others, requests, strict=True)]
        done = work()
        for reply in replies:
            if error := reply.result().get("error"):
                raise RuntimeError(error)
    return done
