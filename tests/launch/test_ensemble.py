"""Ensembles from the shell: two small networks of different sizes on phantoms, mixed, evaluated, refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import covidjax
from covidjax import files
from covidjax.errors import UserError
from covidjax.evaluate import network as evaluation
from covidjax.metrics.prediction_table import read_predictions
from launch import evaluate, predict, train
from tests.commands import ROOT, call, contents, read_table, refusal, write_image
from tests.report.made_workdir import Page

CONFIG = f"--config={ROOT / 'configs' / 'ensemble.py'}"
SECOND = ("dataset.image_size=24", "dataset.channels=3", "model.num_blocks=3", "model.width=3", "seed=1", "epochs=2")
ROUNDS = 5


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory, config: str, trained: Path) -> tuple[Path, Path]:
    """The workdirs of two networks, which no test may change."""
    folder = tmp_path_factory.mktemp("members")
    shutil.copytree(trained, folder / "a")
    assert call(train.main, config, f"--workdir={folder / 'b'}", *(f"--config.{each}" for each in SECOND)) == 0
    return folder / "a", folder / "b"


def flags(*paths: Path | str) -> list[str]:
    """Those of an ensemble of some workdirs."""
    return [CONFIG, f"--config.epochs={ROUNDS}", f"--config.ensemble.members={tuple(map(str, paths))!r}"]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, members: tuple[Path, Path]) -> Path:
    """The workdir of a finished ensemble, which no test may change."""
    workdir = tmp_path_factory.mktemp("mixture") / "mix"
    assert call(train.main, *flags(*members), f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture
def mixed(mixture: Path, tmp_path: Path) -> Path:
    """A copy of that workdir."""
    return shutil.copytree(mixture, tmp_path / "mix")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images of every forward pass over a split from here on."""
    found: list[tuple[int, ...]] = []
    predict_all = evaluation.predict

    def counted(forward: Any, variables: Any, inputs: Any, *others: Any) -> np.ndarray:
        found.append(inputs.shape)
        return predict_all(forward, variables, inputs, *others)

    monkeypatch.setattr(evaluation, "predict", counted)
    return found


def weighted(tables: list[np.ndarray], workdir: Path) -> np.ndarray:
    return np.tensordot(files.read_json(workdir / "run.json")["ensemble"]["weights"], np.stack(tables), 1)


