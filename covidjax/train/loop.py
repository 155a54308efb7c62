"""A training run, from config to report, read from top to bottom."""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import jax
from ml_collections import ConfigDict

from covidjax import batch_view, evaluate, files, freeze, optim, report
from covidjax import config as configs
from covidjax.errors import UserError
from covidjax.train import features, parallel, record
from covidjax.train.compiling import Compiling, steps_per_call
from covidjax.train.features import Passes
from covidjax.train.inputs import Feed, final_inputs, make_feed
from covidjax.train.phases import Phase, evaluation_variables
from covidjax.train.programs import Programs
from covidjax.train.saver import Offer, Saver
from covidjax.train.setup import Job, describe_freeze, prepare
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Recipe
from covidjax.train.writer import MetricsWriter, Progress
from covidjax.trained import load_trained, open_checkpoints


class Interrupted(Exception):
    """SIGTERM came: the state is saved, and the same command goes on from there."""


@dataclasses.dataclass
class Chronicle:
    """What is carried along beside the state: finished steps, seconds of training, the best validation so far.

    phase, phase_step: where the last checkpoint stands, for whoever looks into it.
    """

    step: int = 0
    train_seconds: float = 0.0
    best: dict[str, float] | None = None
    phase: int = 0
    phase_step: int = 0


def train(config: ConfigDict, workdir: Path, allocator: str = "default", programs: Programs | None = None) -> Path:
    """Trains as `config` says, resuming what `workdir` holds, evaluates the validation split, writes the report.

    allocator: what the command says of it, for run.json. programs: what earlier runs of this process compiled.

    Returns the path of report.html. The test split is never read. Raises UserError for what a person can mend, and
    Interrupted after SIGTERM.
    """
    # ---- Workdir, data, network, phases ----
    record.open_workdir(workdir, config)
    began = time.monotonic()
    job = prepare(config)
    run = record.open_record(workdir, job)
    run["allocator"] = allocator
    run["timings"]["data_seconds"] = round(time.monotonic() - began, 2)
    print(*job.notes, sep="\n")
    for phase in job.phases:
        table = describe_freeze(job, phase)
        run["freeze"].append(table)
        print(f"\nphase {phase.index}: freeze {phase.freeze!r}, {phase.last_step - phase.first_step} steps")
        print(freeze.format_table(table["rows"], table["summary"]), table["features"]["note"], sep="\n", flush=True)
    files.write_json(workdir / "config.json", configs.to_json(config))
    files.write_json(workdir / "run.json", run)

    # ---- The newest sound checkpoint, or the beginning ----
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(open_checkpoints(workdir, config))
        stop_asked = stack.enter_context(terminated())
        restored = checkpoints.restore_latest(job.abstract_state)
        if restored is None:
            state, chronicle = job.fresh_state(), Chronicle()
            pictured = job.train_split, job.targets(job.train_split)
            batch_view.write_batch(workdir, job.recipes[0], *pictured, seed=config.seed, batch_size=config.batch_size)
        else:
            state, chronicle = restored.state, Chronicle(**restored.progress)
            print(*restored.notes, f"\nresuming from step {chronicle.step} of {job.last_step}", sep="\n")
        saver = Saver(checkpoints)
        programs = programs or Programs()
        passes = Passes(features.store(config), job.mesh, programs)
        steps_of_call = [
            steps_per_call(config.steps_per_call, job.steps_per_epoch, table["step_flops"])
            if job.resident(phase)
            else 1
            for phase, table in zip(job.phases, run["freeze"], strict=True)
        ]
        compiling = Compiling(job, programs)
        writer = stack.enter_context(MetricsWriter(workdir, chronicle.step))
        progress = Progress(job.last_step, job.steps_per_epoch, config.batch_size, chronicle.step)

        # ---- Training ----
        for phase, recipe in job.unfinished(chronicle.step):
            if phase.index and chronicle.step == phase.first_step:
                state = job.begin_phase(phase, state)
            size, every = steps_of_call[phase.index], config.evaluate_every_steps
            compiling.start(phase, size)
            feed = make_feed(job, phase, {"params": state.params, "batch_stats": state.batch_stats}, passes)
            print(*dict.fromkeys(passes.notes), "\ncompiling the step ...", sep="\n", flush=True)
            take_steps = compiling.wait(phase, size)
            print(compiling.account(phase, size), flush=True)
            run["memory"][str(phase.index)] = take_steps.memory
            if phase.index + 1 < len(job.phases):  # compiled while this phase runs
                compiling.start(job.phases[phase.index + 1], steps_of_call[phase.index + 1])
            forward = evaluate.make_forward(recipe.model, recipe.preprocessing, job.mesh, feed.start)
            progress.restart(chronicle.step)
            began, began_step, shown = time.monotonic(), chronicle.step, time.monotonic()
            span, engine = (chronicle.step, phase.last_step), config.parallel
            for count, arguments in feed.calls(job.mesh, engine, config.seed, config.batch_size, span, size, every):
                program = take_steps if count == size else compiling.wait(phase, size, counted=True)
                state = program.call(state, *arguments)
                parallel.throttle(state, job.mesh)
                chronicle.step += count
                if chronicle.step % job.steps_per_epoch == 0 or chronicle.step == phase.last_step:
                    sums = fetch_sums(state, recipe, saver)
                    seconds, steps = time.monotonic() - began, chronicle.step - began_step
                    chronicle.train_seconds += seconds
                    figures = train_figures(recipe, state, sums)
                    figures["images_per_second"] = round(steps * config.batch_size / seconds, 2)
                    measured = validate(job, phase, state, forward, feed, figures, writer, progress, chronicle)
                    state = next_epoch(job, phase, state, figures["loss"])
                    save(job, phase, state, chronicle, saver, measured)
                    began, began_step = time.monotonic(), chronicle.step
                elif every and chronicle.step % every == 0:
                    figures = train_figures(recipe, state, fetch_sums(state, recipe, saver))
                    paused = time.monotonic()
                    validate(job, phase, state, forward, feed, figures, writer, progress, chronicle)
                    began += time.monotonic() - paused
                elif time.monotonic() - shown > progress.interval_seconds:
                    sums = fetch_sums(state, recipe, saver)
                    progress.within_epoch(chronicle.step, mean(sums.loss, sums.steps), describe(chronicle.best))
                    shown = time.monotonic()
                if stop_asked():
                    stop(phase, state, recipe, chronicle, saver, time.monotonic() - began)
        checkpoints.wait()
    report_path = workdir / "report.html"
    if restored is not None and restored.step == job.last_step and report_path.exists():
        return report_path  # finished before: the report may hold the test split too

    # ---- Validation figures of the best checkpoint, and the report ----
    images = chronicle.step * config.batch_size
    run["features"] = passes.account(run["features"])
    run["timings"] |= {
        "feature_seconds": run["features"]["seconds"],
        "train_seconds": round(chronicle.train_seconds, 2),
        "compile_seconds": round(compiling.seconds() + passes.compile_seconds, 2),
        "images_per_second": round(images / max(chronicle.train_seconds, 1e-9), 2),
    }
    run["notes"] = list(dict.fromkeys((*run["notes"], *passes.notes)))
    files.write_json(workdir / "run.json", run)
    trained = load_trained(workdir, "best")
    evaluate.evaluate_workdir(workdir, trained, job.val_split, *final_inputs(job, trained, passes))
    return report.write(workdir, {"val": job.val_split})


