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
from tests.train.test_resume import figures

FROZEN = "--config.freeze=backbone"


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has ended well, what it said, and the folder of features that it used."""

    workdir: Path
    output: str
    errors: str
    store: Path

    def counts(self) -> tuple[int, int]:
        """PrefixFeatures that the run computed, and those that it found."""
        account = files.read_json(self.workdir / "run.json")["features"]
        return account["computed"], account["reused"]

    def kept(self) -> list[str]:
        return sorted(path.name for path in self.store.iterdir())


def run(folder: Path, *arguments: str, cache: Path) -> Finished:
    """Trains the tiny network in folder / 'run'."""
    flags = [tiny_config(folder), f"--config.dataset.cache_dir={cache}", f"--workdir={folder / 'run'}"]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = call(train.main, *flags, *arguments)
    assert status == 0, errors.getvalue()
    return Finished(folder / "run", output.getvalue(), errors.getvalue(), cache / "features")


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
    assert first.errors == ""

    changes = ("--config.optimizer.learning_rate=0.01", "--config.optimizer.name=sgd", "--config.batch_size=6")
    second = run(tmp_path, FROZEN, *changes, cache=first.store.parent)
    assert second.counts() == (0, 2)
    for key in first.kept():
        assert f"features: reused {first.store / key}\n" in second.output
    assert second.kept() == first.kept()


def test_run_from_features_says_what_the_run_through_the_network_says(tmp_path: Path, first: Finished) -> None:
    through = run(tmp_path, FROZEN, "--config.features=off", cache=tmp_path / "cache")
    assert through.counts() == (0, 0)
    assert "features: not cached (config.features is off)" in through.output
    for one, other in zip(figures(first.workdir), figures(through.workdir), strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_run_with_a_frozen_backbone_starts_one_that_trains_everything_and_the_other_way_round(
    tmp_path: Path, first: Finished
) -> None:
    folders, cache = [tmp_path / name for name in ("whole", "again")], first.store.parent
    for folder in folders:
        folder.mkdir()
    whole = run(folders[0], f"--config.pretrained={first.workdir}", "--config.seed=1", cache=cache)
    again = run(folders[1], FROZEN, f"--config.pretrained={whole.workdir}", "--config.seed=2", cache=cache)
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
