"""Optimizers, learning-rate schedules and the plateau rule, as Keras 3 defines them.

`optimizer` in the signatures is the config section of that name, any object with the attributes
name (of OPTIMIZERS), options (of a registered one), learning_rate, momentum and nesterov (sgd only),
beta_1, beta_2 (adam, adamw and adamax), schedule (of SCHEDULES), warmup_epochs (cosine only), pct_start (one_cycle and
fastai_one_cycle), step_epochs and step_factor (step only), weight_decay, clip_norm, plateau_factor, plateau_patience,
plateau_min_delta and plateau_min_learning_rate (plateau only).

A transformation made here gives *unit-rate directions*; the caller moves the parameters, so that the rate can be a
traced value with a static factor per leaf:

    direction, opt_state = tx.update(gradients, opt_state, params)
    params = params - schedule(step) * plateau.scale * factor_of_leaf * direction
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import flax
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from covidjax.errors import UserError
from covidjax.registry import Own, Range, Registry

SCHEDULES = ("constant", "cosine", "step", "one_cycle", "fastai_one_cycle", "plateau")

# The defaults of keras.optimizers (3.15).
RHO = 0.9
EPSILON = 1e-7

# The defaults of torch.optim.lr_scheduler.OneCycleLR.
ONE_CYCLE_INITIAL_DIVISOR = 25.0
ONE_CYCLE_FINAL_DIVISOR = 1e4
ONE_CYCLE_MOMENTA = 0.95, 0.85  # of fastai's `fit_one_cycle`

Schedule = Callable[[ArrayLike], jax.Array]
Made = TypeVar("Made", bound=Callable[..., optax.GradientTransformation])


class Plateau(flax.struct.PyTreeNode):
    """State of the plateau rule: part of the train state and of the checkpoint.

    scale: [] float32, the factor on the rate; best: [] float32, the lowest epoch loss so far; wait: [] int32, epochs
    since then.
    """

    scale: jax.Array
    best: jax.Array
    wait: jax.Array


class AdamState(NamedTuple):
    """Two moments for each leaf, and the counts of steps of all: [leaves] int32, in the order of the tree's leaves.

    Each leaf has its own, so that one that begins to train in a later phase has its own bias correction; together they
    are one array, and all corrections one operation.
    """

    counts: jax.Array
    mu: Any
    nu: Any


class AdamaxState(AdamState):
    """The same with the infinity norm as `nu`; a type of its own, so that no phase takes it for Adam's."""


def learning_rate_schedule(optimizer: Any, total_steps: int, steps_per_epoch: int) -> Schedule:
    """The learning rate of a step, counted from 0, of a phase of `total_steps` steps.

    - 'constant' and 'plateau': `learning_rate`; the plateau's factor is in `Plateau.scale`.
    - 'cosine': linearly from 0 to `learning_rate` over `warmup_epochs`, then half a cosine to 0 at `total_steps`.
    - 'step': times `step_factor` from the first step after each of `step_epochs` finished epochs.
    - 'one_cycle', 'fastai_one_cycle': see `_one_cycle`.

    The result takes Python ints and, under jit, integer arrays, and gives [] float of weak type (it takes the dtype of
    what it multiplies). Raises UserError for a warm-up longer than the phase, and `step_epochs` that do not rise.
    """
    rate = optimizer.learning_rate
    match optimizer.schedule:
        case "constant" | "plateau":
            schedule = optax.constant_schedule(rate)
        case "cosine":
            schedule = _cosine(optimizer, total_steps, steps_per_epoch)
        case "step":
            schedule = _steps(optimizer, steps_per_epoch)
        case "one_cycle" | "fastai_one_cycle":
            low = rate / ONE_CYCLE_INITIAL_DIVISOR
            schedule = _one_cycle(optimizer, total_steps, (low, rate, low / ONE_CYCLE_FINAL_DIVISOR))
        case name:
            raise NotImplementedError(name)
    return lambda step: jnp.asarray(schedule(step))


