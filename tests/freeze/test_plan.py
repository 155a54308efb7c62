from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covidjax import models
from covidjax.freeze import flops
from covidjax.freeze.plan import FreezePlan, make_plan
from covidjax.freeze.table import format_table, freeze_table
from covidjax.train.step import train_step
from tests.freeze.test_strategies import CNN_STAGES, RESNET_STAGES, plan_of, shapes
from tests.support import make_batch, make_recipe, make_state, make_variables, small_config


def holes(tree: Any) -> Iterator[bool]:
    for leaf in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode)):
        yield isinstance(leaf, optax.MaskedNode)


NORMS = {"batch_norm": "running", "lr_scale": (("block2", 0.5),)}
DECAYED: dict[str, Any] = {"weight_decay": 0.1, "weight_decays": (("block1", 0.5),), "lr_scale": (("block2", 0.5),)}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("backbone", {}), ("last:1", {}), True),
        (("until:block3", {}), ("last:2", {}), True),
        (("none", {}), ("last:5", {}), True),
        (("norm", {}), ("all_but_norm", {}), True),
        (("norm", {}), ((r"^block\d/conv",), {}), True),
        ((["block1"], NORMS), (("block1",), NORMS), True),
        ((("block1",), NORMS), (("block2",), NORMS), False),
        ((("block1",), NORMS), (("block1",), {**NORMS, "batch_norm": "batch"}), False),
        ((("block1",), NORMS), (("block1",), {**NORMS, "lr_scale": (("block2", 0.25),)}), False),
        # Frozen leaves carry no settings that could tell plans apart.
        (("backbone", DECAYED), ("backbone", {"weight_decay": 0.1}), True),
        (("backbone", DECAYED), ("backbone", {}), False),
    ],
)
def test_plans_that_do_the_same_are_equal_keys_whatever_they_are_called(one: Any, other: Any, same: bool) -> None:
    plan, twin = (plan_of("cnn", strategy, **options) for strategy, options in (one, other))
    assert (plan == twin) == same
    assert not same or hash(plan) == hash(twin)


@given(st.lists(st.booleans(), min_size=14, max_size=14).filter(lambda flags: not all(flags)), st.integers(0))
def test_merge_undoes_split(frozen: list[bool], seed: int) -> None:
    model, variables = shapes("cnn")
    paths = [leaf.path for leaf in make_plan("none", variables, model.stages).leaves]
    patterns = tuple(f"^{path}$" for path, flag in zip(paths, frozen, strict=True) if flag)
    plan = make_plan(patterns, variables, model.stages)
    values = iter(np.random.default_rng(seed).permutation(14))
    params = jax.tree.map(lambda leaf: next(values), variables["params"])
    trainable, rest = plan.split(params)
    assert list(holes(trainable)) == frozen
    assert list(holes(rest)) == [not flag for flag in frozen]
    merged = plan.merge(trainable, rest)
    assert str(jax.tree.structure(merged)) == str(jax.tree.structure(params))
    assert jax.tree.leaves(merged) == jax.tree.leaves(params)
    # A tree that has holes already, such as a moving average, keeps them.
    again, nothing = plan.split(trainable)
    assert str(jax.tree.structure(again)) == str(jax.tree.structure(trainable))
    assert jax.tree.leaves(nothing) == []


@pytest.mark.parametrize(
    ("strategy", "batch_norm", "prefix", "live"),
    [
        ("none", "auto", 0, CNN_STAGES[:4]),
        ("none", "running", 0, ()),
        ("backbone", "auto", 4, ()),
        ("backbone", "running", 4, ()),
        ("backbone", "batch", 0, CNN_STAGES[:4]),  # its statistics would drift
        ("until:block2", "auto", 2, ("block3", "block4")),
        ("all_but_norm", "auto", 0, CNN_STAGES[:4]),
        (("block2", "block3"), "auto", 0, ("block1", "block4")),
        (("block1", "block3"), "auto", 1, ("block2", "block4")),
        (("block1", "block2/conv"), "auto", 1, ("block2", "block3", "block4")),
        (("block1/conv",), "running", 0, ()),
        (("block2/norm",), "auto", 0, ("block1", "block3", "block4")),
        (("block2/norm/scale", "block3/conv"), "auto", 0, CNN_STAGES[:4]),
        ("last:2", (), 3, ("block4",)),
        ("last:2", (("block1", "batch"),), 0, ("block1", "block4")),
        ("last:2", (("block4", "running"),), 3, ()),
        ("last:2", (("block2", "batch"), ("block4", "running")), 1, ("block2",)),
        ("last:2", (("block1", "auto"), ("block4", "auto")), 3, ("block4",)),
        ("last:2", (("block1", "running"), ("block1", "batch")), 3, ("block4",)),  # the first pair holds
    ],
)
def test_prefix_neither_trains_nor_drifts(strategy: Any, batch_norm: Any, prefix: int, live: tuple[str, ...]) -> None:
    plan = plan_of("cnn", strategy, batch_norm=batch_norm)
    assert plan.frozen_prefix == CNN_STAGES[:prefix]
    assert plan.first_trained == CNN_STAGES[prefix]
    assert plan.batch_norm_stages == live
    assert plan.normalised_stages == CNN_STAGES[:4]


