"""The rules of the optimizers: gradients to directions of unit rate."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from covidjax.errors import UserError
from covidjax.registry import Own, Range, Registry

# The defaults of keras.optimizers (3.15).
RHO = 0.9
EPSILON = 1e-7

Made = TypeVar("Made", bound=Callable[..., optax.GradientTransformation])


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
