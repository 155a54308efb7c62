"""What a record says of the circumstances of its run."""

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from covidjax.process import git_revision


def describe(script: str, arguments: list[str]) -> dict[str, Any]:
    """The fields that all records of a run share; load_average is that of the minute before the run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", script, *map(shlex.quote, arguments)]),
        "git_revision": git_revision(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
        "system": platform.platform(),
    }


def cpu_name() -> str:
    """The processor's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
