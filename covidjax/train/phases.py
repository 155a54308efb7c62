"""Phases: what trains, how fast and for how long, one after the other; and the passage between two."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from covidjax import models, optim
from covidjax.errors import UserError
from covidjax.freeze.plan import FreezePlan, Pairs, make_plan
from covidjax.freeze.strategies import gradual_epochs
from covidjax.train import loss_scale
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Recipe


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run; steps are counted over the whole run, from 0.

    first_step: its first; last_step: the first that is no longer in it.
    schedule_start, schedule_steps: the first step of its learning-rate schedule and how many that has: those of all
        the phases that continue one another.
    optimizer: its section of the config, with the learning rate of the last stage where the config has a pair.
    settings: of its plan beside `freeze`, see `make_plan`.
    split: what it trains on, 'train' or 'train+val'; epoch_steps: full batches in an epoch of that; epochs_from: the
        step of the run and the finished epochs from which its epochs are counted: where its split came into use.
    """

    index: int
    first_step: int
    last_step: int
    schedule_start: int
    schedule_steps: int
    freeze: str | tuple[str, ...]
    optimizer: FrozenConfigDict
    settings: FrozenConfigDict
    split: str
    epoch_steps: int
    epochs_from: tuple[int, int]

    def epoch(self, step: int) -> float:
        """The finished epochs of the run after so many of its steps."""
        start, epochs = self.epochs_from
        return epochs + (step - start) / self.epoch_steps

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends with so many steps of the run."""
        return (step - self.epochs_from[0]) % self.epoch_steps == 0

    def epoch_start(self, step: int) -> int:
        """The step of the run with which the epoch began that follows so many of its steps."""
        return step - (step - self.epochs_from[0]) % self.epoch_steps

    def plan(self, variables: Mapping[str, Any], stages: tuple[str, ...]) -> FreezePlan:
        """The plan of what trains in the phase, and how. variables: {'params', 'batch_stats'} of arrays or shapes."""
        return make_plan(self.freeze, variables, stages, **self.settings)


def average_notes(phases: Sequence[Phase]) -> list[str]:
    """A note for each phase that has fewer steps than its moving average looks back."""
    notes = []
    for phase in phases:
        steps = phase.last_step - phase.first_step
        decay = max([phase.settings.ema_decay, *(decay for _, decay in phase.settings.ema_decays)])
        if steps < (span := round(1 / (1 - decay))):
            notes.append(
                f"phase {phase.index} has {steps} steps, fewer than the {span} that a moving average of "
                f"decay {decay:g} looks back: its decay is still warming up (config.ema_decay=0 turns it off)"
            )
    return notes


def split_notes(phases: Sequence[Phase], sizes: Sequence[int]) -> list[str]:
    """A note for each phase that trains on the validation images too. sizes: the images that each trains on."""
    return [
        f"phase {phase.index} trains on all {size} images of train and val, from step {phase.first_step} on: there "
        "validation measures images that were trained on, and chooses nothing"
        for phase, size in zip(phases, sizes, strict=True)
        if phase.split != "train"
    ]


def make_phases(config: ConfigDict, steps_per_epoch: int, with_val: int | None = None) -> tuple[Phase, ...]:
    """The phases of a config: `config.phases`, each a change of the fields of the config itself, or one of those.

    'gradual:<k>' in `config.freeze` is as many phases as there are stages: the last one trains for k epochs, then the
    last two, and so on under one schedule; what is left of `config.epochs` trains everything (fastai's
    `freeze_to(-1)`, `freeze_to(-2)`, ...: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146).
    with_val: steps of an epoch of the training and validation images together; None: as many as of the former alone.
    Raises UserError for a phase that is to continue the schedule of another optimizer.
    """
    phases: list[Phase] = []
    first_step = chain_start = 0
    sections: list[dict[str, Any]] = []  # of the optimizer, as the config has them
    for index, changes in enumerate(config.phases or _gradual(config) or ({},)):
        merged = ConfigDict(config.to_dict())
        with merged.ignore_type():
            merged.update(ConfigDict(changes).to_dict())
        sections.append(merged.optimizer.to_dict())
        if sections[index].pop("schedule_from") == "previous" and index > 0:
            _check_same(index, sections[index], sections[index - 1])
        else:
            chain_start = first_step
        rate = merged.optimizer.learning_rate
        low, high = (rate, rate) if isinstance(rate, int | float) else rate
        with merged.ignore_type():
            merged.optimizer.learning_rate = float(high)
        split = changes.get("split", "train")
        epoch_steps, epochs_from = steps_per_epoch, (0, 0)
        if split != "train":
            epoch_steps, former = with_val or steps_per_epoch, phases[-1] if phases else None
            if former is not None:
                new = former.split != split
                epochs_from = (first_step, math.ceil(former.epoch(first_step))) if new else former.epochs_from
        steps = merged.steps if "steps" in changes else merged.epochs * epoch_steps
        phases.append(
            Phase(
                index=index,
                first_step=first_step,
                last_step=first_step + steps,
                schedule_start=chain_start,
                schedule_steps=0,  # known when all phases are
                freeze=_hashable(merged.freeze),
                optimizer=FrozenConfigDict(merged.optimizer),
                settings=FrozenConfigDict(
                    {
                        "batch_norm": _hashable(merged.batch_norm),
                        "rate_spread": low / high,
                        "weight_decay": merged.optimizer.weight_decay,
                        "ema_decay": merged.ema_decay,
                        **{key: _pairs(merged[key]) for key in ("lr_scale", "weight_decays", "ema_decays")},
                    }
                ),
                split=split,
                epoch_steps=epoch_steps,
                epochs_from=epochs_from,
            )
        )
        first_step += steps
    ends = {phase.schedule_start: phase.last_step for phase in phases}
    return tuple(
        dataclasses.replace(phase, schedule_steps=ends[phase.schedule_start] - phase.schedule_start) for phase in phases
    )


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase whose state a checkpoint of `step` finished steps holds: a boundary belongs to the phase it ends."""
    for phase in phases:
        if step <= phase.last_step:
            return phase
    raise UserError(f"the checkpoint of step {step} lies beyond the {phases[-1].last_step} steps of this config")


