"""The learning-rate range test beside training steps taken one by one, and its suggestions on known curves."""

import dataclasses
import functools
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from covidjax.data.order import batch_indices
from covidjax.errors import UserError
from covidjax.runs import find_lr
from covidjax.runs.find_lr import Curve
from covidjax.train.job import Job
from covidjax.train.phases import initial_state
from covidjax.train.setup import prepare
from covidjax.train.state import StepMetrics
from covidjax.train.step import train_step
from launch import find_lr as command
from launch import train
from tests.commands import call, contents, user_error
from tests.support import TINY, small_config

STEPS = 40
RATES = np.geomspace(1e-7, 10, 100)
NUMBERS = np.arange(100)


def exact_config(cache_dir: Path, **changes: Any) -> ConfigDict:
    """A first phase with a frozen stage, a pair of rates, factors, momentum, decay and clipping, in float64."""
    return small_config(
        **TINY,
        dataset__cache_dir=str(cache_dir),
        precision="float64",
        optimizer__name="sgd",
        optimizer__learning_rate=1e-5,
        optimizer__weight_decay=1e-2,
        optimizer__clip_norm=2.0,
        optimizer__schedule="one_cycle",  # which the sweep takes the place of
        lr_scale=(("head/.*bias", 0.5),),
        phases=({"epochs": 2, "freeze": "until:block1", "optimizer": {"learning_rate": (1e-4, 1e-2)}}, {"epochs": 1}),
        **changes,
    )


def losses_of_steps(job: Job, rates: np.ndarray, phase: int = 0) -> list[float]:
    """The losses of training steps that are taken one by one, each at its own rate."""
    recipe = dataclasses.replace(
        job.recipes[phase], learning_rate=lambda step: jnp.asarray(rates)[step], schedule_start=0, momentum=None
    )
    take_step, losses = jax.jit(functools.partial(train_step, recipe=recipe)), []
    state = initial_state(recipe, job.variables, jax.random.key(job.config.seed))
    for step in range(len(rates)):
        rows = batch_indices(0, step, len(job.train_split), 4)
        batch = {"image": job.train_split.images[rows], "label": job.train_split.labels[rows]}
        state = take_step(dataclasses.replace(state, metrics=StepMetrics.empty()), batch)
        losses.append(float(state.metrics.loss))
    return losses


def smoothed_by_hand(losses: Sequence[float] | np.ndarray) -> np.ndarray:
    """The weighted mean of the losses so far; weights fall by 0.98 with each step back."""
    back = np.subtract.outer(np.arange(len(losses)), np.arange(len(losses)))
    weights = np.where(back >= 0, 0.98 ** np.maximum(back, 0), 0.0)
    return weights @ np.asarray(losses) / weights.sum(1)


def curve_of(losses: np.ndarray) -> Curve:
    return Curve(tuple(RATES[: len(losses)]), tuple(losses), tuple(smoothed_by_hand(losses)), "as made")


