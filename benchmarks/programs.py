"""The train steps of the implementations for devices that are not here, from shapes alone.

A function takes devices and the fields of a `case.Case`, and returns the `jax.stages.Lowered` of one step. The
gradients' norm is logged, except by those that say so.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ours, work
from benchmarks.case import Case
from benchmarks.peers import flax_plain
from covidjax.mesh import DATA, by_example, mesh_of, replicated
from covidjax.train import parallel

BUILDERS = {
    "covidjax": "benchmarks.programs:covidjax",
    "flax": "benchmarks.programs:flax",
    "flax_norm_logged": "benchmarks.programs:flax_norm_logged",
    "keras": "benchmarks.programs:keras",
}


def covidjax(devices: list[Any], **fields: Any) -> Any:
    """covidjax's step. options: (field, value) pairs of its `train.step.Recipe`, and of the axis 'fsdp' its size."""
    case = _case(fields)
    options = dict(case.options)
    parts = options.pop("fsdp", 0)
    mesh = mesh_of(devices, (("data", -1), ("fsdp", parts)) if parts else DATA)
    variables = jax.eval_shape(lambda: ours.make_variables(case))
    recipe = dataclasses.replace(ours.make_recipe(case, variables), **options)
    state = jax.eval_shape(lambda: ours.make_state(recipe, _zeros(variables)))
    images, labels = batch_shapes(case)
    placed = parallel.shardings(state, mesh)
    step = parallel.mapped_step(recipe, mesh, resident=False, placed=placed)
    state = jax.tree.map(lambda leaf, own: leaf.update(sharding=own), state, placed)
    return step.lower(state, {"image": images, "label": labels})


def flax(devices: list[Any], **fields: Any) -> Any:
    """The step of plain Flax, without a norm."""
    return _flax(devices, fields, log_norm=False)


def flax_norm_logged(devices: list[Any], **fields: Any) -> Any:
    """The step of plain Flax."""
    return _flax(devices, fields, log_norm=True)


def _flax(devices: list[Any], fields: dict[str, Any], *, log_norm: bool) -> Any:
    case, mesh = _case(fields), mesh_of(devices)
    network = flax_plain.make_network(case)
    images, labels = batch_shapes(case)

    def begin() -> Any:
        variables = network.init(jax.random.key(0), flax_plain.normalise(jnp.zeros((1, *images.shape[1:]))), False)
        return flax_plain.make_carry(case, variables, log_norm=log_norm)

    carry = jax.eval_shape(begin)
    return flax_plain.make_step(case, log_norm=log_norm, **_shardings(mesh)).lower(_whole(carry, mesh), images, labels)


def keras(devices: list[Any], **fields: Any) -> Any:
    """The step of Keras' `fit`, which logs no norm."""
    from benchmarks.peers import keras_jax  # noqa: PLC0415 - only who asks for it needs Keras

    case, mesh = _case(fields), mesh_of(devices)
    model = keras_jax.make_model(case)
    carry = jax.eval_shape(lambda: (keras_jax.state_of(model), jnp.zeros((), jnp.float32)))
    return keras_jax.make_step(model, **_shardings(mesh)).lower(_whole(carry, mesh), *batch_shapes(case))


def batch_shapes(case: Case) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The shapes of `work.batch`."""
    images, labels = work.batch(dataclasses.replace(case, batch_size=1))
    return tuple(  # type: ignore[return-value]
        jax.ShapeDtypeStruct((case.batch_size, *array.shape[1:]), array.dtype) for array in (images, labels)
    )


def _case(fields: dict[str, Any]) -> Case:
    case = Case(**{**fields, "options": tuple(map(tuple, fields.get("options", ())))})
    work.check(case)
    return case


def _shardings(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    whole, parts = replicated(mesh), by_example(mesh)
    return {"in_shardings": (whole, parts, parts), "out_shardings": whole}


def _whole(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), tree)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
