"""A run goes on from what its checkpoints hold, further than planned where that changes nothing, or says why not."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from covidjax import files
from covidjax.checkpoint import manifest
from covidjax.files import read_json_lines
from covidjax.weights.workdir import load_trained
from launch import convert, evaluate, predict, train
from tests.commands import call, contents, refusal, write_image
from tests.support import send_before

KEPT = "--config.checkpoint.keep=9"


def best_of(workdir: Path) -> int:
    found = {step: manifest.read(workdir / "checkpoints", step)["metric"] for step in steps_of(workdir)}
    return min(found, key=lambda step: (found[step], -step))


def steps_of(workdir: Path) -> list[int]:
    return manifest.finished_steps(workdir / "checkpoints")


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = files.read_json(path)
    change(content)
    files.write_json(path, content)


# ---- The best checkpoint ----


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    """A run of three epochs, whose last checkpoint is not the best."""
    workdir = tmp_path_factory.mktemp("three") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("covidjax.checkpoint.saver.TIMES_LONGER", 0)
        assert call(train.main, config, f"--workdir={workdir}", "--config.epochs=3", KEPT) == 0
    assert best_of(workdir) < steps_of(workdir)[-1], "another seed is needed: the last checkpoint is the best"
    return workdir


@pytest.mark.parametrize("gone", ["folder", "folder and manifest"])
def test_no_other_checkpoint_is_called_best_when_that_one_is_gone(
    tmp_path: Path, three_epochs: Path, config: str, capfd: pytest.CaptureFixture[str], gone: str
) -> None:
    workdir = shutil.copytree(three_epochs, tmp_path / "run")
    best, latest = best_of(workdir), steps_of(workdir)[-1]
    shutil.rmtree(workdir / "checkpoints" / str(best))
    if gone == "folder and manifest":
        (workdir / "checkpoints" / "manifests" / f"{best}.json").unlink()
    before = contents(workdir)
    line = f"the best checkpoint, step {best}, is gone from {workdir / 'checkpoints'}: put it back; or take another: "
    line += f"--checkpoint=latest (step {latest})"
    write_image(tmp_path / "images" / "1.png", 0)
    table = ["--images", tmp_path / "images", "--output", tmp_path / "table.csv"]
    assert refusal(capfd, evaluate.main, f"--workdir={workdir}", "--split=test") == line
    assert refusal(capfd, predict.main, f"--workdir={workdir}", *table) == line
    weights = ["--pretrained", workdir, "--output", tmp_path / "weights.safetensors"]
    assert refusal(capfd, convert.main, *weights) == line
    assert contents(workdir) == before
    assert call(evaluate.main, f"--workdir={workdir}", "--split=test", "--checkpoint=latest") == 0
    assert files.read_json(workdir / "evaluation_test.json")["checkpoint"] == {"which": "latest", "step": latest}

    # Training goes on, says it, and calls none of those that are left the best.
    flags = [config, f"--workdir={workdir}", KEPT, "--config.epochs=4"]
    capfd.readouterr()
    assert call(train.main, *flags) == 0
    assert f"the best checkpoint, step {best}, is gone" in capfd.readouterr().out
    told = files.read_json(workdir / "evaluation_val.json")["checkpoint"]
    assert told["which"] == ("latest" if told["step"] == steps_of(workdir)[-1] else "best")
    assert any("is gone from" in note for note in files.read_json(workdir / "run.json")["notes"])


# ---- What a checkpoint has is not needed again ----


def test_a_run_goes_on_without_the_weights_it_began_with(
    tmp_path: Path, trained: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = shutil.copytree(trained, tmp_path / "weights")
    for name in ("whole", "stopped"):
        flags = [config, f"--workdir={tmp_path / name}", f"--config.pretrained={weights}", "--config.epochs=2"]
        if name == "stopped":
            with monkeypatch.context() as patch:
                send_before(8, patch)
                assert call(train.main, *flags) == 143
            weights.rename(tmp_path / "moved")
        assert call(train.main, *flags) == 0
    whole, stopped = (files.read_json(tmp_path / name / "run.json") for name in ("whole", "stopped"))
    assert stopped["preprocessing"] == whole["preprocessing"]
    assert any(note.startswith(f"weights: {weights}") for note in stopped["notes"])
    assert stopped["freeze"] == whole["freeze"]
    for name in ("predictions_val.csv", "evaluation_val.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert call(convert.main, f"--pretrained={tmp_path / 'stopped'}", f"--output={tmp_path / 'w.safetensors'}") == 0


# ---- Longer than planned ----


@pytest.mark.parametrize(
    "schedule", ["constant", *(pytest.param(each, marks=pytest.mark.slow) for each in ("plateau", "step"))]
)
def test_a_run_with_more_epochs_goes_on_as_one_that_had_them_from_the_start(
    tmp_path: Path, config: str, schedule: str
) -> None:
    how = [f"--config.optimizer.schedule={schedule}", "--config.optimizer.plateau_patience=1", KEPT]
    how += ["--config.optimizer.step_epochs=(1,3)", "--config.ema_decay=0.5"]
    few, all_ = (1, 2) if schedule == "constant" else (2, 4)
    for epochs in (few, all_):
        assert call(train.main, config, f"--workdir={tmp_path / 'grown'}", *how, f"--config.epochs={epochs}") == 0
    assert call(train.main, config, f"--workdir={tmp_path / 'whole'}", *how, f"--config.epochs={all_}") == 0

    def figures(name: str) -> list[dict[str, Any]]:
        records = read_json_lines(tmp_path / name / "metrics.jsonl")[0]
        return [{key: value for key, value in each.items() if key != "images_per_second"} for each in records]

    assert figures("grown") == figures("whole")
    for name in ("predictions_val.csv", "evaluation_val.json", "config.json"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert load_trained(tmp_path / "grown", "latest").digest == load_trained(tmp_path / "whole", "latest").digest


@pytest.mark.parametrize(
    "how",
    [
        ["--config.optimizer.schedule=cosine"],
        ["--config.optimizer.schedule=one_cycle"],
        ["--config.phases=({'freeze': 'backbone'}, {'freeze': 'none'})"],
    ],
    ids=["cosine", "one_cycle", "phases"],
)
def test_more_epochs_are_refused_where_the_steps_so_far_would_have_been_others(
    tmp_path: Path, trained: Path, config: str, capfd: pytest.CaptureFixture[str], how: list[str]
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    key, value = how[0].removeprefix("--config.").split("=", 1)

    def change(content: dict[str, Any]) -> None:
        if key == "phases":
            content["phases"] = [{"freeze": "backbone"}, {"freeze": "none"}]
        else:
            content["optimizer"]["schedule"] = value

    rewrite(workdir / "config.json", change)
    line = refusal(capfd, train.main, config, f"--workdir={workdir}", *how, "--config.epochs=3")
    assert line == (
        f"{workdir} holds a run of another config: epochs (was 1, now 3): only constant, plateau and step schedules go "
        f"on as they would have from the start: to train on, give another --workdir and --config.pretrained={workdir}"
    )


# ---- Workdirs of another version ----


def signed(content: dict[str, Any]) -> dict[str, Any]:
    return {"content": content, "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def alter_manifest(workdir: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for step in steps_of(workdir):
        path = workdir / "checkpoints" / "manifests" / f"{step}.json"
        content = files.read_json(path)["content"]
        change(content)
        files.write_json(path, signed(content))


def other_progress(workdir: Path) -> None:
    folder = workdir / "checkpoints" / str(steps_of(workdir)[-1])
    path = folder / "progress" / "metadata"
    path.write_text(json.dumps({"step": 6, "seconds_of_training": 3.0}))
    digest = files.digest(path)
    alter_manifest(workdir, lambda content: content["files"].update({"progress/metadata": digest}))


def other_store(workdir: Path) -> None:
    folder = workdir / "checkpoints" / str(steps_of(workdir)[-1])
    (folder / "state" / "manifest.ocdbt").write_bytes(b"another format")
    digest = files.digest(folder / "state" / "manifest.ocdbt")
    alter_manifest(workdir, lambda content: content["files"].update({"state/manifest.ocdbt": digest}))


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a key that is gone": (
        lambda workdir: rewrite(workdir / "config.json", lambda content: content.update(momentum=0.9)),
        "config.json is not a config of this version of covidjax: ",
    ),
    "a value that is gone": (
        lambda workdir: rewrite(workdir / "config.json", lambda content: content["optimizer"].update(name="lamb")),
        "config.json is not a config of this version of covidjax: config.optimizer.name is 'lamb': allowed are",
    ),
    "no object": (lambda workdir: files.write_json(workdir / "config.json", [1]), "config.json is not a config of"),
    "a manifest with fewer keys": (
        lambda workdir: alter_manifest(workdir, lambda content: content.pop("leaves")),
        "(6: its manifest is of another version): put back a copy",
    ),
    "another tree": (
        lambda workdir: alter_manifest(
            workdir, lambda content: content["leaves"].update({"params/neck/kernel": "float32[3]"})
        ),
        "does not fit: params/neck/kernel is float32[3] there, missing here",
    ),
    "another progress": (other_progress, "is of another version of covidjax (RunProgress.__init__() got an unexpected"),
    "another store": (other_store, "is damaged (it cannot be read: "),
    "a record without data": (
        lambda workdir: files.write_json(workdir / "run.json", {"test_reads": []}),
        "the preprocessing that is recorded with the weights cannot be read",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_workdir_of_another_version_is_refused_in_one_line(
    tmp_path: Path, trained: Path, config: str, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    alter, reason = OTHERS[kind]
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "report.html").unlink()
    alter(workdir)
    assert reason in refusal(capfd, train.main, config, f"--workdir={workdir}")


def test_keys_that_a_manifest_and_a_record_have_too_many_do_not_matter(
    tmp_path: Path, trained: Path, config: str
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "report.html").unlink()
    alter_manifest(workdir, lambda content: content.update(origin="a later version"))
    rewrite(workdir / "run.json", lambda content: content.update(origin="a later version"))
    assert call(train.main, config, f"--workdir={workdir}") == 0
    assert files.read_json(workdir / "run.json")["origin"] == "a later version"