def test_the_curve_is_that_of_training_steps_at_rates_that_rise_also_from_features(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        rates = find_lr.rates(1e-4, 300.0, STEPS)
        expected = [1e-4 * 3e6 ** (step / (STEPS - 1)) for step in range(STEPS)]
        np.testing.assert_allclose(rates, expected, rtol=1e-12)
        jobs = [prepare(exact_config(tmp_path, features=features)) for features in ("off", "on")]
        losses = losses_of_steps(jobs[0], rates)
        means = smoothed_by_hand(losses)
        steps = next(n for n in range(1, STEPS + 1) if means[n - 1] > 4 * min(means[:n]))  # where it has diverged
        for job in jobs:
            shown: list[int] = []
            curve = find_lr.sweep(job, rates, shown.append)
            assert curve.learning_rates == tuple(rates[:steps])
            assert shown == list(range(1, steps + 1))
            np.testing.assert_allclose(curve.losses, losses[:steps], rtol=1e-6)
            np.testing.assert_allclose(curve.smoothed, means[:steps], rtol=1e-6)
            assert "over 4 times its best" in curve.ending
        assert min(losses[:steps]) < 0.9 * losses[0]


def test_a_later_phase_is_looked_at_with_its_own_plan_from_the_weights_that_the_config_begins_with(
    tmp_path: Path,
) -> None:
    with jax.enable_x64(True):
        rates = find_lr.rates(1e-4, 1e-1, 20)
        job = prepare(exact_config(tmp_path, features="off"))
        job = dataclasses.replace(job, variables=jax.device_get(job.variables))  # which two sweeps begin with
        found = [find_lr.sweep(job, rates, lambda step: None, phase).losses for phase in (0, 1)]
        for phase, losses in enumerate(found):
            np.testing.assert_allclose(losses, losses_of_steps(job, rates, phase)[: len(losses)], rtol=1e-6)
    assert abs(found[0][0] - found[1][0]) > 1e-3  # the first phase normalises block1 by running statistics


def test_a_loss_that_is_not_finite_ends_the_sweep_and_at_the_first_batch_is_refused(tmp_path: Path) -> None:
    job = prepare(small_config(**TINY, dataset__cache_dir=str(tmp_path), optimizer__name="sgd", features="off"))
    loss = job.recipes[0].loss

    def with_a_limit(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.where(jnp.max(jnp.abs(logits)) > 3, jnp.nan, loss(logits, labels))

    job = dataclasses.replace(job, recipes=(dataclasses.replace(job.recipes[0], loss=with_a_limit),))
    rates = find_lr.rates(1e-3, 10.0, 30)
    curve = find_lr.sweep(job, rates, lambda step: None)
    steps = len(curve.losses)
    assert 0 < steps < 30
    assert all(map(math.isfinite, curve.losses))
    assert len(curve.learning_rates) == len(curve.smoothed) == steps
    assert curve.ending == f"the loss was not finite at a rate of {rates[steps]:.3g}"
    broken = dataclasses.replace(job, variables=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), job.variables))
    with pytest.raises(UserError, match="^the loss of the first batch is not finite.*$"):
        find_lr.sweep(broken, rates, lambda step: None)


def made(smoothed: np.ndarray, noise: float = 0.0, seed: int = 0) -> Curve:
    """A curve with this smoothed loss; losses beside it with noise."""
    losses = smoothed + noise * np.random.default_rng(seed).normal(size=len(smoothed))
    return Curve(tuple(RATES[: len(smoothed)]), tuple(losses), tuple(smoothed), "as made")


def falling(center: int, lowest: int = 80) -> np.ndarray:
    """Falls by a logistic curve around one step, then rises from another on."""
    curve = 2 - 1 / (1 + np.exp(-(NUMBERS - center) / 4.0))
    return np.where(lowest < NUMBERS, curve[lowest] + 0.1 * (NUMBERS - lowest), curve)


@pytest.mark.parametrize(
    ("center", "lowest", "note"),
    [
        (30, 80, ""),
        (47, 70, ""),
        (60, 85, ""),
        (60, 99, "the loss still falls at the last rate, 10: a higher --high may tell more"),
    ],
)
def test_the_suggestions_are_the_steepest_slope_and_a_tenth_of_the_minimum(center: int, lowest: int, note: str) -> None:
    suggestions = find_lr.suggest(made(falling(center, lowest)), 100)
    assert (suggestions.steepest, suggestions.minimum_over_10) == (RATES[center], RATES[lowest] / 10)
    assert suggestions.note == note


def test_noise_of_the_batches_does_not_carry_the_steepest_slope_to_the_plateau() -> None:
    drawn = (falling(55) + 0.4 * np.random.default_rng(seed).normal(size=100) for seed in range(100))
    found = [find_lr.suggest(curve_of(losses), 100).steepest for losses in drawn]
    rates = [rate for rate in found if rate is not None]
    assert len(rates) > 90
    assert RATES[45] < min(rates) <= max(rates) < RATES[80]


def test_a_curve_that_does_not_fall_gives_no_suggestion_and_says_so() -> None:
    flat, rising = np.full(100, 1.1), 1.1 + 0.01 * NUMBERS
    at_the_start = (made(flat), made(rising), made(rising[:3]), made(falling(3, 12)))
    not_clearly = (made(flat + 1e-4 * falling(50)), made(falling(50), 2.0))
    for curves, reason in (
        (at_the_start, "the loss is least near the beginning of the sweep; "),
        (not_clearly, "the loss does not clearly fall (by "),
    ):
        for suggestions in (find_lr.suggest(curve, 100) for curve in curves):
            assert (suggestions.steepest, suggestions.minimum_over_10) == (None, None)
            assert suggestions.note.startswith(f"no suggestion: {reason}")


