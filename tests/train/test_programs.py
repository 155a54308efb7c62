"""The programs of a step hold forward of all and backward of what trains, for every network and strategy."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import traverse_util

from covidjax.models import densenet
from covidjax.runs import costs
from covidjax.train.job import Job
from tests.support import EVERYTHING_ON, run_on_devices, small_config
from tests.train.networks import DENSENET, layers, live, products
from tests.train.programs import QUICKLY, compiled_products, lowered_products, reduced_elements

# The gradient norm and the check for finite values are in every step.
CHANGES: dict[str, Any] = {**EVERYTHING_ON, "precision": "bfloat16", "features": "off"}
NUM_BLOCKS = 3  # of the cnn
# model: (image size, first stage, a middle stage)
MODELS = {
    "cnn": (32, "block1", "block2"),
    "vgg16": (32, "block1", "block3"),
    "resnet18": (32, "stem", "layer2"),
    "resnet50": (32, "stem", "layer2"),
    "densenet121": (32, "stem", "block2"),
    "unet": (32, "down1", "middle"),
    "unet_resnet34": (64, "stem", "layer3"),
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(densenet.LAYERS, "densenet121", DENSENET)


def strategies(model: str) -> tuple[str, ...]:
    _, first, middle = MODELS[model]
    thin = ("bitfit",) if model == "vgg16" else ("norm", "bitfit")  # vgg16 has no normalisation
    return ("none", f"until:{first}", f"until:{middle}", "backbone", *thin, "last:2")


def cases(*models: str) -> list[tuple[str, str]]:
    return [(model, strategy) for model in models for strategy in strategies(model)]


@cache
def job_of(model: str) -> Job:
    changes = {"dataset__image_size": MODELS[model][0], "batch_size": 4, "model__width": 2}
    return costs.job_of_shapes(small_config(model, model__num_blocks=NUM_BLOCKS, **changes, **CHANGES), 3)


def check_products(model: str, strategy: str, *, compiled: bool = True) -> None:
    """Counts the layers' products in the program as it is written and, unless told otherwise, as it is optimised."""
    job = costs.job_of_strategy(job_of(model), strategy)
    expected = products(model, trained(job), NUM_BLOCKS)
    lowered = costs.lower_step(job)
    assert lowered_products(lowered) == expected
    if compiled:
        assert compiled_products(lowered.compile(QUICKLY)) == expected


def trained(job: Job) -> set[str]:
    return {leaf.path for leaf in job.recipes[0].plan.leaves if leaf.trains}


@pytest.mark.parametrize(
    "model", ["cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "cnn")]
)
def test_layers_written_down_are_those_of_the_network(model: str) -> None:
    paths = trained(costs.job_of_strategy(job_of(model), "none"))
    for kind, name in (("product", "/kernel"), ("norm", "/scale")):
        written = {layer.path for layer in layers(model, NUM_BLOCKS) if layer.kind == kind}
        assert written == {path.removesuffix(name) for path in paths if path.endswith(name)}


@pytest.mark.parametrize(("model", "strategy"), cases("cnn"))
def test_a_step_holds_the_products_that_its_layers_need(model: str, strategy: str) -> None:
    check_products(model, strategy, compiled=strategy == "until:block2")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "strategy"), cases(*MODELS))
def test_a_compiled_step_of_every_network_holds_the_products_that_its_layers_need(model: str, strategy: str) -> None:
    check_products(model, strategy)


# ---- What four devices tell each other: the gradients of what trains, and statistics of BatchNorm in use ----

# Both are sums over the batch, of a step or of one of its parts: the loss and the number of correct answers. The
# gradient norm and the check for finite values come from the reduced gradients, which every device has.
METRICS = 2
EXCHANGED = {
    "cnn": ("last:2",),
    "resnet18": ("none", "until:layer3", "backbone", "norm", "bitfit"),
    "densenet121": ("none", "until:block2", "backbone", "norm", "bitfit"),
}


def parted_job(model: str) -> Job:
    sizes = {"dataset__image_size": 32, "batch_size": 8, "model__width": 2, "model__num_blocks": 2}
    return costs.job_of_shapes(small_config(model, **sizes, **CHANGES), 3)


def child(model: str, path: Path) -> None:
    densenet.LAYERS["densenet121"] = DENSENET
    assert jax.local_device_count() == 4
    found = {}
    for strategy in EXCHANGED[model]:
        compiled = costs.lower_step(costs.job_of_strategy(parted_job(model), strategy)).compile(QUICKLY)
        found[strategy] = dict(reduced_elements(compiled))
    path.write_text(json.dumps(found))


def expected(model: str, strategy: str) -> int:
    """Elements that one step (or, with accumulation, one of its parts) reduces over the devices.

    - one for each number that trains
    - two for each feature of a BatchNorm on batch statistics: its mean and variance
    - two for each feature of such a BatchNorm through which a gradient flows to its input. They are the gradients of
      its bias and scale, and counted there where those train.
    - the metrics
    """
    found = costs.job_of_strategy(parted_job(model), strategy)
    plan = found.recipes[0].plan
    leaves = traverse_util.flatten_dict(found.variables["params"], sep="/")
    sizes = {path: leaf.size for path, leaf in leaves.items()}
    trained = {leaf.path for leaf in plan.leaves if leaf.trains}
    network = layers(model, found.config.model.num_blocks)
    living = live(network, trained)
    total = METRICS + sum(sizes[path] for path in trained)
    for layer in network:
        if layer.kind == "norm" and layer.path.split("/")[0] in plan.batch_norm_stages:
            own = sum(f"{layer.path}/{name}" in trained for name in ("scale", "bias"))
            passes = any(source in living for source in layer.sources)
            total += sizes[f"{layer.path}/scale"] * (2 + (2 - own if passes else 0))
    return total


@pytest.mark.parametrize(
    "model", ["cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "densenet121"))]
)
def test_devices_reduce_what_trains_and_statistics_in_use(model: str, tmp_path: Path) -> None:
    run_on_devices(4, "tests.train.test_programs", model, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {strategy: {"all-reduce": expected(model, strategy)} for strategy in EXCHANGED[model]}


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
