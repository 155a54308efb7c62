"""Memory of the devices: what a run needs of it, told where it does not suffice."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from covidjax.errors import UserError
from covidjax.train import parallel
from covidjax.train.compiling import Compiling
from covidjax.train.job import Job
from covidjax.train.phases import Phase


def needed(job: Job, phase: Phase, program: Mapping[str, int]) -> dict[str, int]:
    """Bytes on each device by what takes them, in a phase. program: of it, {} where it is unknown."""
    state = job.phase_state(phase)
    placed = parallel.shardings(state, job.mesh)
    fields = {"parameters": "params", "optimizer state": "opt_state", "moving averages": "average"}
    parts = {
        words: parallel.bytes_on_device(getattr(state, name), getattr(placed, name)) for words, name in fields.items()
    }
    data = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(job.abstract_data(phase)))
    resident = job.resident(phase)
    parts["training data" if resident else "a batch"] = data if resident else data // job.mesh.size
    if "temporary" in program:
        parts["activations and gradients"] = program["temporary"]
    return parts


@contextlib.contextmanager
def told(job: Job, compiling: Compiling) -> Iterator[None]:
    """Within it a device that has no memory left is a mistake that a person can mend.

    Raises UserError with what takes how much, and what would help.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise UserError(_message(job, compiling.memory())) from error


def _message(job: Job, programs: Mapping[str, Mapping[str, int]]) -> str:
    phases = [needed(job, phase, programs.get(str(phase.index), {})) for phase in job.phases]
    most: dict[str, Any] = max(phases, key=lambda parts: sum(parts.values()))
    parts = ", ".join(f"{words} {size / 2**20:,.1f} MiB" for words, size in most.items() if size)
    return (
        f"out of memory: each of {job.mesh.size} device(s) needs, as estimated, {parts}: lower config.batch_size, "
        "raise config.accumulation_steps, name trained stages in config.remat, set config.precision=bfloat16, "
        "config.dataset.placement=stream, or on several devices an axis 'fsdp' in config.mesh"
    )
