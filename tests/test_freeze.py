import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covidjax import models
from covidjax.errors import UserError
from covidjax.freeze import FreezePlan, format_table, freeze_table, make_plan
from covidjax.models.layers import Staged
from covidjax.train.step import train_step
from tests.support import make_batch, make_model, make_recipe, make_state, make_variables, small_config

CNN_STAGES = ("block1", "block2", "block3", "block4", "head")
RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


def shapes(name: str, num_classes: int = 3, channels: int = 1) -> tuple[Staged, dict[str, Any]]:
    """A network and the shapes of its variables; nothing is computed."""
    model = make_model(small_config(name), num_classes)
    images = jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.float32)
    return model, dict(jax.eval_shape(model.init, jax.random.key(0), images))


def plan_of(name: str, strategy: Any, **options: Any) -> FreezePlan:
    model, variables = shapes(name)
    return make_plan(strategy, variables, model.stages, **options)


def holes(tree: Any) -> Iterator[bool]:
    for leaf in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode)):
        yield isinstance(leaf, optax.MaskedNode)


# strategy, how many leaves train, and a pattern that those and no others match
TRAINED: list[tuple[str, Any, int, str]] = [
    ("cnn", "none", 14, ""),
    ("cnn", "backbone", 2, "^head/dense/(kernel|bias)$"),
    ("cnn", "until:block1", 11, "^(block[234]|head)/"),
    ("cnn", "until:block4", 2, "^head/"),
    ("cnn", "all_but_norm", 10, "^block./norm/(scale|bias)$|^head/"),
    ("cnn", "all_but_bias", 6, "^block./norm/bias$|^head/"),
    ("cnn", "block1", 11, "^(block[234]|head)/"),
    ("cnn", ("block[13]/conv", "bias$"), 7, "^block[24]/conv/kernel$|/scale$|^head/dense/kernel$"),
    ("resnet18", "none", 62, ""),
    ("resnet18", "backbone", 2, "^head/"),
    ("resnet18", "until:stem", 59, "^(layer[1234]|head)/"),
    ("resnet18", "until:layer3", 17, "^(layer4|head)/"),
    ("resnet18", "all_but_norm", 42, "^(stem|layer./block.)/(norm[12]|shortcut_norm)/(scale|bias)$|^head/"),
    ("resnet18", "all_but_bias", 22, "^(stem|layer./block.)/(norm[12]|shortcut_norm)/bias$|^head/"),
    ("resnet18", (r"conv\d/", "shortcut", "^head"), 34, r"^(stem|layer./block.)/norm[12]/(scale|bias)$"),
]


@pytest.mark.parametrize(("name", "strategy", "count", "pattern"), TRAINED)
def test_a_strategy_trains_exactly_its_leaves(name: str, strategy: Any, count: int, pattern: str) -> None:
    plan = plan_of(name, strategy)
    trained = [path for path, trains, _ in plan.leaves if trains]
    assert trained == [path for path, _, _ in plan.leaves if re.search(pattern, path)]
    assert len(trained) == count
    mask = {"/".join(str(key.key) for key in path): value for path, value in jax.tree.leaves_with_path(plan.mask())}
    assert mask == {path: trains for path, trains, _ in plan.leaves}


@pytest.mark.parametrize(
    ("strategy", "wrong"),
    [
        ("until:block9", "there is no stage 'block9'"),
        ("until:", "matches no parameter"),
        ("backbon", "strategies are none, backbone"),
        (("block1", "layer7"), "'layer7' matches no parameter"),
        (("block1", "("), r"'\(' is not a regular expression"),
        ((3,), "3 is not a regular expression"),
        ("until:head", "nothing to train"),
        ((".",), "nothing to train"),
    ],
)
def test_a_strategy_that_does_not_fit_is_refused_in_one_line(strategy: Any, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong) as caught:
        plan_of("cnn", strategy)
    assert "\n" not in str(caught.value)
    assert "regular expression" in wrong or ", ".join(CNN_STAGES) in str(caught.value)


def test_equal_plans_are_equal_keys_of_the_compilation_cache() -> None:
    options: dict[str, Any] = {"batch_norm": "running", "lr_scale": (("block2", 0.5),)}
    plan, same = (plan_of("cnn", pattern, **options) for pattern in (["block1"], ("block1",)))
    assert plan == same
    assert hash(plan) == hash(same)
    others = [
        plan_of("cnn", ("block2",), **options),
        plan_of("cnn", ("block1",), **options | {"batch_norm": "batch"}),
        plan_of("cnn", ("block1",), **options | {"lr_scale": (("block2", 0.25),)}),
    ]
    assert all(other != plan for other in others)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=14, max_size=14).filter(lambda flags: not all(flags)), st.integers(0))