def initial_state(recipe: Recipe, variables: Any, key: jax.Array) -> TrainState:
    """The state before the first step. variables: {'params', 'batch_stats'}."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    trainable, _ = recipe.plan.split(params)
    return TrainState(
        step=jax.numpy.zeros((), jax.numpy.int32),
        key=key,
        params=params,
        batch_stats=batch_stats,
        opt_state=recipe.tx.init(trainable),
        average=_fresh_average(recipe.plan, params, batch_stats),
        plateau=optim.plateau_init(),
        loss_scale=loss_scale.fresh(recipe.model.numerics.dtype),
        metrics=StepMetrics.empty(),
    )


def enter_phase(state: TrainState, old: Recipe, new: Recipe) -> TrainState:
    """The state with which a phase begins after another. What is evaluated is the same before and after.

    Moments, counts and averages of the leaves that go on training are kept; those of leaves that begin to train start
    fresh. A leaf that stops takes the value of its moving average, which is the one it was evaluated with, and so do
    the statistics of a stage that stops updating them. Another optimizer starts fresh as a whole, and the plateau
    unless the schedule goes on.
    """
    evaluated = evaluation_variables(state, old.plan)
    trainable, _ = new.plan.split(state.params)
    _, frozen = new.plan.split(evaluated["params"])
    params = new.plan.merge(trainable, frozen)
    batch_stats = evaluated["batch_stats"] | {stage: state.batch_stats[stage] for stage in new.plan.batch_norm_stages}
    opt_state = new.tx.init(trainable)
    if _optimizer_kind(old, state) == _optimizer_kind(new, state):
        carried = _carry_over(*map(optim.counts_by_leaf, (state.opt_state, opt_state)))
        opt_state = optim.counts_together(carried)
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        average=_carry_over(state.average, _fresh_average(new.plan, params, batch_stats)),
        plateau=state.plateau if new.schedule_start == old.schedule_start else optim.plateau_init(),
    )


def _optimizer_kind(recipe: Recipe, state: TrainState) -> str:
    """The structure that the optimizer's state would have if everything trained: tells optimizers apart."""
    return str(jax.tree.structure(jax.eval_shape(recipe.tx.init, state.params)))


def evaluation_variables(state: TrainState, plan: FreezePlan) -> dict[str, Any]:
    """{'params', 'batch_stats'} to evaluate: the moving averages where there are any."""
    params, batch_stats, average = state.params, state.batch_stats, state.average
    if average is None:
        return {"params": params, "batch_stats": batch_stats}
    averaged_stages = {stage: batch_stats[stage] for stage in average["batch_stats"]}
    return {
        "params": plan.merge(average["params"], params),
        "batch_stats": {**batch_stats, **plan.merge(average["batch_stats"], averaged_stages)},
    }


def _fresh_average(plan: FreezePlan, params: Any, batch_stats: Any) -> Any:
    # Copies: the state is donated, and one buffer cannot be donated twice.
    return jax.tree.map(jax.numpy.array, plan.averaged(params, batch_stats))


def _carry_over(old: Any, new: Any) -> Any:
    """`new` with the leaves of `old` at the same paths."""
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: known.get(jax.tree_util.keystr(path), leaf), new)


def _gradual(config: ConfigDict) -> tuple[dict[str, Any], ...]:
    """The phases of 'gradual:<k>', as `config.phases` would have them; none for another strategy."""
    step = gradual_epochs(config.freeze)
    if step is None:
        return ()
    stages = len(models.build(config.model, 1, config.precision).stages)
    left, phases = config.epochs, []
    for trained in range(1, stages + 1):
        epochs = min(step, left) if trained < stages else left
        if epochs > 0:
            freeze = f"last:{trained}" if trained < stages else "none"
            phases.append({"epochs": epochs, "freeze": freeze, "optimizer": {"schedule_from": "previous"}})
        left -= epochs
    return tuple(phases)


def _check_same(index: int, optimizer: dict[str, Any], before: dict[str, Any]) -> None:
    for key, value in optimizer.items():
        if value != before[key]:
            raise UserError(
                f"config.phases[{index}]: optimizer.{key} is {value!r}, but {before[key]!r} in the phase before, whose "
                "schedule it continues: give both the same, or set optimizer.schedule_from to 'start'"
            )


def _pairs(pairs: Sequence[Any]) -> Pairs:
    return tuple((pattern, float(value)) for pattern, value in pairs)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(part if isinstance(part, str) else tuple(part) for part in value)
