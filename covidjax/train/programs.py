"""Compiled programs: each distinct one is compiled once, also across phases and runs of one process."""

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled program.

    seconds: what its compilation took, or finding it; memory: bytes, {'temporary', 'arguments', 'outputs'}.
    """

    call: Any
    seconds: float
    memory: dict[str, int]


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


def _memory(call: Any) -> dict[str, int]:
    analysis = call.memory_analysis()
    if analysis is None:
        return {}
    return {
        "temporary": int(analysis.temp_size_in_bytes),
        "arguments": int(analysis.argument_size_in_bytes),
        "outputs": int(analysis.output_size_in_bytes),
    }
