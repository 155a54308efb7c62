"""The training loop: steps, validation at the end of each epoch, checkpoints."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax.sharding import Mesh

from covidjax import optim
from covidjax.checkpoint.saver import Saver, Snapshot
from covidjax.distributed.processes import Processes
from covidjax.errors import Interrupted, UserError
from covidjax.evaluate.network import answers, make_forward
from covidjax.mesh import place, replicated
from covidjax.tasks.base import Task
from covidjax.train import parallel
from covidjax.train.clock import Clock
from covidjax.train.compiling import Compiling
from covidjax.train.features import PrefixFeatures
from covidjax.train.inputs import PhaseInputs, make_inputs
from covidjax.train.job import Job
from covidjax.train.phases import Phase, evaluation_variables
from covidjax.train.progress import RunProgress, format_best, images_per_second, stopped_early
from covidjax.train.rewind import NotFiniteError, rewind
from covidjax.train.series import StepSeries
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Recipe
from covidjax.train.writer import MetricsWriter, ProgressLines


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """The parts of a run that the loop works with.

    writer: None where another process writes; stop_asked: whether it is to end after the present call.
    """

    job: Job
    compiling: Compiling
    features: PrefixFeatures
    saver: Saver
    writer: MetricsWriter | None
    lines: ProgressLines
    clock: Clock
    stop_asked: Callable[[], bool]
    processes: Processes

    def write(self, *records: dict[str, Any]) -> None:
        """Writes records of metrics.jsonl, if this process does."""
        if self.writer is not None:
            self.writer.write(*records)


def train(loop: Loop, state: TrainState, progress: RunProgress) -> RunProgress:
    """Takes the steps that are left of the phases of a job, and returns where they ended.

    Raises UserError where a loss is not finite, unless `config.nonfinite` goes on, and Interrupted where the run was
    asked to stop.
    """
    while True:
        try:
            return train_phases(loop, state, progress)
        except NotFiniteError as bad:
            if loop.job.config.nonfinite != "rewind":
                raise
            state, progress = rewind(loop.job, loop.saver, bad, progress)
            if loop.writer is not None:
                loop.writer.forget(progress.step)


def train_phases(loop: Loop, state: TrainState, progress: RunProgress) -> RunProgress:
    """`train` until a loss is not finite."""
    job, compiling = loop.job, loop.compiling
    for phase in job.phases:
        if progress.step >= phase.last_step or stopped_early(job, progress):
            continue
        if phase.index and progress.step == phase.first_step:
            state = job.begin_phase(phase, state)
        loop.processes.step(f"compiling phase {phase.index}")
        compiling.start(phase)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        with loop.clock.spent("feature passes" if job.caching[phase.index].validation else "data"):
            inputs = make_inputs(job, phase, variables, loop.features)
        print(*dict.fromkeys(loop.features.notes), "\ncompiling the step ...", sep="\n", flush=True)
        with loop.clock.spent("compilation"):
            compiling.wait(phase)
        print(compiling.account(phase), flush=True)
        if phase.index + 1 < len(job.phases):  # compiled while this phase runs
            compiling.start(job.phases[phase.index + 1])
        state, progress = train_phase(loop, phase, inputs, state, progress)
    with loop.clock.spent("checkpoints"):
        loop.saver.checkpoints.wait()
    return progress


def train_phase(
    loop: Loop, phase: Phase, inputs: PhaseInputs, state: TrainState, progress: RunProgress
) -> tuple[TrainState, RunProgress]:
    """The steps that are left of one phase."""
    job, recipe, config = loop.job, loop.job.recipes[phase.index], loop.job.config
    usual, size, every = loop.compiling.wait(phase), loop.compiling.steps_per_call(phase), config.evaluate_every_steps
    forward = make_forward(recipe.model, recipe.preprocessing, job.mesh, inputs.start)
    targets, batch_size = job.task.targets(job.val_split), config.batch_size
    series = StepSeries(phase.index, phase.first_step, phase.epoch)

    def measure(state: TrainState) -> dict[str, float]:
        variables = evaluation_variables(state, recipe.plan)
        found = answers(forward, variables, inputs.val, targets, batch_size, job.mesh)
        found = loop.processes.passing("validation", found)
        with loop.clock.spent("evaluation"):
            return job.task.measure(found, job.plain_loss, config.loss.name)

    def fetch(state: TrainState) -> StepMetrics:
        """The sums of the epoch so far; the figures of the steps that led there are written."""
        loop.write(*series.take())
        return fetch_sums(state, recipe, loop.saver)

    loop.lines.restart(progress.step)
    began, began_step, shown = time.monotonic(), progress.step, time.monotonic()
    origin = phase.epochs_from[0]
    span = (progress.step - origin, phase.last_step - origin)
    for count, arguments in inputs.calls(job.mesh, config.parallel, config.seed, batch_size, span, size, every):
        program = usual if count == size else loop.compiling.wait(phase, counted=True)
        state, told = program.call(state, *arguments)
        series.add(progress.step, count, told)
        parallel.throttle(state, job.mesh)
        step = progress.step + count
        loop.processes.step(f"step {step}")
        progress = dataclasses.replace(progress, step=step, phase=phase.index, phase_step=step - phase.first_step)
        if phase.ends_epoch(step) or step == phase.last_step:
            jax.block_until_ready(state)
            seconds = time.monotonic() - began
            sums = fetch(state)
            check_not_all_skipped(recipe, sums, step)
            loop.clock.add("steps", seconds)
            progress = dataclasses.replace(progress, train_seconds=progress.train_seconds + seconds)
            figures = train_figures(job.task, recipe, state, sums, batch_size)
            figures["images_per_second"] = images_per_second(step - began_step, batch_size, seconds)
            if recipe.skip_nonfinite:
                begun = max(phase.epoch_start(step - 1), phase.first_step)
                figures["nonfinite_steps"] = step - begun - int(sums.steps)
            measured = measure(state)
            progress = tell(loop, phase, figures, measured, progress)
            finished = figures["loss"] if phase.ends_epoch(step) else None  # else the phase ends within an epoch
            state = next_epoch(state, finished, phase.optimizer, job.mesh)
            ends = step == phase.last_step or stopped_early(job, progress)
            must = ends or config.nonfinite == "rewind"  # where it goes back to must not depend on time
            if ends or phase.epoch(step) % config.checkpoint.every_epochs == 0:
                figure = measured[config.checkpoint.best] if phase.split == "train" else None
                with loop.clock.spent("checkpoints"):
                    loop.saver.offer(Snapshot(step, state, dataclasses.asdict(progress), figure), must=must)
            began, began_step = time.monotonic(), step
        elif every and (step - origin) % every == 0:
            jax.block_until_ready(state)
            paused = time.monotonic()
            figures = train_figures(job.task, recipe, state, fetch(state), batch_size)
            figures["images_per_second"] = images_per_second(step - began_step, batch_size, paused - began)
            tell(loop, phase, figures, measure(state), progress)
            began += time.monotonic() - paused
        elif loop.processes.writes and time.monotonic() - shown > loop.lines.interval_seconds:
            # Of several processes this one alone is here, and must not end for what all of them have to see.
            sums = jax.device_get(state.metrics) if loop.processes.several else fetch(state)
            loss = f"loss {mean(sums.loss, sums.steps):.4f}"
            rate = images_per_second(step - began_step, batch_size, time.monotonic() - began)
            loop.lines.show(step, loss, rate, format_best(job, progress.best), stays=False)
            shown = time.monotonic()
        if stopped_early(job, progress):
            break
        if loop.stop_asked():
            fetch(state)
            spent = progress.train_seconds + time.monotonic() - began
            stop(loop.saver, state, dataclasses.replace(progress, train_seconds=spent))
    return state, progress


def fetch_sums(state: TrainState, recipe: Recipe, saver: Saver) -> StepMetrics:
    """The sums of the epoch so far, on the host. Raises NotFiniteError if a loss or gradient was not finite."""
    sums = jax.device_get(state.metrics)
    if (bad := int(sums.nonfinite_step)) >= 0:
        rate = float(recipe.learning_rate(bad - recipe.schedule_start)) * float(state.plateau.scale)
        saver.flush()
        steps = saver.checkpoints.steps()
        good = f"the last good checkpoint is step {steps[-1]}" if steps else "none was saved"
        scale = "" if state.loss_scale is None else f", loss scale {float(state.loss_scale.scale):g}"
        raise NotFiniteError(
            f"the loss or its gradient is not finite in step {bad + 1} (learning rate {rate:.3g}{scale}); {good}: look "
            "at the images, or use another --workdir with a lower config.optimizer.learning_rate or "
            "config.optimizer.clip_norm; --config.nonfinite=skip leaves such steps out, and rewind goes back",
            bad,
        )
    return sums


def check_not_all_skipped(recipe: Recipe, sums: StepMetrics, step: int) -> None:
    """Raises UserError where all steps of an epoch, which ends with this one, were left out."""
    if recipe.skip_nonfinite and not int(sums.steps):
        raise UserError(
            f"no step of the epoch that ends with step {step} has a finite loss and gradient, so all were left out "
            "(config.nonfinite=skip): look at the images, or lower config.optimizer.learning_rate"
        )


def tell(
    loop: Loop, phase: Phase, figures: dict[str, float], measured: dict[str, float], progress: RunProgress
) -> RunProgress:
    """Writes and shows the figures of training and of validation, and returns the progress with the best of these.

    Within an epoch (`config.evaluate_every_steps`) the figures of training are those of the epoch so far, `epoch` is
    the fraction that is reached, and the best stays that of the whole epochs, as it does in a phase that trains on the
    validation images.
    """
    job, step, pairs = loop.job, progress.step, (("train", figures), ("val", measured))
    ends = phase.ends_epoch(step) or step == phase.last_step
    epoch = math.ceil(phase.epoch(step)) if ends else phase.epoch(step)
    where = {"step": step, "epoch": epoch, "phase": phase.index}
    loop.write(*({**where, "split": split, **values} for split, values in pairs))
    name, best, waited = job.config.checkpoint.best, progress.best, progress.waited
    sign = job.task.best[name]
    if ends and phase.split == "train":
        better = math.isfinite(measured[name]) and (best is None or sign * measured[name] > sign * best[name])
        waited = 0 if better or phase.last_step < job.last_step else waited + 1
        if better or (best is not None and measured[name] == best[name]):  # of equal ones the last
            best = {"epoch": epoch, **measured}
    shown = "  ".join(f"{split} {job.task.format_figures(values, name)}" for split, values in pairs)
    loop.lines.show(step, shown, figures["images_per_second"], format_best(job, best), stays=True)
    return dataclasses.replace(progress, best=best, waited=waited)


def train_figures(
    task: Task, recipe: Recipe, state: TrainState, sums: StepMetrics, batch_size: int
) -> dict[str, float]:
    """The training figures of an epoch; the learning rate is that of its last step."""
    rate = recipe.learning_rate(int(state.step) - 1 - recipe.schedule_start) * state.plateau.scale
    figures = {
        "loss": mean(sums.loss, sums.steps),
        task.step_figure: mean(sums.correct, sums.steps * batch_size),
        "learning_rate": float(rate),
        "gradient_norm": mean(sums.gradient_norm, sums.steps),
    }
    if state.loss_scale is not None:
        figures["loss_scale"] = float(state.loss_scale.scale)
        figures["skipped_steps"] = int(state.loss_scale.skipped_steps)  # of the run so far
    return figures


def mean(total: jax.Array, count: jax.Array) -> float:
    """The mean of what was added up; NaN of nothing, where loss scaling has skipped every step."""
    return float(total) / int(count) if int(count) else math.nan


def next_epoch(state: TrainState, epoch_loss: float | None, optimizer: Any, mesh: Mesh) -> TrainState:
    """The state with which the next epoch begins: empty sums, and the plateau rule applied to the loss.

    epoch_loss: None after a part of an epoch, which says nothing of a plateau; optimizer: the section of the phase.
    """
    plateau = state.plateau if epoch_loss is None else optim.plateau_update(state.plateau, epoch_loss, optimizer)
    fresh = place((plateau, StepMetrics.empty()), replicated(mesh))
    return dataclasses.replace(state, plateau=fresh[0], metrics=fresh[1])


def stop(saver: Saver, state: TrainState, progress: RunProgress) -> NoReturn:
    """Saves where the run stands and leaves it. Raises Interrupted."""
    saver.flush()
    if progress.step not in saver.checkpoints.steps():
        saver.offer(Snapshot(progress.step, state, dataclasses.asdict(progress), None), must=True)
        saver.flush()
    raise Interrupted(f"stopped after step {progress.step}, which is saved: the same command goes on from there")
