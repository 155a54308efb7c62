"""Frozen is free on devices that are not here too, by the programs that XLA compiles for a TPU and for a GPU."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from flax import traverse_util

from covidjax.config import to_json
from covidjax.freeze.strategies import split_cached
from covidjax.mesh import local_mesh
from covidjax.models.resnet import LAYERS
from covidjax.runs import costs
from covidjax.targets import Compiler, Program, target_of
from covidjax.targets.compiler import python
from covidjax.train.job import Job, describe_freeze
from tests.support import small_config
from tests.targets.few_blocks import FEW
from tests.train.networks import RESNETS, layers, live

# model: (image size, a strategy that trains the end)
MODELS = {
    "resnet50": (32, "until:layer3"),
    "vgg16": (32, "until:block4"),
    "unet_resnet34": (64, "until:layer4"),
}
MATRIX_PRODUCTS = ("dense", "up_conv")  # a transposed convolution of 2x2 with stride 2 is one
METRICS = 2  # the loss and the number of correct answers, sums over the batch
BATCH = 8  # of a device

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(python() is None, reason="no .venv-targets (`make targets`): compilers for TPUs and GPUs"),
]


@pytest.fixture(scope="module", autouse=True)
def _few_blocks() -> Iterator[None]:
    """A TPU's compiler takes minutes for a whole ResNet."""
    with pytest.MonkeyPatch.context() as patch:
        for name, blocks in FEW.items():
            patch.setitem(LAYERS, name, blocks)
            patch.setitem(RESNETS, name, (RESNETS[name][0], blocks))
        yield


@pytest.fixture(scope="module", params=["v5e:2x2", "h200"])
def compiler(request: pytest.FixtureRequest) -> Iterator[Compiler]:
    with Compiler(target_of(request.param)) as found:
        yield found


def config(model: str) -> Any:
    sizes = {"dataset__image_size": MODELS[model][0], "batch_size": BATCH}
    return small_config(model, precision="bfloat16", features="off", **sizes)


@cache
def job(model: str, strategy: str) -> Job:
    return costs.job_of_strategy(costs.job_of_shapes(config(model), 3, local_mesh(1)), strategy)


def compiled(compiler: Compiler, model: str, strategy: str) -> Program:
    values = config(model)
    values.batch_size = BATCH * compiler.target.devices
    return compiler.program(
        "tests.targets.few_blocks:lowered",
        lambda seconds: None,
        config=to_json(values),
        num_classes=3,
        strategy=split_cached(strategy)[0],
        cached=False,
    )


def trained(model: str, strategy: str) -> set[str]:
    return {leaf.path for leaf in job(model, strategy).recipes[0].plan.leaves if leaf.trains}


def convolutions(model: str, strategy: str) -> int:
    """One a layer forward, one for a kernel that trains, one for inputs that depend on what trains."""
    paths, network = trained(model, strategy), layers(model)
    living = live(network, paths)
    return sum(
        1 + (f"{layer.path}/kernel" in paths) + any(source in living for source in layer.sources)
        for layer in network
        if layer.kind == "product" and not layer.path.rpartition("/")[2].startswith(MATRIX_PRODUCTS)
    )


def exchanged(model: str, strategy: str) -> tuple[int, int]:
    """The least and the most elements that devices reduce.

    One for each number that trains, two for each feature of a BatchNorm on batch statistics, and the metrics. The
    biases of a block's last BatchNorm and of its shortcut's have one gradient, which need not be reduced twice.
    """
    found = job(model, strategy)
    sizes = {path: leaf.size for path, leaf in traverse_util.flatten_dict(found.variables["params"], sep="/").items()}
    paths, stages = trained(model, strategy), found.recipes[0].plan.batch_norm_stages
    most = METRICS + sum(sizes[path] for path in paths)
    most += 2 * sum(size for path, size in sizes.items() if path.endswith("/scale") and path.split("/")[0] in stages)
    return most - sum(sizes[path] for path in paths if path.endswith("shortcut_norm/bias")), most


@pytest.mark.parametrize("strategy", ["none", "until", "backbone"])
@pytest.mark.parametrize("model", MODELS)
def test_programs_hold_forward_of_all_and_backward_of_what_trains(
    compiler: Compiler, model: str, strategy: str
) -> None:
    strategy = MODELS[model][1] if strategy == "until" else strategy
    counts = compiled(compiler, model, strategy).counts
    assert counts.convolutions == convolutions(model, strategy)
    one = job(model, strategy)
    flops = describe_freeze(one, one.phases[0])["step_flops"]
    # The table counts elements as well, and XLA some padding of small maps.
    assert counts.flops == pytest.approx(flops, rel=0.2)
    if compiler.target.devices > 1:
        least, most = exchanged(model, strategy)
        assert least <= counts.all_reduce_elements <= most
