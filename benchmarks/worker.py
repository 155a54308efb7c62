"""The process of one implementation: answers requests, JSON lines on standard input, with JSON lines.

{"do": "prepare", "case": {...}, "warm_up_steps": 3, "min_sample_seconds": 0.5} -> {"facts": {...}, "steps": 7}
{"do": "sample", "steps": 7} -> {"seconds": 0.61, "foreign_share": 0.01}
{"do": "memory"} -> {"peak_bytes": 2000000000}
{"do": "profile", "steps": 3, "folder": "..."} -> {}
A failure is answered {"error": "one line", "kind": "user" | "bug"}; a bug's traceback goes to standard error.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import case as cases
from covidjax.errors import UserError
from covidjax.process import keep_memory

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Server:
    """Answers the requests about one subject."""

    def __init__(self) -> None:
        self._subject: cases.Subject | None = None
        self._platform = ""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        match request["do"]:
            case "prepare":
                return self._prepare(request)
            case "sample":
                return self._sample(request["steps"])
            case "memory":
                return {"peak_bytes": self._peak_bytes()}
            case "profile":
                self._ready().profile(request["steps"], request["folder"])
                return {}
        raise ValueError(f"unknown request {request}")

    def _ready(self) -> cases.Subject:
        assert self._subject is not None, "prepare comes first"
        return self._subject

    def _prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        allocator = keep_memory()
        fields: dict[str, Any] = dict(request["case"])
        fields |= {name: tuple(map(tuple, fields[name])) for name in ("options", "environment")}
        subject = self._subject = cases.build(cases.Case(**fields))
        facts = {"allocator": allocator, "threads": len(os.sched_getaffinity(0)), **subject.facts()}
        self._platform = facts["platform"] if facts.get("processes", 1) == 1 else ""  # the others are not foreign
        unit = facts.get("steps_per_sample", 1)
        subject.run(unit * -(-request["warm_up_steps"] // unit))
        began = time.perf_counter()
        subject.run(unit)
        seconds = time.perf_counter() - began
        forget_peak()
        return {"facts": facts, "steps": unit * max(1, round(request["min_sample_seconds"] / max(seconds, 1e-6)))}

    def _sample(self, steps: int) -> dict[str, Any]:
        seconds, share = timed(lambda: self._ready().run(steps), self._platform)
        return {"seconds": seconds, "foreign_share": share}

    def _peak_bytes(self) -> int | None:
        return self._ready().peak_bytes() or resident_peak()


def timed(run: Callable[[], None], platform: str) -> tuple[float, float | None]:
    """Seconds of `run`, and the share of the cores' time that others took meanwhile; None where that is not told."""
    busy, own, began = busy_seconds(), own_seconds(), time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    own, busy_after = own_seconds() - own, busy_seconds()
    if platform != "cpu" or busy is None or busy_after is None:
        return seconds, None
    return seconds, max(busy_after - busy - own, 0.0) / (seconds * len(os.sched_getaffinity(0)))


def own_seconds() -> float:
    """CPU time of this process, all its threads and the children it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def busy_seconds() -> float | None:
    """CPU time that anyone, the hypervisor's other guests included, took of the cores that this process may use.

    None where the system does not tell, as in some sandboxes.
    """
    try:
        ticks = busy_ticks(Path("/proc/stat").read_text(encoding="ascii"), os.sched_getaffinity(0))
    except OSError:
        return None
    return None if ticks is None else ticks / TICKS_PER_SECOND


def busy_ticks(text: str, cores: set[int]) -> int | None:
    """What the lines of some cores in /proc/stat add up to, idle time and waiting for disks left out; None of zeros."""
    names = {f"cpu{number}" for number in cores}
    rows = [line.split() for line in text.splitlines()]
    # user nice system idle iowait irq softirq steal; guest time is in user time already
    total = sum(sum(map(int, (*row[1:4], *row[6:9]))) for row in rows if row and row[0] in names)
    return total or None


def forget_peak() -> None:
    """Starts the peak of resident memory anew, so that compilation does not count."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def resident_peak() -> int | None:
    """The most memory that this process held since `forget_peak`, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def main() -> None:
    """Answers until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not break the conversation
    server = Server()
    for line in sys.stdin:
        try:
            reply = server.answer(json.loads(line))
        except UserError as error:
            reply = {"error": str(error), "kind": "user"}
        except Exception as error:  # the driver goes on with the other implementations
            traceback.print_exc()
            text = (str(error).strip() or "no message").splitlines()[0][:300]
            reply = {"error": f"{type(error).__name__}: {text}", "kind": "bug"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
