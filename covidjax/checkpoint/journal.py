"""run.json, which several commands change: one at a time, and so that no reading of the test split is ever lost.

Each reading is also a file of its own in `test_reads/`, which nobody changes; what is read here has them all.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from covidjax import files
from covidjax.console import say
from covidjax.errors import UserError

NAME, READINGS, LOCK = "run.json", "test_reads", ".lock"


def read(workdir: Path) -> dict[str, Any]:
    """The content of run.json, {} before there is one. Raises UserError where it is no JSON object."""
    path = workdir / NAME
    run = files.read_json(path) if path.exists() else {}
    if not isinstance(run, dict) or not isinstance(run.get(READINGS, []), list):
        raise UserError(f"{path} is not the record of a run: it is damaged, or of another version of covidjax")
    own = [files.entry(each, "time") for each in (workdir / READINGS).glob("*.json")]
    if run or own:
        run[READINGS] = sorted([time for time in run.get(READINGS, []) if time not in own] + own)
    return run


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Within it no other command changes run.json or the report, unless the disk knows no locks, which is said."""
    with files.locked(workdir / LOCK) as refused:
        if refused:
            say(f"{refused}: let no two commands that write into {workdir} end at the same moment")
        yield


@contextlib.contextmanager
def changing(workdir: Path) -> Iterator[dict[str, Any]]:
    """The content of run.json, which is written again as it is left, if all within goes well."""
    with locked(workdir):
        run = read(workdir)
        yield run
        files.write_json(workdir / NAME, run)


def add_reading(workdir: Path) -> None:
    """Records that the test split is about to be read. Raises UserError where that is not possible."""
    now = datetime.now(UTC)
    folder = workdir / READINGS
    folder.mkdir(exist_ok=True)
    name = f"{now:%Y%m%dT%H%M%S.%f}_{os.getpid()}.json"
    files.write_json(folder / name, {"time": now.isoformat(timespec="microseconds")})
    with changing(workdir):
        pass
