import functools
import re
from typing import Any

import jax
import pytest

from covidjax.errors import UserError
from covidjax.freeze.plan import FreezePlan, make_plan
from covidjax.freeze.strategies import OTHER_NAMES, STRATEGIES, gradual_epochs
from covidjax.models.layers import Staged
from tests.support import make_model, shapes_of, small_config

CNN_STAGES = ("block1", "block2", "block3", "block4", "head")
RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


@functools.cache
def shapes(name: str, num_classes: int = 3, channels: int = 1) -> tuple[Staged, dict[str, Any]]:
    """A network and the shapes of its variables; nothing is computed."""
    model = make_model(small_config(name), num_classes)
    return model, shapes_of(model, 64, channels)


def plan_of(name: str, strategy: Any, **options: Any) -> FreezePlan:
    model, variables = shapes(name)
    return make_plan(strategy, variables, model.stages, **options)


# strategy, how many leaves train, and a pattern that those and no others match
TRAINED: list[tuple[str, Any, int, str]] = [
    ("cnn", "none", 14, ""),
    ("cnn", "backbone", 2, "^head/dense/(kernel|bias)$"),
    ("cnn", "until:block1", 11, "^(block[234]|head)/"),
    ("cnn", "until:block4", 2, "^head/"),
    ("cnn", "all_but_norm", 10, "^block./norm/(scale|bias)$|^head/"),
    ("cnn", "all_but_bias", 6, "^block./norm/bias$|^head/"),
    ("cnn", "last:1", 2, "^head/"),
    ("cnn", "last:3", 8, "^(block[34]|head)/"),
    ("cnn", "last:5", 14, ""),
    ("cnn", "norm", 10, "^block./norm/(scale|bias)$|^head/"),
    ("cnn", "bitfit", 6, "^block./norm/bias$|^head/"),
    ("cnn", "last:2+norm", 11, "^block4/|^block./norm/(scale|bias)$|^head/"),
    ("cnn", "until:block3+all_but_bias", 8, "^block4/|^block./norm/bias$|^head/"),
    ("cnn", "backbone+bitfit+norm", 10, "^block./norm/(scale|bias)$|^head/"),
    ("cnn", "bitfit+none", 14, ""),
    ("cnn", "block1", 11, "^(block[234]|head)/"),
    ("cnn", "block[12]+", 8, "^(block[34]|head)/"),
    ("cnn", ("block[13]/conv", "bias$"), 7, "^block[24]/conv/kernel$|/scale$|^head/dense/kernel$"),
    ("resnet18", "none", 62, ""),
    ("resnet18", "backbone", 2, "^head/"),
    ("resnet18", "until:stem", 59, "^(layer[1234]|head)/"),
    ("resnet18", "until:layer3", 17, "^(layer4|head)/"),
    ("resnet18", "last:2", 17, "^(layer4|head)/"),
    ("resnet18", "norm", 42, "^(stem|layer./block.)/(norm[12]|shortcut_norm)/(scale|bias)$|^head/"),
    ("resnet18", "bitfit", 22, "^(stem|layer./block.)/(norm[12]|shortcut_norm)/bias$|^head/"),
    ("resnet18", (r"conv\d/", "shortcut", "^head"), 34, r"^(stem|layer./block.)/norm[12]/(scale|bias)$"),
]


@pytest.mark.parametrize(("name", "strategy", "count", "pattern"), TRAINED)
def test_a_strategy_trains_exactly_its_leaves(name: str, strategy: Any, count: int, pattern: str) -> None:
    plan = plan_of(name, strategy)
    trained = [leaf.path for leaf in plan.leaves if leaf.trains]
    assert trained == [leaf.path for leaf in plan.leaves if re.search(pattern, leaf.path)]
    assert len(trained) == count
    mask = {"/".join(str(key.key) for key in path): value for path, value in jax.tree.leaves_with_path(plan.mask())}
    assert mask == {leaf.path: leaf.trains for leaf in plan.leaves}


STAGES = ", ".join(CNN_STAGES)
GROUPS = ("lr_scale", "weight_decays", "ema_decays")
# What does not fit, and what the one line says of it.
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("until:block9", {}, f"there is no stage 'block9': allowed are {STAGES}"),
    ("until:", {}, f"there is no stage '': allowed are {STAGES}"),
    ("until", {}, f"matches no parameter.*{STAGES}"),
    *((f"last:{count}", {}, f"allowed is last:1 to last:5.*{STAGES}") for count in ("0", "6", "-1", "two")),
    ("norm+last:9", {}, f"allowed is last:1 to last:5.*{STAGES}"),
    ("backbon", {}, "strategies are none, backbone"),
    (("block1", "layer7"), {}, f"'layer7' matches no parameter.*{STAGES}"),
    (("block1", "("), {}, r"'\(' is not a regular expression"),
    ((3,), {}, "3 is not a regular expression"),
    ("until:head", {}, f"nothing to train.*{STAGES}"),
    ((".",), {}, f"nothing to train.*{STAGES}"),
    ("gradual:2", {}, "^freeze 'gradual:2' is a run of phases and not one plan: .* none, backbone"),
    *(
        ("none", {"batch_norm": (pair,)}, f"^batch_norm: {wrong}")
        for pair, wrong in (
            (("layer7", "batch"), "'layer7' is no stage with BatchNorm: allowed are block1, block2, block3"),
            (("head", "batch"), "'head' is no stage with BatchNorm: allowed are block1, block2, block3"),
            (("block1", "eval"), "'eval' of 'block1': allowed are auto, batch, running"),
        )
    ),
    *(("none", {key: (("block1", 0.1), ("layer7", 0.5))}, f"^{key}: .*matches no parameter") for key in GROUPS),
    *(("none", {key: (("block1", 0.1), ("(", 0.5))}, f"^{key}: .*not a regular expression") for key in GROUPS),
]


@pytest.mark.parametrize(("strategy", "options", "wrong"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(strategy: Any, options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong) as caught:
        plan_of("cnn", strategy, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", ["norm+nrom", "last:2+nrom", "backbone:2+norm", "norm+", "+norm", "norm++bitfit"])
def test_a_union_names_strategies_only(strategy: str) -> None:
    wrong = next(part for part in strategy.split("+") if part not in ("norm", "last:2", "bitfit"))
    with pytest.raises(UserError, match=re.escape(f"{wrong!r} is no strategy: allowed are none, ")) as caught:
        plan_of("cnn", strategy)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in (*STRATEGIES, *OTHER_NAMES))


def test_a_name_in_a_tuple_is_a_pattern() -> None:
    plan = plan_of("cnn", ("norm",))
    assert {leaf.path.split("/")[1] for leaf in plan.leaves if not leaf.trains} == {"norm"}


@pytest.mark.parametrize(
    "strategy", ["gradual", "gradual:", "gradual:0", "gradual:1.5", "gradual:2+norm", "norm+gradual:2"]
)
def test_gradual_stands_alone_with_whole_epochs(strategy: str) -> None:
    with pytest.raises(UserError, match=r"allowed is gradual:<k> alone, .* such as gradual:2$"):
        gradual_epochs(strategy)


def test_gradual_is_told_from_other_strategies() -> None:
    assert gradual_epochs("gradual:12") == 12
    assert [gradual_epochs(name) for name in ("none", "last:2+norm", "gradually", ("gradual:2",), None)] == [None] * 5


def test_norm_is_refused_where_there_is_no_normalisation() -> None:
    with pytest.raises(UserError, match="freeze 'norm': this network has no normalisation"):
        plan_of("vgg16", "norm")
