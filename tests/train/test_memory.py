"""What is said where a device has no memory left."""

import jax
import pytest

from covidjax.errors import UserError
from covidjax.train import memory
from covidjax.train.compiling import Compiling
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from tests.support import TINY, small_config


def test_a_full_device_is_told_in_one_line_with_what_takes_how_much() -> None:
    job = prepare(small_config("cnn", **TINY, dataset__placement="stream"))
    (phase,) = job.phases
    compiling = Compiling(job, Programs(), [1.0])
    compiling.start(phase)
    temporary = compiling.wait(phase).memory["temporary"]
    parts = memory.needed(job, phase, compiling.memory()["0"])
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(job.variables["params"]))
    assert parts["parameters"] == weights
    assert 2 * weights < parts["optimizer state"] < 2 * weights + 64  # both moments of Adam, and counts
    assert parts["a batch"] == 4 * (16 * 16 + 4)  # images of a byte a pixel, and labels
    assert parts["activations and gradients"] == temporary
    refused = pytest.raises(UserError, match=r"out of memory: .*parameters .*config.remat")
    with refused as said, memory.told(job, compiling):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
    assert "\n" not in str(said.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.told(job, compiling):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
