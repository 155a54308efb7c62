"""LoRA: adapters beside dense kernels train, what is frozen is free, and a trained network has none."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

from covidjax.errors import Interrupted, UserError
from covidjax.freeze.strategies import lora_rank
from covidjax.models import vit
from covidjax.models.branches import merged
from covidjax.runs import costs
from covidjax.runs.train import train
from covidjax.train.setup import prepare
from covidjax.train.step import train_step
from covidjax.weights.workdir import load_trained
from tests.support import (
    EVERYTHING_ON,
    assert_close,
    assert_same_bits,
    by_path,
    make_batch,
    make_model,
    make_recipe,
    make_state,
    make_variables,
    run_on_devices,
    send_before,
    small_config,
)
from tests.train.programs import QUICKLY, reduced_elements
from tests.train.test_resume import assert_same_run

SMALL = vit.Size(16, True, num_blocks=2, features=24, num_heads=3)
STRATEGIES = ("none", "until:block1", "backbone", "norm", "bitfit", "lora:4", "lora:4+norm")
METRICS = 2  # the loss and the number of correct answers, sums over the batch


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vit.SIZES, "vit_b16", SMALL)


def config(strategy: str, **changes: Any) -> Any:
    return small_config("vit_b16", freeze=strategy, dataset__image_size=32, **changes)


def parted(strategy: str, **changes: Any) -> tuple[Any, Any]:
    """The network of a strategy, its weights with adapters that are not zero."""
    values = config(strategy, **changes)
    model = make_model(values)
    model = model.clone(lora_rank=lora_rank(strategy))
    return make_recipe(values, model, variables := make_variables(model)), variables


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_leaves_keep_their_bits_and_have_no_moments(strategy: str) -> None:
    recipe, variables = parted(strategy, **EVERYTHING_ON)
    state = make_state(recipe, variables)
    step = jax.jit(lambda state, batch: train_step(state, batch, recipe=recipe))
    for seed in range(2):
        state = step(state, make_batch(seed=seed))
    before, after = (traverse_util.flatten_dict(tree, sep="/") for tree in (variables["params"], state.params))
    trains = {leaf.path for leaf in recipe.plan.leaves if leaf.trains}
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == trains
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    counts = (len(trains),)  # of the steps of each leaf, for the correction of its moments
    assert sorted(shapes) == sorted([*2 * [before[path].shape for path in trains], counts])


def test_adapters_of_a_rank_train_beside_every_dense_kernel_and_the_head_trains_whole() -> None:
    recipe, variables = parted("lora:4")
    trains = {leaf.path for leaf in recipe.plan.leaves if leaf.trains}
    products = ("attention/query", "attention/key", "attention/value", "attention/out", "mlp/dense1", "mlp/dense2")
    adapters = {
        f"block{number}/{product}/lora_{side}" for number in (1, 2) for product in products for side in ("down", "up")
    }
    assert trains == {*adapters, "head/dense/kernel", "head/dense/bias"}
    assert variables["params"]["block1"]["mlp"]["dense1"]["lora_down"].shape == (24, 4)
    assert recipe.plan.frozen_prefix == ("stem",)


def test_a_network_with_its_adapters_merged_computes_the_same_and_fresh_ones_add_nothing() -> None:
    recipe, variables = parted("lora:4")
    plain = recipe.model.clone(lora_rank=0)
    images = jax.numpy.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 1)), jax.numpy.float32)
    logits = jax.jit(recipe.model.apply)(variables, images)
    without = merged(variables["params"])
    assert not any("lora" in path for path in by_path(without))
    assert_close(jax.jit(plain.apply)({"params": without}, images), logits, 1e-5)
    fresh = jax.jit(recipe.model.init)(jax.random.key(0), images)["params"]
    leaves = traverse_util.flatten_dict(fresh, sep="/")
    assert all(not leaf.any() for path, leaf in leaves.items() if path.endswith("lora_up"))
    assert_same_bits(merged(merged(fresh)), merged(fresh))


def test_a_frozen_kernel_has_no_gradient_in_the_program() -> None:
    """A step of adapters has the products forward, of gradients of inputs, and thin ones, none of a kernel."""
    flops = {
        strategy: costs.lower_step(job(strategy)).cost_analysis()["flops"]
        for strategy in ("none", "lora:1", "backbone")
    }
    assert flops["backbone"] < flops["lora:1"] < 0.8 * flops["none"]


def job(strategy: str) -> Any:
    values = config(strategy, batch_size=8, features="off", **{**EVERYTHING_ON, "accumulation_steps": 1})
    return costs.job_of_strategy(costs.job_of_shapes(values, 3), strategy)


@pytest.mark.parametrize(
    ("strategies", "words"),
    [(("lora:0",), "lora:8"), (("lora:x",), "lora:8"), (("lora:4", "lora:8+norm"), "ranks 4, 8")],
)
def test_a_rank_that_is_none_and_two_ranks_are_refused(strategies: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        lora_rank(*strategies)


def test_a_network_without_dense_kernels_is_refused() -> None:
    with pytest.raises(UserError, match=r"resnet18 does not have: allowed are convnext_tiny.*vit_b16"):
        costs.job_of_shapes(small_config("resnet18", freeze="lora:8"), 3)


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits_and_its_network_has_no_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"batch_size": 4, "epochs": 2, "dataset__num_images": 24, "ema_decay": 0.9}
    values |= {"model__stochastic_depth": 0.4, "optimizer__learning_rate": 0.01}
    settings = config("lora:4", **values, dataset__cache_dir=str(tmp_path / "cache"))
    train(settings, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        send_before(8, patch)
        train(settings, tmp_path / "run")
    train(settings, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole", prepare(settings))
    trained = load_trained(tmp_path / "run", "latest")
    paths = set(traverse_util.flatten_dict(trained.variables["params"], sep="/"))
    assert trained.model.lora_rank == 0 and not any("lora" in path for path in paths)
    again = config("none", **values, pretrained=str(tmp_path / "run"))
    begin = prepare(again).variables["params"]
    kernel = begin["block2"]["mlp"]["dense1"]["kernel"]
    np.testing.assert_array_equal(kernel, trained.variables["params"]["block2"]["mlp"]["dense1"]["kernel"])
    fresh = prepare(config("none", **values)).variables["params"]["block2"]["mlp"]["dense1"]["kernel"]
    assert not np.array_equal(kernel, fresh)


# ---- What four devices tell each other: the gradients of what trains, and nothing else ----


def child(path: Path) -> None:
    vit.SIZES["vit_b16"] = SMALL
    found = {}
    for strategy in STRATEGIES:
        compiled = costs.lower_step(job(strategy)).compile(QUICKLY)
        found[strategy] = dict(reduced_elements(compiled))
    path.write_text(json.dumps(found))


@pytest.mark.slow
def test_devices_reduce_the_gradients_of_what_trains_alone(tmp_path: Path) -> None:
    run_on_devices(4, "tests.freeze.test_lora", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    for strategy in STRATEGIES:
        own = job(strategy)
        sizes = traverse_util.flatten_dict(own.variables["params"], sep="/")
        # Scales of branches are in the kernels, whose gradients hold theirs.
        paths = [leaf.path for leaf in own.recipes[0].plan.leaves if leaf.trains and "layer_scale" not in leaf.path]
        trained = sum(sizes[path].size for path in paths)
        assert found[strategy] == {"all-reduce": trained + METRICS}, strategy


if __name__ == "__main__":
    child(Path(sys.argv[1]))
