import dataclasses
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import losses
from covidjax.mesh import make_mesh, replicated
from covidjax.train.compiling import Compiling, choose_steps_per_call
from covidjax.train.parallel import jit_step
from covidjax.train.programs import Programs
from covidjax.train.setup import Job, prepare
from covidjax.train.state import TrainState
from covidjax.train.step import Recipe
from tests.support import TINY, make_model, make_recipe, make_state, make_variables, small_config

ONE_STEP = (1e12,)  # FLOPs of a step so large that a call takes one


# ---- Which programs are compiled ----


@pytest.fixture(scope="module")
def job() -> Job:
    return prepare(small_config("cnn", **TINY, freeze="backbone", features="off"))


def with_recipe(job: Job, **changes: Any) -> Job:
    return dataclasses.replace(job, recipes=(dataclasses.replace(job.recipes[0], **changes),))


def with_seed(job: Job, seed: int) -> Job:
    config = job.config.copy_and_resolve_references()
    config.seed = seed
    variables = jax.tree.map(lambda leaf: leaf + seed, job.variables)
    return dataclasses.replace(job, config=config, variables=variables)


def weighted(job: Job, weights: tuple[float, ...] | None) -> Job:
    return with_recipe(job, loss=losses.loss_function(job.config.loss, weights))


def counts(programs: Programs) -> tuple[int, int]:
    return programs.compiled, programs.reused


def test_jobs_with_equal_programs_compile_once(job: Job) -> None:
    programs = Programs()
    # Equal but not the same objects: each job makes its own loss, schedule and optimizer.
    for number, other in enumerate((job, weighted(with_seed(job, 1), None), weighted(job, None))):
        program = Compiling(other, programs, ONE_STEP).wait(other.phases[0])
        assert counts(programs) == (1, number)
        assert program.memory["temporary"] >= 0
        assert program.memory["arguments"] > job.train_split.images.nbytes


def test_what_is_computed_otherwise_is_compiled_anew(job: Job) -> None:
    programs = Programs()
    state, batch = job.fresh_state(), {"image": job.train_split.images, "label": job.train_split.labels}
    rows = np.arange(4, dtype=np.int32)[None]
    others = (
        with_recipe(job, learning_rate=lambda step: jnp.asarray(2e-3)),
        weighted(job, (1.0, 2.0, 4.0)),
    )
    found = set()
    for number, other in enumerate(others, start=1):
        program = Compiling(other, programs, ONE_STEP).wait(other.phases[0])
        assert counts(programs) == (number, 0)
        after = program.call(jax.tree.map(jnp.array, state), batch, rows)
        found.add((float(after.metrics.loss), float(after.params["head"]["dense"]["bias"][0])))
    assert len(found) == len(others)


def test_a_job_compiles_each_program_of_a_phase_once(job: Job) -> None:
    programs = Programs()
    config = job.config.copy_and_resolve_references()
    config.steps_per_call, config.evaluate_every_steps = 2, 3
    compiling = Compiling(dataclasses.replace(job, config=config), programs, ONE_STEP)
    for _ in range(2):
        compiling.start(job.phases[0])
    whole, counted = (compiling.wait(job.phases[0], counted=each) for each in (False, True))
    assert counts(programs) == (2, 0)
    assert compiling.seconds() == pytest.approx(whole.seconds + counted.seconds)
    assert compiling.wait(job.phases[0]) is whole
    assert compiling.memory() == {"0": whole.memory}


def test_error_of_a_compilation_in_the_background_is_raised_where_it_is_waited_for(job: Job) -> None:
    def broken(logits: jax.Array, labels: jax.Array) -> jax.Array:
        raise ZeroDivisionError

    other = with_recipe(job, loss=broken)
    compiling = Compiling(other, Programs(), ONE_STEP)
    compiling.start(other.phases[0])
    with pytest.raises(ZeroDivisionError):
        compiling.wait(other.phases[0])


# ---- Several steps a call ----