def test_noise_alone_is_hardly_ever_taken_for_a_fall() -> None:
    taken = 0
    for seed in range(400):
        losses = 1.1 + 0.1 * np.random.default_rng(seed).normal(size=100)
        curve = curve_of(losses)
        taken += find_lr.suggest(curve, 100).steepest is not None
    assert taken <= 12  # 3 % of them


@pytest.mark.parametrize("length", [1, 100])
def test_every_curve_can_be_drawn(length: int) -> None:
    for curve in (made(falling(30)[:length], 0.1), made(np.full(length, 1.1)), made(np.zeros(length))):
        with Image.open(io.BytesIO(find_lr.draw(curve, find_lr.suggest(curve, 100)))) as image:
            assert image.format == "PNG"
            assert image.width > image.height > 400


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.0, 1.0, 100), "--low is 0 and --high 1: allowed is 0 < low < high <= 1e+06"),
        ((1.0, 1.0, 100), "--low is 1 and --high 1: allowed"),
        ((math.nan, 1.0, 100), "--low is nan"),
        ((1e-3, math.inf, 100), "--high inf"),
        ((1e-3, 1.0, 19), "--steps is 19: allowed is from 20 to 100000"),
    ],
)
def test_a_sweep_that_tells_nothing_is_refused(arguments: tuple[float, float, int], expected: str) -> None:
    assert expected in user_error(find_lr.rates, *arguments)


def run_command(workdir: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command, and reads what it wrote."""
    assert call(command.main, *arguments, f"--workdir={workdir}") == 0
    return json.loads((workdir / "lr_finder.json").read_text())


@pytest.mark.slow
def test_a_run_in_the_workdir_keeps_every_byte(capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    assert call(train.main, config, f"--workdir={workdir}") == 0
    before = contents(workdir)
    sweep = [config, "--steps=60", "--low=1e-5", "--high=1e3", "--config.optimizer.learning_rate=(1e-4,1e-2)"]
    found = run_command(workdir, *sweep)
    after = contents(workdir)
    assert str(after.pop("lr_finder.png")).startswith("b'\\x89PNG")
    assert after.pop("lr_finder.json")
    assert after == before
    assert {len(found[key]) for key in ("learning_rates", "losses", "smoothed")} == {found["steps"]}
    assert found["steps"] <= found["steps_asked"] == 60
    assert found["learning_rates"][0] == pytest.approx(1e-5)
    assert (found["seed"], Path(found["config_name"]).name) == (0, "tiny.py")
    assert found["config"]["optimizer"]["learning_rate"] == [1e-4, 1e-2]
    curve = Curve(**{field.name: found[field.name] for field in dataclasses.fields(Curve)})
    suggestions = find_lr.suggest(curve, 60)
    assert suggestions.steepest == found["steepest"] == found["suggestion"]
    assert suggestions.minimum_over_10 == found["minimum_over_10"]
    assert run_command(workdir, *sweep) == found  # nothing of a sweep is left in the next
    said = suggestions.note
    if found["suggestion"] is not None:
        low, high = found["suggestion"] / 100, found["suggestion"]
        said = f"--config.optimizer.learning_rate=({low:.2g},{high:.2g})"
        assert found["override"] == said
    assert said in capfd.readouterr().out


def test_the_rate_of_a_phase_is_told_where_it_stands(
    capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path
) -> None:
    own = "{'freeze': 'backbone', 'optimizer': {'learning_rate': 1e-2, 'name': 'sgd'}}"
    for phase, phases in enumerate((f"({own}, {{'epochs': 1}})", f"({{'epochs': 1}}, {own})")):
        sweep = [config, "--config.batch_size=12", "--steps=30", f"--config.phases={phases}", f"--phase={phase}"]
        found = run_command(tmp_path / f"sweep{phase}", *sweep)
        assert any(f"phase {phase} of 2: freeze 'backbone'" in note for note in found["notes"])
        assert any("begins with random weights" in note for note in found["notes"]) == bool(phase)
        assert (found["optimizer"], found["phase"]) == ("sgd", phase)
        assert found["suggestion"] is None or found["override"].endswith(f"'optimizer' of config.phases[{phase}]")
    assert call(command.main, *sweep[:-1], "--phase=2", f"--workdir={tmp_path / 'sweep1'}") == 2
    assert "--phase is 2: the config has 2, allowed are 0 to 1" in capfd.readouterr().err
