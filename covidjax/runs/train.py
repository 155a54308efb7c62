"""A training run, from config to report, read from top to bottom."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, models
from covidjax.checkpoint.checkpoint import Restored
from covidjax.checkpoint.saver import Saver
from covidjax.data.audit.findings import told_of
from covidjax.distributed.processes import Processes
from covidjax.errors import Interrupted, UserError
from covidjax.evaluate.split import evaluate_split
from covidjax.freeze.table import format_table
from covidjax.report import batch
from covidjax.report import run as report
from covidjax.runs import ensemble, record
from covidjax.train import loop, memory
from covidjax.train.clock import Clock
from covidjax.train.compiling import Compiling
from covidjax.train.features import PrefixFeatures, feature_store
from covidjax.train.inputs import final_inputs, first_batch
from covidjax.train.job import describe_freeze
from covidjax.train.loop import Loop
from covidjax.train.programs import Programs
from covidjax.train.progress import RunProgress, early_stopping_notes, images_per_second
from covidjax.train.rewind import rewind_notes
from covidjax.train.setup import prepare
from covidjax.train.writer import MetricsWriter, ProgressLines, hooks_of
from covidjax.weights import inputs
from covidjax.weights.workdir import load_trained, open_checkpoints


def run(config: ConfigDict, workdir: Path, allocator: str, processes: Processes | None = None) -> Path:
    """Trains a network, or makes an ensemble, in a workdir that no other run has; see the two `train`."""
    processes = processes or Processes()
    with record.locked(workdir) if processes.writes else contextlib.nullcontext():
        if config.model.name != models.ENSEMBLE:
            return train(config, workdir, allocator, processes=processes)
        if processes.several:
            raise UserError("an ensemble is made by one process: start the command without the others")
        return ensemble.train(config, workdir)


def train(
    config: ConfigDict,
    workdir: Path,
    allocator: str = "default",
    programs: Programs | None = None,
    processes: Processes | None = None,
) -> Path:
    """Trains as `config` says, resuming what `workdir` holds, evaluates the validation split, writes the report.

    allocator: what the command says of it, for run.json. programs: what earlier runs of this process compiled.
    processes: all of them call this, and the first one writes the files.

    Returns the path of report.html. The test split is never read. Raises UserError for what a person can mend, and
    Interrupted after SIGTERM or SIGINT.
    """
    # ---- Workdir, data, network, phases ----
    processes = processes or Processes()
    record.open_workdir(workdir, config)
    clock = Clock()
    checkpoints = open_checkpoints(workdir, config)
    resumes = bool(checkpoints.steps()) and (workdir / "run.json").exists()
    began_before = (workdir / "config.json").exists()
    job = prepare(
        config, inputs.recorded(workdir) if resumes else None, record.split_of(workdir) if began_before else None
    )
    run = record.open_record(workdir, job)
    record.check_same(workdir, processes, job)  # and the workdir is read: from here on the first process writes
    run["allocator"] = allocator
    clock.add("data", job.data_seconds)
    run["timings"]["data_seconds"] = round(job.data_seconds, 2)
    print(*job.notes, sep="\n")
    if audited := told_of(workdir, config.audit, (job.train_split, job.val_split)):
        run["audit"] = audited
        print(audited["note"])
    for phase in job.phases:
        table = describe_freeze(job, phase)
        run["freeze"].append(table)
        print(f"\nphase {phase.index}: freeze {phase.freeze!r}, {phase.last_step - phase.first_step} steps")
        print(format_table(table["rows"], table["summary"]), table["features"]["note"], sep="\n", flush=True)
    report_path = workdir / "report.html"
    if processes.writes:
        if report_path.exists() and configs.of_workdir(workdir).epochs < config.epochs:
            report_path.unlink()  # of the shorter run, which goes on: a report stands for the end
        record.keep_split(workdir, job.train_split)
        files.write_json(workdir / "config.json", configs.to_json(config))
        record.write(workdir, run)
    processes.barrier("workdir opened")

    # ---- The newest sound checkpoint, or the beginning; training ----
    with contextlib.ExitStack() as stack:
        stack.enter_context(checkpoints)
        stop_asked = stack.enter_context(terminated(processes))
        restored = checkpoints.restore_latest(job.abstract_state)
        if restored is None:
            state, progress = job.fresh_state(), RunProgress()
            targets = job.task.targets(job.train_split)
            images, targets = first_batch(job.recipes[0], job.train_split, targets, config.seed, config.batch_size)
            labels = job.task.shown_labels(targets, job.train_split.classes)
            if processes.writes:
                batch.write_batch(workdir, images, labels, config.batch_size)
        else:
            state, progress = restored.state, _progress(workdir, restored)
            told = (*restored.notes, *filter(None, [checkpoints.lost_best()]))
            print(*told, f"\nresuming from step {progress.step} of {job.last_step}", sep="\n")
        programs = programs or Programs()
        features = PrefixFeatures(feature_store(config.dataset.cache_dir), job.mesh, programs, processes)
        compiling = Compiling(job, programs, [table["step_flops"] for table in run["freeze"]])
        writer = None
        if processes.writes:
            writer = stack.enter_context(MetricsWriter(workdir, progress.step, hooks_of(config, workdir)))
        lines = ProgressLines(job.last_step, job.epoch, progress.step)
        saver = Saver(checkpoints)
        clock.settle("set-up")
        parts = Loop(job, compiling, features, saver, writer, lines, clock, stop_asked, processes)
        finished = report_path.exists()
        with memory.told(job, compiling):
            progress = loop.train(parts, state, progress)
    ended = restored is not None and restored.step == progress.step
    if ended and finished:
        return report_path  # finished before: the report may hold the test split too

    # ---- Validation figures of the chosen checkpoint, and the report ----
    lost = checkpoints.lost_best()
    run["memory"] |= compiling.memory()
    run["features"] = features.account(run["features"])
    run["timings"] |= {
        "feature_seconds": run["features"]["seconds"],
        "train_seconds": round(progress.train_seconds, 2),
        "compile_seconds": round(compiling.seconds() + features.compile_seconds, 2),
        "images_per_second": images_per_second(progress.step, config.batch_size, progress.train_seconds),
    }
    stopped = early_stopping_notes(job, progress)
    print(*stopped, sep="\n", end="\n" * bool(stopped))
    stopped += rewind_notes(progress)
    failed = writer.notes if writer else []
    run["notes"] = list(dict.fromkeys((*run["notes"], *features.notes, *failed, *stopped, *filter(None, [lost]))))
    if processes.writes:
        record.write(workdir, run)
    with clock.spent("evaluation"):
        trained = load_trained(workdir, "latest" if lost else None)
        evaluate_split(workdir, trained, job.val_split, *final_inputs(job, trained, features))
    if not processes.writes:
        return report_path
    run["timings"]["wall"] = clock.account()
    record.write(workdir, run)
    with clock.spent("report"):
        report.write(workdir, {"val": job.val_split})
    run["timings"]["wall"] = clock.account()
    record.write(workdir, run)
    return report_path


def _progress(workdir: Path, restored: Restored) -> RunProgress:
    """What a checkpoint tells beside its state. Raises UserError for that of another version."""
    try:
        return RunProgress.of(restored.progress)
    except TypeError as error:
        raise UserError(
            f"checkpoint {restored.step} in {workdir} is of another version of covidjax ({error}): go on with that "
            "version (git_revision in run.json tells it), or train from it in another --workdir with "
            f"--config.pretrained={workdir}"
        ) from error


@contextlib.contextmanager
def terminated(processes: Processes) -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM and SIGINT no longer end the process; the function it gives says whether one came.

    A second SIGINT ends it at once, also while a program is compiled. One that whoever started this process has told
    it to ignore stays ignored. Of several processes JAX sees to it that all stop at the same step, see
    `Processes.stop_asked`.
    """
    if processes.several:
        yield processes.stop_asked
        return
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.write(2, b"\nstopping after the present step, which is saved; Ctrl-C once more ends it at once\n")

    kinds = [kind for kind in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(kind) != signal.SIG_IGN]
    former = {kind: signal.signal(kind, note) for kind in kinds}
    try:
        yield lambda: bool(came)
    except Interrupted as stopped:
        stopped.number = came[0]
        raise
    finally:
        for kind, handler in former.items():
            signal.signal(kind, handler)
        if signal.SIGTERM in came and callable(handler := former[signal.SIGTERM]):
            handler(signal.SIGTERM, None)  # maybe too late for this run to stop, but whoever runs several has to know
    if signal.SIGINT in came:
        raise KeyboardInterrupt