def test_merge_undoes_split(frozen: list[bool], seed: int) -> None:
    model, variables = shapes("cnn")
    paths = [path for path, _, _ in make_plan("none", variables, model.stages).leaves]
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
    ("strategy", "batch_norm", "prefix"),
    [
        ("none", "auto", ()),
        ("none", "running", ()),
        ("backbone", "auto", CNN_STAGES[:4]),
        ("backbone", "running", CNN_STAGES[:4]),
        ("backbone", "batch", ()),  # its statistics would drift
        ("until:block2", "auto", CNN_STAGES[:2]),
        ("all_but_norm", "auto", ()),
        (("block2", "block3"), "auto", ()),
        (("block1", "block3"), "auto", ("block1",)),
        (("block1", "block2/conv"), "auto", ("block1",)),
        (("block1/conv",), "running", ()),
    ],
)
def test_frozen_prefix_is_what_neither_trains_nor_drifts(strategy: Any, batch_norm: str, prefix: tuple[str]) -> None:
    plan = plan_of("cnn", strategy, batch_norm=batch_norm)
    assert plan.frozen_prefix == prefix
    assert plan.first_trained == CNN_STAGES[len(prefix)]


@pytest.mark.parametrize(
    ("strategy", "batch_norm", "live"),
    [
        ("none", "auto", CNN_STAGES[:4]),
        ("none", "running", ()),
        ("backbone", "auto", ()),
        ("backbone", "batch", CNN_STAGES[:4]),
        ("until:block2", "auto", ("block3", "block4")),
        ("all_but_norm", "auto", CNN_STAGES[:4]),
        (("block2/norm",), "auto", ("block1", "block3", "block4")),
        (("block2/norm/scale", "block3/conv"), "auto", CNN_STAGES[:4]),
    ],
)
def test_stages_use_batch_statistics_where_their_normalisation_trains(
    strategy: Any, batch_norm: str, live: tuple[str, ...]
) -> None:
    plan = plan_of("cnn", strategy, batch_norm=batch_norm)
    assert plan.batch_norm_stages == live
    assert plan.normalised_stages == CNN_STAGES[:4]


def test_the_first_rate_factor_that_matches_wins() -> None:
    plan = plan_of("cnn", "until:block1", lr_scale=(("block2", 0.1), ("block[1-3]", 0.5), ("bias$", 0.25)))
    rates = {path: rate for path, _, rate in plan.leaves}
    assert rates["block1/conv/kernel"] == 0.5
    assert rates["block2/norm/bias"] == 0.1
    assert rates["block3/norm/bias"] == 0.5
    assert rates["block4/norm/bias"] == 0.25
    assert rates["head/dense/kernel"] == 1.0
    tree = plan.rates()
    assert tree["block1"]["conv"]["kernel"] == optax.MaskedNode()  # frozen
    assert tree["block2"]["conv"]["kernel"] == 0.1


@pytest.mark.parametrize(("pattern", "wrong"), [("layer7", "matches no parameter"), ("(", "not a regular expression")])
def test_a_rate_factor_that_does_not_fit_is_refused(pattern: str, wrong: str) -> None:
    with pytest.raises(UserError, match=rf"^lr_scale: .*{wrong}"):
        plan_of("cnn", "none", lr_scale=(("block1", 0.1), (pattern, 0.5)))


def table_of(name: str, strategy: Any, **sizes: Any) -> tuple[FreezePlan, list[dict[str, Any]], str]:
    model, variables = shapes(name, **sizes)
    recipe = make_recipe(small_config(name, freeze=strategy), model, variables)
    images = jax.ShapeDtypeStruct((2, 64, 64, sizes.get("channels", 1)), jnp.float32)
    return recipe.plan, *freeze_table(recipe.plan, model, variables, images, recipe.tx)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_resnets_have_the_published_number_of_parameters(name: str, count: int) -> None:
    _, rows, summary = table_of(name, "none", num_classes=1000, channels=3)
    assert sum(row["parameters"] for row in rows) == sum(row["trainable"] for row in rows) == count
    assert [row["stage"] for row in rows] == [*RESNET_STAGES]
    assert summary.startswith(f"{count:,} of {count:,} parameters train; a step costs ")


@pytest.mark.parametrize("strategy", ["until:layer2", "backbone", "all_but_norm", ("layer1/", "stem/conv1")])
def test_table_charges_only_what_trains(strategy: Any) -> None:
    plan, rows, summary = table_of("resnet18", strategy)
    _, variables = shapes("resnet18")
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
    assert [line.split()[0] for line in lines[1:-1]] == [*RESNET_STAGES]
    assert lines[-1] == summary


@pytest.mark.parametrize("strategy", ["none", "until:block2", "backbone"])
def test_table_agrees_with_the_flops_of_the_compiled_step(strategy: str) -> None:
    config = small_config("cnn", freeze=strategy)
    model = models.build(config.model, 3, config.precision)
    variables = jax.eval_shape(lambda: make_variables(model, 64))
    recipe = make_recipe(config, model, variables)
    state = jax.eval_shape(lambda variables: make_state(recipe, variables), variables)
    batch = jax.eval_shape(lambda: make_batch(64))
    compiled = jax.jit(partial(train_step, recipe=recipe)).lower(state, batch).compile()
    images = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
    rows, _ = freeze_table(recipe.plan, model, variables, images, recipe.tx)
    counted = sum(row["forward_flops"] + row["backward_flops"] for row in rows)
    assert counted == pytest.approx((compiled.cost_analysis() or {})["flops"], rel=0.03)
