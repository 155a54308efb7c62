import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import optim
from covidjax.errors import UserError
from tests.optimizers import RATE, dtypes, make_config


def test_one_cycle_equals_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: no parity check")
    total = 90
    rule = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(rule, max_lr=0.1, total_steps=total, cycle_momentum=False)
    schedule = jax.jit(optim.learning_rate_schedule(make_config(schedule="one_cycle", learning_rate=0.1), total, 9))
    for step in range(total):
        assert float(schedule(step)) == pytest.approx(rule.param_groups[0]["lr"], abs=1e-7)
        if step < total - 1:
            rule.step()
            reference.step()


@pytest.mark.parametrize("total", [2, 3, 4])
@pytest.mark.parametrize("schedule_name", optim.SCHEDULES)
def test_a_run_of_a_few_steps_has_finite_rates(schedule_name: str, total: int) -> None:
    schedule = jax.jit(optim.learning_rate_schedule(make_config(schedule=schedule_name, pct_start=1 / total), total, 1))
    rates = [float(schedule(step)) for step in range(total)]
    assert all(0 <= rate <= RATE for rate in rates)
    assert max(rates) > 0


@pytest.mark.parametrize("schedule_name", optim.SCHEDULES)
def test_a_run_of_one_step_uses_the_full_rate(schedule_name: str) -> None:
    schedule = optim.learning_rate_schedule(make_config(schedule=schedule_name), 1, 1)
    with jax.debug_nans(True):  # not under jit, so that each operation is looked at
        assert float(schedule(0)) == pytest.approx(RATE)


def test_cosine_warms_up_from_zero_and_decays_to_zero() -> None:
    config = make_config(schedule="cosine", warmup_epochs=0.5, learning_rate=0.2)
    schedule = jax.jit(optim.learning_rate_schedule(config, total_steps=100, steps_per_epoch=20))
    assert float(schedule(0)) == 0.0
    assert float(schedule(4)) == pytest.approx(0.08)
    assert float(schedule(10)) == pytest.approx(0.2)
    assert float(schedule(55)) == pytest.approx(0.1)
    assert float(schedule(40)) == pytest.approx(0.2 * (1 + math.cos(math.pi / 3)) / 2)
    assert float(schedule(100)) == pytest.approx(0.0, abs=1e-8)
    no_warmup = jax.jit(optim.learning_rate_schedule(make_config(schedule="cosine"), 100, 20))
    assert float(no_warmup(0)) == pytest.approx(RATE)


def test_step_schedule_changes_after_the_given_epochs() -> None:
    schedule = jax.jit(optim.learning_rate_schedule(make_config(schedule="step", learning_rate=1.0), 100, 10))
    rates = [float(schedule(step)) for step in (0, 29, 30, 59, 60, 99)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def losses_of_a_run() -> list[float]:
    generator = np.random.default_rng(5)
    losses = np.exp(-np.arange(80) / 15) + 0.05 * generator.random(80)
    return [float(loss) for loss in losses.astype(np.float32)]


@pytest.mark.parametrize(
    ("patience", "factor", "min_delta"), [(5, 0.7, 1e-4), (2, 0.5, 1e-2), (1, 0.3, 0.0), (0, 0.9, 0.0)]
)
@pytest.mark.parametrize("min_rate", [0.0, 1e-4])
def test_plateau_equals_keras_epoch_by_epoch(
    keras: Any, patience: int, factor: float, min_delta: float, min_rate: float
) -> None:
    section = {"patience": patience, "factor": factor, "min_delta": min_delta, "min_learning_rate": min_rate}
    config = make_config(schedule="plateau", **{f"plateau_{key}": value for key, value in section.items()})
    model = types.SimpleNamespace(optimizer=keras.optimizers.SGD(config.learning_rate))
    callback = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", mode="min", factor=factor, patience=patience, min_delta=min_delta, min_lr=min_rate
    )
    callback.set_model(model)
    callback.on_train_begin()
    update = jax.jit(lambda state, loss: optim.plateau_update(state, loss, config))
    state = optim.plateau_init()
    ours, theirs = [], []
    losses = losses_of_a_run()
    losses[33] = math.nan
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"loss": loss})
        state = update(state, loss)
        ours.append(config.learning_rate * float(state.scale))
        theirs.append(float(model.optimizer.learning_rate))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len(set(theirs)) > 2
    assert min_rate == 0.0 or patience == 5 or theirs[-1] == pytest.approx(min_rate)


def test_plateau_counts_nan_as_no_improvement() -> None:
    config = make_config(schedule="plateau", plateau_patience=3, plateau_factor=0.5)
    state = optim.plateau_init()
    scales = []
    for loss in (math.nan, 1.0, math.nan, math.nan, math.nan, 0.5, math.inf):
        state = optim.plateau_update(state, loss, config)
        scales.append(float(state.scale))
    assert scales == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert float(state.best) == 0.5
    assert int(state.wait) == 1


def test_plateau_state_keeps_shapes_and_dtypes_and_acts_under_no_other_schedule() -> None:
    with jax.enable_x64(True):
        begun = optim.plateau_init()
        for schedule, scale in (("plateau", 0.7), ("cosine", 1.0)):
            update = jax.jit(lambda state, name=schedule: optim.plateau_update(state, 1.0, make_config(schedule=name)))
            state = begun
            for _ in range(8):
                state = update(state)
            assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, begun)
            assert dtypes(state) == [jnp.float32, jnp.float32, jnp.int32]
            assert float(state.scale) == pytest.approx(scale)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "cosine", "warmup_epochs": 10.0},
        {"schedule": "cosine", "warmup_epochs": -1.0},
        {"schedule": "step", "step_epochs": (6, 3)},
        {"schedule": "step", "step_epochs": (0, 3)},
    ],
)
def test_bad_schedule_values_are_named(changes: dict[str, Any]) -> None:
    key = [name for name in changes if name != "schedule"] or ["schedule"]
    with pytest.raises(UserError, match=rf"^optimizer\.{key[0]} is ") as caught:
        optim.learning_rate_schedule(make_config(**changes), total_steps=100, steps_per_epoch=10)
    assert "\n" not in str(caught.value)
