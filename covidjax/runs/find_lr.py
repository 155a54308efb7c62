"""The learning-rate range test: the loss of each mini-batch while the rate rises from step to step.

Smith 2015, https://arxiv.org/abs/1506.01186, with the exponential sweep, the smoothing and the end of
S. Gugger, "How do you find a good learning rate" (2018), as fastai documents for `lr_find`.
"""

import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files
from covidjax.console import Progress
from covidjax.errors import UserError
from covidjax.mesh import replicated
from covidjax.report import figures
from covidjax.runs import record
from covidjax.train import parallel
from covidjax.train.features import PrefixFeatures, feature_store
from covidjax.train.inputs import make_inputs
from covidjax.train.job import Job
from covidjax.train.phases import initial_state
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from covidjax.train.state import StepMetrics

SMOOTHING = 0.98
DIVERGED = 4.0  # times the best smoothed loss
FEWEST_STEPS = 20
TENTH = 0.1  # of a sweep: before it the smoothed loss is the mean of too few batches to say anything
REACH = 0.05  # part of a sweep on either side over which a slope is taken: of two neighbours it would be noise
LEFT = 0.25  # part of its fall that the smoothed loss has made where the steepest slope is looked for
# What counts as a fall: in standard errors (of curves that are nothing but noise one in fifty falls by as much), and
# as a part of the loss, for curves without noise.
ERRORS, LEAST_FALL = 3.0, 0.01


@dataclasses.dataclass(frozen=True)
class Curve:
    """What a sweep saw, step by step, all finite.

    learning_rates: those of the updates; losses: of the mini-batches, before the update; smoothed: their exponential
    moving average with bias correction, a_i / (1 - 0.98^i) with a_i = 0.98 a_(i-1) + 0.02 loss_i and a_0 = 0;
    ending: why there are no more, in words.
    """

    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    ending: str


@dataclasses.dataclass(frozen=True)
class Suggestions:
    """Rates to train with, None where the loss does not fall. note: what there is to say of them, or nothing."""

    steepest: float | None
    minimum_over_10: float | None
    note: str


def run(config: ConfigDict, config_name: str, learning_rates: np.ndarray, workdir: Path, phase: int = 0) -> None:
    """Sweeps over `rates`, writes lr_finder.png and lr_finder.json, prints the suggestion and how to use it.

    What is trained meanwhile is thrown away: a run in the workdir is left alone. phase: the one whose plan and
    optimizer hold; its weights are those that the config begins with.
    Raises what `sweep` raises, and UserError for a phase that the config does not have.
    """
    steps = len(learning_rates)
    with record.locked(workdir):
        job = prepare(config)
        if phase not in range(count := len(job.phases)):
            raise UserError(f"--phase is {phase}: the config has {count}, allowed are 0 to {count - 1}")
        own = job.phases[phase]
        notes = [*job.notes, job.caching[phase].note]
        if len(job.phases) > 1:
            notes.append(f"the rate is looked for in phase {phase} of {len(job.phases)}: freeze {own.freeze!r}")
        if phase:
            weights = config.pretrained or "random weights"
            notes.append(
                f"it begins with {weights}: what the phases before it train is seen with --config.pretrained, the "
                "workdir of a run of these"
            )
        print(*notes, sep="\n", flush=True)
        progress = Progress("learning rates", steps)
        curve = sweep(job, learning_rates, progress.show, phase)
        progress.finish(f"{len(curve.losses)} steps from a rate of {learning_rates[0]:g}: {curve.ending}")
        found = suggest(curve, steps)
        notes += [curve.ending, *filter(None, [found.note])]
        override = _override(config, found.steepest, phase)
        files.write_bytes(workdir / "lr_finder.png", draw(curve, found))
        content = {
            "suggestion": found.steepest,
            "steepest": found.steepest,
            "minimum_over_10": found.minimum_over_10,
            "override": override,
            "config_name": config_name,
            "seed": config.seed,
            "phase": phase,
            "freeze": own.freeze,
            "optimizer": own.optimizer.name,
            "batch_size": config.batch_size,
            "steps": len(curve.losses),
            "ending": curve.ending,
            **{key: list(values) for key, values in vars(curve).items() if key != "ending"},
            "smoothing": SMOOTHING,
            "device": jax.local_devices()[0].device_kind,
            "versions": record.versions(),
            "config": configs.to_json(config),
            "research_use_only": True,
            "steps_asked": steps,
            "notes": notes,
        }
        files.write_json(workdir / "lr_finder.json", content)
    if found.note:
        print(found.note)
    if found.steepest is not None:
        print(f"suggestion: {found.steepest:.2g}, where the smoothed loss falls fastest\nto train with it: {override}")
    print(f"the curve: {workdir / 'lr_finder.png'}, {workdir / 'lr_finder.json'}")


