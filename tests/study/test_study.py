"""A study gives what its runs give one by one, repeats none that is finished, and goes on wherever it was stopped."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from covidjax import files
from covidjax.train import loop
from launch import study, train
from tests.commands import ROOT, call, contents, read_table, refusal
from tests.train.test_resume import figures

STRATEGIES, SEEDS = ("none", "backbone"), (0, 1)
PLAN = ["--strategies=none,backbone", "--seeds=0,1", "--config.epochs=2"]
STEPS_PER_RUN = 12  # 24 images in batches of 4, for 2 epochs
# What depends on the clock, and what a run that was killed no longer tells of its beginning.
CLOCKED = {
    "cost_seconds",
    "total_seconds",
    "train_seconds",
    "feature_seconds",
    "compile_seconds",
    "passes_made",
    "passes_reused",
}
# Runs the command, and kills itself when so many steps have been taken, of all runs together.
KILLED = """
import os, signal, sys
from covidjax import command
from covidjax.train import inputs
from launch import study

left, calls = int(sys.argv.pop(1)), inputs.PhaseInputs.calls

def changed(self, *arguments):
    global left
    for count, given in calls(self, *arguments):
        left -= count
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield count, given

inputs.PhaseInputs.calls = changed
command.run(study.main)
"""


@pytest.fixture(scope="module", autouse=True)
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """With a folder of caches of its own: what is found there is counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield {**environment, "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    """The workdir of a study of two strategies and two seeds, which no test may change; beside it what it said."""
    workdir = tmp_path_factory.mktemp("finished") / "study"
    with (workdir.parent / "output.txt").open("w") as output, contextlib.redirect_stdout(output):
        assert call(study.main, config, *PLAN, f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "study")


def rows(workdir: Path) -> dict[str, dict[str, str]]:
    """The rows of study.csv by the workdir of the run."""
    return {row["workdir"]: row for row in read_table(workdir / "study.csv")}


def without_times(workdir: Path) -> dict[str, dict[str, str]]:
    """The same without what depends on the clock."""
    table = rows(workdir)
    return {name: {key: row[key] for key in row.keys() - CLOCKED} for name, row in table.items()}


def test_run_of_a_study_is_what_the_train_command_gives(finished: Path, config: str, tmp_path: Path) -> None:
    strategy, seed = "backbone", 1
    flags = [f"--config.freeze={strategy}", f"--config.seed={seed}", f"--config.dataset.cache_dir={tmp_path / 'cache'}"]
    assert call(train.main, config, *flags, PLAN[-1], f"--workdir={tmp_path / 'alone'}") == 0
    own = finished / "runs" / f"{strategy}_lr0.001_seed{seed}"
    assert figures(own) == figures(tmp_path / "alone")
    for name in ("predictions_val.csv", "evaluation_val.json"):
        assert (own / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_table_holds_what_the_runs_recorded(finished: Path) -> None:
    table = rows(finished)
    found = {(row["strategy"], int(row["seed"])) for row in table.values()}
    assert found == set(itertools.product(STRATEGIES, SEEDS))
    for name, row in table.items():
        evaluation, run = (files.read_json(finished / name / each) for each in ("evaluation_val.json", "run.json"))
        assert row["status"] == "finished"
        assert float(row["val_accuracy"]) == evaluation["accuracy"]
        assert [float(row["val_accuracy_low"]), float(row["val_accuracy_high"])] == evaluation["accuracy_ci95"]
        assert float(row["val_loss"]) == evaluation["loss"]
        assert float(row["train_seconds"]) == run["timings"]["train_seconds"]
        assert float(row["cost_seconds"]) >= float(row["train_seconds"])
        total = float(row["cost_seconds"]) + run["timings"]["compile_seconds"]
        assert float(row["total_seconds"]) == pytest.approx(total)
        stages = run["freeze"][0]["rows"]
        full = sum(stage["forward_flops"] + stage["full_backward_flops"] for stage in stages)
        assert float(row["predicted_share"]) == pytest.approx(run["freeze"][0]["step_flops"] / full)
        assert (row["strategy"] == "none") == (float(row["predicted_share"]) == 1)
        assert int(row["trained_parameters"]) == sum(stage["trainable"] for stage in stages)
        assert (row["strategy"] == "none") == (row["trained_parameters"] == row["total_parameters"])
        assert int(row["peak_bytes"]) > int(row["temporary_bytes"]) > 0


def test_each_program_is_compiled_once_and_counted(finished: Path) -> None:
    output = (finished.parent / "output.txt").read_text()
    counted = re.findall(r"programs, of this command: (\d+) compiled, (\d+) times one of them reused", output)
    assert counted == [("3", "5")]
    made, reused = (sum(int(row[key]) for row in rows(finished).values()) for key in ("passes_made", "passes_reused"))
    assert f"feature passes, of all runs: {made} made, {reused} times one of them reused" in output
    assert made == 2 * len(SEEDS)  # over both splits; random weights differ with the seed
    assert reused == 0


@pytest.mark.slow
def test_finished_run_is_not_repeated_when_seeds_are_added(copied: Path, config: str) -> None:
    files_of_runs = [path for path in (copied / "runs").rglob("*") if path.parent != copied / "runs"]
    before, table = [path.stat().st_mtime_ns for path in files_of_runs], without_times(copied)
    assert call(study.main, config, PLAN[0], "--seeds=0,1,2", PLAN[2], f"--workdir={copied}") == 0
    assert [path.stat().st_mtime_ns for path in files_of_runs] == before
    after = without_times(copied)
    assert after.keys() - table.keys() == {f"runs/{strategy}_lr0.001_seed2" for strategy in STRATEGIES}
    assert {name: after[name] for name in table} == table
    assert files.read_json(copied / "study.json")["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([*PLAN, "--config.model.width=4"], "holds a study of another config: model.width (was 2, now 4)"),
        ([PLAN[0], "--seeds=1,2", PLAN[2]], "holds a study that also has the seeds 0: name them as well"),
        (["--strategies=none", *PLAN[1:]], "holds a study that also has the strategies backbone: name them as well"),
        ([*PLAN, "--learning_rates=1e-4"], "holds a study that also has the learning_rates 0.001: name them as well"),
    ],
)
def test_another_plan_in_the_same_workdir_is_refused(
    capfd: pytest.CaptureFixture[str], finished: Path, config: str, flags: list[str], expected: str
) -> None:
    before = contents(finished)
    assert expected in refusal(capfd, study.main, config, *flags, f"--workdir={finished}")
    assert contents(finished) == before


@pytest.mark.slow
def test_study_killed_in_the_middle_goes_on_to_the_same_figures(
    finished: Path, config: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    workdir = tmp_path / "study"
    arguments = [config, *PLAN, f"--workdir={workdir}"]
    after = str(2 * STEPS_PER_RUN + STEPS_PER_RUN // 2)  # between the epochs of the third run
    command = [sys.executable, "-c", KILLED, after, *arguments]
    killed = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    status = [row["status"] for row in rows(workdir).values()]
    assert sorted(status) == ["finished", "finished", "unfinished", "unfinished"]
    assert not (workdir / "study.html").exists()
    assert call(study.main, *arguments) == 0
    assert (workdir / "study.html").exists()
    assert without_times(workdir) == without_times(finished)


def test_sigterm_between_runs_stops_cleanly(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: str, tmp_path: Path
) -> None:
    started = []

    def terminate(config: Any, workdir: Path, *others: Any) -> None:
        started.append(workdir)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal has to stop the study")

    former = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "train", terminate)
    assert call(study.main, config, *PLAN, f"--workdir={tmp_path / 'study'}") == 143
    assert capfd.readouterr().err == "stopped: the same command goes on from there\n"
    assert len(started) == 1
    assert signal.getsignal(signal.SIGTERM) is former


@pytest.mark.slow
def test_diverged_run_does_not_stop_the_study(capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path) -> None:
    wild = ["--config.optimizer.name=sgd", "--config.optimizer.weight_decay=1e6", "--strategies=none", "--seeds=0"]
    workdir = tmp_path / "study"
    assert call(study.main, config, *wild, "--learning_rates=1e6,1e-7", f"--workdir={workdir}") == 0
    failed, other = rows(workdir)["runs/none_lr1000000.0_seed0"], rows(workdir)["runs/none_lr1e-07_seed0"]
    assert failed["status"] == "failed"
    assert "is not finite in step" in failed["message"]
    assert failed["val_accuracy"] == ""
    assert (other["status"], other["message"]) == ("finished", "")
    assert failed["message"] in (workdir / "study.html").read_text()

    message = refusal(capfd, study.main, config, *wild, "--learning_rates=1e6", f"--workdir={tmp_path / 'other'}")
    assert message.startswith("no run of none finished: the loss or its gradient is not finite in step")
    assert (tmp_path / "other" / "study.html").exists()


def test_mistake_of_the_study_is_no_failed_run(capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path) -> None:
    message = refusal(capfd, study.main, config, *PLAN, "--config.batch_size=64", f"--workdir={tmp_path / 'study'}")
    assert message == "config.batch_size 64 exceeds the 24 training images: lower it"
    assert not (tmp_path / "study" / "study.csv").exists()


def test_test_split_is_read_once_for_the_chosen(capfd: pytest.CaptureFixture[str], copied: Path, config: str) -> None:
    assert not list(copied.rglob("evaluation_test.json"))
    capfd.readouterr()
    for _ in range(2):
        assert call(study.main, config, *PLAN, "--test", f"--workdir={copied}") == 0
    reads = {folder.name: files.read_json(folder / "run.json")["test_reads"] for folder in (copied / "runs").iterdir()}
    read = {name: len(times) for name, times in reads.items() if times}
    assert read in [{f"{strategy}_lr0.001_seed{seed}": 1 for seed in SEEDS} for strategy in STRATEGIES]
    assert capfd.readouterr().out.count("test split evaluated") == len(SEEDS)
    evaluation = files.read_json(copied / "runs" / min(read) / "evaluation_test.json")
    shown = (copied / "study.html").read_text().partition("chosen by the validation")[2]
    assert f"{evaluation['accuracy']:.3f}" in shown


def test_runs_on_other_images_are_not_compared(capfd: pytest.CaptureFixture[str], copied: Path, config: str) -> None:
    path = copied / "runs" / "backbone_lr0.001_seed1" / "run.json"
    record = files.read_json(path)
    record["data"]["val"]["fingerprint"] = "0" * 64
    files.write_json(path, record)
    message = refusal(capfd, study.main, config, *PLAN, f"--workdir={copied}")
    assert message.startswith("the val images of the runs none_lr0.001_seed0 and backbone_lr0.001_seed1 differ: ")
