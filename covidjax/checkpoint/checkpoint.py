"""Checkpoints that are verified before they are used, and of which one is always left.

`checkpoints/` holds `<step>/`, written by orbax; `manifests/<step>.json`, with the SHA-256 of every file in `<step>/`,
the metric, and the name, shape and dtype of every leaf; `damaged/<step>/`, set aside and never read. A checkpoint is
finished once its manifest is there, and only finished ones are used: orbax commits a step by renaming its folder, and
later notices neither a flipped byte nor most lost files.

Once the first checkpoint is finished there are the best and the latest at every instant, whatever is killed and
whatever fails: `save` of step n waits until the step before it has its manifest, and raises if that failed. Orbax
writes n under a temporary name and renames it. Then the manifest of n is written under a temporary name, synced and
renamed, and n is finished. Only then old steps are retired, all but the latest `keep` and the best. A retired step
leaves by one rename into `deleted/`, never half deleted under its own name. What a killed or failed save leaves is
cleared before the next one, so the same step can be saved again.

The processes of one run call the methods together, on a shared file system; process 0 clears and writes manifests.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from covidjax.checkpoint import failure, leaves, manifest, stored
from covidjax.checkpoint.silence import silence_orbax
from covidjax.errors import UserError, some_of

PyTree = Any
Which = int | Literal["best", "latest"]


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint as it was saved; `notes` are sentences about damaged ones, for the person who runs this."""

    step: int
    state: PyTree
    progress: dict[str, Any]
    notes: tuple[str, ...] = ()


