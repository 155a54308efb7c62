"""Measures implementations side by side.

Each runs in a process of its own, all under the same allocator setting; they are driven one at a time, in rounds of
random order; a sample during which others used the cores is dropped and counted. `docs/benchmarks.md` says why.

    measurements = measure([Case("covidjax", "cnn"), Case("flax", "cnn")], Protocol(samples=9), print)
    rows = records.make(measurements, ...)
"""

import dataclasses
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from covidjax.errors import UserError
from covidjax.targets.child import Child, Ended

ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the processes share one GPU
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # compile times are those of a first run
    "KERAS_BACKEND": "jax",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
SETTLE_SECONDS = 0.05  # for the threads of the process before to stop spinning


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How samples are taken.

    samples: clean ones wanted of each case. max_rounds: 0 stands for four times as many.
    min_sample_seconds: a sample takes as many steps as fill it. warm_up_steps: before the first sample.
    max_foreign_share: of the cores' time; a sample with more is dropped. On an accelerator nothing is dropped.
    """

    samples: int = 9
    max_rounds: int = 0
    min_sample_seconds: float = 0.5
    warm_up_steps: int = 3
    max_foreign_share: float = 0.05
    seed: int = 0


@dataclasses.dataclass
class Measurement:
    """What came of a case.

    facts: what the worker told (`case.Subject.facts`), 'peak_bytes' added. step_seconds: one number a clean sample.
    dropped: samples that others disturbed. foreign_checked: whether such could be told. error: one line, or empty.
    """

    case: Case
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    dropped: int = 0
    steps_per_sample: int = 0
    foreign_checked: bool = False
    error: str = ""


def measure(
    cases: Sequence[Case],
    protocol: Protocol,
    log: Callable[[str], None],
    profile_folder: Path | None = None,
    python: str = sys.executable,
) -> list[Measurement]:
    """Prepares a worker for each case, one after the other, then samples them alternately; in the order of the cases.

    All workers of one call are alive together, and so are their memories: call once for what is to be compared.
    A case that fails has its `error` set and the others go on; what a person can mend raises UserError.
    profile_folder: where each leaves a trace after its last sample, in a folder named by its place among the cases.
    """
    measurements = [Measurement(case) for case in cases]
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for index, measurement in enumerate(measurements):
            with _failure_noted(measurement, log):
                worker = stack.enter_context(Worker(python, dict(measurement.case.environment)))
                _prepare(worker, measurement, protocol)
                workers[index] = worker
                log(f"{measurement.case.title()}: compiled in {measurement.facts['compile_seconds']:.1f} s")
        order = random.Random(protocol.seed)
        for _ in range(protocol.max_rounds or 4 * protocol.samples):
            lacking = [
                index
                for index, measurement in enumerate(measurements)
                if not measurement.error and len(measurement.step_seconds) < protocol.samples
            ]
            if not lacking:
                break
            for index in order.sample(lacking, len(lacking)):
                with _failure_noted(measurements[index], log):
                    time.sleep(SETTLE_SECONDS)
                    _sample(workers[index], measurements[index], protocol)
        for index, worker in workers.items():
            measurement = measurements[index]
            if not measurement.error:
                with _failure_noted(measurement, log):
                    measurement.facts["peak_bytes"] = worker.ask({"do": "memory"})["peak_bytes"]
                    if profile_folder is not None and not measurement.case.implementation.startswith("matmul"):
                        folder = profile_folder / f"{index}_{measurement.case.implementation.replace(':', '.')}"
                        worker.ask({"do": "profile", "steps": 3, "folder": str(folder)})
                        measurement.facts["profile"] = str(folder)
    return measurements


def _prepare(worker: "Worker", measurement: Measurement, protocol: Protocol) -> None:
    reply = worker.ask(
        {
            "do": "prepare",
            "case": dataclasses.asdict(measurement.case),
            "warm_up_steps": protocol.warm_up_steps,
            "min_sample_seconds": protocol.min_sample_seconds,
        }
    )
    measurement.facts, measurement.steps_per_sample = reply["facts"], reply["steps"]


def _sample(worker: "Worker", measurement: Measurement, protocol: Protocol) -> None:
    reply = worker.ask({"do": "sample", "steps": measurement.steps_per_sample})
    share = reply["foreign_share"]
    measurement.foreign_checked = share is not None
    if share is not None and share > protocol.max_foreign_share:
        measurement.dropped += 1
    else:
        measurement.step_seconds.append(reply["seconds"] / measurement.steps_per_sample)


@contextmanager
def _failure_noted(measurement: Measurement, log: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except WorkerFailed as error:
        measurement.error = str(error)
        log(f"{measurement.case.title()}: {error}")


class WorkerFailed(Exception):
    """A worker could not do what it was asked; the message is one line."""


class Worker(Child):
    """A process of `benchmarks.worker`, ended on leaving the context."""

    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        super().__init__(python, ["benchmarks.worker"], {**os.environ, **ENVIRONMENT, **environment})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request.

        Raises WorkerFailed where the work failed or the process ended, UserError where the request cannot be met.
        """
        try:
            reply: dict[str, Any] = self.reply(request)
        except Ended as error:
            raise WorkerFailed(f"its process {error}") from error
        if reply.get("kind") == "user":
            raise UserError(reply["error"])
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply


def check_protocol(protocol: Protocol) -> None:
    """Raises UserError for values that no measurement can have."""
    if protocol.samples < 1:
        raise UserError(f"--samples is {protocol.samples}: allowed is 1 and more, 9 for a figure to be quoted")
    if protocol.min_sample_seconds <= 0:
        raise UserError(f"--min_sample_seconds is {protocol.min_sample_seconds}: allowed are numbers above 0")
    if protocol.warm_up_steps < 1:
        raise UserError(f"--warm_up_steps is {protocol.warm_up_steps}: allowed is 1 and more")
    if protocol.max_rounds < 0:
        raise UserError(f"--max_rounds is {protocol.max_rounds}: allowed is 0 (four times --samples) and more")