def rates(low: float, high: float, steps: int) -> np.ndarray:
    """low * (high / low) ** (i / (steps - 1)) for step i: [steps] float64.

    Raises UserError for a sweep that does not rise, or has too few steps.
    """
    if not (0 < low < high <= 1e6):
        raise UserError(f"--low is {low:g} and --high {high:g}: allowed is 0 < low < high <= 1e+06")
    if not FEWEST_STEPS <= steps <= 100_000:
        raise UserError(f"--steps is {steps}: allowed is from {FEWEST_STEPS} to 100000")
    return np.geomspace(low, high, steps)


def sweep(job: Job, learning_rates: np.ndarray, show: Callable[[int], None], phase: int = 0) -> Curve:
    """Trains in a phase of a job from the job's start weights, with one of the rates in each step.

    Recipe, plan and batches are those of training; of a pair (low, high) the rates are the high one, and the factors of
    `lr_scale` hold. A momentum that a schedule would move rests. The sweep ends where a loss is not finite, or the
    smoothed loss exceeds 4 times its best. The state is thrown away, and no workdir is looked at.
    learning_rates: [steps]; show: takes the number of finished steps. Raises UserError where the first loss is not
    finite.
    """
    config, own = job.config, job.phases[phase]
    features = PrefixFeatures(feature_store(config.dataset.cache_dir), job.mesh, Programs())
    inputs = make_inputs(job, own, job.variables, features)
    recipe = dataclasses.replace(
        job.recipes[phase],
        learning_rate=lambda step: jnp.asarray(learning_rates)[step],
        momentum=None,
        schedule_start=0,
    )
    take_step = parallel.mapped_step(recipe, job.mesh, config.parallel, resident=inputs.resident)
    sums = jax.device_get(StepMetrics.empty())
    sums = dataclasses.replace(sums, loss=np.zeros((), recipe.model.numerics.param_dtype))
    state = initial_state(recipe, job.variables, jax.random.key(config.seed))
    state = jax.device_put(state, replicated(job.mesh))
    seen: list[tuple[float, float, float]] = []  # rate, loss, smoothed loss
    span, average, best = (0, len(learning_rates)), 0.0, math.inf
    ending = f"all {len(learning_rates)} steps were taken"
    calls = inputs.calls(job.mesh, config.parallel, config.seed, config.batch_size, span, 1)
    for rate, (_, arguments) in zip(map(float, learning_rates), calls, strict=True):
        one_step = jax.device_put(sums, replicated(job.mesh))  # which the step adds its own loss to
        state = take_step(dataclasses.replace(state, metrics=one_step), *arguments)
        if not int(state.metrics.steps):
            continue  # loss scaling has skipped it
        loss = float(state.metrics.loss)
        if not math.isfinite(loss):
            ending = f"the loss was not finite at a rate of {rate:.3g}"
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING ** (len(seen) + 1))
        best = min(best, smoothed)
        seen.append((rate, loss, smoothed))
        show(len(seen))
        if smoothed > DIVERGED * best:
            ending = f"the smoothed loss was over {DIVERGED:g} times its best at a rate of {rate:.3g}"
            break
    if not seen:
        raise UserError(
            "the loss of the first batch is not finite, before anything was trained: look at the images and at "
            "config.pretrained"
        )
    rates_seen, losses, averages = zip(*seen, strict=True)
    return Curve(rates_seen, losses, averages, ending)


