"""One and four devices train alike, and jit and pmap: in float64, as in float32 two correct programs soon part."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.data.examples import Examples
from covidjax.evaluate import network
from covidjax.losses import softmax_cross_entropy
from covidjax.mesh import by_example, divide, make_mesh, replicated
from covidjax.tasks.classification import CLASSIFICATION
from covidjax.train.parallel import mapped_step, throttle
from covidjax.train.state import TrainState
from covidjax.train.step import Batch, Recipe, augmented, train_forward, train_step
from tests.support import (
    EVERYTHING_ON,
    assert_close,
    by_path,
    make_batch,
    make_state,
    make_training,
    run_on_devices,
    small_config,
)

MODELS = ("cnn", "resnet18")
pytestmark = pytest.mark.slow  # what all of them share takes minutes; test_programs is for every day
STEPS = 20


def prepare(name: str, changes: dict[str, Any]) -> tuple[Recipe, TrainState]:
    """What a step needs, with augmentation and dropout on and BatchNorm on the statistics of the whole batch."""
    movement = {"augment__rotate": 10.0, "augment__shift": 0.1, "augment__brightness": 0.2, "augment__flip": True}
    recipe, variables = make_training(small_config(name, model__width=4, model__dropout=0.3, **movement, **changes))
    assert recipe.plan.batch_norm_stages == recipe.model.stages[:-1]
    return recipe, make_state(recipe, variables)


def training_loss(recipe: Recipe, state: TrainState, batch: Batch) -> jax.Array:
    """The loss of the step that comes next, in the precision of the network: the sums of the state are float32."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    images, _ = augmented(augment_key, batch, recipe)
    logits, _ = train_forward(recipe, state.params, state.batch_stats, images, dropout_key)
    return jnp.mean(recipe.loss(logits, batch["label"]))


def arrays(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    return {prefix + path: leaf for path, leaf in by_path(tree).items()}


def twenty_steps(name: str) -> dict[str, np.ndarray]:
    """Loss before each step, and parameters, statistics and averages after the last."""
    with jax.enable_x64(True):
        recipe, state = prepare(name, {**EVERYTHING_ON, "precision": "float64", "accumulation_steps": 1})
        mesh = make_mesh(8)
        whole, parts = replicated(mesh), by_example(mesh)

        # Both in one program, so that the compiler merges their forward passes; else as `mapped_step` has it.
        def loss_and_step(state: TrainState, batch: Batch) -> tuple[jax.Array, TrainState]:
            return training_loss(recipe, state, batch), train_step(state, batch, recipe=recipe)

        step = jax.jit(loss_and_step, in_shardings=(whole, parts), out_shardings=whole, donate_argnums=0)
        state = jax.device_put(state, whole)
        losses = []
        for seed in range(STEPS):
            loss, state = step(state, jax.device_put(make_batch(seed=seed), parts))
            losses.append(float(loss))
        assert int(state.metrics.steps) == STEPS
        np.testing.assert_allclose(np.float32(state.metrics.loss), sum(losses), rtol=1e-6)
        after = {"params": state.params, "batch_stats": state.batch_stats, "average": state.average}
        return {f"{name} losses": np.array(losses), **arrays(f"{name} after ", after)}


def evaluation() -> dict[str, np.ndarray]:
    """Logits, loss and accuracy of 33 examples in batches of 7."""
    recipe, state = prepare("cnn", {})
    batch = make_batch(batch_size=33)
    images, labels = (np.asarray(batch[name]) for name in ("image", "label"))
    names = tuple(map(str, range(33)))
    examples = Examples("val", images, labels, names, names, False, ("a", "b", "c"), "")
    mesh = make_mesh(8)
    forward = network.make_forward(recipe.model, recipe.preprocessing, mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    variables = jax.device_put(variables, replicated(mesh))
    batches = network.answers(forward, variables, examples.images, examples.labels, 7, mesh)
    found = CLASSIFICATION.measure(batches, softmax_cross_entropy, "softmax_cross_entropy")
    logits = network.predict(forward, variables, images, 7, mesh)
    assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels))
    return {"evaluation logits": logits, "evaluation": np.array([found["loss"], found["accuracy"]])}


