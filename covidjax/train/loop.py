"""A training run, from config to report, read from top to bottom."""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import evaluate, files, freeze, optim, report
from covidjax.data import stream
from covidjax.data.order import batch_indices
from covidjax.errors import UserError
from covidjax.train import parallel, record
from covidjax.train.checkpoint import Checkpoints
from covidjax.train.phases import Phase, evaluation_variables
from covidjax.train.setup import Job, describe_freeze, prepare
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Recipe
from covidjax.train.writer import MetricsWriter, Progress
from covidjax.trained import load_trained, open_checkpoints


class Interrupted(Exception):
    """SIGTERM came: the state is saved, and the same command goes on from there."""


@dataclasses.dataclass
class Chronicle:
    """What is carried along beside the state: finished steps, seconds of training, the best validation so far."""

    step: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    best: dict[str, float] | None = None


def train(config: ConfigDict, workdir: Path, allocator: str = "default") -> Path:
    """Trains as `config` says, resuming what `workdir` holds, evaluates the validation split, writes the report.

    allocator: what the command says of it, for run.json.

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
        print(freeze.format_table(table["rows"], table["summary"]), flush=True)
    files.write_json(workdir / "config.json", configs.to_json(config))
    files.write_json(workdir / "run.json", run)

    # ---- The newest sound checkpoint, or the beginning ----
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(open_checkpoints(workdir, config))
        stop_asked = stack.enter_context(terminated())
        restored = checkpoints.restore_latest(job.abstract_state)
        if restored is None:
            state, chronicle = job.fresh_state(), Chronicle()
        else:
            state, chronicle = restored.state, Chronicle(**restored.progress)
            print(*restored.notes, f"\nresuming from step {chronicle.step} of {job.last_step}", sep="\n")
        forward = evaluate.make_forward(job.recipes[0].model, job.recipes[0].preprocessing, job.mesh)
        writer = stack.enter_context(MetricsWriter(workdir, chronicle.step))
        progress = Progress(job.last_step, job.steps_per_epoch, config.batch_size, chronicle.step)

        # ---- Training ----
        for phase, recipe in zip(job.phases, job.recipes, strict=True):
            if chronicle.step >= phase.last_step:
                continue
            if phase.index and chronicle.step == phase.first_step:
                state = job.begin_phase(phase, state)
            take_step = compile_step(job, recipe, state, chronicle)
            progress.restart(chronicle.step)
            began, began_step, shown = time.monotonic(), chronicle.step, time.monotonic()
            for arguments in inputs(job, chronicle.step, phase.last_step):
                state = take_step(state, *arguments)
                chronicle.step += 1
                if chronicle.step % job.steps_per_epoch == 0:
                    sums = fetch_sums(state, recipe, checkpoints)
                    seconds, steps = time.monotonic() - began, chronicle.step - began_step
                    chronicle.train_seconds += seconds
                    figures = train_figures(recipe, state, sums)
                    figures["images_per_second"] = round(steps * config.batch_size / seconds, 2)
                    measured = finish_epoch(job, phase, state, forward, figures, writer, progress, chronicle)
                    state = next_epoch(job, phase, state, figures["loss"])
                    save(job, state, chronicle, checkpoints, measured)
                    began, began_step = time.monotonic(), chronicle.step
                elif time.monotonic() - shown > progress.interval_seconds:
                    sums = fetch_sums(state, recipe, checkpoints)
                    progress.within_epoch(chronicle.step, float(sums.loss) / int(sums.steps), describe(chronicle.best))
                    shown = time.monotonic()
                if stop_asked():
                    stop(state, recipe, chronicle, checkpoints, time.monotonic() - began)
        checkpoints.wait()
    report_path = workdir / "report.html"
    if restored is not None and restored.step == job.last_step and report_path.exists():
        return report_path  # finished before: the report may hold the test split too

    # ---- Validation figures of the best checkpoint, and the report ----
    images = chronicle.step * config.batch_size
    run["timings"] |= {
        "train_seconds": round(chronicle.train_seconds, 2),
        "compile_seconds": round(chronicle.compile_seconds, 2),
        "images_per_second": round(images / max(chronicle.train_seconds, 1e-9), 2),
    }
    files.write_json(workdir / "run.json", run)
    evaluate.evaluate_workdir(workdir, load_trained(workdir, "best"), job.val_split)
    return report.write(workdir, {"val": job.val_split})


def inputs(job: Job, first_step: int, last_step: int) -> Iterator[tuple[Any, ...]]:
    """What each step takes beside the state: the resident split and a batch's indices, or a batch from the host."""
    by_example, seed, size = parallel.by_example(job.mesh), job.config.seed, job.config.batch_size
    examples = job.train_split
    if job.resident:
        split = {"image": examples.images, "label": examples.labels}
        split = jax.device_put(split, parallel.replicated(job.mesh))
        for step in range(first_step, last_step):
            yield split, jax.device_put(batch_indices(seed, step, len(examples), size), by_example)
    else:
        for batch in stream.batches(examples, seed, size, first_step, last_step):
            yield (jax.device_put(batch, by_example),)


