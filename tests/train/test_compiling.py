import dataclasses
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import losses
from covidjax.mesh import make_mesh, replicated
from covidjax.train import compiling
from covidjax.train.compiling import Compiling, choose_steps_per_call
from covidjax.train.job import Job
from covidjax.train.parallel import mapped_step
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from covidjax.train.state import TrainState
from covidjax.train.step import Recipe
from tests.support import TINY, assert_close, assert_same_bits, make_state, make_training, small_config

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


def test_remat_is_chosen_where_the_batch_does_not_fit_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own, programs = prepare(small_config("cnn", **TINY, remat="auto")), Programs()
    for room, number, said in ((None, 1, "temporary memory"), (1, 2, "with remat of lean, as without it needs")):
        monkeypatch.setattr(compiling, "room", lambda room=room: room)
        found = Compiling(own, programs, ONE_STEP)
        assert said in found.account(own.phases[0])
        assert bool(found.wait(own.phases[0]).refused) == (room is not None)
        assert programs.compiled == number


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
        after, _ = program.call(jax.tree.map(jnp.array, state), batch, rows)
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


def test_steps_of_a_call_are_the_most_that_divide_an_epoch_and_take_a_hundredth_of_a_second() -> None:
    draw = random.Random(0)
    for _ in range(500):
        epoch_steps, flops = draw.randint(1, 300), 10 ** draw.uniform(0, 12)
        divisors = [count for count in range(1, epoch_steps + 1) if epoch_steps % count == 0]
        expected = max(count for count in divisors if count == 1 or count * flops <= 2e9)
        assert choose_steps_per_call(0, epoch_steps, flops) == expected
    # What is asked for is taken as far as an epoch goes.
    assert [choose_steps_per_call(asked, 24, 1e12) for asked in (5, 50)] == [5, 24]


def draw_split(size: int, num_images: int, steps: int, batch_size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A split of noise, and the rows of its batches."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_images, size, size, 1), np.uint8)
    labels = generator.integers(0, 3, num_images, np.int32)
    rows = np.stack([generator.permutation(num_images)[:batch_size] for _ in range(steps)]).astype(np.int32)
    return {"image": images, "label": labels}, rows


def taken(recipe: Recipe, variables: Any, split: Any, rows: np.ndarray, steps_of_call: int) -> TrainState:
    mesh = make_mesh(rows.shape[1])
    step = mapped_step(recipe, mesh, resident=True)
    state = jax.device_put(jax.tree.map(jnp.array, make_state(recipe, variables)), replicated(mesh))
    for first in range(0, len(rows), steps_of_call):
        state = step(state, split, rows[first : first + steps_of_call])
    return state


@pytest.mark.slow  # its bits are those of the compiler's own optimisations
def test_calls_that_are_cut_give_the_same_bits() -> None:
    # Of this network a step outside of a loop has other roundings than within one.
    changes: dict[str, Any] = {"model__width": 8, "model__num_blocks": 3, "augment__contrast": 0.2}
    config = small_config("cnn", **changes, freeze="until:block1")
    (recipe, variables), (split, rows) = make_training(config), draw_split(32, 24, 8, 8)
    mesh = make_mesh(8)
    counted = mapped_step(recipe, mesh, resident=True, counted=True)
    state = jax.device_put(jax.tree.map(jnp.array, make_state(recipe, variables)), replicated(mesh))
    for first, count in ((0, 3), (3, 1), (4, 4)):
        state = counted(state, split, np.roll(rows, -first, axis=0)[:4], np.int32(count))
    whole = taken(recipe, variables, split, rows, 4)
    assert int(state.step) == int(state.metrics.steps) == 8
    assert_same_bits(state, whole)


@pytest.mark.slow
def test_several_steps_of_a_call_are_the_single_steps() -> None:
    with jax.enable_x64(True):
        changes = {"precision": "float64", "freeze": "backbone", "model__dropout": 0.3, "augment__brightness": 0.2}
        changes |= {"optimizer__schedule": "one_cycle", "ema_decay": 0.9}
        config = small_config("cnn", model__width=2, model__num_blocks=2, **changes)
        (recipe, variables), (split, rows) = make_training(config, 8), draw_split(8, 16, 12, 4)
        single, several = (taken(recipe, variables, split, rows, count) for count in (1, 4))
    assert int(several.step) == int(several.metrics.steps) == 12
    assert_close(several, single, 1e-10)
