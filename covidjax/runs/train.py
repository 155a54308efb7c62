"""A training run, from config to report, read from top to bottom."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, models
from covidjax.checkpoint.saver import Saver
from covidjax.evaluate.split import evaluate_split
from covidjax.freeze.table import format_table
from covidjax.report import batch
from covidjax.report import run as report
from covidjax.runs import ensemble, record
from covidjax.train import loop
from covidjax.train.compiling import Compiling
from covidjax.train.features import PrefixFeatures, feature_store
from covidjax.train.inputs import final_inputs, first_batch
from covidjax.train.loop import Loop, RunProgress
from covidjax.train.programs import Programs
from covidjax.train.setup import describe_freeze, prepare
from covidjax.train.writer import MetricsWriter, ProgressLines
from covidjax.weights.workdir import load_trained, open_checkpoints


def run(config: ConfigDict, workdir: Path, allocator: str) -> Path:
    """Trains a network, or makes an ensemble, in a workdir that no other process has; see the two `train`."""
    with record.locked(workdir):
        if config.model.name == models.ENSEMBLE:
            return ensemble.train(config, workdir)
        return train(config, workdir, allocator)


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
        print(format_table(table["rows"], table["summary"]), table["features"]["note"], sep="\n", flush=True)
    files.write_json(workdir / "config.json", configs.to_json(config))
    files.write_json(workdir / "run.json", run)

    # ---- The newest sound checkpoint, or the beginning; training ----
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(open_checkpoints(workdir, config))
        stop_asked = stack.enter_context(terminated())
        restored = checkpoints.restore_latest(job.abstract_state)
        if restored is None:
            state, progress = job.fresh_state(), RunProgress()
            targets = job.task.targets(job.train_split)
            inputs, targets = first_batch(job.recipes[0], job.train_split, targets, config.seed, config.batch_size)
            labels = [job.task.label(target, job.train_split.classes) for target in targets]
            batch.write_batch(workdir, inputs, labels, config.batch_size)
        else:
            state, progress = restored.state, RunProgress(**restored.progress)
            print(*restored.notes, f"\nresuming from step {progress.step} of {job.last_step}", sep="\n")
        programs = programs or Programs()
        features = PrefixFeatures(feature_store(config.dataset.cache_dir), job.mesh, programs)
        compiling = Compiling(job, programs, [table["step_flops"] for table in run["freeze"]])
        writer = stack.enter_context(MetricsWriter(workdir, progress.step))
        lines = ProgressLines(job.last_step, job.steps_per_epoch, config.batch_size, progress.step)
        saver = Saver(checkpoints)
        progress = loop.train(Loop(job, compiling, features, saver, writer, lines, stop_asked), state, progress)
    report_path = workdir / "report.html"
    if restored is not None and restored.step == job.last_step and report_path.exists():
        return report_path  # finished before: the report may hold the test split too

    # ---- Validation figures of the best checkpoint, and the report ----
    images = progress.step * config.batch_size
    run["memory"] |= compiling.memory()
    run["features"] = features.account(run["features"])
    run["timings"] |= {
        "feature_seconds": run["features"]["seconds"],
        "train_seconds": round(progress.train_seconds, 2),
        "compile_seconds": round(compiling.seconds() + features.compile_seconds, 2),
        "images_per_second": round(images / max(progress.train_seconds, 1e-9), 2),
    }
    run["notes"] = list(dict.fromkeys((*run["notes"], *features.notes)))
    files.write_json(workdir / "run.json", run)
    trained = load_trained(workdir, "best")
    evaluate_split(workdir, trained, job.val_split, *final_inputs(job, trained, features))
    return report.write(workdir, {"val": job.val_split})


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
