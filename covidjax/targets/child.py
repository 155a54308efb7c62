"""A process that answers lines of JSON."""

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Ended(Exception):
    """A process has ended instead of answering; the message is one line: its status and its last words."""


class Child:
    """A process that answers each line of JSON on its standard input with one, ended on leaving the context."""

    def __init__(self, interpreter: str, module: Sequence[str], environment: Mapping[str, str]) -> None:
        """module: of this repository, and its arguments."""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._process = subprocess.Popen(
            [interpreter, "-m", *module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def reply(self, request: Mapping[str, Any], waiting: Callable[[float], None] = lambda seconds: None) -> Any:
        """What it answers. waiting: told once a second for how many that lasts. Raises Ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            seconds = 0
            while not select.select([self._process.stdout], [], [], 1)[0]:
                seconds += 1
                waiting(seconds)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
            raise Ended(f"ended with status {status}: {lines[-1][:300] if lines else 'it said nothing'}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()
