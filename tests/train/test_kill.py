"""Killed at random moments, over and over: nothing recorded is lost, every file is whole, the bits are the same.

Minutes each: run them by themselves after a change of what is written, `pytest -m kill tests/train/test_kill.py -s`.
"""

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from covidjax.checkpoint import journal
from covidjax.study.plan import is_finished
from covidjax.train.job import Job
from launch import study
from tests.commands import ROOT, call, tiny_config
from tests.study.test_study import without_times
from tests.train.test_resume import LAST_STEP, Start, assert_same_run, config, finish, finished_steps, job, start, whole
from tests.train.test_writer import curves_of_metrics, curves_of_tensorboard

__all__ = ["config", "job", "start", "whole"]  # fixtures
KILLS = 20
MOMENTS_OF_STUDY = ("started", "restored", "measured", "ended", "measured", "ended")
STUDY = ["--strategies=none,backbone", "--seeds=0,1", "--config.epochs=2"]


def check_files(folder: Path) -> None:
    """Every file that is not a temporary one is whole."""
    for path in folder.rglob("*"):
        if path.suffix == ".json" and not path.name.startswith("."):
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            rows = path.read_text().splitlines()
            assert len({row.count(",") for row in rows}) == 1 or '"' in "".join(rows)
        elif path.name == "report.html":
            assert path.read_text().endswith("</html>\n") or path.read_text().rstrip().endswith("</html>")


def launch(environment: dict[str, str], *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def events_of(workdir: Path) -> dict[Path, bool]:
    """The event files of a run, or of the runs of a study, and whether something was measured in them."""
    return {
        path: path.stat().st_size > 300 for pattern in ("events.*", "runs/*/events.*") for path in workdir.glob(pattern)
    }


def reports_of(study: Path) -> list[Path]:
    """The reports of the runs that have ended."""
    return list(study.glob("runs/*/report.html"))


def wait_for_a_moment(
    workdir: Path, before: dict[Path, bool], process: "subprocess.Popen[str]", draw: random.Random, kind: str
) -> None:
    """Until some time after the process 'started', 'restored' or 'saved' a checkpoint, 'measured' or 'ended' a run."""
    ended = len(reports_of(workdir))
    limit = time.monotonic() + (draw.uniform(0, 6) if kind == "started" else math.inf)
    while process.poll() is None and time.monotonic() < limit:
        new = [measured for path, measured in events_of(workdir).items() if path not in before]
        if (kind == "restored" and new) or (kind == "measured" and any(new)):
            break
        if kind == "saved" and finished_steps(workdir):
            break
        if kind == "ended" and len(reports_of(workdir)) > ended:
            break
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 1))


def kill(process: "subprocess.Popen[str]") -> bool:
    """Whether it was still there to be killed."""
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


@pytest.mark.kill
def test_a_training_killed_at_random_beside_evaluations_loses_nothing(
    tmp_path: Path, config: str, start: Start, whole: Path, job: Job, environment: dict[str, str]
) -> None:
    workdir, draw = tmp_path / "run", random.Random(18)
    counts: Counter[str] = Counter()
    known: set[str] = set()  # readings that were told at some moment
    evaluated = 0
    for number in range(KILLS):
        starts = events_of(workdir)
        training, evaluations = start(workdir), []
        saved = bool(finished_steps(workdir))
        if saved:
            evaluate = ("launch/evaluate.py", f"--workdir={workdir}", "--split=test")
            evaluations = [launch(environment, *evaluate) for _ in range(2)]
        kind = draw.choice(["started", "restored", "measured", "measured"]) if saved or number < 3 else "saved"
        wait_for_a_moment(workdir, starts, training, draw, kind)
        counts["training killed"] += kill(training)
        check_files(workdir)
        for process in evaluations:
            if draw.random() < 0.5:
                time.sleep(draw.uniform(0, 4))
                counts["evaluation killed"] += kill(process)
                continue
            said, _ = process.communicate()
            assert process.returncode == 0, said
            evaluated += 1
        check_files(workdir)
        now = set(journal.read(workdir).get("test_reads", ())) if workdir.exists() else set()
        assert known <= now, "a reading was lost"
        assert len(now) >= evaluated
        known = now
    assert evaluated > 3, "nothing was evaluated beside the training"
    reached = finished_steps(workdir)[-1]
    finish(config, workdir)
    check_files(workdir)
    assert known == set(json.loads((workdir / "run.json").read_text())["test_reads"])
    assert_same_run(workdir, whole, job)
    assert curves_of_tensorboard(workdir) == curves_of_metrics(workdir)
    assert job.last_step == LAST_STEP
    counts |= {"last killed at step": reached, "evaluations finished": evaluated, "readings": len(known)}
    print(f"\n{dict(counts)}")


@pytest.mark.kill
def test_a_study_killed_at_random_gives_what_one_that_was_left_alone_gives(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    flags, draw, killed = [tiny_config(tmp_path), *STUDY], random.Random(18), 0
    assert call(study.main, *flags, f"--workdir={tmp_path / 'whole'}") == 0
    workdir = tmp_path / "study"
    for kind in MOMENTS_OF_STUDY:
        starts, began = events_of(workdir), time.monotonic()
        process = launch(environment, "launch/study.py", *flags, f"--workdir={workdir}")
        wait_for_a_moment(workdir, starts, process, draw, kind)
        killed += kill(process)
        check_files(workdir)
        print(f"{kind}: killed after {time.monotonic() - began:.0f} s", flush=True)
    finished = sum(is_finished(folder) for folder in (workdir / "runs").iterdir())
    assert finished > 0
    assert call(study.main, *flags, f"--workdir={workdir}", "--test") == 0
    check_files(workdir)
    assert without_times(workdir) == without_times(tmp_path / "whole")
    for run in (workdir / "runs").iterdir():
        assert curves_of_tensorboard(run) == curves_of_metrics(run)
        assert (run / "predictions_val.csv").read_bytes() == (
            tmp_path / "whole" / "runs" / run.name / "predictions_val.csv"
        ).read_bytes()
    print(f"\n{killed} of {len(MOMENTS_OF_STUDY)} studies killed, {finished} runs finished before the last kill")
