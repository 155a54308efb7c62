"""Cached features as a user meets them: reused by the next run, told when they cannot be, never in the way."""

import contextlib
import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
import pytest

from covidjax import config as configs
from covidjax import files
from covidjax.train.setup import prepare
from covidjax.weights.workdir import load_trained
from launch import train
from tests.commands import call, tiny_config

FROZEN = "--config.freeze=backbone"


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has ended well, what it said, and the folder of features that it used."""

    workdir: Path
    output: str
    store: Path

    def counts(self) -> tuple[int, int]:
        """Features of the prefix that the run computed, and those that it found."""
        account = files.read_json(self.workdir / "run.json")["features"]
        return account["computed"], account["reused"]

    def kept(self) -> list[str]:
        return sorted(path.name for path in self.store.iterdir())


def run(folder: Path, *arguments: str, cache: Path) -> Finished:
    """Trains the tiny network in folder / 'run'."""
    folder.mkdir(exist_ok=True)
    flags = [tiny_config(folder), f"--config.dataset.cache_dir={cache}", f"--workdir={folder / 'run'}"]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        status = call(train.main, *flags, *arguments)
    assert (status, errors.getvalue()) == (0, "")
    return Finished(folder / "run", output.getvalue(), cache / "features")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that computed its features, which no test may change."""
    folder = tmp_path_factory.mktemp("first")
    return run(folder, FROZEN, cache=folder / "cache")


def test_second_run_with_the_same_prefix_reuses_its_features(tmp_path: Path, first: Finished) -> None:
    assert first.counts() == (2, 0)
    assert len(first.kept()) == 2
    assert "features: block1, block2 run once for" in first.output
    assert "reused" not in first.output

    changes = ("--config.optimizer.learning_rate=0.01", "--config.optimizer.name=sgd", "--config.batch_size=6")
    second = run(tmp_path, FROZEN, *changes, cache=first.store.parent)
    assert second.counts() == (0, 2)
    for key in first.kept():
        assert f"features: reused {first.store / key}\n" in second.output
    assert second.kept() == first.kept()


@pytest.mark.slow
def test_frozen_run_starts_one_that_trains_everything_and_the_other_way_round(tmp_path: Path, first: Finished) -> None:
    cache = first.store.parent
    whole = run(tmp_path / "whole", f"--config.pretrained={first.workdir}", "--config.seed=1", cache=cache)
    again = run(tmp_path / "again", FROZEN, f"--config.pretrained={whole.workdir}", "--config.seed=2", cache=cache)
    for earlier, later in ((first, whole), (whole, again)):
        assert f"weights: {earlier.workdir}, best at step 6" in later.output
        config = configs.from_json(files.read_json(later.workdir / "config.json"))
        begun, trained = prepare(config).variables, load_trained(earlier.workdir, "best").variables
        jax.tree.map(np.testing.assert_array_equal, begun, trained)
    frozen, moved, kept = (load_trained(each.workdir, "latest").variables for each in (first, whole, again))
    for stage in ("block1", "block2"):
        assert not np.array_equal(*(each["params"][stage]["conv"]["kernel"] for each in (frozen, moved)))
        for kind in ("params", "batch_stats"):
            jax.tree.map(np.testing.assert_array_equal, kept[kind][stage], moved[kind][stage])
