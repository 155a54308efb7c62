"""Whatever interrupts a save, a finished checkpoint is left: SIGKILL, a full disk, a refused write."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.checkpoint import manifest
from covidjax.errors import UserError
from tests.checkpoint.made import names, open_checkpoints, save_steps
from tests.disk import small_disk
from tests.support import ROOT


def noise() -> dict[str, jax.Array]:
    return {"weight": jax.random.normal(jax.random.key(0), (4_000_000,))}  # does not compress


def zeros(step: int = 0, size: int = 4_000_000) -> dict[str, jax.Array]:
    return {"weight": jnp.zeros(size)}


def test_latest_and_best_exist_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weakest_instants = []  # orbax has committed a step that is not finished yet
    write = manifest.write

    def recording_write(directory: Path, step: int, facts: dict[str, Any]) -> None:
        weakest_instants.append((step, manifest.finished_steps(directory)))
        write(directory, step, facts)

    monkeypatch.setattr(manifest, "write", recording_write)
    with open_checkpoints(tmp_path) as checkpoints:
        for step, metric in enumerate((0.1, 0.9, 0.2, 0.3, 0.95, 0.4), 1):
            checkpoints.save(step, zeros(size=3), {}, metric)
    assert weakest_instants == [(1, []), (2, [1]), (3, [1, 2]), (4, [2, 3]), (5, [2, 3, 4]), (6, [4, 5])]


CHILD = """
import sys, pathlib, numpy, jax.numpy
from covidjax.checkpoint.checkpoint import Checkpoints
values = numpy.random.default_rng(0).random(12_000_000, dtype=numpy.float32)
with Checkpoints(pathlib.Path(sys.argv[1]), keep=2, higher_is_better=True) as checkpoints:
    for step in range(1, 6):
        weight = jax.numpy.full(values.shape, step, numpy.float32) if step < 3 else jax.numpy.asarray(values)
        checkpoints.save(step, {"weight": weight}, {"epoch": step}, step / 10)
"""


@pytest.mark.parametrize(
    "moment",
    [
        "3.orbax-checkpoint-tmp/state*",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("3", "deleted/1", "manifests/3.json")),
    ],
)
def test_kill_during_a_save_leaves_a_sound_checkpoint(tmp_path: Path, moment: str) -> None:
    directory = tmp_path / "checkpoints"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(directory)], env=environment)
    while not any(directory.glob(moment)):
        assert child.poll() is None, f"the child ended before {moment} was seen"
        time.sleep(0.0005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with open_checkpoints(directory) as checkpoints:
        restored = checkpoints.restore_latest(lambda step: zeros(size=12_000_000))
        assert restored is not None
        step = restored.step
        assert (step, restored.progress, restored.notes) in ((2, {"epoch": 2}, ()), (3, {"epoch": 3}, ()))
        expected = np.float32(2) if step == 2 else np.random.default_rng(0).random(12_000_000, dtype=np.float32)
        assert (np.asarray(restored.state["weight"]) == expected).all()
        checkpoints.save(step + 1, zeros(size=12_000_000), {}, 0.1)
        checkpoints.wait()
        assert checkpoints.steps() == [step, step + 1]
    assert names(directory) == {str(step), str(step + 1), "manifests"}


def check_that_a_failed_save_harms_nothing(
    directory: Path, limit: contextlib.AbstractContextManager[None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_checkpoints(directory) as checkpoints:
        checkpoints.save(200, zeros(), {}, 0.5)
        checkpoints.wait()
        with limit:
            checkpoints.save(240, noise(), {}, 0.6)
            with pytest.raises(UserError) as error:
                checkpoints.save(280, zeros(), {}, 0.7)
            assert str(error.value) == (
                f"cannot write checkpoint 240 to {directory}: {reason}; "
                "free space and run the same command again: training resumes from 200"
            )
            checkpoints.save(240, noise(), {}, 0.6)
            with pytest.raises(UserError, match=reason):
                checkpoints.wait()
            assert names(directory) == {"200", "manifests"}
            restored = checkpoints.restore_latest(lambda step: zeros())
            assert restored is not None and (restored.step, restored.notes) == (200, ())
        for step in (240, 280, 300):
            checkpoints.save(step, zeros(), {}, 1 / step)
        checkpoints.wait()
        assert checkpoints.steps() == [200, 280, 300]
    assert caplog.records == []


@contextlib.contextmanager
def file_size_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_refused_write_is_told_and_harms_no_older_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_that_a_failed_save_harms_nothing(tmp_path, file_size_limit(), "File too large", caplog)


def test_full_disk_is_reported_and_harms_no_older_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", 8 * 2**20) as disk:
        no_limit = contextlib.nullcontext()
        check_that_a_failed_save_harms_nothing(disk / "checkpoints", no_limit, "No space left on device", caplog)


def test_unwritable_manifest_leaves_the_step_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = manifest._sync

    def full_disk(path: Path) -> None:
        if path.suffix == ".tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    save_steps(tmp_path, [1, 2], zeros)
    with open_checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "_sync", full_disk)
            checkpoints.save(3, zeros(), {}, None)
            with pytest.raises(UserError, match=r"cannot write checkpoint 3 .* training resumes from 2"):
                checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        assert names(tmp_path) == {"1", "2", "manifests"} and names(tmp_path / "manifests") == {"1.json", "2.json"}
        checkpoints.save(3, zeros(), {}, None)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]


def test_failed_last_save_is_raised_at_the_end_but_hides_no_other_error(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"cannot write checkpoint 2 to .*: training resumes from 1"),
        file_size_limit(),
        open_checkpoints(tmp_path / "a") as checkpoints,
    ):
        checkpoints.save(1, zeros(), {}, None)
        checkpoints.save(2, noise(), {}, None)
    with (
        pytest.raises(ZeroDivisionError) as error,
        file_size_limit(),
        open_checkpoints(tmp_path / "b") as checkpoints,
    ):
        checkpoints.save(1, zeros(), {}, None)
        checkpoints.save(2, noise(), {}, None)
        raise ZeroDivisionError
    assert "cannot write checkpoint 2 to" in error.value.__notes__[0]


def test_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"cannot write checkpoint 1 to .*: Not a directory; make it writable"
    with open_checkpoints(tmp_path / "file" / "checkpoints") as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.save(1, zeros(), {}, None)
