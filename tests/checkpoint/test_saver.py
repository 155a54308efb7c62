import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from covidjax.checkpoint import saver
from covidjax.checkpoint.checkpoint import Checkpoints
from covidjax.checkpoint.saver import Saver, Snapshot


@dataclasses.dataclass
class Clock:
    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


class SlowDisk:
    """Checkpoints that take `seconds` each, beside training; of equal metrics the later is better."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.saved: dict[int, float | None] = {}
        self.spans: list[tuple[float, float]] = []

    @property
    def last_save(self) -> tuple[float, float | None]:
        begun, ended = self.spans[-1] if self.spans else (0.0, 0.0)
        return begun, ended if ended <= self.clock.now else None

    def score(self, metric: float | None) -> float | None:
        return metric if metric is not None and np.isfinite(metric) else None

    def best(self) -> tuple[float, int] | None:
        return max(((metric, step) for step, metric in self.saved.items() if metric is not None), default=None)

    def save(self, step: int, state: Any, progress: Mapping[str, Any], metric: float | None) -> None:
        assert step > max(self.saved, default=-1)
        self.wait()
        self.saved[step] = self.score(metric)
        self.spans.append((self.clock.now, self.clock.now + self.seconds))

    def wait(self) -> None:
        if self.spans:
            self.clock.now = max(self.clock.now, self.spans[-1][1])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(saver, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def offered(step: int, metric: float | None) -> Snapshot:
    return Snapshot(step, {"weight": jnp.full((), step)}, {"step": step}, metric)


def run(disk: SlowDisk, metrics: Sequence[float | None], *, ends: bool = True) -> None:
    """An offer a second, the last one a must where the run ends with it."""
    writer = Saver(disk)  # type: ignore[arg-type]
    for step, metric in enumerate(metrics):
        disk.clock.now += 1.0
        writer.offer(offered(step, metric), must=ends and step == len(metrics) - 1)
    disk.wait()


@pytest.mark.parametrize(
    ("seconds", "metrics", "saved"),
    [
        (1.0, range(0, -40, -1), [0, 10, 20, 30, 39]),  # the first is the best, later ones wait nine times as long
        (50.0, range(20), [0, 19]),  # a save that goes on is not waited for unless it must
    ],
)
def test_first_state_is_saved_at_once_and_later_ones_in_turn(
    clock: Clock, seconds: float, metrics: range, saved: list[int]
) -> None:
    disk = SlowDisk(clock, seconds)
    run(disk, [float(metric) for metric in metrics])
    assert list(disk.saved) == saved


def test_saves_never_take_more_than_a_tenth_of_the_time(clock: Clock) -> None:
    draw, written_at_once = random.Random(0), 0
    for seconds in (0.1, 1.0, 3.7, 20.0):
        disk, began = SlowDisk(clock, seconds), clock.now
        # A new best in most epochs, so that one is often passed over and two are written at once.
        run(disk, [step + draw.choice((0.0, 5.0)) for step in range(300)], ends=False)
        pauses = [(one[1], other[0]) for one, other in itertools.pairwise(disk.spans) if other[0] > one[1]]
        assert pauses
        written_at_once += len(disk.spans) - 1 - len(pauses)
        for ended, following in pauses:
            taken = sum(end - begin for begin, end in disk.spans if end <= ended)
            assert taken <= (following - began) / 10 + 1e-6
    assert written_at_once > 5


def test_what_is_best_on_disk_in_the_end_does_not_depend_on_time(clock: Clock) -> None:
    draw = random.Random(1)
    for _ in range(200):
        metrics = [draw.choice((None, np.nan, 1.0, 2.0, 3.0)) for _ in range(12)] + [draw.choice((1.0, 2.0))]
        found = set()
        for seconds in (0.001, 0.4, 30.0):
            disk = SlowDisk(clock, seconds)
            run(disk, metrics)
            found.add(disk.best())
            assert max(disk.saved) == len(metrics) - 1
        scores = [(metric, step) for step, metric in enumerate(metrics) if metric is not None and np.isfinite(metric)]
        assert found == {max(scores)}


def test_best_of_an_earlier_part_of_the_run_counts(clock: Clock) -> None:
    disk = SlowDisk(clock, seconds=50.0)
    disk.saved = {0: 6.0}
    disk.spans = [(clock.now - 50.0, clock.now)]
    writer = Saver(disk)  # type: ignore[arg-type]
    writer.offer(offered(1, 5.0))
    writer.flush()
    assert list(disk.saved) == [0]
    writer.offer(offered(2, 6.0))
    writer.flush()
    assert list(disk.saved) == [0, 2]


def test_flush_writes_what_was_passed_over_once(clock: Clock) -> None:
    disk = SlowDisk(clock, seconds=50.0)
    writer = Saver(disk)  # type: ignore[arg-type]
    for step, metric in enumerate((1.0, 4.0, 3.0)):
        writer.offer(offered(step, metric))
    writer.flush()
    writer.flush()
    assert list(disk.saved) == [0, 1]
    assert disk.last_save[1] == clock.now  # and it is finished


def test_state_that_was_passed_over_outlives_its_donated_buffers(tmp_path: Path, clock: Clock) -> None:
    def state(number: int) -> dict[str, jax.Array]:
        values = {"weight": jnp.arange(1000.0) + number, "key": jax.random.key(number)}
        return jax.device_put(values, SingleDeviceSharding(jax.devices()[0]))

    consume = jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints", keep=2, higher_is_better=True) as checkpoints:
        writer = Saver(checkpoints)
        progress = {"step": 0}
        for step, metric in enumerate((1.0, 4.0, 3.0)):
            checkpoints.last_save = (0.0, 0.0) if step == 0 else (0.0, clock.now)  # only the first is due
            given = state(step)
            writer.offer(Snapshot(step, given, progress, metric))
            checkpoints.wait()
            consume(given)
            assert given["weight"].is_deleted()
            progress["step"] += 1
        writer.flush()
        assert checkpoints.steps() == [0, 1]
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(1)
        )
        restored = checkpoints.restore("best", abstract)
    assert (restored.step, restored.progress) == (1, {"step": 1})
    np.testing.assert_array_equal(restored.state["weight"], np.arange(1000.0) + 1)
    assert jax.random.key_data(restored.state["key"]).tolist() == [0, 1]
