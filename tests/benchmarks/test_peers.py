"""Peers do our work: from the same weights and batch their first loss and gradients are ours."""

import dataclasses
import importlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import ours, work
from benchmarks.case import Case, offers
from covidjax.models import densenet
from covidjax.models.resnet import LAYERS

os.environ["KERAS_BACKEND"] = "jax"
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3
MODULES = {"flax": "flax_plain", "torch": "torch_eager", "keras": "keras_jax"}
SIZES = {  # model: (batch size, image size, width)
    "cnn": (4, 16, 4),
    "vgg16": (4, 32, 0),
    "unet": (2, 32, 4),
    "resnet18": (4, 64, 0),
    "resnet50": (4, 64, 0),
    "densenet121": (4, 64, 0),
    "convnext_tiny": (4, 32, 0),
    "vit_b16": (4, 32, 0),
    "vit_b14": (4, 28, 0),
    "unet_resnet34": (2, 64, 0),
}
QUICK = ("cnn",)  # the others take their time to compile
# compared with one block in each layer: deep ones are those of the classifiers
SHALLOW = {"unet_resnet34": "resnet34", "densenet121": "densenet121"}


def peer_module(name: str) -> Any:
    pytest.importorskip(name, reason=f"{name} is not installed: no comparison with it")
    return importlib.import_module(f"benchmarks.peers.{MODULES[name]}")


def make_case(model: str, freeze: str = "none", **fields: Any) -> Case:
    batch_size, image_size, width = SIZES[model]
    return Case("covidjax", model, freeze, "float32", batch_size, image_size, width=width, **fields)


def distinct_variables(case: Case) -> dict[str, Any]:
    """Weights under which a mistake shows and rounding does not.

    Biases of BatchNorm are far from zero, alternately on both sides: the ReLU behind it opens and closes, and no value
    lies so near zero that one implementation rounds it to the other side. Statistics are far from fresh ones.
    """
    random = np.random.default_rng(0)

    def changed(path: tuple[Any, ...], leaf: jax.Array) -> np.ndarray:
        names = [entry.key for entry in path]
        noise = random.normal(size=leaf.shape).astype(np.float32)
        if leaf.ndim > 1:
            return np.asarray(leaf) * np.float32(0.1 if leaf.ndim == 2 else 1)  # far from saturation
        if names[-1] in ("scale", "var"):
            return np.float32(1) + np.float32(0.2) * np.abs(noise)
        if names[-1] == "bias" and any("norm" in name for name in names):
            return np.where(np.arange(leaf.size) % 3 == 0, -4, 4).astype(np.float32) + np.float32(0.2) * noise
        return np.float32(0.2) * noise

    return jax.tree_util.tree_map_with_path(changed, ours.make_variables(case))


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[tuple[Case, Any, float, dict[str, np.ndarray]]]:
    """A case, its start weights, our first loss and gradients; once for all peers."""
    case = make_case(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if request.param in SHALLOW:
            for depths in (work.BLOCKS, LAYERS, work.DENSE_LAYERS, densenet.LAYERS):
                if SHALLOW[request.param] in depths:
                    patch.setitem(depths, SHALLOW[request.param], (1, 1, 1, 1))
        variables = distinct_variables(case)
        yield case, variables, *ours.loss_and_gradients(case, variables)


@pytest.mark.parametrize("peer", MODULES)
@pytest.mark.parametrize(
    "own", [pytest.param(model, marks=() if model in QUICK else pytest.mark.slow) for model in SIZES], indirect=True
)
def test_first_loss_and_gradients_of_a_peer_are_ours(own: Any, peer: str) -> None:
    case, variables, loss, gradients = own
    if reason := offers(peer, case):
        pytest.skip(reason)
    assert_equal(case, variables, loss, gradients, peer)


def assert_equal(case: Case, variables: Any, loss: float, gradients: dict[str, np.ndarray], peer: str) -> None:
    their_loss, theirs = peer_module(peer).loss_and_gradients(case, variables)
    assert abs(their_loss - loss) < LOSS_TOLERANCE * abs(loss)
    assert theirs.keys() == gradients.keys()
    errors = largest_errors(theirs, gradients)
    assert max(errors.values()) < GRADIENT_TOLERANCE, sorted(errors.items(), key=lambda item: -item[1])[:5]


def largest_errors(theirs: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> dict[str, float]:
    """By layer the largest absolute error over the largest absolute value.

    Not by array: the gradient of a bias is zero but for rounding where another BatchNorm takes the bias away.
    """
    errors: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for path, value in gradients.items():
        layer = path.rpartition("/")[0]
        assert theirs[path].shape == value.shape and np.isfinite(value).all()
        errors[layer] = max(errors.get(layer, 0.0), float(np.abs(theirs[path] - value).max()))
        sizes[layer] = max(sizes.get(layer, 0.0), float(np.abs(value).max()))
    assert min(sizes.values()) > 0
    return {layer: value / sizes[layer] for layer, value in errors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["torch", "keras"])
def test_frozen_stages_of_a_peer_have_no_gradients_and_run_on_their_statistics(peer: str) -> None:
    """The loss tells: it is ours only where the BatchNorm of the frozen stage runs on running statistics."""
    case = make_case("cnn", freeze="until:block2")
    variables = distinct_variables(case)
    loss, gradients = ours.loss_and_gradients(case, variables)
    assert {path.split("/")[0] for path in gradients} == {"block3", "block4", "head"}
    assert_equal(case, variables, loss, gradients, peer)


@pytest.mark.slow
def test_plain_flax_freezes_by_its_optimizer_and_the_logged_norm_brings_the_backward_pass_back() -> None:
    flax_plain = peer_module("flax")
    whole, frozen = make_case("cnn"), make_case("cnn", freeze="backbone")
    full = flax_plain.build(whole).facts()
    head, logged = (build(frozen).facts() for build in (flax_plain.build, flax_plain.build_norm_logged))
    assert head["flops"] < 0.5 * full["flops"] < 0.5 * 1.3 * logged["flops"]
    assert head["trainable_params"] == logged["trainable_params"] == 128 * 3 + 3
    assert head["optimizer_bytes"] < 0.05 * full["optimizer_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("peer", MODULES)
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_a_peer_counts_parameters_and_slots_as_we_do_and_runs_in_half_precision(peer: str, mode: str) -> None:
    case = make_case("cnn", freeze="until:block2", mode=mode)
    own, theirs = ours.build(case), peer_module(peer).build(case)
    for name in ("total_params", "trainable_params"):
        assert own.facts()[name] == theirs.facts()[name]
    slots = 8 * own.facts()["trainable_params"]  # two float32 moments
    assert slots <= theirs.facts()["optimizer_bytes"] <= slots + 400
    for precision in ("float32", "bfloat16"):
        peer_module(peer).build(dataclasses.replace(case, precision=precision)).run(2)


@pytest.mark.slow
def test_compiled_and_plain_torch_take_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler itself is left out: it takes a minute."""
    torch_eager = peer_module("torch")
    compiled: list[Any] = []
    monkeypatch.setattr(torch_eager.torch, "compile", lambda step: compiled.append(step) or step)  # type: ignore[func-returns-value]
    case = make_case("cnn")
    losses = [float(build(case).step()) for build in (torch_eager.build, torch_eager.build_nchw)]
    assert not compiled
    losses.append(float(torch_eager.build_compiled(case).step()))
    assert compiled
    assert np.allclose(losses, losses[0], rtol=1e-5)
