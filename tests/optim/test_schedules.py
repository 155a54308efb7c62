"""The schedules of the learning rate and of the momentum, beside those of PyTorch and fastai."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from covidjax import optim
from covidjax.errors import UserError
from tests.optim.settings import RATE, make_config


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


def fastai_by_hand(step: int, total: int, pct_start: float, values: tuple[float, float, float]) -> float:
    """fastai 1's OneCycleScheduler: int(total * pct_start) steps from the first value to the second, the rest on."""
    rising = int(total * pct_start)
    start, end, fraction = (
        (*values[:2], step / rising) if step < rising else (*values[1:], (step - rising) / (total - rising))
    )
    return end + (start - end) / 2 * (math.cos(math.pi * fraction) + 1)


@pytest.mark.parametrize(("total", "pct_start"), [(98, 0.7), (490, 0.8), (10, 0.3)])
def test_fastai_one_cycle_moves_rate_and_momentum_as_fit_one_cycle_does(total: int, pct_start: float) -> None:
    config = make_config(name="adamw", schedule="fastai_one_cycle", learning_rate=1e-3, pct_start=pct_start)
    rate, momentum = optim.learning_rate_schedule(config, total, 9), optim.momentum_schedule(config, total)
    assert momentum is not None
    steps = range(total)
    rates, momenta = (np.asarray(jax.jit(each)(np.arange(total))) for each in (rate, momentum))
    for found, values, margin in ((rates, (4e-5, 1e-3, 4e-9), 2e-10), (momenta, (0.95, 0.85, 0.95), 1e-6)):
        expected = np.array([fastai_by_hand(step, total, pct_start, values) for step in steps])
        np.testing.assert_allclose(found, expected, atol=margin)
    top = int(total * pct_start)
    assert (rates.argmax(), momenta.argmin()) == (top, top)
    assert (rates[0], rates[top], momenta[0], momenta[top]) == pytest.approx((4e-5, 1e-3, 0.95, 0.85), rel=1e-5)
    assert optim.momentum_schedule(make_config(schedule="one_cycle"), total) is None


@pytest.mark.parametrize("total", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule_name", optim.SCHEDULES)
def test_a_run_of_a_few_steps_has_finite_rates_and_one_of_one_step_the_full(schedule_name: str, total: int) -> None:
    schedule = optim.learning_rate_schedule(make_config(schedule=schedule_name, pct_start=1 / max(total, 2)), total, 1)
    with jax.debug_nans(True):  # not under jit, so that each operation is looked at
        rates = [float(schedule(step)) for step in range(total)]
    assert all(0 <= rate <= RATE for rate in rates)
    assert max(rates) == pytest.approx(RATE) if total == 1 else max(rates) > 0


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
