import dataclasses
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.runs import costs
from covidjax.runs.costs import Cost, Setting
from launch import freeze as freeze_command
from tests.commands import call, images_of, refusal, tiny_config, write_images
from tests.support import small_config


@cache
def setting(model: str = "cnn", **changes: Any) -> Setting:
    sizes = {"dataset__image_size": 32, "batch_size": 4, "model__width": 4, "model__num_blocks": 2}
    return costs.make_setting(small_config(model, **sizes, **changes), 3)


@cache
def found(strategy: str, cached: bool = False, model: str = "cnn") -> Cost:
    return costs.predict(setting(model), strategy, costs.full_flops(setting(model)), cached=cached)


def test_a_network_without_normalisation_is_not_compared_under_norm() -> None:
    names = setting("vgg16").default_strategies()
    assert (names[0], names[-2:]) == ("none", ("backbone", "bitfit"))


def test_flops_and_optimizer_bytes_are_the_sums_of_the_plan_table() -> None:
    strategy = "until:block1"
    rows, _ = setting().table(setting().recipe_of(strategy))
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


def test_strategies_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="there is no stage 'layer9'"):
        setting().recipe_of("until:layer9")
    with pytest.raises(UserError, match="no features to cache"):
        costs.predict(setting(), "norm", 1.0, cached=True)
    with pytest.raises(UserError, match="'gradual:2' is a run of phases"):
        setting().recipe_of("gradual:2")


def test_caching_is_legal_without_augmentation_or_with_agreed_views() -> None:
    def note(**changes: Any) -> str:
        config = setting(**changes).config
        return costs.caching_note(config, setting(**changes).recipe_of("backbone"))

    assert "may be cached" in note()
    assert "may not be cached" in note(augment__rotate=5.0)
    assert "3 augmented views" in note(augment__rotate=5.0, feature_views=3)


def test_classes_and_images_are_counted_without_opening_an_image(tmp_path: Path) -> None:
    config = small_config(dataset__name="folder", dataset__root=str(write_images(tmp_path)))
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    assert costs.data_facts(config.dataset) == (2, 16, 16)
    config.dataset.oversample = (("ill", 5),)
    assert costs.data_facts(config.dataset) == (2, 16, 48)
    phantoms = small_config(dataset__num_images=24, dataset__oversample=(("covid19", 17),)).dataset
    loaded = sources.load(phantoms, "train")
    assert costs.data_facts(phantoms) == (len(loaded.classes), 24, len(loaded.turns()))


def test_the_command_prints_plan_and_costs_and_reads_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "costs.json"
    status = call(
        freeze_command.main,
        tiny_config(tmp_path),
        "--config.dataset.name=folder",
        "--classes=5",
        "--images=200",
        "--strategies=none,backbone,cached",
        f"--json={path}",
    )
    assert status == 0
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


def test_mistakes_at_the_keyboard_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, main = tiny_config(tmp_path), freeze_command.main
    assert "there is no stage 'block7'" in refusal(capfd, main, config, "--strategies=until:block7")
    assert "--classes is 0" in refusal(capfd, main, config, "--classes=0")
    assert "--classes" in refusal(capfd, main, config, *images_of(tmp_path / "absent"))
    assert "first stage trains" in refusal(capfd, main, config, "--strategies=cached:none")
    assert "--json: there is no folder" in refusal(capfd, main, config, "--json=/absent/costs.json")
    assert "--strategies is empty" in refusal(capfd, main, config, "--strategies=,")


def test_the_command_counts_classes_and_pairs_of_masks(tmp_path: Path) -> None:
    for number in range(9):
        for folder in ("images", "masks"):
            path = tmp_path / "root" / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")  # which nothing opens
    config = small_config("unet", dataset__name="folder", dataset__root=str(tmp_path / "root"))
    assert costs.data_facts(config.dataset, masks=True) == (2, 7, 7)  # two are held out for validation
    phantoms = small_config("unet", dataset__num_images=24).dataset
    assert costs.data_facts(phantoms, masks=True) == (3, 24, 24)
    balanced = small_config("unet", model__width=2, dataset__image_size=16, loss__class_weights="balanced")
    made = costs.make_setting(balanced, 3)
    assert made.batch(made.recipe_of("none"))["label"].shape == (32, 16, 16)
