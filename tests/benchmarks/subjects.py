"""Subjects that cost nothing, for tests of the harness, built in a worker as 'tests.benchmarks.subjects:name'."""

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from covidjax.errors import UserError


class Noted:
    """Writes each step it takes into the file that the option `log` names."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._log = Path(dict(case.options)["log"])

    def facts(self) -> dict[str, Any]:
        facts = {"platform": "cpu", "device": "cpu", "compile_seconds": 0.0, "flops": 4.0, "temp_bytes": None}
        seen = {"variable": os.environ.get("COVIDJAX_TEST_VARIABLE"), "pid": os.getpid()}
        return facts | seen | {"total_params": 3, "trainable_params": 2, "optimizer_bytes": 16, "versions": {}}

    def run(self, steps: int) -> None:
        with self._log.open("a") as file:
            file.write(f"{self._case.model} {steps}\n")
        time.sleep(0.001 * steps)

    def peak_bytes(self) -> int | None:
        return 77

    def profile(self, steps: int, folder: str) -> None: ...


class OnAccelerator(Noted):
    """The same as if it ran on a GPU."""

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"platform": "gpu"}


class Talkative(Noted):
    """A library that prints."""

    def run(self, steps: int) -> None:
        print('{"seconds": "this is no reply"}', flush=True)
        os.write(1, b"nor is this\n")
        super().run(steps)


class Dying(Noted):
    """Its process ends in the second sample."""

    def run(self, steps: int) -> None:
        super().run(steps)
        if len(self._log.read_text().splitlines()) > 3:
            print("the last words")
            os._exit(3)


def refused(case: Case) -> Noted:
    """A case that a person can mend."""
    raise UserError(f"{case.model} is refused")


def broken(case: Case) -> Noted:
    """A case that fails."""
    raise RuntimeError("broken\nin two lines")
