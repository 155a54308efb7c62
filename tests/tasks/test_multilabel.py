"""Several findings of an image: from the phantom to figures, pages, pictures and comparisons."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covidjax import config as configs
from covidjax import files, train
from covidjax.data import phantom_findings, sources
from covidjax.errors import UserError
from covidjax.runs import audit, compare, costs
from covidjax.runs.heads import train_heads
from covidjax.tasks import of
from covidjax.tasks.weighting import finding_weights
from launch import evaluate, predict, study
from tests.commands import ROOT, call, user_error
from tests.report.made_workdir import assert_self_contained
from tests.support import TINY, small_config

FINDINGS: dict[str, Any] = {
    **TINY,
    "dataset__name": "phantom_findings",
    "dataset__num_images": 48,
    "loss__name": "findings_cross_entropy",
    "loss__class_weights": "balanced",
    "checkpoint__best": "macro_auroc",
    "augment__rotate": 5.0,
    "epochs": 2,
    "ops": "xla",
}
NAMES = phantom_findings.FINDINGS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two workdirs, evaluated on test: one trains all, one a head on cached features of two views."""
    folder = tmp_path_factory.mktemp("findings")
    changes: tuple[dict[str, Any], ...] = ({}, {"freeze": "backbone", "feature_views": 2, "seed": 1})
    found = [folder / "all", folder / "head"]
    for workdir, own in zip(found, changes, strict=True):
        train(small_config("cnn", **FINDINGS, **own, dataset__cache_dir=str(folder / "cache")), workdir)  # type: ignore[operator]
        assert call(evaluate.main, f"--workdir={workdir}", "--split=test", "--explain") == 0
    return found


def test_a_phantom_has_any_subset_of_findings_and_thirty_percent_unknown() -> None:
    config = small_config("cnn", **{**FINDINGS, "dataset__num_images": 400}).dataset
    train, again = sources.load(config, "train"), sources.load(config, "train")
    np.testing.assert_array_equal(train.images, again.images)
    assert train.findings is not None
    assert 0.25 < (train.findings < 0).mean() < 0.35
    drawn = [phantom_findings.phantom_findings(0, "train", index, 16)[1] for index in range(400)]
    assert len({tuple(own.tolist()) for own in drawn}) == 2 ** len(NAMES)
    known = train.findings >= 0
    np.testing.assert_array_equal(train.findings[known] == 1, np.array(drawn)[known])
    assert len(sources.load(config, "val")) == 100


def test_each_finding_of_a_phantom_changes_the_image_where_it_is() -> None:
    images: dict[tuple[bool, ...], list[np.ndarray]] = {}
    for index in range(0, 200, 2):
        image, own = phantom_findings.phantom_findings(0, "train", index, 64)
        images.setdefault(tuple(own.tolist()), []).append(image.astype(float))
    means = {key: np.mean(own, axis=0) for key, own in images.items()}
    nothing = means[(False,) * 4]
    line = means[(False, False, False, True)] - nothing
    assert np.unravel_index(line.argmax(), line.shape)[0] < 40  # from the neck down


def test_a_run_leaves_figures_of_each_finding_with_operating_points(runs: list[Path]) -> None:
    for workdir in runs:
        found = files.read_json(workdir / "evaluation_test.json")
        assert found["classes"] == list(NAMES)
        assert found["num_examples"] == 12
        for name in NAMES:
            own = found["per_class"][name]
            assert own["present"] + own["absent"] + own["unknown"] == 12
        assert found["operating_points"].keys() == set(NAMES)
        row = files.read_json(workdir / "run.json")["data"]["train"]["classes"]
        train = sources.load(configs.of_workdir(workdir).dataset, "train")
        assert train.findings is not None
        assert row == dict(zip(NAMES, (train.findings == 1).sum(axis=0).tolist(), strict=True))
        page = (workdir / "report.html").read_text()
        assert_self_contained(page)
        assert all(text in page for text in ("Macro AUROC", "Operating points", "Average precision", "Grad-CAM"))


def test_new_images_get_a_probability_and_a_map_for_each_finding(runs: list[Path], tmp_path: Path) -> None:
    for number in range(3):
        image = phantom_findings.phantom_findings(1, "test", 2 * number, 64)[0]
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    table, maps = tmp_path / "predictions.csv", tmp_path / "maps"
    arguments = [f"--workdir={runs[0]}", f"--images={tmp_path / 'images'}", f"--output={table}", f"--explain={maps}"]
    assert call(predict.main, *arguments) == 0
    with table.open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["file", *(f"probability_{name}" for name in NAMES), "use"]
    with (maps / "explanations.csv").open() as lines:
        explained = list(csv.DictReader(lines))
    above = {(row["file"], name) for row in rows for name in NAMES if float(row[f"probability_{name}"]) > 0.5}
    assert above <= {(row["file"], row["class"]) for row in explained}
    assert {row["picture"] for row in explained} == {path.name for path in maps.glob("*.png")}


def test_runs_are_compared_on_the_known_labels(runs: list[Path]) -> None:
    result = compare.compare(runs, "test")
    figures = {each["figure"]: each["difference"] for each in result["comparisons"]}
    values = [files.read_json(workdir / "evaluation_test.json")["macro_auroc"] for workdir in runs]
    assert figures["macro_auroc"] == pytest.approx(values[0] - values[1])


def test_many_heads_train_on_the_findings(tmp_path: Path) -> None:
    own = {**FINDINGS, "freeze": "backbone", "feature_views": 1, "checkpoint__best": "loss", "epochs": 1}
    config = small_config("cnn", **own, dataset__cache_dir=str(tmp_path))
    heads = train_heads(config, (1e-3, 1e-2), (0.0,), ("none", "balanced"), (0,), lambda line: None)
    assert len(heads.heads) == 4
    assert all(0 <= head.best["accuracy"] <= 1 and head.interval is not None for head in heads.heads)
    assert len({head.best["loss"] for head in heads.heads}) == 4


