import re
from typing import Any

import jax
import pytest

from covidjax.errors import UserError
from covidjax.freeze.strategies import OTHER_NAMES, STRATEGIES, gradual_epochs
from tests.plans import CNN_STAGES, plan_of

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


@pytest.mark.parametrize(
    ("strategy", "wrong"),
    [
        ("until:block9", "there is no stage 'block9'"),
        ("until:", "there is no stage ''"),
        ("until", "matches no parameter"),
        ("last:0", "allowed is last:1 to last:5"),
        ("last:6", "allowed is last:1 to last:5"),
        ("last:-1", "allowed is last:1 to last:5"),
        ("last:two", "allowed is last:1 to last:5"),
        ("norm+last:9", "allowed is last:1 to last:5"),
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
    ("one", "other"),
    [
        ("backbone", "last:1"),
        ("until:block3", "last:2"),
        ("none", "last:5"),
        ("norm", "all_but_norm"),
        ("norm", (r"^block\d/conv",)),
    ],
)
def test_plans_that_do_the_same_are_equal_whatever_they_are_called(one: str, other: Any) -> None:
    plan, same = plan_of("cnn", one), plan_of("cnn", other)
    assert plan == same
    assert hash(plan) == hash(same)


@pytest.mark.parametrize(
    "strategy", ["gradual", "gradual:", "gradual:0", "gradual:1.5", "gradual:2+norm", "norm+gradual:2"]
)
def test_gradual_stands_alone_with_whole_epochs(strategy: str) -> None:
    with pytest.raises(UserError, match=r"allowed is gradual:<k> alone, .* such as gradual:2$"):
        gradual_epochs(strategy)


def test_gradual_is_told_from_other_strategies() -> None:
    assert gradual_epochs("gradual:12") == 12
    assert [gradual_epochs(name) for name in ("none", "last:2+norm", "gradually", ("gradual:2",), None)] == [None] * 5


def test_gradual_is_no_single_plan() -> None:
    with pytest.raises(UserError, match=r"^freeze 'gradual:2' is a run of phases and not one plan: .* none, backbone"):
        plan_of("cnn", "gradual:2")


def test_norm_is_refused_where_there_is_no_normalisation() -> None:
    with pytest.raises(UserError, match="freeze 'norm': this network has no normalisation"):
        plan_of("vgg16", "norm")
