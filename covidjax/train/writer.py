"""The figures of a run as it goes: metrics.jsonl, TensorBoard events, and lines for the person who watches."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from covidjax import files


class MetricsWriter:
    """Appends records to `metrics.jsonl` and to a TensorBoard event file.

    first_step: the finished steps of the checkpoint that the run goes on from; later records of an interrupted run
    are removed, so that each step is told once.
    """

    def __init__(self, workdir: Path, first_step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_records(self._path) if line["step"] <= first_step]
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._events = EventFileWriter(str(workdir))
        restart = Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START))
        self._events.add_event(restart)

    def write(self, record: dict[str, Any]) -> None:
        """record: `step`, `epoch`, `phase`, `split` and figures."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        skip = ("step", "epoch", "phase", "split")
        values = [
            Summary.Value(tag=f"{record['split']}/{name}", simple_value=value)
            for name, value in record.items()
            if name not in skip
        ]
        self._events.add_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class Progress:
    """Lines on standard output: one that is rewritten within an epoch on a terminal, plain ones elsewhere.

    Off a terminal a line within an epoch appears at most every `plain_seconds`.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, batch_size: int, first_step: int) -> None:
        self._total, self._steps_per_epoch, self._batch_size = total_steps, steps_per_epoch, batch_size
        self.restart(first_step)
        self._terminal = sys.stdout.isatty()
        self.interval_seconds = 0.5 if self._terminal else 30.0

    def restart(self, step: int) -> None:
        """Rates count from here: nothing before it, such as compilation, was training."""
        self._began, self._first_step = time.monotonic(), step

    def within_epoch(self, step: int, loss: float, best: str) -> None:
        """step: finished steps of the run; loss: mean of the epoch so far."""
        line = self._line(step, f"loss {loss:.4f}", best)
        print(f"\r\x1b[K{line}" if self._terminal else line, end="" if self._terminal else "\n", flush=True)

    def epoch(self, step: int, figures: str, best: str) -> None:
        """The line of a finished epoch, which stays."""
        line = self._line(step, figures, best)
        print(f"\r\x1b[K{line}" if self._terminal else line, flush=True)

    def _line(self, step: int, figures: str, best: str) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (step - self._first_step) / seconds
        eta = (self._total - step) / rate if rate else 0.0
        epoch, epochs = -(-step // self._steps_per_epoch), self._total // self._steps_per_epoch
        return (
            f"epoch {epoch}/{epochs}  step {step}/{self._total}  {figures}  {rate * self._batch_size:.1f} images/s  "
            f"ETA {_clock(eta)}  best {best}"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