def compile_step(job: Job, recipe: Recipe, state: TrainState, chronicle: Chronicle) -> Callable[..., TrainState]:
    """The compiled step of a phase; its compile time is told apart from training time."""
    began = time.monotonic()
    print("\ncompiling the step ...", flush=True)
    examples, size = job.train_split, job.config.batch_size
    rows = len(examples) if job.resident else size
    split = {
        "image": jax.ShapeDtypeStruct((rows, *examples.images.shape[1:]), examples.images.dtype),
        "label": jax.ShapeDtypeStruct((rows,), examples.labels.dtype),
    }
    indices = (jax.ShapeDtypeStruct((size,), "int32"),) if job.resident else ()
    compiled = parallel.jit_step(recipe, job.mesh, resident=job.resident).lower(state, split, *indices).compile()
    chronicle.compile_seconds += time.monotonic() - began
    print(f"compiled in {time.monotonic() - began:.1f} s", flush=True)
    return compiled


def fetch_sums(state: TrainState, recipe: Recipe, checkpoints: Checkpoints) -> StepMetrics:
    """The sums of the epoch so far, on the host. Raises UserError if a loss or gradient was not finite."""
    sums = jax.device_get(state.metrics)
    if (bad := int(sums.nonfinite_step)) >= 0:
        rate = float(recipe.learning_rate(bad - recipe.first_step)) * float(state.plateau.scale)
        checkpoints.wait()
        good = (
            f"the last good checkpoint is step {checkpoints.steps()[-1]}" if checkpoints.steps() else "none was saved"
        )
        raise UserError(
            f"the loss or its gradient is not finite in step {bad + 1} (learning rate {rate:.3g}); {good}: look at the "
            "images, or use another --workdir with a lower config.optimizer.learning_rate or config.optimizer.clip_norm"
        )
    return sums


def finish_epoch(
    job: Job,
    phase: Phase,
    state: TrainState,
    forward: evaluate.Forward,
    figures: dict[str, float],
    writer: MetricsWriter,
    progress: Progress,
    chronicle: Chronicle,
) -> float:
    """Measures the validation split, writes the epoch's figures, remembers the best; returns what checkpoints go by."""
    plan = job.recipes[phase.index].plan
    variables = evaluation_variables(state.params, state.batch_stats, state.average, plan)
    measured = evaluate.measure(
        forward, variables, job.val_split, job.config.batch_size, job.mesh, job.config.loss.name
    )
    step, epoch = chronicle.step, chronicle.step // job.steps_per_epoch
    for split, values in (("train", figures), ("val", measured)):
        writer.write({"step": step, "epoch": epoch, "phase": phase.index, "split": split, **values})
    name = job.config.checkpoint.best
    sign = -1.0 if name == "accuracy" else 1.0
    best = chronicle.best
    if math.isfinite(measured[name]) and (best is None or sign * measured[name] <= sign * best[name]):
        chronicle.best = {"epoch": epoch, **measured}
    pairs = (("train", figures), ("val", measured))
    line = "  ".join(f"{split} loss {v['loss']:.4f} accuracy {v['accuracy']:.3f}" for split, v in pairs)
    progress.epoch(step, line, describe(chronicle.best))
    return measured[name]


def train_figures(recipe: Recipe, state: TrainState, sums: StepMetrics) -> dict[str, float]:
    """The training figures of an epoch; the learning rate is that of its last step."""
    rate = recipe.learning_rate(int(state.step) - 1 - recipe.first_step) * state.plateau.scale
    return {
        "loss": float(sums.loss) / int(sums.steps),
        "accuracy": int(sums.correct) / int(sums.count),
        "learning_rate": float(rate),
        "gradient_norm": float(sums.gradient_norm) / int(sums.steps),
    }


def next_epoch(job: Job, phase: Phase, state: TrainState, epoch_loss: float) -> TrainState:
    """The state with which the next epoch begins: empty sums, and the plateau rule told of the loss."""
    plateau = optim.plateau_update(state.plateau, epoch_loss, phase.optimizer)
    fresh = jax.device_put((plateau, StepMetrics.empty()), parallel.replicated(job.mesh))
    return dataclasses.replace(state, plateau=fresh[0], metrics=fresh[1])


def save(job: Job, state: TrainState, chronicle: Chronicle, checkpoints: Checkpoints, metric: float) -> None:
    """Saves after every `checkpoint.every_epochs` epochs and after the last; the best is chosen among these."""
    epoch = chronicle.step // job.steps_per_epoch
    if epoch % job.config.checkpoint.every_epochs == 0 or chronicle.step == job.last_step:
        checkpoints.save(chronicle.step, state, dataclasses.asdict(chronicle), metric)


def stop(
    state: TrainState, recipe: Recipe, chronicle: Chronicle, checkpoints: Checkpoints, epoch_seconds: float
) -> NoReturn:
    """Saves where the run stands and leaves it. Raises Interrupted."""
    fetch_sums(state, recipe, checkpoints)
    chronicle.train_seconds += epoch_seconds
    checkpoints.wait()
    if chronicle.step not in checkpoints.steps():
        checkpoints.save(chronicle.step, state, dataclasses.asdict(chronicle), None)
        checkpoints.wait()
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


def describe(best: dict[str, float] | None) -> str:
    """The best validation figures so far, for the progress line."""
    return (
        "-"
        if best is None
        else f"val loss {best['loss']:.4f} accuracy {best['accuracy']:.3f} (epoch {best['epoch']:.0f})"
    )
