"""The rate that each parameter moves by, beside the documented formulas of one-cycle and of slices of rates."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from covidjax import optim
from covidjax.train.phases import make_phases
from covidjax.train.step import train_step
from tests.optimizers import make_config, one_cycle_by_hand
from tests.support import make_batch, make_model, make_recipe, make_state, make_variables, small_config


def cosine(start: float, end: float, position: float) -> float:
    """fastai's SchedCos, https://docs.fast.ai/callback.schedule.html: half a cosine from start to end."""
    return start + (1 + math.cos(math.pi * (1 - position))) * (end - start) / 2


def fastai_one_cycle(position: float, peak: float, pct_start: float, final_divisor: float) -> float:
    """fastai's combined_cos, of the part of training that is done: from peak / 25 to the peak, then down."""
    if position < pct_start:
        return cosine(peak / 25, peak, position / pct_start)
    return cosine(peak, peak / final_divisor, (position - pct_start) / (1 - pct_start))


def slice_of_rates(low: float, high: float, count: int) -> list[float]:
    """fastai's slice(low, high) over layer groups: each the same multiple of the one before."""
    multiple = (high / low) ** (1 / (count - 1))
    return [low * multiple**index for index in range(count)]


def test_every_parameter_moves_by_the_rate_of_its_stage_at_its_step() -> None:
    total, pct_start, low, high = 60, 0.3, 1e-5, 1e-3
    with jax.enable_x64(True):
        config = small_config(
            "cnn",
            model__width=2,
            model__num_blocks=3,
            precision="float64",
            phases=({"steps": total},),
            optimizer__learning_rate=(low, high),
            optimizer__schedule="one_cycle",
            optimizer__pct_start=pct_start,
            lr_scale=(("head/.*bias", 0.5),),
        )
        model = make_model(config)
        variables = make_variables(model)
        # A direction of ones, so that what a parameter moves by is its rate.
        ones = optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, updates))
        (phase,) = make_phases(config, steps_per_epoch=10)
        recipe = make_recipe(config, model, variables, phase, tx=ones)
        step = jax.jit(partial(train_step, recipe=recipe))
        state, batch = make_state(recipe, variables), make_batch(size=16)
        by_stage = dict(zip(model.stages, slice_of_rates(low, high, len(model.stages)), strict=True))
        assert len(by_stage) == 4
        for number in (0, 1, 5, 16, 17, 18, 30, 58, 59):
            state = dataclasses.replace(state, step=jnp.int32(number))
            after = step(state, batch)
            moved = jax.tree.map(lambda a, b: a - b, state.params, after.params)
            for path, leaf in jax.tree.leaves_with_path(moved):
                stage, kind = path[0].key, path[-1].key
                peak = by_stage[stage] * (0.5 if (stage, kind) == ("head", "bias") else 1.0)
                expected = one_cycle_by_hand(number, total, pct_start, peak)
                # Rates are in float32, and the cosine at its end is a difference of numbers as large as the peak.
                assert float(jnp.max(jnp.abs(leaf - expected))) < 3e-7 * peak, (number, path)


@pytest.mark.parametrize(("total", "pct_start"), [(60, 0.3), (200, 0.9)])
def test_one_cycle_is_that_of_fastai_to_within_a_step(total: int, pct_start: float) -> None:
    peak = 0.1
    schedule = optim.learning_rate_schedule(
        make_config(schedule="one_cycle", pct_start=pct_start, learning_rate=peak), total, 10
    )
    ours = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total))).tolist()
    for final_divisor in (25e4, 1e5):  # of fastai 1 and of fastai 2
        theirs = [fastai_one_cycle(number / total, peak, pct_start, final_divisor) for number in range(total + 1)]
        for number, rate in enumerate(ours):
            around = theirs[max(0, number - 1) : number + 2]
            nearest = min(max(rate, min(around)), max(around))
            assert rate == pytest.approx(nearest, abs=peak * 1e-5), number
        assert theirs[0] == pytest.approx(ours[0])
        assert theirs[total] == pytest.approx(ours[-1], abs=peak * 1e-5)
        assert max(theirs) == pytest.approx(max(ours), rel=(math.pi / min(pct_start, 1 - pct_start) / total) ** 2)