def test_the_first_rate_factor_that_matches_wins_and_multiplies_with_the_spread() -> None:
    factors = (("block2", 0.125), ("block[1-3]", 0.5), ("bias$", 0.25))
    for spread in (1.0, 2.0**-8):  # over five stages
        plan = plan_of("cnn", "until:block1", lr_scale=factors, rate_spread=spread)
        rates = {leaf.path: leaf.rate for leaf in plan.leaves}
        assert rates["block2/norm/bias"] == 0.125 * spread**0.75
        assert rates["block3/norm/bias"] == rates["block3/conv/kernel"] == 0.5 * spread**0.5
        assert rates["block4/norm/bias"] == 0.25 * spread**0.25
        assert rates["head/dense/kernel"] == 1.0
        tree = plan.rates()
        assert tree["block1"]["conv"]["kernel"] == optax.MaskedNode()  # frozen
        assert tree["block2"]["conv"]["kernel"] == rates["block2/conv/kernel"]


def test_a_pair_of_rates_is_spread_geometrically_over_all_stages() -> None:
    low, high = 1e-5, 1e-3
    plan = plan_of("resnet18", "until:stem", rate_spread=low / high)
    rates = {leaf.path.split("/")[0]: high * leaf.rate for leaf in plan.leaves if leaf.trains}
    expected = {stage: low * (high / low) ** (index / 5) for index, stage in enumerate(RESNET_STAGES)}
    assert rates == pytest.approx({stage: expected[stage] for stage in RESNET_STAGES[1:]})  # as if the stem trained
    assert rates["head"] == high
    whole = plan_of("resnet18", "none", rate_spread=low / high)
    assert [high * leaf.rate for leaf in whole.leaves if leaf.path.startswith("stem/")] == pytest.approx([low] * 3)


def test_the_first_decay_that_matches_wins_and_others_take_the_common_one() -> None:
    plan = plan_of(
        "cnn",
        "until:block1",
        weight_decay=0.1,
        weight_decays=(("block2/", 0.0), ("block[12]|head", 0.3)),
        ema_decay=0.9,
        ema_decays=(("head/dense/bias", 0.0), ("head", 0.99), ("block3/norm/mean", 0.5)),
    )
    decays = plan.weight_decays()
    assert decays["block1"]["conv"]["kernel"] == optax.MaskedNode()  # frozen
    found = [
        decays[stage][layer]["kernel"] for stage, layer in (("block2", "conv"), ("block3", "conv"), ("head", "dense"))
    ]
    assert found == [0.0, 0.1, 0.3]
    averages = plan.ema_decays() or {}
    assert averages["params"]["block1"]["conv"]["kernel"] == optax.MaskedNode()
    assert averages["params"]["block3"]["conv"]["kernel"] == 0.9
    assert averages["params"]["head"]["dense"] == {"kernel": 0.99, "bias": optax.MaskedNode()}
    assert averages["batch_stats"]["block2"]["norm"] == {"mean": 0.9, "var": 0.9}
    assert averages["batch_stats"]["block3"]["norm"] == {"mean": 0.5, "var": 0.9}
    assert set(averages["batch_stats"]) == {"block2", "block3", "block4"}


def test_averages_follow_what_has_a_decay() -> None:
    _, variables = shapes("cnn")
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    plan = plan_of("cnn", "last:3", ema_decays=(("head", 0.99), ("block4", 0.9)))
    average = plan.averaged(**variables)
    assert average is not None
    assert str(jax.tree.structure(average)) == str(jax.tree.structure(plan.ema_decays()))
    assert {path[1].key for path, _ in jax.tree.leaves_with_path(average)} == {"block4", "head"}
    assert {path[0].key for path, _ in jax.tree.leaves_with_path(average["batch_stats"])} == {"block4"}
    trainable, _ = plan.split(variables["params"])
    again = plan.averaged(trainable, variables["batch_stats"])
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, average)
    for nothing in (plan_of("cnn", "none"), plan_of("cnn", "backbone", ema_decays=(("block1", 0.9),))):
        assert nothing.ema_decays() is None
        assert nothing.averaged(**variables) is None


