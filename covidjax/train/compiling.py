"""The train steps of a job, compiled before they are needed."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax

from covidjax.mesh import divided_shapes
from covidjax.train import parallel
from covidjax.train.job import Job
from covidjax.train.phases import Phase
from covidjax.train.programs import Program, Programs
from covidjax.train.step import Recipe


class Compiling:
    """The programs of the phases of a job, begun before they are needed."""

    def __init__(self, job: Job, programs: Programs, step_flops: Sequence[float]) -> None:
        """step_flops: of a step of each phase."""
        self._job, self._programs, self._step_flops = job, programs, tuple(step_flops)
        self._begun: dict[tuple[int, bool], Future[Program]] = {}

    def steps_per_call(self, phase: Phase) -> int:
        """The number of steps that one call of the program of a phase takes."""
        if not self._job.resident(phase):
            return 1
        asked, epoch_steps = self._job.config.steps_per_call, phase.epoch_steps
        return choose_steps_per_call(asked, epoch_steps, self._step_flops[phase.index])

    def start(self, phase: Phase) -> None:
        """Begins to compile the program of a phase, unless that is begun.

        Where evaluations within epochs cut calls of several steps, also the one that takes as many as each call says.
        """
        cut = self.steps_per_call(phase) > 1 and self._job.config.evaluate_every_steps
        for counted in (False, True) if cut else (False,):
            self._find(phase, counted=counted)

    def _find(self, phase: Phase, *, counted: bool) -> Future[Program]:
        key = phase.index, counted
        if key not in self._begun:
            self._begun[key] = self._start(phase, self._job.recipes[phase.index], counted=counted)
        return self._begun[key]

    def _start(self, phase: Phase, recipe: Recipe, *, counted: bool = False) -> Future[Program]:
        job, size, resident = self._job, self._job.config.batch_size, self._job.resident(phase)
        count = self.steps_per_call(phase)
        engine, data = job.config.parallel, job.abstract_data(phase)
        if resident:
            indices = jax.ShapeDtypeStruct((count, size), "int32")
            number = [jax.ShapeDtypeStruct((), "int32")] * counted
            inputs: tuple[Any, ...] = (data, divided_shapes(indices, job.mesh, engine, axis=1), *number)
        else:
            inputs = (divided_shapes(data, job.mesh, engine),)
        state = job.phase_state(phase)
        placed = parallel.shardings(state, job.mesh)

        def lower(remat: Any) -> Any:
            own = dataclasses.replace(recipe, remat=remat)
            step = parallel.mapped_step(
                own, job.mesh, engine, resident=resident, counted=counted, figures=True, placed=placed
            )
            return step.lower(state, *inputs)

        if recipe.remat != "auto":
            return self._programs.start(partial(lower, recipe.remat))
        return self._programs.start_one_that_fits(partial(lower, "none"), partial(lower, "lean"), room())

    def account(self, phase: Phase) -> str:
        """Costs of the program of a phase, and the savings of `config.remat`, for the person who runs this."""
        program = self.wait(phase)
        now = program.memory.get("temporary", 0) / 2**20
        text = f"compiled in {program.seconds:.1f} s; a step takes {now:,.1f} MiB of temporary memory"
        recipe = self._job.recipes[phase.index]
        if recipe.remat == "auto" and program.refused:
            return f"{text}, with remat of lean, as without it needs {program.refused}"
        if recipe.remat in ("none", "auto"):
            return text
        kept = self._start(phase, dataclasses.replace(recipe, remat="none")).result().memory
        remat = recipe.remat if isinstance(recipe.remat, str) else ", ".join(recipe.remat)
        return f"{text}, without remat of {remat} {kept.get('temporary', 0) / 2**20:,.1f} MiB"

    def wait(self, phase: Phase, *, counted: bool = False) -> Program:
        """The program of a phase. counted: the one that takes as many steps as each call says."""
        return self._find(phase, counted=counted).result()

    def memory(self) -> dict[str, dict[str, int]]:
        """Bytes of the program of each phase that is compiled by now, by the phase's number."""
        return {
            str(phase): begun.result().memory
            for (phase, counted), begun in self._begun.items()
            if not counted and begun.done() and begun.exception() is None
        }

    def seconds(self) -> float:
        """The time of all compilations so far; in part they ran beside training."""
        return sum(begun.result().seconds for begun in self._begun.values() if begun.done())


def room() -> int | None:
    """Bytes of a device of this process that programs may use; None where it does not tell, as a CPU."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if len(known) == len(limits) else None


def choose_steps_per_call(asked: int, epoch_steps: int, flops_per_step: float) -> int:
    """The number of steps that one call of the program takes.

    asked: config.steps_per_call. By itself as many as cost about a hundredth of a second, so that starting them costs
    nothing, as a divisor of the steps of an epoch, so that one program does.
    """
    if asked:
        return min(asked, epoch_steps)
    worth = 2e9 if jax.default_backend() == "cpu" else 2e11
    wanted = max(1, min(epoch_steps, int(worth / max(flops_per_step, 1.0))))
    return max(count for count in range(1, wanted + 1) if epoch_steps % count == 0)