def _cosine(optimizer: Any, total_steps: int, steps_per_epoch: int) -> Schedule:
    warmup_steps = round(optimizer.warmup_epochs * steps_per_epoch)
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"optimizer.warmup_epochs is {optimizer.warmup_epochs}, {warmup_steps} of {total_steps} steps; it must be "
            "at least 0 and shorter than the phase; lower it or raise epochs"
        )
    if warmup_steps == 0:
        return optax.cosine_decay_schedule(optimizer.learning_rate, total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, optimizer.learning_rate, warmup_steps, total_steps)


def _steps(optimizer: Any, steps_per_epoch: int) -> Schedule:
    epochs = tuple(optimizer.step_epochs)
    if not epochs or min(epochs) < 1 or list(epochs) != sorted(set(epochs)):
        raise UserError(f"optimizer.step_epochs is {epochs}; it must be rising whole epochs from 1; set e.g. (30, 60)")
    factors = {epoch * steps_per_epoch: optimizer.step_factor for epoch in epochs}
    return optax.piecewise_constant_schedule(optimizer.learning_rate, factors)


def momentum_schedule(optimizer: Any, total_steps: int) -> Schedule | None:
    """What takes the place of `beta_1` in a step of 'fastai_one_cycle'; None with another schedule.

    It falls from 0.95 to 0.85 while the rate rises, and rises back.
    """
    if optimizer.schedule != "fastai_one_cycle":
        return None
    high, low = ONE_CYCLE_MOMENTA
    return _one_cycle(optimizer, total_steps, (high, low, high))


