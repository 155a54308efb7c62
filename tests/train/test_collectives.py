"""What four devices tell each other in a step: the gradients of what trains, and statistics of BatchNorm in use."""

import json
import sys
from pathlib import Path

import jax
import pytest
from flax import traverse_util

from covidjax.runs import costs
from tests.support import run_on_devices, small_config
from tests.train.networks import layers, live
from tests.train.programs import QUICKLY, reduced_elements
from tests.train.test_freeze_programs import CHANGES

# Both are sums over the batch, of a step or of one of its parts: the loss and the number of correct answers. The
# gradient norm and the check for finite values come from the reduced gradients, which every device has.
METRICS = 2
STRATEGIES = {
    "cnn": ("last:2",),
    "resnet18": ("none", "until:layer3", "backbone", "norm", "bitfit"),
}


def setting(model: str) -> costs.Setting:
    sizes = {"dataset__image_size": 32, "batch_size": 8, "model__width": 2, "model__num_blocks": 2}
    return costs.make_setting(small_config(model, **sizes, **CHANGES), 3)


def child(model: str, path: Path) -> None:
    assert jax.local_device_count() == 4
    found = {}
    for strategy in STRATEGIES[model]:
        compiled = costs.lower_step(setting(model), setting(model).recipe_of(strategy)).compile(QUICKLY)
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
    found = setting(model)
    plan = found.recipe_of(strategy).plan
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


@pytest.mark.parametrize("model", ["cnn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_devices_reduce_what_trains_and_statistics_in_use(model: str, tmp_path: Path) -> None:
    run_on_devices(4, "tests.train.test_collectives", model, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {strategy: {"all-reduce": expected(model, strategy)} for strategy in STRATEGIES[model]}


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
