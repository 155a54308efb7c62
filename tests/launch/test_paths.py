"""A path may have any name: what a shell, a pattern or a home folder would make of it does not matter."""

import os
from pathlib import Path

import pytest

from covidjax import config as configs
from launch import convert, evaluate, predict, train
from tests.commands import call, images_of, refusal, write_images


def test_a_run_below_a_folder_of_odd_characters_is_trained_evaluated_and_used(tmp_path: Path, config: str) -> None:
    odd = tmp_path / 'it\'s [cxr] {a,b} *?~#50% "q" ü'
    root, workdir, cache = write_images(odd / "images [1]"), odd / "run [1]", odd / "cache*"
    here = [*images_of(root), f"--config.dataset.cache_dir={cache}"]
    assert call(train.main, config, f"--workdir={workdir}", *here) == 0
    assert call(train.main, config, f"--workdir={workdir}", *here) == 0
    assert call(evaluate.main, f"--workdir={workdir}", "--split=test") == 0
    table = odd / "out [*]" / "predictions.csv"
    assert call(predict.main, f"--workdir={workdir}", f"--images={root}", f"--output={table}") == 0
    assert len(table.read_text().splitlines()) == 27
    weights = odd / "[w].safetensors"
    assert call(convert.main, f"--pretrained={workdir}", f"--output={weights}") == 0
    assert call(train.main, config, f"--workdir={odd / '[2]'}", *here, f"--config.pretrained={weights}") == 0


def test_a_tilde_is_the_home_folder_in_every_flag_and_key(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    here = [*images_of(Path("~/images")), "--config.dataset.cache_dir=~/cache"]
    assert call(train.main, config, "--workdir=~/run", *here) == 0
    assert call(train.main, config, "--workdir=~/next", *here, "--config.pretrained=~/run") == 0
    members = "--config.ensemble.members=('~/run','~/next')"
    assert call(train.main, config, "--workdir=~/both", *here, "--config.model.name=ensemble", members) == 0
    assert call(evaluate.main, "--workdir=~/run", "--split=test") == 0
    assert call(predict.main, "--workdir=~/run", "--images=~/images", "--output=~/out/table.csv") == 0
    assert call(convert.main, "--pretrained=~/run", "--output=~/out/weights.safetensors") == 0
    assert sorted(os.listdir(tmp_path)) == ["both", "cache", "images", "next", "out", "run"]
    assert configs.of_workdir(tmp_path / "run").dataset.root == "~/images"


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_read(
    tmp_path: Path, config: str, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/radiograf\xeda")
    for flags in ([f"--workdir={odd}"], [f"--workdir={tmp_path}", *images_of(Path(odd))]):
        assert "radiograf\\udceda' is not a name in UTF-8: rename" in refusal(capfd, train.main, config, *flags)
    assert os.listdir(tmp_path) == []
