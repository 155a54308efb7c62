"""How the state lies over devices in parts."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from covidjax.mesh import make_mesh
from covidjax.train.parallel import bytes_on_device, division_notes, mapped_step, shardings
from tests.support import make_model, make_recipe, make_state, run_on_devices, shapes_of, small_config

FOUR: Any = AbstractMesh((1, 4), ("data", "fsdp"))


@pytest.mark.parametrize("name", ["vgg16", "unet"])
def test_a_quarter_of_the_state_lies_on_each_of_four_devices(name: str) -> None:
    """Parameters, both moments of Adam, moving averages, and what is frozen: together at most 0.30 of the whole."""
    config = small_config(name, freeze="until:block3" if name == "vgg16" else "none", ema_decay=0.9)
    model = make_model(config)
    variables = {"batch_stats": {}, **shapes_of(model, 64)}
    recipe = make_recipe(config, model, variables)
    state = jax.eval_shape(lambda: make_state(recipe, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)))
    placed = shardings(state, FOUR)
    parts = {name: (getattr(state, name), getattr(placed, name)) for name in ("params", "opt_state", "average")}
    for part, (tree, own) in parts.items():
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        assert 0.25 * whole <= bytes_on_device(tree, own) <= 0.30 * whole, part
    (note,) = division_notes(variables["params"], FOUR)
    assert f"of {len(jax.tree.leaves(variables['params']))} arrays" in note
    assert division_notes(variables["params"], make_mesh(8)) == []


def test_what_stays_whole_is_listed() -> None:
    shapes = {"kernel": (8, 3), "bias": (3,)}
    params = {"head": {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}}
    (note,) = division_notes(params, FOUR)
    assert note.endswith("whole on each are 1 of 2 arrays: head/bias")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "unet"])
def test_the_compiled_step_holds_no_more_than_its_part_of_the_state(name: str, tmp_path: Path) -> None:
    run_on_devices(4, "tests.train.test_parallel", name, tmp_path / "found.json")
    divided, whole = json.loads((tmp_path / "found.json").read_text())
    assert divided["arguments"] <= 0.30 * whole["arguments"]
    assert divided["outputs"] <= 0.30 * whole["outputs"]


def compiled_step(name: str, axes: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """Bytes of what the compiled step of a network takes and gives, of one device."""
    config = small_config(name, ema_decay=0.9, ops="xla")
    model, mesh = make_model(config), make_mesh(4, 1, axes)
    variables = {"batch_stats": {}, **shapes_of(model)}
    recipe = make_recipe(config, model, variables)
    state = jax.eval_shape(lambda: make_state(recipe, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)))
    placed = shardings(state, mesh)
    labels = (4, 32, 32) if name == "unet" else (4,)
    batch = {"image": jax.ShapeDtypeStruct((4, 32, 32, 1), "uint8"), "label": jax.ShapeDtypeStruct(labels, "int32")}
    step = mapped_step(recipe, mesh, resident=False, placed=placed)
    memory = step.lower(state, batch).compile().memory_analysis()
    return {"arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes}


if __name__ == "__main__":
    found = [compiled_step(sys.argv[1], axes) for axes in ((("data", 1), ("fsdp", 4)), (("data", 4),))]
    Path(sys.argv[2]).write_text(json.dumps(found))
