"""What the implementations on JAX share: a compiled step that is called over and over, and what is known of it."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import operations


@dataclasses.dataclass
class JaxSubject:
    """A `case.Subject`. step: (carry, *inputs) -> carry, of which the first is replaced at each call.

    wait_each_step: on a CPU calls that do not depend on each other would run at the same time.
    """

    step: Callable[..., Any]
    carry: Any
    inputs: tuple[Any, ...]
    known: dict[str, Any]
    hlo: str = ""
    wait_each_step: bool = False

    def facts(self) -> dict[str, Any]:
        """See `case.Subject`."""
        return self.known

    def run(self, steps: int) -> None:
        """See `case.Subject`."""
        for _ in range(steps):
            self.carry = self.step(self.carry, *self.inputs)
            if self.wait_each_step:
                jax.block_until_ready(self.carry)
        jax.block_until_ready(self.carry)

    def peak_bytes(self) -> int | None:
        """See `case.Subject`."""
        return peak_bytes()

    def profile(self, steps: int, folder: str) -> None:
        """See `case.Subject`; beside the trace the compiled program and the times of its operations."""
        with jax.profiler.trace(folder):
            self.run(steps)
        Path(folder, "program.hlo.txt").write_text(self.hlo, encoding="utf-8")
        operations.write(Path(folder), operations.of_jax_trace(Path(folder), self.hlo, steps))


def train_subject(
    step: Any, carry: Any, inputs: Sequence[Any], counts: dict[str, Any], *, devices: int = 1
) -> JaxSubject:
    """A training step. step: jitted, (carry, *inputs) -> carry, its carry donated; counts: parameters and so on."""
    compiled, known = _compile(step, (carry, *inputs), devices)
    # On several CPU devices the collectives of steps that run ahead of each other wait for each other.
    waits = known["platform"] == "cpu" and devices > 1
    return JaxSubject(compiled, carry, tuple(inputs), {**known, **counts}, compiled.as_text(), waits)


def inference_subject(forward: Any, variables: Any, images: Any, counts: dict[str, Any]) -> JaxSubject:
    """A forward pass. forward: jitted, (variables, images) -> logits; counts: parameters and so on."""
    compiled, known = _compile(forward, (variables, images), 1)

    def step(_: Any, variables: Any, images: Any) -> Any:
        return compiled(variables, images)

    waits = known["platform"] == "cpu"
    return JaxSubject(step, (), (variables, images), {**known, **counts}, compiled.as_text(), waits)


def _compile(function: Any, arguments: tuple[Any, ...], devices: int) -> tuple[Any, dict[str, Any]]:
    began = time.perf_counter()
    lowered = function.lower(*arguments)
    compiled = lowered.compile()
    known = describe(compiled, time.perf_counter() - began)
    # What the compiler kept, counted for one of the devices; on an accelerator convolutions are calls that it cannot
    # count, so there it is the program before optimisation, with all that is dropped later.
    counted = (compiled, devices) if known["platform"] == "cpu" else (lowered, 1)
    known["flops"] = counted[1] * float((counted[0].cost_analysis() or {}).get("flops", 0.0)) or None
    return compiled, known


def describe(compiled: Any, seconds: float) -> dict[str, Any]:
    """What a compiled program tells of itself."""
    device, memory = jax.local_devices()[0], compiled.memory_analysis()
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "compile_seconds": seconds,
        "temp_bytes": None if memory is None else int(memory.temp_size_in_bytes),
        "versions": versions("jax", "jaxlib", "flax", "optax", "keras"),
    }


def peak_bytes() -> int | None:
    """The most memory of the first device that was in use; None on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def parameter_counts(total: Any, trainable: Any, slots: Any) -> dict[str, Any]:
    """Numbers of parameters and bytes of optimizer state, of trees of arrays; scalars of the optimizer count too."""

    def sizes(tree: Any) -> int:
        return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))

    return {
        "total_params": sizes(total),
        "trainable_params": sizes(trainable),
        "optimizer_bytes": sum(int(leaf.nbytes) for leaf in jax.tree.leaves(slots)),
    }


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