class Checkpoints:
    """Saves, retires, verifies and restores the checkpoints in one folder; use it in a `with` statement.

    directory: the run's `checkpoints/`; the first save makes it, and `restore` changes nothing in it
    keep: how many of the latest checkpoints stay, at least 2 (else UserError); the one with the best metric also stays
    higher_is_better: how metrics compare; of equal ones the later is better, and a non-finite one is never best

    What orbax prints by itself is dropped, see `silence_orbax`: what it tells is raised here.
    """

    def __init__(self, directory: Path, *, keep: int, higher_is_better: bool) -> None:
        if keep < 2:
            raise UserError(f"checkpoint.keep is {keep}; use 2 or more, as the newest may be damaged")
        silence_orbax()
        self._keep = keep
        self._directory = Path(directory).absolute()
        self._sign = 1 if higher_is_better else -1
        stored.check_path(self._directory)
        self._manager: ocp.CheckpointManager | None = None
        self._opened = contextlib.ExitStack()  # what the manager's path needs
        self._proven = False
        self._background = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        # When the last save began and ended, on the monotonic clock; None while it goes on.
        self.last_save: tuple[float, float | None] = (0.0, 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except UserError as mistake:
            if error is None:
                raise
            error.add_note(str(mistake))

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending. Their files are not verified here."""
        return manifest.finished_steps(self._directory)

    def leaf_names(self, step: int) -> frozenset[str]:
        """Names of all that a finished checkpoint holds, such as "params/head/kernel". Raises UserError if damaged."""
        return frozenset(manifest.read(self._directory, step)["leaves"])

    def best(self) -> tuple[float, int] | None:
        """Score and step of the best checkpoint that was ever saved; None if none had a finite metric."""
        best = manifest.best(self._directory, self._sign > 0)
        return None if best is None else (self._sign * best[0], best[1])

    def lost_best(self) -> str:
        """A sentence where the best checkpoint that was ever saved is gone; empty where it is there, or none was."""
        return manifest.lost_best(self._directory, self._sign > 0)

    def score(self, metric: float | None) -> float | None:
        """A number that is higher for a better metric; None for one that cannot be best."""
        return self._sign * metric if metric is not None and math.isfinite(metric) else None

    def save(self, step: int, state: PyTree, progress: Mapping[str, Any], metric: float | None) -> None:
        """Starts a save and returns; files and manifest are written in the background.

        state: pytree of jax arrays, typed keys included. Its buffers may be donated as soon as this returns: they have
            been copied to the host or, where host and device share memory, jax does not overwrite them until written.
        progress: anything that JSON can hold; copied here
        metric: what `best` goes by

        Waits for the save before this one first. The first one is also read back, see `stored.prove`, before this
        returns. Raises UserError if either failed, if this one cannot start, or if `step` is not above every finished
        checkpoint.
        """
        self.wait()
        if (latest := max(self.steps(), default=-1)) >= step:
            raise UserError(
                f"checkpoint {step} cannot be saved: {self._directory} already has checkpoint {latest}; "
                "resume from that one or use another workdir"
            )
        began = time.monotonic()
        finite = float(metric) if metric is not None and math.isfinite(metric) else None
        former = manifest.best(self._directory, self._sign > 0)
        facts = {"metric": finite, "best": former, "leaves": leaves.describe(state)}
        progress_args = ocp.args.JsonSave(json.loads(json.dumps(progress)))
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=progress_args)
        try:
            self._clear_leftovers()
            if self._manager is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                path = self._opened.enter_context(stored.literal(self._directory))
                self._manager = ocp.CheckpointManager(path)  # keeps all
            if not self._manager.save(step, args=items, force=True):  # False: nothing was written
                raise RuntimeError(f"orbax refused to save checkpoint {step} to {self._directory}")
            if not self._proven:
                self._manager.wait_until_finished()
                stored.prove(self._directory, step, state)
                self._proven = True
        except Exception as error:
            self._fail(step, error)
        self.last_save = began, None
        self._pending = step, self._background.submit(self._finish, self._manager, step, facts)

    def wait(self) -> None:
        """Returns once the last save is finished; raises UserError if it failed, for example because of a full disk."""
        waited = self._pending is not None
        self._settle()
        if waited and jax.process_count() > 1:  # the first process has written the manifest
            multihost_utils.sync_global_devices("checkpoint finished")

    def _settle(self) -> None:
        """`wait`, but not for the other processes, which may be gone where an error ends this one."""
        if self._pending is not None:
            step, future = self._pending
            concurrent.futures.wait([future])
            self._pending = None
            if (error := future.exception()) is not None:
                self._fail(step, error)

    def close(self) -> None:
        """Waits, and raises, as `wait` does; nothing can be saved afterwards."""
        try:
            self._settle()
        finally:
            self._close_manager()
            self._background.shutdown()

    def restore_latest(self, abstract_state: Callable[[int], PyTree]) -> Restored | None:
        """Restores the newest checkpoint that is not damaged, to resume from it; None if none was ever finished.

        abstract_state: gives, for a step, what `restore` takes as `abstract`: the state may change from phase to phase

        All finished checkpoints are verified; the damaged ones are named in the notes and moved to `damaged/`. Raises
        UserError, having moved nothing, if all are damaged or the newest sound one does not fit.
        """
        self.wait()
        self._close_manager()
        damage: dict[int, str] = {}
        sound: dict[int, dict[str, Any]] = {}
        for step in self.steps():
            try:
                sound[step] = manifest.verify(self._directory, step)
            except manifest.DamageError as error:
                damage[step] = error.reason
        if damage and not sound:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damage.items())
            raise UserError(
                f"all checkpoints in {self._directory} are damaged ({reasons}): put back a copy of this folder, "
                "or move it away to train from the beginning"
            )
        restored = None
        if sound:
            latest = max(sound)
            notes = [f"checkpoint {step} is damaged ({reason}): using {latest}" for step, reason in damage.items()]
            restored = self._read(latest, sound[latest], abstract_state(latest), notes=notes)
        multihost_utils.sync_global_devices("checkpoints verified")
        try:
            self._clear_leftovers(damage)
        except OSError as error:
            raise UserError(f"cannot write to {self._directory}: {error.strerror}; make it writable") from error
        multihost_utils.sync_global_devices("checkpoints cleared")
        return restored

    def find(self, which: Which) -> tuple[int, Which]:
        """The step that 'best', 'latest' or a step comes to; and which it is, as 'best' falls to 'latest' without one.

        Raises UserError if there is no such checkpoint; where the best one is gone no other is called best.
        """
        steps, workdir = self.steps(), self._directory.parent
        if not steps:
            raise UserError(f"there is no finished checkpoint in {workdir}: train first, or name another workdir")
        if which == "best" and (lost := self.lost_best()):
            raise UserError(lost)
        if which == "best" and (best := self.best()):
            return best[1], which
        step = which if isinstance(which, int) else steps[-1]
        if step not in steps:
            raise UserError(f"there is no checkpoint {step} in {workdir}: use best, latest or one of {some_of(steps)}")
        return step, which if isinstance(which, int) else "latest"

    def restore(self, which: Which, abstract: PyTree, *, partial: bool = False) -> Restored:
        """Verifies and restores one checkpoint, and changes nothing on disk.

        abstract: the structure of the state, with arrays or `jax.ShapeDtypeStruct` as leaves, each with the
            sharding that the restored array shall have; how it was sharded when saved does not matter
        partial: `abstract` is a dict of some fields of the state, such as {"params": ..., "batch_stats": ...},
            and so is what is restored; nothing need be known of the other fields, such as the optimizer's

        Raises UserError if there is no such checkpoint, it is damaged, or a leaf has another name, shape or dtype.
        """
        step, _ = self.find(which)
        return self._read(step, manifest.verify(self._directory, step), abstract, partial=partial)

    def _read(
        self, step: int, facts: dict[str, Any], abstract: PyTree, *, partial: bool = False, notes: Sequence[str] = ()
    ) -> Restored:
        name = f"checkpoint {step} in {self._directory}"
        leaves.check_fit(name, facts["leaves"], leaves.describe(abstract), partial=partial)
        target = jax.tree.map(leaves.target, abstract)
        try:
            restored = stored.read(self._directory, step, target, partial=partial)
        except Exception as error:  # orbax, TensorStore and etils raise of all kinds
            reason = f"it cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise manifest.DamageError(self._directory / str(step), reason) from error
        return Restored(step, restored.state, restored.progress, tuple(notes))

    def _finish(self, manager: ocp.CheckpointManager, step: int, facts: dict[str, Any]) -> None:
        """Waits for the commit and writes the manifest. Runs in the background; nothing else uses orbax meanwhile."""
        manager.wait_until_finished()
        if jax.process_index() == 0:
            manifest.write(self._directory, step, facts)
            manifest.retire(self._directory, self._keep, self._sign > 0)
        self.last_save = self.last_save[0], time.monotonic()

    def _close_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            for finish in (manager.wait_until_finished, manager.close):
                with contextlib.suppress(Exception):  # orbax raises the error of a save once more for each thread
                    finish()
        self._opened.close()

    def _fail(self, step: int, error: BaseException) -> NoReturn:
        """Clears what the failed save left, since the disk may be full of it, and raises."""
        self._close_manager()
        with contextlib.suppress(OSError):
            self._clear_leftovers()
        if (told := failure.of_system(error)) is None:
            raise error
        reason, remedy = told
        resume = f"resumes from {self.steps()[-1]}" if self.steps() else "starts from the beginning"
        raise UserError(
            f"cannot write checkpoint {step} to {self._directory}: {reason}; "
            f"{remedy} and run the same command again: training {resume}"
        ) from error

    def _clear_leftovers(self, damaged: Collection[int] = ()) -> None:
        if jax.process_index() == 0 and self._directory.is_dir():
            manifest.clear_leftovers(self._directory, damaged)
