"""Phases: what trains, how fast and for how long, one after the other; and the passage between two."""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from covidjax import optim
from covidjax.errors import UserError
from covidjax.freeze import FreezePlan
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Recipe, averaged_part


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run; steps are counted over the whole run, from 0.

    first_step: its first; last_step: the first that is no longer in it.
    """

    index: int
    first_step: int
    last_step: int
    freeze: str | tuple[str, ...]
    batch_norm: str
    lr_scale: tuple[tuple[str, float], ...]
    optimizer: FrozenConfigDict


def make_phases(config: ConfigDict, steps_per_epoch: int) -> tuple[Phase, ...]:
    """The phases of a config: `config.phases`, each a change of the fields of the config itself, or one of those."""
    phases: list[Phase] = []
    first_step = 0
    for index, changes in enumerate(config.phases or ({},)):
        merged = ConfigDict(config.to_dict())
        with merged.ignore_type():
            merged.update(ConfigDict(changes).to_dict())
        last_step = first_step + merged.epochs * steps_per_epoch
        freeze = merged.freeze if isinstance(merged.freeze, str) else tuple(merged.freeze)
        lr_scale = tuple((pattern, float(factor)) for pattern, factor in merged.lr_scale)
        optimizer = FrozenConfigDict(merged.optimizer)
        phases.append(Phase(index, first_step, last_step, freeze, merged.batch_norm, lr_scale, optimizer))
        first_step = last_step
    return tuple(phases)


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase whose state a checkpoint of `step` finished steps holds: a boundary belongs to the phase it ends."""
    for phase in phases:
        if step <= phase.last_step:
            return phase
    raise UserError(f"the checkpoint of step {step} lies beyond the {phases[-1].last_step} steps of this config")


def initial_state(recipe: Recipe, variables: Any, key: jax.Array) -> TrainState:
    """The state before the first step. variables: {'params', 'batch_stats'}."""
    trainable, _ = recipe.plan.split(variables["params"])
    return TrainState(
        step=jax.numpy.zeros((), jax.numpy.int32),
        key=key,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=recipe.tx.init(trainable),
        average=_fresh_average(recipe, variables["params"], variables.get("batch_stats", {})),
        plateau=optim.plateau_init(),
        metrics=StepMetrics.empty(),
    )


def enter_phase(state: TrainState, old: Recipe, new: Recipe) -> TrainState:
    """The state with which a phase begins after another.

    Moments, counts and averages of the leaves that go on training are kept; those of leaves that begin to train start
    fresh, and those of leaves that stop are dropped. Another optimizer starts fresh as a whole, and so does the
    plateau.
    """
    trainable, _ = new.plan.split(state.params)
    opt_state = new.tx.init(trainable)
    if _optimizer_kind(old, state) == _optimizer_kind(new, state):
        opt_state = _carry_over(state.opt_state, opt_state)
    average = _fresh_average(new, state.params, state.batch_stats)
    if average is not None:
        average = _carry_over(state.average, average)
    return dataclasses.replace(state, opt_state=opt_state, average=average, plateau=optim.plateau_init())


def _optimizer_kind(recipe: Recipe, state: TrainState) -> str:
    """The structure that the optimizer's state would have if everything trained: tells optimizers apart."""
    return str(jax.tree.structure(jax.eval_shape(recipe.tx.init, state.params)))


def evaluation_variables(params: Any, batch_stats: Any, average: Any, plan: FreezePlan) -> dict[str, Any]:
    """{'params', 'batch_stats'} to evaluate: the moving averages where there are any."""
    if average is None:
        return {"params": params, "batch_stats": batch_stats}
    _, frozen = plan.split(params)
    return {"params": plan.merge(average["params"], frozen), "batch_stats": {**batch_stats, **average["batch_stats"]}}


def _fresh_average(recipe: Recipe, params: Any, batch_stats: Any) -> Any:
    if not recipe.ema_decay:
        return None
    trainable, _ = recipe.plan.split(params)
    # Copies: the state is donated, and one buffer cannot be donated twice.
    return jax.tree.map(jax.numpy.array, averaged_part(recipe.plan, trainable, batch_stats))


def _carry_over(old: Any, new: Any) -> Any:
    """`new` with the leaves of `old` at the same paths."""
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: known.get(jax.tree_util.keystr(path), leaf), new)
