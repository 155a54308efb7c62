"""The processes of a run: what each knows of the others, and how it notices that one of them is gone or stuck."""

import ctypes
import dataclasses
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from jax.experimental import multihost_utils

Part = TypeVar("Part")

LOST = 75  # exit status: another process failed, so that trying again may help (EX_TEMPFAIL of sysexits.h)
PULSE = "covidjax/pulse"
READERS_PER_SECOND = 32  # of the table of all pulses, so that 512 processes do not drown the first one
LAST_WORDS_SECONDS = 3.0  # that one that ends gives the others to read why; the first one holds the table
SILENT_SECONDS = 5.0  # after which one that sent no pulse is named where another failed
DAY_MS = 24 * 3600 * 1000


@dataclasses.dataclass
class Pulse:
    """What a process last told, and when this one saw that change, on its monotonic clock.

    steps: how often its main thread came by; doing: what it was doing then; failed: why it ends, if it does.
    """

    where: str = "unknown host"
    beat: int = -1
    steps: int = 0
    doing: str = "starting"
    failed: str = ""
    seen: float = 0.0
    stepped: float = 0.0


class Processes:
    """The processes that train together, of which this is one; by default the only one.

    client: JAX's, of the coordination service that process 0 runs; rank: of this process; count: of all.
    """

    def __init__(self, client: Any = None, rank: int = 0, count: int = 1) -> None:
        self._client, self.rank, self.count = client, rank, count
        now = time.monotonic()
        self._own = Pulse(f"{socket.gethostname()}, process id {os.getpid()}")
        self._table = [Pulse(seen=now, stepped=now) for _ in range(count)]
        self._asked = self._met = 0
        self._lock, self._done = threading.Lock(), threading.Event()

    @property
    def writes(self) -> bool:
        """Whether this process writes the files of the run: one does."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def step(self, doing: str) -> None:
        """The main thread comes by; the watchdog waits for this. doing: in words, such as 'step 20'."""
        self._own.steps += 1
        self._own.doing = doing

    def stop_asked(self) -> bool:
        """Whether all stop here, as one of them has got SIGTERM. All have called this equally often."""
        self._asked += 1  # the number has to rise by one from call to call
        return bool(multihost_utils.reached_preemption_sync_point(self._asked))

    def passing(self, doing: str, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts of a work, at each of which the main thread comes by."""
        for number, part in enumerate(parts):
            self.step(f"{doing}, part {number}")
            yield part

    def barrier(self, name: str) -> None:
        """Waits until all processes are here, which meet in the same order. name: for who looks at one that waits."""
        if self._client is not None:
            self._met += 1  # the service knows each name once
            self.step(f"waiting: {name}")
            self._client.wait_at_barrier(f"covidjax/{self._met} {name}", DAY_MS)
            self.step(name)

    def gather(self, name: str, text: str) -> tuple[str, ...]:
        """What each process has to say, in their order. All gather and meet in the same order; name: see `barrier`."""
        if self._client is None:
            return (text,)
        folder = f"covidjax/said/{self._met}-"
        self._client.key_value_set(f"{folder}/{self.rank}", json.dumps(text))
        self.barrier(name)
        said = {int(key.rpartition("/")[2]): value for key, value in self._list(folder)}
        return tuple(json.loads(said[rank]) for rank in range(self.count))

    # ---- Who is gone, who is stuck ----

    def watch(self, watchdog_seconds: int) -> None:
        """Begins to tell the others each second that this process is there, and to look at them.

        watchdog_seconds: without progress of the one that is furthest behind, after which all end, each with the names
        of those behind and its own traceback; 0: never. Of one that is gone JAX ends the others, once it has heard
        nothing of it for its heartbeat time; they say here which one it was.
        """
        self._tell()
        for work in (self._report, lambda: self._judge(watchdog_seconds)):
            threading.Thread(target=work, name="watchdog", daemon=True).start()
        _on_abort(self._aborted)

    def rest(self) -> None:
        """Ends what `watch` began."""
        self._done.set()
        _on_abort(None)

    def tell_failure(self, text: str) -> None:
        """Tells the others why this process ends, and gives them time to read it."""
        self._own.failed = text
        self._tell()
        time.sleep(LAST_WORDS_SECONDS)

    def name_lost(self, patience: float) -> bool:
        """Says which other process has failed, or is silent, and looks for one for so many seconds."""
        until = time.monotonic() + patience
        while not (lost := self._failed() or self._lost()) and time.monotonic() < until:
            time.sleep(0.5)
        if lost:
            print(f"error: {lost}: this process ends too; the same command goes on", file=sys.stderr, flush=True)
        return bool(lost)

    def _tell(self) -> None:
        self._own.beat += 1
        own = self._own
        text = json.dumps([own.where, own.beat, own.steps, own.doing, own.failed])
        self._client.key_value_set(f"{PULSE}/{self.rank}", text, allow_overwrite=True)

    def _report(self) -> None:
        every = max(1, self.count // READERS_PER_SECOND)
        turn = 0
        while not self._done.wait(1.0):
            try:
                self._tell()
                if turn % every == 0:
                    self._read()
            except Exception:  # the service is gone, and JAX will say so
                return
            turn += 1

    def _read(self) -> None:
        now = time.monotonic()
        for key, value in self._list(PULSE):
            where, beat, steps, doing, failed = json.loads(value)
            known = self._table[int(key.rpartition("/")[2])]
            with self._lock:
                known.seen = now if beat != known.beat else known.seen
                known.stepped = now if steps != known.steps else known.stepped
                known.where, known.beat, known.steps, known.doing, known.failed = where, beat, steps, doing, failed

    def _list(self, folder: str) -> list[tuple[str, str]]:
        return list(self._client.key_value_dir_get(folder))

    def _judge(self, watchdog_seconds: int) -> None:
        while not self._done.wait(1.0):
            verdict = self._failed() or self._stuck(watchdog_seconds)
            if verdict and not self._own.failed:
                self._end(verdict)

    def _failed(self) -> str:
        """The other process that said why it ends."""
        for rank, pulse in enumerate(self._table):
            if pulse.failed and rank != self.rank:
                return f"process {rank} ({pulse.where}) ended: {pulse.failed}"
        return ""

    def _silent(self) -> dict[int, float]:
        """The others of which nothing has been heard for a while, and for how many seconds."""
        now, patience = time.monotonic(), SILENT_SECONDS + 2 * (self.count // READERS_PER_SECOND)
        silent = {rank: now - pulse.seen for rank, pulse in enumerate(self._table) if rank != self.rank}
        return {rank: seconds for rank, seconds in silent.items() if seconds >= patience}

    def _lost(self) -> str:
        """The other process that has been silent longest, if any is."""
        silent = self._silent()
        if not silent:
            return ""
        seconds, rank = max((seconds, rank) for rank, seconds in silent.items())
        return f"process {rank} ({self._table[rank].where}) is gone, or cannot be reached, since {seconds:.0f} seconds"

    def _stuck(self, watchdog_seconds: int) -> str:
        """Who is behind, where none of those who are furthest behind has moved for so long; the silent ones, if any."""
        if not watchdog_seconds:
            return ""
        with self._lock:
            least = min(pulse.steps for pulse in self._table)
            behind = {rank: pulse for rank, pulse in enumerate(self._table) if pulse.steps == least}
        waited = time.monotonic() - max(pulse.stepped for pulse in behind.values())
        if waited < watchdog_seconds:
            return ""
        silent = self._silent()
        behind = {rank: self._table[rank] for rank in silent} or behind
        names = [
            f"process {rank} ({pulse.where}, at: {pulse.doing}"
            + (f", silent for {silent[rank]:.0f} seconds)" if rank in silent else ")")
            for rank, pulse in list(behind.items())[:10]
        ]
        more = f" and {len(behind) - 10} more" if len(behind) > 10 else ""
        return f"no progress for {waited:.0f} seconds (config.watchdog_seconds): behind is {', '.join(names)}{more}"

    def _end(self, verdict: str) -> None:
        print(f"error: {verdict}; where this process stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        print(f"error: {verdict}: all processes end; the same command goes on", file=sys.stderr, flush=True)
        time.sleep(LAST_WORDS_SECONDS if self.writes else LAST_WORDS_SECONDS / 2)
        os._exit(LOST)

    def _aborted(self) -> None:
        """What is left to do where JAX ends this process."""
        if not self.name_lost(patience=0):
            coordinator = self._table[0].where
            print(f"error: process 0 ({coordinator}) is gone, or cannot be reached", file=sys.stderr, flush=True)
        os._exit(LOST)


HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _on_abort(work: Any) -> None:
    """Has `abort`, by which JAX ends a process that has lost others, call `work` first; None: nothing, as before.

    Python's own handlers come too late: they run in the main thread once it is back in Python.
    """
    _on_abort.kept = HANDLER(lambda number: work()) if work else ctypes.cast(signal.SIG_DFL, HANDLER)  # type: ignore[attr-defined]
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort.kept)  # type: ignore[attr-defined]
