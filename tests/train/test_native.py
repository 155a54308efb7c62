"""Runs on native operations: stopped and resumed, frozen, and beside the same run on XLA's."""

from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import files
from covidjax.errors import Interrupted
from covidjax.ops.choose import choose
from covidjax.runs.train import train
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from covidjax.weights.workdir import load_trained, open_checkpoints
from tests.support import TINY, send_sigterm_before, small_config
from tests.train.test_resume import arrays, figures

CHOICE = choose("auto")
pytestmark = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)
EPOCH_STEPS, EPOCHS = 6, 2


def config(folder: Path, ops: str = "native") -> ConfigDict:
    return small_config(
        "cnn",
        ops=ops,
        freeze="until:block1",
        features="off",
        **TINY,
        dataset__cache_dir=str(folder / "cache"),
        epochs=EPOCHS,
        ema_decay=0.9,
        optimizer__name="adamw",
        optimizer__weight_decay=0.01,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def programs() -> Programs:
    return Programs()


@pytest.fixture(scope="module")
def whole(folder: Path, programs: Programs) -> Path:
    return train(config(folder), folder / "whole", programs=programs).parent


def final(workdir: Path, settings: ConfigDict) -> dict[str, np.ndarray]:
    job = prepare(settings)
    with open_checkpoints(workdir, settings) as checkpoints:
        return arrays(checkpoints.restore("latest", job.abstract_state(job.last_step)).state)


def test_run_says_what_it_runs_on(whole: Path) -> None:
    assert CHOICE.note in files.read_json(whole / "run.json")["notes"]


@pytest.mark.slow
def test_stopped_and_resumed_run_ends_with_the_same_bits(
    folder: Path, whole: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, workdir, stop = config(folder), folder / "stopped", EPOCH_STEPS + 2

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        send_sigterm_before(stop, patch)
        train(settings, workdir, programs=programs)
    train(settings, workdir, programs=programs)
    one, two = final(whole, settings), final(workdir, settings)
    assert one.keys() == two.keys() and not [
        name for name, value in one.items() if not np.array_equal(value, two[name])
    ]
    assert figures(whole) == figures(workdir)


def test_frozen_stages_keep_their_bits(folder: Path, whole: Path) -> None:
    before, after = prepare(config(folder)).variables, load_trained(whole, "latest").variables
    for collection in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, *(tree[collection]["block1"] for tree in (before, after)))
    assert not np.array_equal(before["params"]["block2"]["conv"]["kernel"], after["params"]["block2"]["conv"]["kernel"])


@pytest.mark.slow
def test_losses_are_those_of_the_run_on_xla(folder: Path, whole: Path) -> None:
    on_xla = config(folder, ops="xla")
    other = train(on_xla, folder / "xla").parent
    losses, xlas = ([line["loss"] for line in figures(workdir)] for workdir in (whole, other))
    one, two = final(whole, config(folder)), final(other, on_xla)
    assert any(not np.array_equal(one[name], two[name]) for name in one)  # or both ran on the same operations
    np.testing.assert_allclose(losses, xlas, rtol=1e-3)
