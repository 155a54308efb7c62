"""What is saved comes back bit for bit, wherever; the latest and the best stay; what does not fit is refused."""

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from covidjax.errors import UserError
from tests.checkpoint.made import names, open_checkpoints, save_steps
from tests.commands import contents
from tests.support import ROOT, by_path, on_devices


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer_state: Any
    key: jax.Array
    average: Any
    masks: Any = None


def make_state(seed: int) -> State:
    """A state like that of a run with a frozen stem: its optimizer state has holes."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "stem": {"kernel": jax.random.normal(keys[0], (3, 3, 1, 4), jnp.bfloat16)},
        "head": {"kernel": jax.random.normal(keys[1], (16, 3)), "bias": jnp.array([jnp.nan, -0.0, jnp.inf])},
    }
    trainable = {"stem": {"kernel": optax.MaskedNode()}, "head": params["head"]}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    _, optimizer_state = optimizer.update(trainable, optimizer.init(trainable), trainable)
    statistics = {"stem": {"mean": jax.random.normal(keys[2], (4,)), "count": jnp.int8(seed)}}
    return State(jnp.int32(seed), params, statistics, optimizer_state, keys[3], trainable)


def host_bits(tree: Any) -> list[tuple[str, str, bytes]]:
    """Path, dtype and bytes of every leaf."""
    arrays = by_path(tree).items()
    return [(path, str(leaf.dtype), leaf.tobytes()) for path, leaf in arrays]


def test_restored_state_is_bit_identical(tmp_path: Path) -> None:
    state, progress = make_state(7), {"epoch": 3, "phases": [0, 1], "best": None, "loss": 0.1, "by": {"a": "ä"}}
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(240, state, progress, 0.9)
        checkpoints.wait()
        restored = checkpoints.restore_latest(lambda step: make_state(0))
    assert restored is not None
    assert (restored.step, restored.progress, restored.notes) == (240, progress, ())
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)  # type: ignore[operator]
    assert host_bits(restored.state) == host_bits(state)
    assert restored.state.key.dtype == state.key.dtype
    assert "optax" in type(restored.state.optimizer_state[1][0]).__module__


def test_donation_right_after_save_does_not_change_what_is_saved(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 1 << 20), dtype=np.float32)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)

    def place() -> dict[str, jax.Array]:
        return {str(row): jnp.array(values[row], copy=True) for row in range(len(values))}

    jax.block_until_ready(overwrite(place()))
    progress = {"epochs": [1]}
    with open_checkpoints(tmp_path) as checkpoints:
        state = jax.block_until_ready(place())
        checkpoints.save(1, state, progress, None)
        progress["epochs"].append(2)
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        restored = checkpoints.restore("latest", state)
    assert float(state["0"][0]) == -1
    assert all((np.asarray(restored.state[str(row)]) == values[row]).all() for row in range(len(values)))
    assert restored.progress == {"epochs": [1]}


@pytest.mark.parametrize(
    ("higher_is_better", "metrics", "best", "restarts"),
    [
        (True, [0.5, 0.9, 0.7, 0.6], 2, False),
        (False, [0.5, 0.2, 0.7, 0.6, 0.8], 2, True),
        (True, [0.3, math.nan, 0.2, math.nan, 0.1], 1, True),
        (False, [0.3, math.nan, math.inf, math.nan, 0.5], 1, False),
        (True, [0.3, math.inf, 0.2, 0.1], 1, False),
        (True, [0.3, 0.3, 0.2, 0.1], 2, True),
        (True, [math.nan, None, math.nan, None], None, True),
        (False, [0.3, 0.0, 0.2, 0.1], 2, False),
    ],
)
def test_latest_two_and_best_are_kept(
    tmp_path: Path, higher_is_better: bool, metrics: list[float | None], best: int | None, restarts: bool
) -> None:
    kept = {len(metrics) - 1, len(metrics)} | ({best} if best else set())
    with contextlib.ExitStack() as stack:
        for step, metric in enumerate(metrics, 1):
            if restarts or step == 1:
                stack.close()
                checkpoints = stack.enter_context(open_checkpoints(tmp_path, higher_is_better=higher_is_better))
            checkpoints.save(step, {"weight": jnp.ones(3)}, {}, metric)
        checkpoints.wait()
        assert checkpoints.steps() == sorted(kept)
        assert (checkpoints.best() or (None, None))[1] == best
    assert names(tmp_path) == {str(step) for step in kept} | {"manifests"}
    assert names(tmp_path / "manifests") == {f"{step}.json" for step in kept}


def test_what_cannot_be_saved_or_restored_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, [2], make_state)
    with pytest.raises(UserError, match=r"checkpoint\.keep is 1; use 2 or more"):
        open_checkpoints(tmp_path, keep=1)
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            with pytest.raises(UserError, match=f"checkpoint {step} cannot be saved: .* already has checkpoint 2"):
                checkpoints.save(step, make_state(step), {}, None)
        with pytest.raises(ValueError, match="needs a sharding"):
            checkpoints.restore("latest", jax.eval_shape(lambda: make_state(0)))


def test_best_latest_and_numbered_checkpoints_are_found(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="no finished checkpoint in"):
            checkpoints.restore("latest", make_state(0))
        for step, metric in enumerate([0.1, 0.9, 0.2, 0.3], 1):
            checkpoints.save(step, make_state(step), {"epoch": step}, metric)
        checkpoints.wait()
        for which, step in (("best", 2), ("latest", 4), (3, 3)):
            restored = checkpoints.restore(which, make_state(0))  # type: ignore[arg-type]
            assert (restored.step, restored.progress) == (step, {"epoch": step})
            assert host_bits(restored.state) == host_bits(make_state(step))
        with pytest.raises(UserError, match="no checkpoint 1 in .*one of 2, 3, 4"):
            checkpoints.restore(1, make_state(0))


def test_best_without_any_metric_is_the_latest_and_said_so(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2], make_state)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.find("best") == (2, "latest")


def test_part_of_the_state_is_restored_without_knowing_the_rest(tmp_path: Path) -> None:
    save_steps(tmp_path, [5], make_state)
    state, other = make_state(5), make_state(0)
    wanted = {"params": other.params, "average": other.average, "masks": None}
    expected = {"params": state.params, "average": state.average, "masks": None}
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore("latest", wanted, partial=True)
        assert jax.tree.structure(restored.state) == jax.tree.structure(expected)  # type: ignore[operator]
        assert host_bits(restored.state) == host_bits(expected)
        with pytest.raises(UserError, match="masks/head/bias is missing there"):
            checkpoints.restore("latest", {"masks": other.params}, partial=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": jnp.zeros(2, jnp.int32)}, r"step is int32\[\] there, int32\[2\] here"),
        ({"step": jnp.float32(0)}, r"step is int32\[\] there, float32\[\] here"),
        ({"batch_stats": {}}, r"batch_stats/stem/count is int8\[\] there, missing here"),
        ({"masks": jnp.zeros(3)}, r"masks is missing there, float32\[3\] here"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"key is key<fry>\[\] there, uint32\[2\] here"),
    ],
)
def test_state_that_does_not_fit_is_refused_and_unmoved(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_steps(tmp_path, [1, 2], make_state)
    before = contents(tmp_path)
    state = make_state(0).replace(**change)
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=message):
            checkpoints.restore_latest(lambda step: state)
        with pytest.raises(UserError, match=message):
            checkpoints.restore(2, state)
    assert contents(tmp_path) == before


FOUR_DEVICES = """
import sys, pathlib, numpy, jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tests.checkpoint.made import save_steps
mesh = Mesh(numpy.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
assert mesh.size == 4
replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
values = numpy.arange(24, dtype=numpy.float32).reshape(8, 3)
key = jax.device_put(jax.random.key(3), replicated)
state = {"replicated": jax.device_put(values, replicated), "sharded": jax.device_put(values, sharded), "key": key}
save_steps(pathlib.Path(sys.argv[1]), [1], lambda step: state)
"""


def test_checkpoint_of_four_devices_is_restored_on_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **on_devices(4)}
    subprocess.run([sys.executable, "-c", FOUR_DEVICES, str(tmp_path)], env=environment, check=True)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())
    values = jnp.arange(24, dtype=jnp.float32).reshape(8, 3)
    expected = {"replicated": values, "sharded": values, "key": jax.random.key(3)}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), expected)
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(lambda step: abstract)
    assert restored is not None
    assert host_bits(restored.state) == host_bits(expected)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored.state))
