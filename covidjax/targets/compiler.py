"""Programs for devices that are not here, compiled in a process of its own and kept by what they are."""

import dataclasses
import gzip
import json
import os
import subprocess
import tempfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from covidjax.errors import UserError
from covidjax.process import cache_dir, is_writable, temporary_cache
from covidjax.targets import hlo
from covidjax.targets.catalog import GPU_SHARE, Target
from covidjax.targets.devices import environment

ROOT = Path(__file__).parents[2]
VARIABLE = "COVIDJAX_TARGETS_PYTHON"
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of a program, of one device.

    hlo: the optimised program as text, empty where the compiler refused for lack of memory, `refused` then says how.
    memory: bytes by name: temp, argument, output, alias, generated_code. seconds: what compiling took, whenever it was.
    known: whether it was kept from before.
    """

    target: Target
    hlo: str
    memory: dict[str, int]
    flops: float | None
    seconds: float
    refused: str
    known: bool

    @cached_property
    def counts(self) -> hlo.Counts:
        """What is counted from the text."""
        return hlo.count(hlo.parse(self.hlo))

    @property
    def bytes(self) -> int:
        """Memory that a device needs to run it: what comes in and goes out, counted once, and what is between."""
        memory = self.memory
        return memory["temp"] + memory["argument"] + memory["output"] - memory["alias"] + memory["generated_code"]

    @property
    def fits(self) -> bool:
        """Whether a device can hold it."""
        return not self.refused and self.bytes <= usable_bytes(self.target)


def usable_bytes(target: Target) -> int:
    """Memory of a device that a program may use; of a GPU the share that JAX takes, here as there."""
    try:
        share = float(os.environ.get(FRACTION, GPU_SHARE))
    except ValueError as error:
        raise UserError(f"{FRACTION} is {os.environ[FRACTION]!r}: allowed are numbers from 0 to 1") from error
    return target.usable_bytes(share)


def predicted_floor(program: Program, precision: str) -> float | None:
    """Seconds below which no step can take, as predicted: the slowest of what must be computed and moved.

    The larger of FLOPs over peak and bytes over memory bandwidth, and with it all collectives over links, where 2 (n -
    1) / n of their bytes leave each of n devices. None where no peak of the precision is published.
    """
    chip, counts, n = program.target.chip, program.counts, program.target.devices
    if precision not in chip.peak_flops:
        return None
    seconds = max(counts.flops / chip.peak_flops[precision], counts.bytes_accessed / chip.memory_bandwidth)
    if chip.link_bandwidth:
        seconds += 2 * (n - 1) / n * counts.all_reduce_bytes / chip.link_bandwidth
    return seconds


def python() -> Path | None:
    """The interpreter that has the compilers: of `make targets`, or the one that a variable names; None without one."""
    named = os.environ.get(VARIABLE)
    found = Path(named) if named else ROOT / ".venv-targets" / "bin" / "python"
    return found if found.is_file() else None


class Compiler:
    """A process that compiles for one target, ended on leaving the context.

    >>> with Compiler(target_of("v5e:2x2")) as compiler:
    ...     program = compiler.program("covidjax.runs.costs:lower_on", config=..., strategy="none")
    """

    def __init__(self, target: Target) -> None:
        """Raises UserError where there is no environment to compile in."""
        interpreter = python()
        if interpreter is None:
            raise UserError(
                f"programs for {target.name} are compiled in .venv-targets, which is not there: `make targets` makes "
                f"it, or name a Python with libtpu and jax-cuda13-plugin as {VARIABLE}"
            )
        self.target = target
        folder = cache_dir("") / "targets"
        folder = folder if is_writable(folder) else temporary_cache()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._process = subprocess.Popen(
            [str(interpreter), "-m", "covidjax.targets.worker", target.name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**environment(), "PYTHONPATH": os.pathsep.join(paths)},
        )

    def program(self, builder: str, **arguments: Any) -> Program:
        """The program that 'package.module:function' builds, called there with devices and the arguments.

        Raises UserError as the function does, and where the compiler fails.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"builder": builder, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(
                f"compiling for {self.target.name} ended with status {self._process.wait()}: {self._words()}"
            )
        reply = json.loads(line)
        if "error" in reply:
            user = reply["kind"] == "user"
            raise UserError(reply["error"] if user else f"compiling for {self.target.name} failed: {reply['error']}")
        kept = json.loads(gzip.decompress(Path(reply["path"]).read_bytes()))
        return Program(self.target, **kept, known=reply["known"])

    def _words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()