def _one_cycle(optimizer: Any, total_steps: int, values: tuple[float, float, float]) -> Schedule:
    """Half a cosine from the first of `values` to the second, then half a cosine to the third.

    Of a rate these are peak / 25, peak and (peak / 25) / 1e4, in PyTorch and in fastai 1 (fastai 2 ends at peak / 1e5).
    'one_cycle': torch.optim.lr_scheduler.OneCycleLR with its two phases and the momentum at rest: the peak is at step
    `pct_start * total_steps - 1`, the end at step `total_steps - 1`. Where torch would put the peak before step 0 (a
    run of a few steps) the cycle starts at its peak.
    'fastai_one_cycle': fastai 1.0.61, `callbacks/one_cycle.py`: the peak is at step `int(pct_start * total_steps)`, and
    the end would be at step `total_steps`, which a run no longer takes.
    """
    first, peak, last = values
    if optimizer.schedule == "one_cycle":
        rise, end = max(optimizer.pct_start * total_steps - 1, 0.0), total_steps - 1
    else:
        rise, end = float(int(optimizer.pct_start * total_steps)), total_steps
    fall = end - rise

    def anneal(start: float, end: float, fraction: ArrayLike) -> jax.Array:
        return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(fraction, 0.0, 1.0))) / 2

    def value(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        rising = anneal(first, peak, step / (rise or 1.0))
        falling = anneal(peak, last, (step - rise) / (fall or 1.0))
        return jnp.where(step < rise, rising, falling)

    return value


def optimizer(config: Any, weight_decays: Any = None) -> optax.GradientTransformationExtraArgs:
    """Clipping, then the rule of `config.name`, then weight decay: gradients to unit-rate directions.

    - Clipping: by the global norm of the tree it is given, so of the trainable leaves only; `clip_norm` 0 is off.
    - Rules: those of keras.optimizers with Keras' default constants, `_scale_by_moments` for adam, adamw and adamax,
      whose `update` takes a `momentum` in the place of `beta_1`, see `momentum_schedule`.
      sgd keeps the momentum of the gradients, while Keras keeps that of `rate * gradient`: the two are equal at a
      constant rate; after a change of rate Keras' velocity still carries the old one, here the new rate holds at once.
    - Weight decay: decoupled for every rule, `variable -= rate * weight_decay * variable`, exactly as in Keras 3 (so
      adam and adamw are the same rule), on leaves with at least two dimensions: kernels, not biases or normalisation
      parameters. weight_decays: a tree of the decay of each leaf; without it `config.weight_decay` is that of all.

    The state has a slot per given leaf and none for an `optax.MaskedNode`; its structure depends on the rule only, not
    on `clip_norm` or `weight_decay`. Leaves keep their dtype.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        OPTIMIZERS.find(config.name, "optimizer.name")(config),
        _decay_weights(config.weight_decay if weight_decays is None else weight_decays),
    )


def register_optimizer(name: str, **ranges: Range) -> Callable[[Made], Made]:
    """Makes a function that gives a transformation an optimizer of that name: a decorator.

    It turns gradients into directions of unit rate, such as `optax.scale_by_lion`: the step multiplies by the learning
    rate, subtracts, and has clipping and weight decay of its own. It is called with `momentum` and `nesterov` of
    `config.optimizer`, if it takes them, and with `config.optimizer.options`, pairs of a parameter and a value.
    ranges: the least and the greatest value of an option.
    Raises UserError for a name that another optimizer has, and for a function that wants the learning rate.
    """

    def register(function: Made) -> Made:
        own = Own(function, ranges)
        if "learning_rate" in own.options:
            raise UserError(
                f"the optimizer {name!r} takes learning_rate, which the step applies itself: register what gives "
                "directions of unit rate, such as optax.scale_by_lion in place of optax.lion"
            )
        OPTIMIZERS.add(name, lambda config: _registered(name, own, config), function)
        return function

    return register


def _registered(name: str, own: Own, config: Any) -> optax.GradientTransformation:
    shared = {"momentum": config.momentum, "nesterov": config.nesterov}
    rule = own.function(**own.keywords("optimizer", config.options, shared))
    if not (hasattr(rule, "init") and hasattr(rule, "update")):
        raise UserError(
            f"the optimizer {name!r} is a {type(rule).__name__}: allowed is an optax.GradientTransformation"
        )
    one = {"kernel": jnp.ones((2, 2))}
    direction, _ = rule.update(one, rule.init(one), one)
    if jnp.sum(direction["kernel"]) < 0:
        raise UserError(
            f"the optimizer {name!r} gives the negative of a direction, and the step subtracts it: leave "
            "optax.scale_by_learning_rate out, or negate what it gives"
        )
    return rule


def _scale_by_moments(config: Any, *, infinity_norm: bool) -> optax.GradientTransformationExtraArgs:
    """Adam, or with `infinity_norm` Adamax, with Keras' place for epsilon.

    Keras adds epsilon before the bias correction: `sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon)`. optax adds
    it after, which for adam is an epsilon smaller by sqrt(1 - b2^t) (32 times at the first step): small gradients then
    take visibly longer steps. For adamax optax adds it to the gradient inside the running maximum.
    """
    moments, beta_2 = AdamaxState if infinity_norm else AdamState, config.beta_2

    def init(params: Any) -> AdamState:
        zeros = optax.tree.zeros_like
        return moments(jnp.zeros(len(jax.tree.leaves(params)), jnp.int32), zeros(params), zeros(params))

    def update(
        gradients: Any, state: AdamState, params: Any = None, *, momentum: jax.Array | None = None, **others: Any
    ) -> tuple[Any, AdamState]:
        del params, others
        beta_1 = config.beta_1 if momentum is None else momentum
        count = optax.safe_increment(state.counts)
        mu = optax.tree.update_moment(gradients, state.mu, beta_1, 1)
        if infinity_norm:
            nu = jax.tree.map(lambda norm, gradient: jnp.maximum(beta_2 * norm, abs(gradient)), state.nu, gradients)
        else:  # no squares that the norm of the gradients has as well: XLA would write them out for both
            nu = jax.tree.map(lambda norm, g: beta_2 * norm + (1 - beta_2) * g * g, state.nu, gradients)

        correction = 1 / (1 - beta_1**count)
        if not infinity_norm:
            correction *= jnp.sqrt(1 - beta_2**count)

        def direction(correction: jax.Array, mean: jax.Array, size: jax.Array) -> jax.Array:
            return mean * correction.astype(mean.dtype) / ((size if infinity_norm else jnp.sqrt(size)) + EPSILON)

        corrections = jax.tree.unflatten(jax.tree.structure(mu), jnp.unstack(correction))
        return jax.tree.map(direction, corrections, mu, nu), moments(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def counts_by_leaf(state: Any) -> Any:
    """A state of `optimizer` with the counts as a tree of the moments' structure, so that a count has a path."""
    return _with_counts(state, lambda adam: jax.tree.unflatten(jax.tree.structure(adam.mu), jnp.unstack(adam.counts)))


def counts_together(state: Any) -> Any:
    """The inverse of `counts_by_leaf`."""
    return _with_counts(state, lambda adam: jnp.stack(jax.tree.leaves(adam.counts)))


def _with_counts(state: Any, counts: Callable[[Any], Any]) -> Any:
    def is_adam(node: Any) -> bool:
        return isinstance(node, AdamState)

    return jax.tree.map(
        lambda node: node._replace(counts=counts(node)) if is_adam(node) else node, state, is_leaf=is_adam
    )


def _momentum(config: Any) -> optax.GradientTransformation:
    if config.momentum == 0:
        return optax.identity()
    return optax.trace(decay=config.momentum, nesterov=config.nesterov)


# Rules by `config.optimizer.name`: from its section to gradients -> directions.
OPTIMIZERS: Registry[Callable[[Any], optax.GradientTransformation]] = Registry(
    "optimizer",
    {
        "adam": partial(_scale_by_moments, infinity_norm=False),
        "adamw": partial(_scale_by_moments, infinity_norm=False),
        "adamax": partial(_scale_by_moments, infinity_norm=True),
        "sgd": _momentum,
        "rmsprop": lambda config: optax.scale_by_rms(decay=RHO, eps=EPSILON, eps_in_sqrt=True),
    },
)


def _decay_weights(weight_decays: Any) -> optax.GradientTransformation:
    """`optax.add_decayed_weights`, but without a state, so that turning it on keeps the structure of the whole.

    weight_decays: a number, or a tree of numbers.
    """

    def decayed(weight_decay: ArrayLike, update: jax.Array, param: jax.Array) -> jax.Array:
        off = param.ndim < 2 or (isinstance(weight_decay, float | int) and weight_decay == 0)
        return update if off else update + weight_decay * param

    def add(updates: Any, params: Any) -> Any:
        decays = weight_decays
        if isinstance(decays, float | int):
            decays = jax.tree.map(lambda leaf: weight_decays, params)
        return jax.tree.map(decayed, decays, updates, params)

    return optax.stateless(add)


def plateau_init() -> Plateau:
    """The state before the first epoch: a scale of 1 and no loss seen."""
    return Plateau(
        scale=jnp.ones((), jnp.float32), best=jnp.full((), jnp.inf, jnp.float32), wait=jnp.zeros((), jnp.int32)
    )


def plateau_update(state: Plateau, epoch_loss: ArrayLike, optimizer: Any) -> Plateau:
    """The state after an epoch, by the rule of Keras' ReduceLROnPlateau (mode 'min', cooldown 0).

    After `plateau_patience` epochs whose loss is not below the best by more than `plateau_min_delta`, the rate falls by
    `plateau_factor`, but not below `plateau_min_learning_rate` (of the base rate, before factors of single leaves).
    epoch_loss: [] float. A NaN or infinite loss is no improvement, also in the first epoch, where Keras would take it
    for the best. With another schedule the state is returned as it is. Works under jit, `optimizer` being static.
    """
    if optimizer.schedule != "plateau":
        return state
    loss = jnp.asarray(epoch_loss, jnp.float32)
    min_scale = jnp.float32(optimizer.plateau_min_learning_rate / optimizer.learning_rate)
    improved = loss + optimizer.plateau_min_delta < state.best
    wait = jnp.where(improved, 0, state.wait + 1)
    reduced = ~improved & (wait >= optimizer.plateau_patience) & (state.scale > min_scale)
    return Plateau(
        scale=jnp.where(reduced, jnp.maximum(state.scale * optimizer.plateau_factor, min_scale), state.scale),
        best=jnp.where(improved, loss, state.best),
        wait=jnp.where(reduced, 0, wait),
    )