def test_an_ensemble_leaves_a_workdir_like_other_runs(mixture: Path, members: tuple[Path, Path]) -> None:
    run, config = files.read_json(mixture / "run.json"), files.read_json(mixture / "config.json")
    recorded = run["ensemble"]
    assert [member["name"] for member in recorded["members"]] == ["a", "b"]
    assert [(member["image_size"], member["channels"]) for member in recorded["members"]] == [(16, 1), (24, 3)]
    assert sum(recorded["weights"]) == pytest.approx(1)
    assert recorded["forward_passes"] == {"val": 2}
    assert run["test_reads"] == [] and run["data"].keys() == {"val"}
    assert config["dataset"] == files.read_json(members[0] / "config.json")["dataset"]
    lines = [json.loads(line) for line in (mixture / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(ROUNDS + 1))
    assert [lines[0][f"weight_{index}"] for index in (0, 1)] == [0.5, 0.5]
    if recorded["chosen_round"] is not None:
        chosen = lines[recorded["chosen_round"]]
        assert [chosen["weight_0"], chosen["weight_1"]] == recorded["weights"]


def test_mixture_is_the_weighted_mean_of_what_the_members_answered(mixture: Path, members: tuple[Path, Path]) -> None:
    tables = [read_predictions(folder / "predictions_val.csv") for folder in (*members, mixture)]
    expected = weighted([table.probabilities for table in tables[:2]], mixture)
    np.testing.assert_allclose(tables[2].probabilities, expected, atol=1e-6)
    result = files.read_json(mixture / "evaluation_val.json")
    own = [files.read_json(folder / "evaluation_val.json") for folder in members]
    for told, alone in zip(result["members"], own, strict=True):
        assert told["accuracy"] == alone["accuracy"]
        assert told["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert result["accuracy"] >= max(alone["accuracy"] for alone in own)
    assert result["optimistic"].startswith("the weights were chosen on this split")


def test_each_member_passes_once_over_a_split_and_members_and_finished_mixture_are_left_alone(
    members: tuple[Path, Path], tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    workdir, before = tmp_path / "mix", [contents(member) for member in members]
    assert call(train.main, *flags(*members), f"--workdir={workdir}", "--config.ensemble.weights=gradient") == 0
    assert passes == [(6, 16, 16, 1), (6, 24, 24, 3)]
    assert call(evaluate.main, f"--workdir={workdir}", "--split=test") == 0
    assert passes == [(6, 16, 16, 1), (6, 24, 24, 3)] * 2
    assert files.read_json(workdir / "run.json")["ensemble"]["forward_passes"] == {"val": 2, "test": 2}
    assert [contents(member) for member in members] == before
    finished = contents(workdir)
    assert call(train.main, *flags(*members), f"--workdir={workdir}", "--config.ensemble.weights=gradient") == 0
    assert contents(workdir) == finished
    assert len(passes) == 4


def test_test_split_is_compared_pair_by_pair_and_recorded(capsys: pytest.CaptureFixture[str], mixed: Path) -> None:
    for number in (1, 2):
        assert call(evaluate.main, f"--workdir={mixed}", "--split=test") == 0
        assert len(files.read_json(mixed / "run.json")["test_reads"]) == number
    result = files.read_json(mixed / "evaluation_test.json")
    assert not {"leak", "optimistic"} & result.keys()
    for member, paired in zip(result["members"], result["comparison"], strict=True):
        assert member["name"] == paired["member"]
        assert paired["difference"] == pytest.approx(result["accuracy"] - member["accuracy"])
        assert paired["only_mixture_right"] - paired["only_member_right"] == round(6 * paired["difference"])
    page = Page((mixed / "report.html").read_text())
    table = page.table("Weight", "Accuracy", "Macro AUROC")
    assert [row[0] for row in table] == ["", "a", "b", "mixture"]
    assert table[-1][2].startswith(f"{result['accuracy']:.3f}")
    pairs = page.table("Difference of accuracy", "Only mixture right", "p")
    assert [row[0] for row in pairs[1:]] == ["mixture \N{MINUS SIGN} a", "mixture \N{MINUS SIGN} b"]
    assert pairs[1][-1] == f"{result['comparison'][0]['mcnemar_p']:.3f}"
    assert "Leak" not in page.text
    assert "McNemar's exact p" in capsys.readouterr().out


def test_leak_brands_everything(capsys: pytest.CaptureFixture[str], members: tuple[Path, Path], tmp_path: Path) -> None:
    workdir = tmp_path / "leak"
    arguments = [*flags(*members), f"--workdir={workdir}", "--config.ensemble.weights_from=test"]
    for _ in range(2):
        assert call(train.main, *arguments) == 0
        run = files.read_json(workdir / "run.json")
        assert len(run["test_reads"]) == 1
    assert run["ensemble"]["leak"].startswith("the weights were chosen on the test split")
    assert run["ensemble"]["forward_passes"] == {"val": 2, "test": 2}
    assert call(evaluate.main, f"--workdir={workdir}", "--split=test") == 0
    for split in ("val", "test"):
        assert files.read_json(workdir / f"evaluation_{split}.json")["leak"] == run["ensemble"]["leak"]
    content = (workdir / "report.html").read_text()
    assert 'class="warning">Leak: the weights were chosen on the test split' in content
    assert "leak: the weights were chosen on the test split" in capsys.readouterr().out
    assert {json.loads(line)["split"] for line in (workdir / "metrics.jsonl").read_text().splitlines()} == {"test"}


def test_equal_weights_are_chosen_on_no_split(members: tuple[Path, Path], tmp_path: Path) -> None:
    workdir = tmp_path / "equal"
    options = ["--config.ensemble.weights=equal", "--config.ensemble.mix=logits"]
    assert call(train.main, *flags(*members), f"--workdir={workdir}", *options) == 0
    assert files.read_json(workdir / "run.json")["ensemble"]["weights"] == [0.5, 0.5]
    assert "optimistic" not in files.read_json(workdir / "evaluation_val.json")
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1
    tables = [read_predictions(folder / "predictions_val.csv").probabilities for folder in (*members, workdir)]
    product = np.sqrt(tables[0] * tables[1])
    np.testing.assert_allclose(tables[2], product / product.sum(axis=1, keepdims=True), atol=1e-6)


def test_new_images_are_predicted_by_each_member_at_its_own_size_and_workdirs_are_left_alone(
    capsys: pytest.CaptureFixture[str], members: tuple[Path, Path], mixture: Path, tmp_path: Path
) -> None:
    for seed in range(3):
        write_image(tmp_path / "images" / f"{seed}.png", seed, size=20 + seed)
    tables = []
    for folder, network in ((members[0], "checkpoint of step 6"), (members[1], ""), (mixture, "mixture of a, b")):
        before, output = contents(folder), tmp_path / f"{folder.name}.csv"
        given = [f"--workdir={folder}", f"--images={tmp_path / 'images'}", f"--output={output}"]
        assert call(predict.main, *given) == 0
        assert contents(folder) == before
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith(f"3 images; {network}")
        assert said[-2:] == [f"table: {output}", "Research use only - not for clinical decisions."]
        rows = read_table(output)
        assert [row["file"] for row in rows] == ["0.png", "1.png", "2.png"]
        tables.append(np.array([[float(row[name]) for name in row if "probability_" in name] for row in rows]))
    np.testing.assert_allclose(tables[2], weighted(tables[:2], mixture), atol=1e-6)
    network = covidjax.load(mixture)
    found = network.predict([tmp_path / "images" / f"{seed}.png" for seed in range(3)])
    np.testing.assert_allclose(found, tables[2], atol=1e-6)
    assert [member.config.dataset.image_size for member in network.members] == [16, 24]
    with pytest.raises(UserError, match=r"the network takes \[n, 16, 16, 1\] uint8"):
        network.predict(np.zeros((1, 24, 24, 3), np.uint8))
    wrong = [*given, "--checkpoint=latest"]
    assert "an ensemble has none" in refusal(capsys, predict.main, *wrong)


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = files.read_json(path)
    edit(content)
    files.write_json(path, content)


def with_other_classes(folder: Path) -> None:
    change(folder / "run.json", lambda run: run["data"]["train"].update(classes={"x": 8, "y": 8, "z": 8}))


def with_other_examples(folder: Path) -> None:
    change(folder / "config.json", lambda config: config["dataset"].update(num_images=28))
    change(folder / "run.json", lambda run: run["data"].pop("val"))


def configured(section: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", lambda config: config[section].update(values))


def trained_on_val(folder: Path) -> None:
    change(folder / "config.json", lambda config: config.update(phases=[{"split": "train+val"}]))
    change(folder / "config.json", lambda config: config["checkpoint"].update(evaluate="last"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (trained_on_val, "{other.name} trained on val, which decides the weights"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "there is no finished checkpoint in {other}"),
        (with_other_classes, "{other} knows the classes x, y, z, and {first} knows covid19, normal, pneumonia"),
        (with_other_examples, "the val examples of {other} are not those of {first}"),
        (configured("dataset", seed=1), "the val images are not those recorded in {other}/run.json"),
        (configured("model", name="unet"), "{other} is unet, which answers with masks: an ensemble mixes classifiers"),
        (shutil.rmtree, "there is no {other}/config.json: is this the workdir of a run?"),
    ],
)
def test_member_that_does_not_fit_is_refused(
    capfd: pytest.CaptureFixture[str], members: tuple[Path, Path], tmp_path: Path,
    spoil: Callable[[Path], None], message: str,
) -> None:  # fmt: skip
    other = shutil.copytree(members[1], tmp_path / "other")
    spoil(other)
    said = refusal(capfd, train.main, *flags(members[0], other), f"--workdir={tmp_path / 'mix'}")
    assert message.format(first=members[0], other=other) in said
    assert contents(tmp_path / "mix") == {}


def test_ensembles_of_too_few_or_of_ensembles_are_refused(
    capfd: pytest.CaptureFixture[str], config: str, members: tuple[Path, Path], mixture: Path, tmp_path: Path
) -> None:
    first = members[0]
    is_ensemble = f"{mixture} is an ensemble, which has no network of its own: name one of its members, {first}"
    for given, message in (
        (flags(first), "names 1 workdirs: an ensemble has two"),
        (flags(first, first), f"names {first} twice"),
        (flags(first, mixture), is_ensemble),
        ([config, f"--config.pretrained={mixture}"], f"{mixture} is an ensemble"),
    ):
        assert message in refusal(capfd, train.main, *given, f"--workdir={tmp_path / 'mix'}")


def test_changed_command_or_changed_member_is_refused(
    capfd: pytest.CaptureFixture[str], members: tuple[Path, Path], mixed: Path
) -> None:
    workdir, before = f"--workdir={mixed}", contents(mixed)
    said = refusal(capfd, train.main, *flags(*members), workdir, "--config.ensemble.mix=logits")
    assert "holds a run of another config: ensemble.mix (was 'probabilities', now 'logits')" in said
    said = refusal(capfd, train.main, *flags(*members), workdir, "--config.dataset.image_size=32")
    assert f"an ensemble reads what its members read, and {members[0]} has 16: leave it out" in said
    assert "an ensemble has none" in refusal(capfd, evaluate.main, workdir, "--split=test", "--checkpoint=latest")
    assert contents(mixed) == before
    change(mixed / "run.json", lambda run: run["ensemble"]["members"][1].update(weights_sha256="0"))
    before = contents(mixed)
    for main, arguments in ((train.main, flags(*members)), (evaluate.main, ["--split=test"])):
        assert f"{members[1]} is not the network that {mixed} mixes" in refusal(capfd, main, *arguments, workdir)
    assert contents(mixed) == before
