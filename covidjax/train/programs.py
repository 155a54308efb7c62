"""Compiled programs: each distinct one is compiled once, also across phases and runs of one process."""

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled program.

    seconds: what its compilation took, or finding it; memory: bytes, {'temporary', 'arguments', 'outputs'}.
    refused: of another one, which was wanted more, what it needs where that did not fit; '' where none was.
    """

    call: Any
    seconds: float
    memory: dict[str, int]
    refused: str = ""


class Programs:
    """Compiles, one program after the other, and finds what is compiled already.

    compiled, reused: programs so far.
    """

    def __init__(self) -> None:
        self._known: dict[str, Program] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "compile")
        self.compiled = 0
        self.reused = 0

    def find(self, lower: Callable[[], Any]) -> Program:
        """The program that `lower` gives as `jax.stages.Lowered`."""
        with self._lock:
            began = time.monotonic()
            lowered = lower()
            # The text has everything that is computed: recipes of two runs are not equal, their programs may be.
            key = hashlib.sha256(lowered.as_text().encode()).hexdigest()
            if key in self._known:
                self.reused += 1
                return dataclasses.replace(self._known[key], seconds=time.monotonic() - began)
            call = lowered.compile()
            self.compiled += 1
            self._known[key] = Program(call, time.monotonic() - began, _memory(call))
            return self._known[key]

    def start(self, lower: Callable[[], Any]) -> Future[Program]:
        """Begins to find it in the background."""
        return self._worker.submit(self.find, lower)

    def start_one_that_fits(
        self, wanted: Callable[[], Any], smaller: Callable[[], Any], room: int | None
    ) -> Future[Program]:
        """Begins to find the program that is wanted, or the smaller one where that does not fit.

        room: bytes of a device; None where they are not known, and all fit.
        """

        def find() -> Program:
            try:
                program = self.find(wanted)
            except jax.errors.JaxRuntimeError as error:  # a TPU's compiler knows the memory
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                return dataclasses.replace(self.find(smaller), refused="more than there is")
            needed = program.memory.get("temporary", 0) + program.memory.get("arguments", 0)
            if room is None or needed <= room:
                return program
            refused = f"{needed / 2**20:,.1f} of {room / 2**20:,.1f} MiB"
            return dataclasses.replace(self.find(smaller), refused=refused)

        return self._worker.submit(find)


def _memory(call: Any) -> dict[str, int]:
    analysis = call.memory_analysis()
    if analysis is None:
        return {}
    return {
        "temporary": int(analysis.temp_size_in_bytes),
        "arguments": int(analysis.argument_size_in_bytes),
        "outputs": int(analysis.output_size_in_bytes),
    }
