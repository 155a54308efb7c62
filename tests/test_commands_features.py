"""Cached features as a user meets them: reused by the next run, told when they cannot be, never in the way."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from covidjax import config as configs
from covidjax import files
from covidjax.train.setup import prepare
from covidjax.train.writer import read_records
from covidjax.trained import load_trained
from launch import train
from tests.commands import call, compiled_once, refusal, tiny_config
from tests.disk import small_disk

FROZEN = "--config.freeze=backbone"


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with compiled_once(tmp_path_factory) as variables:
        yield variables


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has ended well, what it said, and the folder of features that it used."""

    workdir: Path
    output: str
    errors: str
    store: Path

    def counts(self) -> tuple[int, int]:
        """Passes that the run computed, and those that it found."""
        account = files.read_json(self.workdir / "run.json")["features"]
        return account["computed"], account["reused"]

    def kept(self) -> list[str]:
        return sorted(path.name for path in self.store.iterdir())


@dataclasses.dataclass(frozen=True)
class Trainer:
    folder: Path
    capfd: pytest.CaptureFixture[str]

    def run(self, name: str, *arguments: str, cache: Path | None = None) -> Finished:
        cache = cache or self.folder / "cache"
        flags = [tiny_config(self.folder), f"--config.dataset.cache_dir={cache}", f"--workdir={self.folder / name}"]
        self.capfd.readouterr()
        assert call(train.main, *flags, *arguments) == 0
        output, errors = self.capfd.readouterr()
        return Finished(self.folder / name, output, errors, cache / "features")


@pytest.fixture
def trainer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Trainer:
    return Trainer(tmp_path, capfd)


def figures(finished: Finished) -> list[dict[str, float]]:
    records = read_records(finished.workdir / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name != "images_per_second"} for record in records]


def test_second_run_with_the_same_prefix_reuses_its_features(trainer: Trainer) -> None:
    first = trainer.run("first", FROZEN)
    assert first.counts() == (2, 1)  # both splits, and the validation split once more for the best network
    assert len(first.kept()) == 2
    assert "features: block1, block2 run once for" in first.output
    assert "reused" not in first.output
    assert first.errors == ""

    changes = ("--config.optimizer.learning_rate=0.01", "--config.optimizer.name=sgd", "--config.batch_size=6")
    second = trainer.run("second", FROZEN, *changes)
    assert second.counts() == (0, 3)
    for key in first.kept():
        assert f"features: reused {first.store / key}\n" in second.output
    assert second.kept() == first.kept()

    again = trainer.run("again", FROZEN)
    assert figures(again) == figures(first)
    other = trainer.run("other", FROZEN, "--config.seed=1")  # another seed draws another prefix
    assert other.counts() == (2, 1)
    assert len(other.kept()) == 4


def test_run_from_features_says_what_the_run_through_the_network_says(trainer: Trainer) -> None:
    cached, through = (trainer.run(name, FROZEN, f"--config.features={name}") for name in ("on", "off"))
    assert through.counts() == (0, 0)
    assert "features: not cached (config.features is off)" in through.output
    assert len(figures(cached)) == len(figures(through)) == 2
    for one, other in zip(figures(cached), figures(through), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_damaged_features_are_told_in_one_line_and_computed_again(trainer: Trainer) -> None:
    first = trainer.run("first", FROZEN)
    for key in first.kept():
        path = first.store / key / "leaf0.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    second = trainer.run("second", FROZEN)
    assert sorted(second.errors.splitlines()) == [
        f"the cached features in {first.store / key} are damaged (the checksum of leaf0.npy differs): they are "
        "computed again"
        for key in first.kept()
    ]
    assert second.counts() == (2, 1)
    assert figures(second) == figures(first)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4 * 4096) as folder:
        yield folder


def test_full_cache_disk_keeps_no_features_and_changes_nothing_else(trainer: Trainer, disk: Path) -> None:
    first = trainer.run("first", FROZEN)
    (disk / "filler").write_bytes(bytes(4 * 4096))
    second = trainer.run("second", FROZEN, cache=disk)
    assert second.counts() == (3, 0)
    assert figures(second) == figures(first)
    (note,) = {line for line in second.output.splitlines() if "not kept" in line}
    assert note.startswith("features: not kept for later runs (")
    assert note in files.read_json(second.workdir / "run.json")["notes"]


def test_features_that_are_asked_for_and_cannot_be_are_refused(
    trainer: Trainer, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [tiny_config(trainer.folder), f"--workdir={trainer.folder / 'run'}", "--config.features=on"]
    message = refusal(capfd, train.main, *flags)
    assert message.startswith("config.features is on, but no phase begins with frozen stages")
    message = refusal(capfd, train.main, *flags, FROZEN, "--config.augment.rotate=5")
    assert message.startswith(
        "config.features is on, but augmentation changes every image anew; config.feature_views=K"
    )


def test_run_with_a_frozen_backbone_starts_one_that_trains_everything_and_the_other_way_round(
    trainer: Trainer,
) -> None:
    frozen = trainer.run("frozen", FROZEN)
    whole = trainer.run("whole", f"--config.pretrained={frozen.workdir}", "--config.seed=1")
    again = trainer.run("again", FROZEN, f"--config.pretrained={whole.workdir}", "--config.seed=2")
    for earlier, later in ((frozen, whole), (whole, again)):
        assert f"weights: {earlier.workdir}, best at step 6" in later.output
        config = configs.from_json(files.read_json(later.workdir / "config.json"))
        begun, trained = prepare(config).variables, load_trained(earlier.workdir, "best").variables
        jax.tree.map(np.testing.assert_array_equal, begun, trained)
    first, moved, kept = (load_trained(run.workdir, "latest").variables for run in (frozen, whole, again))
    for stage in ("block1", "block2"):
        assert not np.array_equal(*(each["params"][stage]["conv"]["kernel"] for each in (first, moved)))
        for kind in ("params", "batch_stats"):
            jax.tree.map(np.testing.assert_array_equal, kept[kind][stage], moved[kind][stage])