def table_of(
    name: str, strategy: Any, batch_norm: Any = "auto", *, lr_scale: Any = (), **sizes: Any
) -> tuple[FreezePlan, Any, str]:
    model, variables = shapes(name, **sizes)
    recipe = make_recipe(
        small_config(name, freeze=strategy, batch_norm=batch_norm, lr_scale=lr_scale), model, variables
    )
    images = jax.ShapeDtypeStruct((2, 64, 64, sizes.get("channels", 1)), jnp.float32)
    return recipe.plan, *freeze_table(recipe.plan, model, variables, images, recipe.tx, 1e-3)


DEEP = [("unet_resnet18", "until:layer2"), ("deeplabv3_resnet50", "until:layer2")]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("cnn", "until:block2"),
        ("cnn", "all_but_norm"),
        ("unet", "until:down3"),  # skips cross the edge of what is frozen
        *(pytest.param(*case, marks=pytest.mark.slow) for case in DEEP),
    ],
)
def test_table_charges_only_what_trains(name: str, strategy: str) -> None:
    plan, rows, summary = table_of(name, strategy)
    model, variables = shapes(name)
    trainable, _ = plan.split(variables["params"])
    for row in rows:
        leaves = jax.tree.leaves(trainable[row["stage"]])
        assert row["trainable"] == sum(leaf.size for leaf in leaves)
        # Adam: two moments of four bytes for each number, a counter of four bytes for each leaf.
        assert row["optimizer_bytes"] == 8 * row["trainable"] + 4 * len(leaves)
        assert (row["backward_flops"] == 0) == (row["stage"] in plan.frozen_prefix)
        assert row["backward_flops"] <= row["full_backward_flops"]
        if plan.frozen_prefix and row["stage"] == plan.first_trained:  # no gradient for what flows in
            assert row["backward_flops"] < row["full_backward_flops"]
        assert row["forward_flops"] > 0
        expected = "batch" if row["stage"] in plan.batch_norm_stages else "running"
        assert row["batch_norm"] == ("-" if row["stage"] == "head" else expected)
    step = sum(row["forward_flops"] + row["backward_flops"] for row in rows)
    full = sum(row["forward_flops"] + row["full_backward_flops"] for row in rows)
    assert f"a step costs {step / 1e9:.2f} GFLOP, {step / full:.0%} of the {full / 1e9:.2f} GFLOP" in summary
    lines = format_table(rows, summary).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [row["stage"] for row in rows] == [*model.stages]
    assert lines[-1] == summary


def test_table_has_the_rate_at_which_each_stage_trains() -> None:
    scales = (("block3/.*kernel", 0.1), ("block4", 0.25))
    _, rows, summary = table_of("cnn", "until:block2", lr_scale=scales)
    rates = {row["stage"]: row["learning_rates"] for row in rows}
    assert rates == {"block1": [], "block2": [], "block3": [1e-4, 1e-3], "block4": [2.5e-4], "head": [1e-3]}
    shown = {line.split()[0]: line for line in format_table(rows, summary).splitlines()[1:-1]}
    assert " 0.0001 to 0.001 " in shown["block3"]
    assert " 0.00025 " in shown["block4"]


@pytest.mark.parametrize("strategy", ["none", "until:block2"])
def test_table_agrees_with_the_flops_of_the_step(strategy: str) -> None:
    config = small_config("cnn", freeze=strategy)
    model = models.build(config.model, 3, config.precision)
    variables = jax.eval_shape(lambda: make_variables(model, 64))
    recipe = make_recipe(config, model, variables)
    state = jax.eval_shape(lambda variables: make_state(recipe, variables), variables)
    batch = jax.eval_shape(lambda: make_batch(64))
    images = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
    rows, _ = freeze_table(recipe.plan, model, variables, images, recipe.tx, 1e-3)
    counted = sum(row["forward_flops"] + row["backward_flops"] for row in rows)
    assert counted == pytest.approx(flops.count(partial(train_step, recipe=recipe), state, batch), rel=0.03)