def test_data_and_loss_of_different_kinds_are_refused_in_one_line(tmp_path: Path) -> None:
    one = small_config("cnn", **{**FINDINGS, "dataset__name": "phantom"})
    assert "have one class each, of covid19, normal, pneumonia" in user_error(train, one, tmp_path / "a")  # type: ignore[arg-type]
    several = small_config("cnn", **TINY, dataset__name="phantom_findings")
    assert "choose one of their losses, findings_cross_entropy" in user_error(train, several, tmp_path / "b")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("checkpoint__best", "accuracy", "allowed are loss, macro_auroc"),
        ("dataset__oversample", (("lesion", 2),), "several findings: leave it out"),
        ("augment__mixup", 0.2, "set it to 0"),
        ("loss__label_smoothing", 0.1, "does not take it"),
        ("dataset__uncertain", "maybe", "allowed are ignore, zeros, ones"),
        ("dataset__uncertain", (("lesion", "maybe"),), "pairs of a finding and one of ignore"),
        ("loss__options", (("gamma", 1.0),), "'gamma', which findings_cross_entropy does not take"),
    ],
)
def test_what_findings_do_not_have_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        configs.validate(small_config("cnn", **{**FINDINGS, key: value}))


def test_weights_of_present_labels_are_by_counts_or_by_effective_numbers() -> None:
    findings = np.array([[1, 0, -2], [0, 0, -2], [0, 1, 1], [-1, 1, -2]], np.int8)
    assert finding_weights("none", findings, "abc") is None
    assert finding_weights("balanced", findings, "abc") == (2.0, 1.0, 1.0)
    effective = finding_weights("effective", findings, "abc")
    assert effective == pytest.approx(((1 - 0.999**2) / (1 - 0.999), 1.0, 1.0))
    assert finding_weights((("c", 3.0),), findings, "abc") == (1.0, 1.0, 3.0)


@pytest.mark.slow
def test_costs_and_audit_know_findings(tmp_path: Path) -> None:
    config = small_config("cnn", **FINDINGS)
    facts = costs.data_facts(config.dataset)
    assert facts == (len(NAMES), 48, 48)
    job = costs.job_of_shapes(config, facts.classes)
    assert job.task is of("cnn", "findings_cross_entropy")
    assert job.abstract_data(job.phases[0])["label"].shape[1:] == (len(NAMES),)
    result = audit.audit(config, tmp_path / "audit.json")
    assert [row["train"] for row in result["counts"]] == [48]


def test_operating_points_of_validation_are_columns_of_predictions(runs: list[Path], tmp_path: Path) -> None:
    image = phantom_findings.phantom_findings(1, "test", 0, 64)[0]
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "0.png")
    table = tmp_path / "predictions.csv"
    arguments = [f"--workdir={runs[0]}", f"--images={tmp_path / 'images'}", f"--output={table}", "--calibrated"]
    assert call(predict.main, *arguments) == 0
    with table.open() as lines:
        row = next(csv.DictReader(lines))
    points = files.read_json(runs[0] / "evaluation_test.json")["operating_points"]
    for name, own in points.items():
        for point, found in (own or {}).items():
            assert row[f"{point}_{name}"] == str(int(float(row[f"probability_{name}"]) >= found["threshold"]))
    assert call(evaluate.main, f"--workdir={runs[0]}", "--split=test", "--calibrated") == 2


def test_another_set_is_evaluated_by_a_table_of_findings(runs: list[Path], tmp_path: Path) -> None:
    rows = [f"file;finding:Lesion;finding:Fluid;patient;finding:{NAMES[3]}"]
    for number in range(8):
        image, own = phantom_findings.phantom_findings(2, "test", 2 * number, 32)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png;{int(own[0])};{'' if number == 3 else int(own[1])};p{number};-1,0")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    arguments = [f"--workdir={runs[0]}", f"--root={table}", "--name=other"]
    assert call(evaluate.main, *arguments, "--classes=Fluid=effusion") == 0
    found = files.read_json(runs[0] / "evaluation_other.json")
    unknown = {name: own["unknown"] for name, own in found["per_class"].items()}
    assert unknown == {NAMES[0]: 0, NAMES[1]: 1, NAMES[2]: 8, NAMES[3]: 8}
    assert any("other has no column of finding:enlarged heart" in note for note in found["notes"])
    table.write_text("file;finding:lesion\n0.png;yes\n")
    assert call(evaluate.main, *arguments[:2], "--name=third") == 2


@pytest.mark.slow
def test_a_study_compares_strategies_by_the_macro_auroc(tmp_path: Path) -> None:
    values = [f"--config.{key.replace('__', '.')}={value}" for key, value in {**FINDINGS, "model__name": "cnn"}.items()]
    config = f"--config={ROOT / 'configs' / 'phantom_findings.py'}"
    arguments = [config, *values, f"--workdir={tmp_path / 'study'}", "--strategies=none,backbone", "--seeds=0,1"]
    assert call(study.main, *arguments) == 0
    with (tmp_path / "study" / "study.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 4
    assert all(0 <= float(row["val_macro_auroc"]) <= 1 and row["val_macro_average_precision"] for row in rows)


@pytest.mark.slow
def test_the_phantom_is_learnt_to_a_macro_auroc_of_085(tmp_path: Path) -> None:
    config = configs.load(str(ROOT / "configs" / "phantom_findings.py"), [])
    train(config, tmp_path / "run")  # type: ignore[operator]
    assert files.read_json(tmp_path / "run" / "evaluation_val.json")["macro_auroc"] >= 0.85