def suggest(curve: Curve, steps: int) -> Suggestions:
    """The rate at which the smoothed loss falls fastest, and a tenth of the one at which it is least.

    The slope is that against the logarithm of the rate, between a twentieth of the sweep before and after. Neither is
    looked for in the first tenth, where the smoothed loss is hardly smoothed; the slope only between where the smoothed
    loss has made a quarter of its fall for good and its minimum, so that noise on a plateau is not taken for it.
    There are none where the losses of the tenth of the sweep that ends at the minimum are not clearly below those
    before it. steps: those of the sweep, of which the curve has a part where it ended early.
    """
    smoothed, losses, tenth = np.array(curve.smoothed), np.array(curve.losses), int(TENTH * steps)
    lowest = tenth + int(np.argmin(smoothed[tenth:])) if len(smoothed) > tenth else 0
    before, there = losses[: max(0, lowest + 1 - tenth)], losses[max(0, lowest + 1 - tenth) : lowest + 1]
    if len(before) < tenth:
        note = "no suggestion: the loss is least near the beginning of the sweep; if it rises from there, lower --low"
        return Suggestions(None, None, note)
    fall = float(np.mean(before) - np.mean(there))
    spread = np.sqrt(np.mean(np.diff(losses[: lowest + 1]) ** 2) / 2)  # differences: the fall itself is no noise
    error = float(spread * np.sqrt(1 / len(before) + 1 / len(there)))
    if fall <= max(ERRORS * error, LEAST_FALL * abs(np.mean(before))):
        note = (
            f"no suggestion: the loss does not clearly fall (by {fall:.3g} from {np.mean(before):.3g}, with a standard "
            f"error of {error:.2g}): a larger config.batch_size or more --steps have less noise"
        )
        return Suggestions(None, None, note)
    reach, logarithms = max(1, int(REACH * steps)), np.log(curve.learning_rates)
    falling = smoothed[tenth : lowest + 1]
    left = np.max(falling) - LEFT * (np.max(falling) - smoothed[lowest])
    begin = min(tenth + int(np.flatnonzero(falling >= left)[-1]), len(smoothed) - 1 - reach)
    inner = np.arange(begin, min(lowest, len(smoothed) - 1 - reach) + 1)
    ahead, behind = inner + reach, inner - reach
    slopes = (smoothed[ahead] - smoothed[behind]) / (logarithms[ahead] - logarithms[behind])
    note = ""
    if lowest == len(smoothed) - 1:
        note = f"the loss still falls at the last rate, {curve.learning_rates[-1]:.3g}: a higher --high may tell more"
    steepest = curve.learning_rates[inner[np.argmin(slopes)]]
    return Suggestions(steepest, curve.learning_rates[lowest] / 10, note)


def draw(curve: Curve, suggestions: Suggestions) -> bytes:
    """The curve against the logarithm of the rate, with the suggestions. Returns a PNG file."""
    figure, axes = figures.new_figure(6.0, 3.6)
    blue, orange = figures.COLORS["train"], figures.COLORS["val"]
    axes.plot(
        curve.learning_rates, curve.losses, "o", color=blue, alpha=0.35, markersize=2.5, mew=0, label="mini-batch loss"
    )
    axes.plot(curve.learning_rates, curve.smoothed, color=blue, linewidth=1.8, label="smoothed")
    marks = (("steepest slope", suggestions.steepest, "-"), ("minimum / 10", suggestions.minimum_over_10, (0, (4, 3))))
    for name, rate, line in marks:
        if rate is not None:
            axes.axvline(rate, color=orange, linestyle=line, linewidth=1.3, label=f"{name}: {rate:.2g}")
    axes.set(xscale="log", ylim=_heights(curve))
    axes.set_xlabel("learning rate", color=figures.MUTED)
    axes.set_ylabel("loss", color=figures.MUTED)
    axes.legend(fontsize=figures.FONT_SIZE, labelcolor=figures.INK, loc="lower left", framealpha=0.85, edgecolor="none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def _heights(curve: Curve) -> tuple[float, float]:
    """What is shown: the fall, and the beginning of the rise, which else would leave the fall no room."""
    before = np.array(curve.losses[: int(np.argmin(curve.smoothed)) + 1])
    low, high = float(min(before.min(), *curve.smoothed)), float(max(before.max(), curve.smoothed[0]))
    margin = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + 2 * margin


def _override(config: ConfigDict, rate: float | None, phase: int) -> str | None:
    """The flag that trains with a rate; of a pair (low, high) the lower keeps its distance."""
    if rate is None:
        return None
    own = config.phases[phase].get("optimizer", {}).get("learning_rate") if config.phases else None
    former = config.optimizer.learning_rate if own is None else own
    value = f"{rate:.2g}"
    if not isinstance(former, int | float):
        value = f"({rate * former[0] / former[1]:.2g},{rate:.2g})"
    if own is not None:
        return f"'learning_rate': {value} in the 'optimizer' of config.phases[{phase}]"
    return f"--config.optimizer.learning_rate={value}"
