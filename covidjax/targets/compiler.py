"""Programs for devices that are not here, compiled in a process of its own and kept by what they are."""

import gzip
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from covidjax.errors import UserError
from covidjax.process import cache_dir, is_writable, temporary_cache
from covidjax.targets.catalog import Target
from covidjax.targets.devices import environment
from covidjax.targets.program import Program

ROOT = Path(__file__).parents[2]
VARIABLE = "COVIDJAX_TARGETS_PYTHON"


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

    def program(self, builder: str, waiting: Callable[[float], None], **arguments: Any) -> Program:
        """The program that 'package.module:function' builds, called there with devices and the arguments.

        waiting: told once a second for how many that lasts.
        Raises UserError as the function does, and where the compiler fails.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"builder": builder, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            seconds = 0
            while not select.select([self._process.stdout], [], [], 1)[0]:
                seconds += 1
                waiting(seconds)
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
