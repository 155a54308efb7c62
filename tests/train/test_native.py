"""A run on native operations beside the same run on XLA's."""

from pathlib import Path

import numpy as np
import pytest

from covidjax import files
from covidjax.ops.choose import choose
from covidjax.runs.train import train
from covidjax.train.setup import prepare
from tests.support import TINY, by_path, small_config
from tests.train.test_resume import figures, restore

CHOICE = choose("auto")


@pytest.mark.slow
@pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)
def test_run_on_native_operations_says_so_and_has_the_losses_of_the_run_on_xla(tmp_path: Path) -> None:
    losses: list[list[float]] = []
    states = []
    for ops in ("native", "xla"):
        config = small_config("cnn", **TINY, ops=ops, epochs=2, dataset__cache_dir=str(tmp_path / "cache"))
        workdir = train(config, tmp_path / ops).parent
        assert (CHOICE.note in files.read_json(workdir / "run.json")["notes"]) == (ops == "native")
        losses.append([line["loss"] for line in figures(workdir)])
        states.append(by_path(restore(workdir, prepare(config)).state))
    native, xlas = states
    assert any(not np.array_equal(native[name], xlas[name]) for name in native)  # or both ran on the same operations
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