def of_engine(name: str, engine: str, *, sync_batch_norm: bool = True) -> dict[str, np.ndarray]:
    """Parameters, statistics, averages and sums after twenty steps under jit or pmap; the cnn's images are resident."""
    with jax.enable_x64(True):
        movement = {"augment__rotate": 10.0, "augment__brightness": 0.2, "augment__sharpen": 0.5, "augment__flip": True}
        changes = {**EVERYTHING_ON, "precision": "float64", "accumulation_steps": 1, **movement}
        config = small_config(name, model__width=4, **changes)
        recipe, variables = make_training(config, sync_batch_norm=sync_batch_norm)
        mesh, resident = make_mesh(8), name == "cnn"
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
        sums = [state.metrics.loss, state.metrics.correct, state.metrics.steps]
        kept = {"params": state.params, "batch_stats": state.batch_stats, "average": state.average, "sums": sums}
        return by_path(kept)


def child(num_devices: int, path: Path) -> None:
    assert jax.local_device_count() == num_devices
    found = evaluation()
    for name in MODELS:
        found |= twenty_steps(name)
        if num_devices > 1:
            engines = {engine: of_engine(name, engine) for engine in ("jit", "pmap")}
            found |= {f"{engine} {name} {key}": leaf for engine, tree in engines.items() for key, leaf in tree.items()}
    if num_devices > 1:
        for engine in ("jit", "pmap"):
            own = of_engine("cnn", engine, sync_batch_norm=False)
            found |= {f"own {engine} cnn {key}": leaf for key, leaf in own.items()}
    np.savez(path, **found)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """What one device and four devices found, each in a process of its own, both at once."""
    folder, counts = tmp_path_factory.mktemp("devices"), (1, 4)
    with ThreadPoolExecutor() as pool:
        command = "tests.train.test_devices"
        list(pool.map(lambda count: run_on_devices(count, command, count, folder / f"{count}.npz"), counts))
    return [dict(np.load(folder / f"{count}.npz")) for count in counts]


def paired(results: list[dict[str, np.ndarray]], prefix: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    one, four = results
    assert one.keys() <= four.keys()
    pairs = {name: (one[name], four[name]) for name in one if name.startswith(prefix)}
    assert pairs
    return pairs


def of_run(results: list[dict[str, np.ndarray]], engine: str, name: str) -> dict[str, np.ndarray]:
    start = f"{engine} {name} "
    return {key.removeprefix(start): leaf for key, leaf in results[1].items() if key.startswith(start)}


@pytest.mark.parametrize("name", MODELS)
def test_devices_agree_on_twenty_steps_in_float64(results: list[dict[str, np.ndarray]], name: str) -> None:
    ((one, four),) = paired(results, f"{name} losses").values()
    assert one.dtype == np.float64
    assert len(set(one)) == STEPS
    np.testing.assert_allclose(four, one, rtol=1e-8)
    for path, (one, four) in paired(results, f"{name} after ").items():
        assert one.dtype == np.float64, path
        assert_close(four, one, 1e-8)


def test_devices_agree_on_an_evaluation_whose_batches_do_not_divide(results: list[dict[str, np.ndarray]]) -> None:
    for one, four in paired(results, "evaluation").values():
        np.testing.assert_allclose(four, one, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_pmap_and_jit_agree_on_twenty_steps_in_float64(results: list[dict[str, np.ndarray]], name: str) -> None:
    jitted, mapped = (of_run(results, engine, name) for engine in ("jit", "pmap"))
    assert jitted.keys() == mapped.keys()
    for path, one in jitted.items():
        assert_close({path: mapped[path]}, {path: one}, 1e-8 if one.dtype == np.float64 else 1e-5)  # sums are float32


def test_batch_norm_of_each_device_is_another_network_and_the_same_under_both_engines(
    results: list[dict[str, np.ndarray]],
) -> None:
    together, alone, mapped = (of_run(results, engine, "cnn") for engine in ("jit", "own jit", "own pmap"))
    differing = [path for path in together if not np.allclose(together[path], alone[path], rtol=1e-3)]
    assert any("kernel" in path for path in differing)
    for path, one in alone.items():
        assert_close({path: mapped[path]}, {path: one}, 1e-8 if one.dtype == np.float64 else 1e-5)


if __name__ == "__main__":
    child(int(sys.argv[1]), Path(sys.argv[2]))