def test_steps_of_a_call_are_a_divisor_of_those_of_an_epoch() -> None:
    draw = random.Random(0)
    for _ in range(500):
        epoch_steps, flops = draw.randint(1, 300), 10 ** draw.uniform(0, 12)
        count = choose_steps_per_call(0, epoch_steps, flops)
        assert epoch_steps % count == 0
        assert count == 1 or count * flops <= 2e9  # about a hundredth of a second on a CPU


def test_cheap_steps_fill_an_epoch_and_expensive_ones_stand_alone() -> None:
    assert choose_steps_per_call(0, 24, 0.0) == 24
    assert choose_steps_per_call(0, 24, 2e9 / 8) == 8
    assert choose_steps_per_call(0, 24, 2e9 / 11) == 8
    assert choose_steps_per_call(0, 23, 2e9 / 11) == 1
    assert choose_steps_per_call(0, 24, 1e12) == 1


def test_number_that_is_asked_for_is_taken_as_far_as_an_epoch_goes() -> None:
    assert choose_steps_per_call(5, 24, 1e12) == 5
    assert choose_steps_per_call(50, 24, 1e12) == 24


def taken(recipe: Recipe, variables: Any, split: Any, rows: np.ndarray, steps_of_call: int) -> TrainState:
    mesh = make_mesh(rows.shape[1])
    step = jit_step(recipe, mesh, resident=True)
    state = jax.device_put(jax.tree.map(jnp.array, make_state(recipe, variables)), replicated(mesh))
    for first in range(0, len(rows), steps_of_call):
        state = step(state, split, rows[first : first + steps_of_call])
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


@pytest.mark.slow  # its bits are those of the compiler's own optimisations
@pytest.mark.slow
def test_calls_that_are_cut_give_the_same_bits() -> None:
    # Of this network a step outside of a loop has other roundings than within one.
    changes: dict[str, Any] = {"model__width": 8, "model__num_blocks": 3, "augment__contrast": 0.2}
    config = small_config("cnn", **changes, freeze="until:block1")
    model = make_model(config)
    variables, generator = make_variables(model, 32), np.random.default_rng(0)
    recipe, mesh = make_recipe(config, model, variables), make_mesh(8)
    split = {
        "image": generator.integers(0, 256, (24, 32, 32, 1), np.uint8),
        "label": generator.integers(0, 3, 24, np.int32),
    }
    rows = np.stack([generator.permutation(24)[:8] for _ in range(8)]).astype(np.int32)
    counted = jit_step(recipe, mesh, resident=True, counted=True)
    state = jax.device_put(jax.tree.map(jnp.array, make_state(recipe, variables)), replicated(mesh))
    for first, count in ((0, 3), (3, 1), (4, 4)):
        state = counted(state, split, np.roll(rows, -first, axis=0)[:4], np.int32(count))
    whole = taken(recipe, variables, split, rows, 4)
    assert int(state.step) == int(state.metrics.steps) == 8
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    for (path, one), other in zip(jax.tree.leaves_with_path(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(other, one, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_several_steps_of_a_call_are_the_single_steps() -> None:
    with jax.enable_x64(True):
        config = small_config(
            "cnn",
            model__width=2,
            model__num_blocks=2,
            model__dropout=0.3,
            precision="float64",
            freeze="backbone",
            augment__brightness=0.2,
            optimizer__schedule="one_cycle",
            ema_decay=0.9,
        )
        model = make_model(config)
        variables = make_variables(model, 8)
        recipe, generator = make_recipe(config, model, variables), np.random.default_rng(0)
        images = generator.integers(0, 256, (16, 8, 8, 1), np.uint8)
        split = {"image": images, "label": generator.integers(0, 3, 16, np.int32)}
        rows = np.stack([generator.permutation(16)[:4] for _ in range(12)]).astype(np.int32)
        single, several = (taken(recipe, variables, split, rows, count) for count in (1, 4))
    assert int(several.step) == int(several.metrics.steps) == 12
    for (path, one), other in zip(jax.tree.leaves_with_path(single), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-12, err_msg=jax.tree_util.keystr(path))
