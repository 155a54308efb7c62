"""The step under pmap is the step under jit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from covidjax.mesh import divide, replicated
from covidjax.train.parallel import mapped_step, throttle
from tests.support import (
    EVERYTHING_ON,
    make_batch,
    make_model,
    make_recipe,
    make_state,
    make_variables,
    on_devices,
    small_config,
)

STEPS = 20
CHANGES: dict[str, Any] = {
    **EVERYTHING_ON,
    "precision": "float64",
    "accumulation_steps": 1,
    "augment__rotate": 10.0,
    "augment__brightness": 0.2,
    "augment__sharpen": 0.5,
    "augment__flip": True,
}


def train(name: str, engine: str, *, resident: bool, sync_batch_norm: bool = True) -> dict[str, np.ndarray]:
    """Parameters, statistics, averages and sums after twenty steps on all devices."""
    config = small_config(name, model__width=4, **CHANGES)
    model = make_model(config)
    variables = make_variables(model)
    recipe = make_recipe(config, model, variables, sync_batch_norm=sync_batch_norm)
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    step = mapped_step(recipe, mesh, engine, resident=resident)
    state = jax.device_put(make_state(recipe, variables), replicated(mesh))
    if resident:
        split = jax.device_put(jax.tree.map(np.asarray, make_batch(batch_size=40)), replicated(mesh))
        rows = np.random.default_rng(0).permuted(np.tile(np.arange(40, dtype=np.int32), (STEPS, 1)), axis=1)[:, :8]
        counted = mapped_step(recipe, mesh, engine, resident=True, counted=True)
        for number, part in enumerate(rows.reshape(STEPS // 5, 5, 8)):
            placed = divide(part, mesh, engine, axis=1)
            state = counted(state, split, placed, np.int32(5)) if number == 2 else step(state, split, placed)
            throttle(state, mesh)
    else:
        for seed in range(STEPS):
            batch = jax.tree.map(np.asarray, make_batch(seed=seed))
            state = step(state, divide(batch, mesh, engine))
            throttle(state, mesh)
    kept = {"params": state.params, "batch_stats": state.batch_stats, "average": state.average}
    kept["metrics"] = [state.metrics.loss, state.metrics.correct, state.metrics.count]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(kept)}


def child(name: str, folder: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    assert jax.local_device_count() == 4
    for engine in ("jit", "pmap"):
        np.savez(folder / f"{engine}.npz", **train(name, engine, resident=name == "cnn"))  # type: ignore[arg-type]
    if name == "cnn":
        np.savez(folder / "own.npz", **train("cnn", "pmap", resident=True, sync_batch_norm=False))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four devices found for a network."""
    folder, root = tmp_path_factory.mktemp("pmap"), Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "tests.train.test_pmap", request.param, str(folder)],
        cwd=root,
        env=os.environ | on_devices(4),
        check=True,
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["cnn", "resnet18"], indirect=True)
def test_pmap_and_jit_agree_on_twenty_steps_in_float64(folder: Path) -> None:
    with np.load(folder / "jit.npz") as jitted, np.load(folder / "pmap.npz") as mapped:
        assert jitted.keys() == mapped.keys()
        for path in jitted:
            one, other = jitted[path], mapped[path]
            exact = 1e-8 if one.dtype == np.float64 else 1e-5  # the sums of the state are float32
            np.testing.assert_allclose(other, one, rtol=exact, atol=exact * np.abs(one).max(), err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["cnn"], indirect=True)
def test_batch_norm_of_each_device_is_another_network(folder: Path) -> None:
    with np.load(folder / "pmap.npz") as together, np.load(folder / "own.npz") as alone:
        differing = [path for path in together if not np.allclose(together[path], alone[path], rtol=1e-3)]
        assert any("kernel" in path for path in differing)


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
