"""Several processes of one command on this machine: each line of output with its number, one that fails ends all."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from covidjax.distributed.start import COUNT, RANK

GRACE_SECONDS = 10.0  # in which the others may say by themselves that one is gone
LAST_LINES = 40  # of the one that failed, which are shown again at the end


class Child:
    """A process of the command, whose output appears here line by line."""

    def __init__(self, command: Sequence[str], rank: int, settings: dict[str, str]) -> None:
        self.rank, self.last = rank, deque[str](maxlen=LAST_LINES)
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
        self.readers = [
            threading.Thread(target=self._pass_on, args=pair, daemon=True)
            for pair in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        ]
        for reader in self.readers:
            reader.start()

    def _pass_on(self, source: Iterator[str], out: object) -> None:
        for line in source:
            text = line.rstrip("\n")
            if out is sys.stderr:
                self.last.append(text)
            print(f"[{self.rank}] {text}", file=out, flush=True)  # type: ignore[call-overload]

    def signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def status(self) -> int | None:
        """The exit status as a shell has it; None while it runs."""
        code = self.process.poll()
        return 128 - code if code is not None and code < 0 else code


def run_together(command: Sequence[str], count: int, devices: int) -> int:
    """Runs a Python script in `count` processes that train together, and returns the exit status.

    command: the script and its arguments; devices: of each process; on a CPU it gets so many of them, of a GPU machine
    the processes get one after the other. SIGTERM and SIGINT are passed on as SIGTERM. Where one fails, the others get
    time to end, and its last lines on standard error are shown again at the end; the status is its own.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children: list[Child] = []

    def pass_on(number: int, frame: object) -> None:
        for child in children:
            child.signal(signal.SIGTERM)

    former = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for rank in range(count):
            own = {
                COUNT: str(count),
                RANK: str(rank),
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_LOCAL_DEVICE_IDS": ",".join(str(rank * devices + number) for number in range(devices)),
                "PYTHONUNBUFFERED": "1",
            }
            children.append(Child([sys.executable, *command], rank, own))
        failed = _first_failure(children)
        if failed is not None:
            _end_rest(children)
        for reader in (reader for child in children for reader in child.readers):
            reader.join(timeout=5)
    finally:
        for child in children:
            child.signal(signal.SIGKILL)
        for number, handler in former.items():
            signal.signal(number, handler)
    if failed is None:
        return 0
    status = failed.status() or 0
    names = {128 + number: f"signal {number.name}" for number in signal.Signals}
    print(*failed.last, sep="\n", end="\n" * bool(failed.last), file=sys.stderr)
    how = names.get(status, f"exit status {status}")
    print(f"process {failed.rank} was the first to end, with {how}", file=sys.stderr, flush=True)
    return status


def _first_failure(children: Sequence[Child]) -> Child | None:
    """The first that ends with another status than 0; None where all end well."""
    while True:
        states = {child.rank: child.status() for child in children}
        for child in children:
            if states[child.rank]:
                return child
        if all(state == 0 for state in states.values()):
            return None
        time.sleep(0.1)


def _end_rest(children: Sequence[Child]) -> None:
    until = time.monotonic() + GRACE_SECONDS
    while any(child.status() is None for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    for child in children:
        child.signal(signal.SIGKILL)
        child.process.wait()