def fetch_sums(state: TrainState, recipe: Recipe, saver: Saver) -> StepMetrics:
    """The sums of the epoch so far, on the host. Raises UserError if a loss or gradient was not finite."""
    sums = jax.device_get(state.metrics)
    if (bad := int(sums.nonfinite_step)) >= 0:
        rate = float(recipe.learning_rate(bad - recipe.schedule_start)) * float(state.plateau.scale)
        saver.flush()
        steps = saver.checkpoints.steps()
        good = f"the last good checkpoint is step {steps[-1]}" if steps else "none was saved"
        scale = "" if state.loss_scale is None else f", loss scale {float(state.loss_scale.scale):g}"
        raise UserError(
            f"the loss or its gradient is not finite in step {bad + 1} (learning rate {rate:.3g}{scale}); {good}: look "
            "at the images, or use another --workdir with a lower config.optimizer.learning_rate or "
            "config.optimizer.clip_norm"
        )
    return sums


def validate(
    job: Job,
    phase: Phase,
    state: TrainState,
    forward: evaluate.Forward,
    feed: Feed,
    figures: dict[str, float],
    writer: MetricsWriter,
    progress: Progress,
    chronicle: Chronicle,
) -> float:
    """Measures the validation split, writes and shows the figures; returns the one that checkpoints go by.

    Within an epoch (`config.evaluate_every_steps`) the figures of training, which are those of the epoch so far, are
    shown only, `epoch` is the fraction that is reached, and the best stays that of the whole epochs.
    """
    plan = job.recipes[phase.index].plan
    variables = evaluation_variables(state.params, state.batch_stats, state.average, plan)
    targets, size = job.targets(job.val_split), job.config.batch_size
    measured = evaluate.measure(forward, variables, feed.val, targets, size, job.mesh, job.plain_loss)
    step, pairs = chronicle.step, (("train", figures), ("val", measured))
    ends = step % job.steps_per_epoch == 0 or step == phase.last_step
    epoch = -(-step // job.steps_per_epoch) if ends else step / job.steps_per_epoch
    for split, values in pairs if ends else pairs[1:]:
        writer.write({"step": step, "epoch": epoch, "phase": phase.index, "split": split, **values})
    name = job.config.checkpoint.best
    sign = 1.0 if name == "loss" else -1.0
    best = chronicle.best
    if ends and math.isfinite(measured[name]) and (best is None or sign * measured[name] <= sign * best[name]):
        chronicle.best = {"epoch": epoch, **measured}
    progress.measured(step, "  ".join(f"{split} {told(values)}" for split, values in pairs), describe(chronicle.best))
    return measured[name]


def train_figures(recipe: Recipe, state: TrainState, sums: StepMetrics) -> dict[str, float]:
    """The training figures of an epoch; the learning rate is that of its last step."""
    rate = recipe.learning_rate(int(state.step) - 1 - recipe.schedule_start) * state.plateau.scale
    figures = {
        "loss": mean(sums.loss, sums.steps),
        "accuracy": mean(sums.correct, sums.count),
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


def next_epoch(job: Job, phase: Phase, state: TrainState, epoch_loss: float) -> TrainState:
    """The state with which the next epoch begins: empty sums, and the plateau rule told of the loss."""
    plateau = state.plateau
    if int(state.step) % job.steps_per_epoch == 0:  # a phase that ends within an epoch has seen a part of one
        plateau = optim.plateau_update(plateau, epoch_loss, phase.optimizer)
    fresh = jax.device_put((plateau, StepMetrics.empty()), parallel.replicated(job.mesh))
    return dataclasses.replace(state, plateau=fresh[0], metrics=fresh[1])


def save(job: Job, phase: Phase, state: TrainState, chronicle: Chronicle, saver: Saver, metric: float) -> None:
    """Offers the state every `checkpoint.every_epochs` epochs, and saves it at the end of a phase."""
    chronicle.phase, chronicle.phase_step = phase.index, chronicle.step - phase.first_step
    ends = chronicle.step == phase.last_step
    if ends or chronicle.step // job.steps_per_epoch % job.config.checkpoint.every_epochs == 0:
        saver.offer(Offer(chronicle.step, state, dataclasses.asdict(chronicle), metric), must=ends)


def stop(
    phase: Phase,
    state: TrainState,
    recipe: Recipe,
    chronicle: Chronicle,
    saver: Saver,
    epoch_seconds: float,
) -> NoReturn:
    """Saves where the run stands and leaves it. Raises Interrupted."""
    fetch_sums(state, recipe, saver)
    chronicle.train_seconds += epoch_seconds
    chronicle.phase, chronicle.phase_step = phase.index, chronicle.step - phase.first_step
    saver.flush()
    if chronicle.step not in saver.checkpoints.steps():
        saver.offer(Offer(chronicle.step, state, dataclasses.asdict(chronicle), None), must=True)
        saver.flush()
    raise Interrupted(f"stopped after step {chronicle.step}, which is saved: the same command goes on from there")


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM no longer ends the process; the function it gives says whether one came."""
    came = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, former)
        if came.is_set() and callable(former):  # too late for this run to stop, but whoever runs several has to know
            former(signal.SIGTERM, None)


def describe(best: dict[str, float] | None) -> str:
    """The best validation figures so far, for the progress line."""
    return "-" if best is None else f"val {told(best)} (epoch {best['epoch']:.0f})"


def told(figures: dict[str, float]) -> str:
    """Loss and accuracy, of masks their Dice as well where it is known, for the progress line."""
    dice = f" dice {figures['dice']:.3f}" if "dice" in figures else ""
    return f"loss {figures['loss']:.4f} accuracy {figures['accuracy']:.3f}{dice}"
