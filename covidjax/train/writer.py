"""The figures of a run as it goes: metrics.jsonl, TensorBoard events, and lines for the person who watches."""

import contextlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ml_collections import ConfigDict
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from covidjax import config as configs
from covidjax import files
from covidjax.config.writers import PLACE, WRITERS, Make
from covidjax.console import say
from covidjax.errors import UserError
from covidjax.registry import fault


class Hook:
    """A registered writer of a run. Where it fails one line says so, and the run goes on without it.

    note: that line; '' while it works.
    """

    def __init__(self, name: str, make: Make, workdir: Path, config: dict[str, Any]) -> None:
        self.name, self.note = name, ""
        with self._watched():
            self._context = make(workdir, config)
            self._write = self._context.__enter__()

    def write(self, record: dict[str, Any]) -> None:
        """Gives it a row."""
        if not self.note:
            with self._watched():
                self._write(record)
            if self.note:
                with contextlib.suppress(Exception):  # it has failed and is told
                    self._context.__exit__(None, None, None)

    def close(self, error: BaseException | None) -> None:
        """Ends it. error: with which the run ends, None where it comes to its end."""
        if not self.note:
            with self._watched():
                self._context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = fault(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.note = f"the writer {self.name!r} gets no more rows, and the run goes on: {told}"
            say(self.note)


def hooks_of(config: ConfigDict, workdir: Path) -> tuple[Hook, ...]:
    """The writers that `config.writers` names, begun."""
    return tuple(Hook(name, WRITERS[name], workdir, configs.to_json(config)) for name in config.writers)


class MetricsWriter:
    """Appends records to `metrics.jsonl` and to a TensorBoard event file.

    first_step: the finished steps of the checkpoint that the run goes on from; later records of an interrupted run
    are removed, so that each step is told once. hooks: get each record too.
    Raises UserError where the files cannot be written.
    """

    def __init__(self, workdir: Path, first_step: int, hooks: Sequence[Hook] = ()) -> None:
        self._hooks = tuple(hooks)
        self._path = workdir / "metrics.jsonl"
        # Written here and now: tensorboard's own writer has a thread, which prints its errors on standard error.
        self._events_path = _next_events(workdir)
        with _written(self._events_path):
            self._events = RecordWriter(self._events_path.open("ab"))
        self._add_event(file_version="brain.Event:2")
        self.forget(first_step)

    def forget(self, step: int) -> None:
        """Removes the records of later steps, from which the run does not go on."""
        kept = [line for line in files.read_json_lines(self._path)[0] if line["step"] <= step]
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        # TensorBoard forgets what it has read of this step and later ones.
        self._add_event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        with _written(self._events_path):
            self._events.flush()

    def write(self, *records: dict[str, Any]) -> None:
        """records: `step`, `epoch`, `phase`, `split` and figures; one that is not finite is written as null."""
        strict = [{key: _finite(value) for key, value in record.items()} for record in records]
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in strict]
        with _written(self._path), self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        for record in records:
            values = [
                Summary.Value(tag=f"{record['split']}/{name}", simple_value=value)
                for name, value in record.items()
                if name not in PLACE
            ]
            self._add_event(step=record["step"], summary=Summary(value=values))
        with _written(self._events_path):
            self._events.flush()
        for hook in self._hooks:
            for record in strict:
                hook.write(record)

    @property
    def notes(self) -> list[str]:
        """A line for each hook that has failed."""
        return [hook.note for hook in self._hooks if hook.note]

    def _add_event(self, **fields: Any) -> None:
        with _written(self._events_path):
            self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # of what was flushed nothing is left to write
            self._events.close()
        for hook in self._hooks:
            hook.close(error)


def _next_events(workdir: Path) -> Path:
    """The path of a new event file. TensorBoard reads them in the order of their names, whatever the clock said."""
    known = [path.name.split(".")[3] for path in workdir.glob("events.out.tfevents.*")]
    stamp = max([int(time.time()), *(int(text) + 1 for text in known if text.isdecimal())])
    return workdir / f"events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}: free space and run the same command again: it goes on from the "
            "last checkpoint"
        ) from error


class ProgressLines:
    """Lines on standard output: one that is rewritten within an epoch on a terminal, plain ones elsewhere.

    Off a terminal a line within an epoch appears at most every `plain_seconds`.
    """

    def __init__(self, total_steps: int, epoch: Callable[[int], float], first_step: int) -> None:
        """epoch: the finished epochs after so many steps of the run."""
        self._total, self._epoch = total_steps, epoch
        self.restart(first_step)
        self._terminal = sys.stdout.isatty()
        self.interval_seconds = 0.5 if self._terminal else 30.0

    def restart(self, step: int) -> None:
        """The time that is left is told by the pace from here on: what was before is no part of it."""
        self._began, self._first_step = time.monotonic(), step

    def show(self, step: int, figures: str, images_per_second: float, best: str, *, stays: bool) -> None:
        """Shows the figures after so many steps of the run. stays: whether the next line leaves this one there.

        images_per_second: of the steps of the epoch so far; the time that is left counts all else, too.
        """
        steps = step - self._first_step
        eta = (self._total - step) * (time.monotonic() - self._began) / steps if steps else 0.0
        epoch, epochs = map(math.ceil, (self._epoch(step), self._epoch(self._total)))
        line = (
            f"epoch {epoch}/{epochs}  step {step}/{self._total}  {figures}  {images_per_second:.1f} images/s  "
            f"ETA {_clock(eta)}  best {best}"
        )
        print(
            f"\r\x1b[K{line}" if self._terminal else line, end="\n" if stays or not self._terminal else "", flush=True
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
