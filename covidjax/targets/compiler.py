"""Programs for devices that are not here, compiled in a process of its own and kept by what they are."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from covidjax.errors import UserError
from covidjax.process import cache_dir, is_writable, temporary_cache
from covidjax.targets.catalog import Target
from covidjax.targets.child import ROOT, Child, Ended
from covidjax.targets.program import Program

VARIABLE = "COVIDJAX_TARGETS_PYTHON"
# Before JAX is imported: libtpu neither looks for a TPU nor for the cloud that has one, and nothing can be timed.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is kept is kept by `worker`
}
NO_TIMING = "--xla_gpu_autotune_level=0"


def python() -> Path | None:
    """The interpreter that has the compilers: of `make targets`, or the one that a variable names; None without one."""
    named = os.environ.get(VARIABLE)
    found = Path(named) if named else ROOT / ".venv-targets" / "bin" / "python"
    return found if found.is_file() else None


def environment() -> dict[str, str]:
    """The variables of a process that compiles for targets."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {NO_TIMING}".strip()
    return {**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags}


class Compiler(Child):
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
        super().__init__(str(interpreter), ["covidjax.targets.worker", target.name, str(folder)], environment())

    def program(self, builder: str, waiting: Callable[[float], None], **arguments: Any) -> Program:
        """The program that 'package.module:function' builds, called there with devices and the arguments.

        waiting: told once a second for how many that lasts.
        Raises UserError as the function does, and where the compiler fails.
        """
        try:
            reply = self.reply({"builder": builder, "arguments": arguments}, waiting)
        except Ended as error:
            raise UserError(f"compiling for {self.target.name} {error}") from error
        if "error" in reply:
            user = reply["kind"] == "user"
            raise UserError(reply["error"] if user else f"compiling for {self.target.name} failed: {reply['error']}")
        kept = json.loads(gzip.decompress(Path(reply["path"]).read_bytes()))
        return Program(self.target, **kept, known=reply["known"])
