import argparse
import dataclasses
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from covidjax import command
from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.freeze.strategies import value_of
from covidjax.runs import costs
from covidjax.runs.costs import Cost
from covidjax.train.job import Job, describe_freeze
from launch import freeze
from tests.commands import call, write_image, write_images
from tests.support import small_config


@cache
def job(model: str = "cnn", **changes: Any) -> Job:
    sizes = {"dataset__image_size": 32, "batch_size": 4, "model__width": 4, "model__num_blocks": 2}
    return costs.job_of_shapes(small_config(model, **sizes, **changes), 3)


@cache
def found(strategy: str, cached: bool = False, model: str = "cnn") -> Cost:
    return costs.predict(job(model), strategy, costs.full_flops(job(model)), cached=cached)


def test_flops_and_optimizer_bytes_are_the_sums_of_the_plan_table() -> None:
    strategy = "until:block1"
    frozen = costs.job_of_strategy(job(), strategy)
    rows = describe_freeze(frozen, frozen.phases[0])["rows"]
    assert found(strategy).flops == sum(row["forward_flops"] + row["backward_flops"] for row in rows)
    assert found(strategy).optimizer_bytes == sum(row["optimizer_bytes"] for row in rows)
    assert found(strategy).total_params == sum(row["parameters"] for row in rows)


def test_cached_features_save_the_forward_pass_of_the_frozen_prefix() -> None:
    strategy = "until:block1"
    plain, cached = found(strategy), found(strategy, cached=True)
    assert cached.strategy == f"cached:{strategy}"
    assert cached.flops == pytest.approx(plain.flops - plain.prefix_flops * plain.batch_size)
    assert cached.prefix_flops == plain.prefix_flops > 0
    assert cached.feature_bytes == plain.feature_bytes == 16 * 16 * 4 * 4  # 4 features of 4 bytes
    assert cached.trainable_params == plain.trainable_params


def test_strategies_that_do_not_fit_are_left_out_by_default_and_refused_when_asked_for() -> None:
    names = costs.strategies_of(job("vgg16"))  # which has no normalisation: not 'norm'
    assert (names[0], names[-2:]) == ("none", ("backbone", "bitfit"))
    with pytest.raises(UserError, match="there is no stage 'layer9'"):
        costs.job_of_strategy(job(), "until:layer9")
    with pytest.raises(UserError, match="no features to cache"):
        costs.predict(job(), "norm", 1.0, cached=True)
    with pytest.raises(UserError, match="'gradual:2' is a run of phases"):
        costs.job_of_strategy(job(), "gradual:2")


def test_caching_is_legal_without_augmentation_or_with_agreed_views() -> None:
    def note(**changes: Any) -> str:
        return costs.caching_note(changes.get("feature_views", 0), job(**changes).recipes[0])

    assert "may be cached" in note()
    assert "may not be cached" in note(augment__rotate=5.0)
    assert "3 augmented views" in note(augment__rotate=5.0, feature_views=3)


def test_classes_and_images_or_pairs_are_counted_without_opening_an_image(tmp_path: Path) -> None:
    config = small_config(dataset__name="folder", dataset__root=str(write_images(tmp_path / "classes")))
    for number in range(9):
        for folder in ("images", "masks"):
            write_image(tmp_path / "pairs" / folder / f"{number}.png", number)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    assert costs.data_facts(config.dataset) == (2, 16, 16)
    config.dataset.oversample = (("ill", 5),)
    assert costs.data_facts(config.dataset) == (2, 16, 48)
    phantoms = small_config(dataset__num_images=24, dataset__oversample=(("covid19", 17),)).dataset
    loaded = sources.load(phantoms, "train")
    assert costs.data_facts(phantoms) == (len(loaded.classes), 24, len(loaded.turns()))

    config = small_config("unet", dataset__name="folder", dataset__root=str(tmp_path / "pairs"))
    assert costs.data_facts(config.dataset, masks=True) == (2, 7, 7)  # two are held out for validation
    assert costs.data_facts(small_config("unet", dataset__num_images=24).dataset, masks=True) == (3, 24, 24)
    balanced = small_config("unet", model__width=2, dataset__image_size=16, loss__class_weights="balanced")
    made = costs.job_of_shapes(balanced, 3)
    assert made.abstract_data(made.phases[0])["label"].shape == (32, 16, 16)


def test_the_command_prints_plan_and_costs_and_reads_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    path = tmp_path / "costs.json"
    counts = ["--config.dataset.name=folder", "--classes=5", "--images=200"]
    assert call(freeze.main, config, *counts, "--strategies=none,backbone,cached", f"--json={path}") == 0
    printed = capsys.readouterr().out
    assert re.search(r"phase 0, config.freeze 'none':\nstage +parameters", printed)
    assert [line.split()[0] for line in re.findall(r"^.*FLOP +[\d.,]+x.*$", printed, re.MULTILINE)] == [
        "none",
        "backbone",
        "cached:backbone",
    ]
    assert "features may be cached" in printed
    written = json.loads(path.read_text())
    assert (written["num_classes"], written["num_images"]) == (5, 200)
    none, backbone, cached = written["strategies"]
    assert backbone["epoch_flops"] == backbone["flops"] / 4 * 200
    assert backbone["speedup_vs_none"] == pytest.approx(none["flops"] / backbone["flops"])
    assert cached["feature_pass_flops"] == cached["prefix_flops"] * 200
    assert set(none) >= {field.name for field in dataclasses.fields(Cost)}


def test_strategies_may_be_patterns_with_commas_brackets_and_quotations() -> None:
    split = command.strategies
    assert split("none,until:block1") == split("none; until:block1") == ("none", "until:block1")
    mixed = "none;('block1','block2/'), (block1|block2)/conv,block[1,2]/.{1,3},\\(x"
    parts = ("none", "('block1','block2/')", "(block1|block2)/conv", "block[1,2]/.{1,3}", "\\(x")
    assert split(mixed) == parts
    assert [value_of(part) for part in parts] == ["none", ("block1", "block2/"), *parts[2:]]
    for wrong in ("('block1'", "a,,b", "'a", ")("):
        with pytest.raises(argparse.ArgumentTypeError):
            split(wrong)
    patterns = costs.job_of_strategy(job(), "('block1/','block2')").recipes[0].plan
    assert patterns == costs.job_of_strategy(job(), "until:block2").recipes[0].plan


def test_the_command_prints_each_row_when_it_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    shown: list[str] = []
    known = found("none")

    def predict(job: Job, strategy: str, full_flops: float, *, cached: bool = False) -> Cost:
        shown.append(capsys.readouterr().out)
        return dataclasses.replace(known, strategy=f"cached:{strategy}" if cached else strategy)

    monkeypatch.setattr(costs, "predict", predict)
    assert call(freeze.main, config, "--classes=3", "--strategies=none;('block1',);norm") == 0
    assert shown[0].startswith("cnn, batch ") and shown[0].splitlines()[-1].startswith("strategy ")
    assert [lines.split()[0] for lines in shown[1:]] == ["none", "('block1',)", "cached:('block1',)"]
    assert capsys.readouterr().out.startswith("norm ")
