import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

from covidjax.errors import UserError
from covidjax.weights.load import Entry, arrange, arranged_shape, own_entries
from tests.commands import user_error
from tests.weights.parity import fill

ENTRIES = (
    Entry("params/stem/conv1/kernel", "conv1.weight", "conv_oihw"),
    Entry("params/stem/norm1/scale", "bn1.weight"),
    Entry("batch_stats/stem/norm1/mean", "bn1.running_mean"),
    Entry("params/head/dense1/kernel", "classifier.0.weight", "dense_from_chw:5,2,3"),
    Entry("params/head/dense1/bias", "classifier.0.bias"),
    Entry("params/head/dense2/kernel", "classifier.1.weight", "dense_oi"),
    Entry("params/head/dense2/bias", "classifier.1.bias"),
)


def variables(num_classes: int = 4) -> dict[str, Any]:
    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, np.float32)

    head = {
        "dense1": {"kernel": shape(30, 7), "bias": shape(7)},
        "dense2": {"kernel": shape(7, num_classes), "bias": shape(num_classes)},
    }
    stem = {"conv1": {"kernel": shape(3, 2, 1, 5)}, "norm1": {"scale": shape(5)}}
    return {"params": {"stem": stem, "head": head}, "batch_stats": {"stem": {"norm1": {"mean": shape(5)}}}}


def tensors(changes: Mapping[str, tuple[int, ...] | None] = types.MappingProxyType({})) -> dict[str, np.ndarray]:
    """Those of a file that fits, but for shapes that are changed; None takes a tensor away."""
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...] | None] = {
        "conv1.weight": (5, 1, 3, 2),
        "bn1.weight": (5,),
        "bn1.running_mean": (5,),
        "bn1.num_batches_tracked": (),
        "classifier.0.weight": (7, 30),
        "classifier.0.bias": (7,),
        "classifier.1.weight": (4, 7),
        "classifier.1.bias": (4,),
    }
    shapes |= changes
    return {
        name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes.items() if shape is not None
    }


def test_every_array_gets_its_tensor_and_the_counters_are_named_once() -> None:
    source = tensors()
    filled, account = fill(variables(), ENTRIES, source)
    assert np.array_equal(filled["params"]["stem"]["conv1"]["kernel"][2, 1, 0, 3], source["conv1.weight"][3, 0, 2, 1])
    assert np.array_equal(filled["batch_stats"]["stem"]["norm1"]["mean"], source["bn1.running_mean"])
    assert np.array_equal(filled["params"]["head"]["dense2"]["kernel"], source["classifier.1.weight"].T)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(filled))
    assert account.new == ()
    assert account.unused == ("bn1.num_batches_tracked",)
    assert str(account) == "every parameter filled; 1 tensors num_batches_tracked ignored by design"


def test_dense_layer_behind_a_flatten_of_chw_works_on_a_flatten_of_hwc() -> None:
    random = np.random.default_rng(0)
    features, weight = random.normal(size=(2, 3, 5)), random.normal(size=(7, 30))
    theirs = weight @ features.transpose(2, 0, 1).reshape(-1)
    assert np.allclose(features.reshape(-1) @ arrange(weight, "dense_from_chw:5,2,3"), theirs)
    assert np.allclose(features.reshape(-1) @ arrange(weight.reshape(7, 5, 2, 3), "conv_as_dense"), theirs)


@pytest.mark.parametrize("layout", ["same", "conv_oihw", "dense_oi", "dense_from_chw:5,2,3", "conv_as_dense"])
def test_arranged_shape_is_the_shape_that_arrange_gives(layout: str) -> None:
    fitting = [shape for shape in ((4,), (7, 30), (7, 5, 2, 3)) if arranged_shape(shape, layout) is not None]
    assert fitting
    for shape in fitting:
        assert arrange(np.zeros(shape), layout).shape == arranged_shape(shape, layout)


def test_other_classes_make_the_last_layer_new_and_keep_the_hidden_one() -> None:
    filled, account = fill(variables(num_classes=2), ENTRIES, tensors())
    assert account.new == ("params/head/dense2/bias", "params/head/dense2/kernel")
    assert {"classifier.1.weight", "classifier.1.bias"} < set(account.unused)
    assert isinstance(filled["params"]["head"]["dense2"]["bias"], jax.ShapeDtypeStruct)
    assert isinstance(filled["params"]["head"]["dense1"]["bias"], jax.Array)
    assert "classifier.1.weight" in str(account)
    assert "params/head/dense2/kernel" in str(account)


def test_what_follows_a_new_layer_of_the_head_is_new_though_it_fits_and_a_head_that_is_not_there_is_new() -> None:
    of_head = {name for name in tensors() if name.startswith("classifier")}
    _, account = fill(variables(), ENTRIES, tensors({"classifier.0.weight": (7, 31)}))
    assert len(account.new) == 4
    assert {name for name in account.unused if name.startswith("classifier")} == of_head
    _, account = fill(variables(), ENTRIES, {name: array for name, array in tensors().items() if name not in of_head})
    assert len(account.new) == 4
    assert account.unused == ("bn1.num_batches_tracked",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv1.weight": (5, 3, 3, 2)}, ("conv1.weight", "[5, 3, 3, 2]", "params/stem/conv1/kernel", "[3, 2, 1, 5]")),
        ({"conv1.weight": (5, 6)}, ("conv1.weight", "params/stem/conv1/kernel")),
        ({"bn1.running_mean": None}, ("bn1.running_mean", "batch_stats/stem/norm1/mean", "not in the file")),
        ({"layer9.conv.weight": (1, 1, 1, 1)}, ("layer9.conv.weight", "another network")),
        ({"conv1.bias": (5,)}, ("conv1.bias", "another network")),
    ],
)
def test_file_of_another_network_is_refused_with_both_names(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    message = user_error(fill, variables(), ENTRIES, tensors(changes))
    assert all(word in message for word in words)


def test_parameter_without_an_entry_is_refused_and_a_harmless_tensor_named_as_unused() -> None:
    with pytest.raises(UserError, match="params/stem/norm1/scale"):
        fill(variables(), [entry for entry in ENTRIES if "norm1/scale" not in entry.path], tensors())
    _, account = fill(variables(), ENTRIES, tensors({"note": (3,), "aux_classifier.0.weight": (2, 2, 1, 1)}))
    assert account.unused == ("bn1.num_batches_tracked", "note", "aux_classifier.0.weight")


def test_own_names_refuse_another_depth_but_leave_stages_that_the_network_has_not() -> None:
    wanted = variables()
    own = {path: np.zeros(leaf.shape, np.float32) for path, leaf in traverse_util.flatten_dict(wanted, sep="/").items()}
    _, account = fill(wanted, own_entries(wanted), own | {"params/decoder/conv1/kernel": np.zeros((1, 1, 1, 1))})
    assert account.unused == ("params/decoder/conv1/kernel",)
    for path in ("params/stem/conv2/kernel", "params/stem/conv1/bias"):
        with pytest.raises(UserError, match=path):
            fill(wanted, own_entries(wanted), own | {path: np.zeros((1, 1, 1, 1))})
