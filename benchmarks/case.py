"""What a measurement is about: the work, who does it, and what a process that does it offers."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

from covidjax.errors import UserError

# implementation: (what builds it, the packages it needs, the extra of pyproject.toml that brings them)
IMPLEMENTATIONS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "covidjax": ("benchmarks.ours:build", ("jax", "flax", "optax"), ""),
    "flax": ("benchmarks.peers.flax_plain:build", ("jax", "flax", "optax"), ""),
    "flax_norm_logged": ("benchmarks.peers.flax_plain:build_norm_logged", ("jax", "flax", "optax"), ""),
    "keras": ("benchmarks.peers.keras_jax:build", ("jax", "keras"), "peers"),
    "torch": ("benchmarks.peers.torch_eager:build", ("torch",), "peers"),
    "torch_nchw": ("benchmarks.peers.torch_eager:build_nchw", ("torch",), "peers"),
    "torch_compile": ("benchmarks.peers.torch_eager:build_compiled", ("torch",), "peers"),
    "matmul_jax": ("benchmarks.ceiling:build_jax", ("jax",), ""),
    "matmul_torch": ("benchmarks.ceiling:build_torch", ("torch",), "peers"),
}
WITHOUT_KERAS = ("unet_resnet34", "densenet121", "convnext_tiny", "convnext_base", "vit_b16", "vit_b14")


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell of a table: an implementation doing a piece of work.

    implementation: a key of IMPLEMENTATIONS, or 'package.module:function' of a function like those.
    mode: 'train' (forward, loss, backward, update) or 'inference' (forward, running statistics).
    freeze: 'none' | 'backbone' | 'until:<stage>'; what our own implementation takes beyond is its own affair.
    image_size: pixels a side; channels and classes follow from the model (`benchmarks.work`).
    width: of the first stage, for cnn and unet; 0 stands for the model's own.
    ops: 'xla' | 'auto' | 'native', for covidjax.
    options: further (name, value) pairs for the function that builds.
    environment: variables of the worker's process, as (name, value) pairs.
    """

    implementation: str
    model: str
    freeze: str = "none"
    precision: str = "float32"
    batch_size: int = 8
    image_size: int = 224
    mode: str = "train"
    width: int = 0
    ops: str = "xla"
    options: tuple[tuple[str, Any], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def work(self) -> tuple[Any, ...]:
        """What is equal in cases that do the same work, whoever does it and whatever is frozen."""
        return (self.model, self.precision, self.batch_size, self.image_size, self.mode, self.width)

    def title(self) -> str:
        """In a few words, for progress lines."""
        words = [self.implementation, self.model, self.precision, f"batch {self.batch_size}", f"{self.image_size} px"]
        return " ".join([*words, *([self.freeze] if self.freeze != "none" else []), self.mode])


class Subject(Protocol):
    """What a worker drives; `build(case)` gives one with everything on the device, compiled."""

    def facts(self) -> dict[str, Any]:
        """What is known before a sample is taken.

        device, platform ('cpu', 'gpu', 'tpu'), compile_seconds, flops (of a step, or None), temp_bytes (or None),
        trainable_params, total_params, optimizer_bytes, versions; threads where it knows better than the number of
        cores; steps_per_sample where a sample has to take a multiple of so many.
        """
        ...

    def run(self, steps: int) -> None:
        """Takes steps, and returns when the device has finished the last."""
        ...

    def peak_bytes(self) -> int | None:
        """The most device memory that was in use; None where only the process as a whole is known."""
        ...

    def profile(self, steps: int, folder: str) -> None:
        """Takes steps under the framework's profiler, which writes a trace into the folder."""
        ...


def build(case: Case) -> Subject:
    """The subject of a case, in this process. Raises UserError where what it needs is not installed."""
    if absent := missing(case.implementation):
        raise UserError(absent)
    location = IMPLEMENTATIONS.get(case.implementation, (case.implementation, (), ""))[0]
    module, _, function = location.partition(":")
    return getattr(importlib.import_module(module), function)(case)


def missing(implementation: str) -> str:
    """Why an implementation cannot run here, in one line; empty if it can. Raises UserError for an unknown name."""
    if ":" in implementation:
        return ""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"there is no implementation {implementation!r}: allowed are {', '.join(IMPLEMENTATIONS)}")
    _, packages, extra = IMPLEMENTATIONS[implementation]
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if not absent:
        return ""
    remedy = f"pip install -e '.[{extra}]'" if extra else "pip install -e ."
    return f"{implementation} needs {', '.join(absent)}, not installed here: {remedy}"


def offers(implementation: str, case: Case) -> str:
    """Why a peer does not do a piece of work, in one line; empty if it does."""
    if implementation == "keras" and case.model in WITHOUT_KERAS:
        return f"keras has no {case.model} here"
    return ""


def check_installed(implementations: Sequence[str]) -> None:
    """Raises UserError for the first that cannot run here."""
    for implementation in implementations:
        if absent := missing(implementation):
            raise UserError(absent)
