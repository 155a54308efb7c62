"""FreezePlan: the one place that knows what is trainable, and what follows from it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import traverse_util

from covidjax.errors import UserError
from covidjax.freeze.strategies import check_matches, is_norm, trained_rule

HOLE = optax.MaskedNode()
BATCH_NORM_MODES = ("auto", "batch", "running")
Pairs = tuple[tuple[str, float], ...]


def is_hole(node: Any) -> bool:
    """Whether a node stands where another tree has a leaf."""
    return isinstance(node, optax.MaskedNode)


class Leaf(NamedTuple):
    """A parameter: its path as in `layer3/block2/conv1/kernel`, and how it trains; all 0 where it does not.

    rate: factor on the learning rate; ema_decay: 0 without a moving average.
    """

    path: str
    trains: bool
    rate: float
    weight_decay: float
    ema_decay: float


class Statistic(NamedTuple):
    """A running statistic that a step updates, and the decay of its moving average (0: none)."""

    path: str
    ema_decay: float


@dataclasses.dataclass(frozen=True)
class FreezePlan:
    """Static, hashable description of what trains. Plans that do the same are equal, whatever they are called.

    strategy: the config value that the plan was made from
    stages: the network's stages, input first
    leaves: every parameter, by path
    statistics: the running statistics of the stages on batch statistics, by path
    batch_norm_stages: the stages whose BatchNorm runs on, and updates, batch statistics
    normalised_stages: the stages that hold BatchNorm at all
    """

    strategy: str | tuple[str, ...] = dataclasses.field(compare=False)
    stages: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    statistics: tuple[Statistic, ...]
    batch_norm_stages: tuple[str, ...]
    normalised_stages: tuple[str, ...]

    @property
    def frozen_prefix(self) -> tuple[str, ...]:
        """The longest run of leading stages with nothing trainable and no drifting statistics."""
        trained = {leaf.path.split("/")[0] for leaf in self.leaves if leaf.trains}
        prefix: list[str] = []
        for stage in self.stages:
            if stage in trained or stage in self.batch_norm_stages:
                break
            prefix.append(stage)
        return tuple(prefix)

    @property
    def first_trained(self) -> str:
        """The stage that follows the frozen prefix."""
        return self.stages[len(self.frozen_prefix)]

    def mask(self) -> dict[str, Any]:
        """The boolean tree, True where a parameter trains, in the form that optax takes."""
        return _nested((leaf.path, leaf.trains) for leaf in self.leaves)

    def rates(self) -> dict[str, Any]:
        """The tree of learning-rate factors, with holes where a parameter is frozen."""
        return _nested((leaf.path, leaf.rate if leaf.trains else HOLE) for leaf in self.leaves)

    def weight_decays(self) -> dict[str, Any]:
        """The tree of weight decays, with holes where a parameter is frozen, as `optim.optimizer` takes it."""
        return _nested((leaf.path, leaf.weight_decay if leaf.trains else HOLE) for leaf in self.leaves)

    def ema_decays(self) -> dict[str, Any] | None:
        """{'params', 'batch_stats'} of the decays of moving averages, with holes where there is none; None without any.

        Averaged weights need averaged statistics: those of the last step do not fit.
        """
        if not any(leaf.ema_decay for leaves in (self.leaves, self.statistics) for leaf in leaves):
            return None
        params, batch_stats = (
            _nested((leaf.path, leaf.ema_decay or HOLE) for leaf in leaves) for leaves in (self.leaves, self.statistics)
        )
        return {"params": params, "batch_stats": batch_stats}

    def averaged(self, params: Any, batch_stats: Any) -> dict[str, Any] | None:
        """The values to average, in the structure of `ema_decays`. params: whole, or the trainable tree."""
        values = {"params": params, "batch_stats": {stage: batch_stats[stage] for stage in self.batch_norm_stages}}
        decays = self.ema_decays()
        if decays is None:
            return None
        return jax.tree.map(lambda decay, leaf: HOLE if is_hole(decay) else leaf, decays, values, is_leaf=is_hole)

    def split(self, params: Mapping[str, Any]) -> tuple[Any, Any]:
        """The trainable and the frozen tree; each has `optax.MaskedNode` holes where the other has leaves."""
        mask = self.mask()
        trainable = jax.tree.map(lambda trains, leaf: leaf if trains else HOLE, mask, params)
        frozen = jax.tree.map(lambda trains, leaf: HOLE if trains else leaf, mask, params)
        return trainable, frozen

    def merge(self, trainable: Any, frozen: Any) -> Any:
        """The whole tree again: the inverse of `split`. Where `trainable` has a hole it is that of `frozen`."""
        return merge(trainable, frozen)


def merge(trainable: Any, frozen: Any) -> Any:
    """One tree of two, the leaves of `frozen` in the holes of `trainable`."""
    return jax.tree.map(lambda a, b: b if is_hole(a) else a, trainable, frozen, is_leaf=is_hole)


def make_plan(
    strategy: str | tuple[str, ...],
    variables: Mapping[str, Any],
    stages: tuple[str, ...],
    *,
    batch_norm: str | tuple[tuple[str, str], ...] = "auto",
    lr_scale: Pairs = (),
    rate_spread: float = 1.0,
    weight_decay: float = 0.0,
    weight_decays: Pairs = (),
    ema_decay: float = 0.0,
    ema_decays: Pairs = (),
) -> FreezePlan:
    """The plan that a config describes.

    strategy: names of `strategies.STRATEGIES` joined with '+', or regular expressions (`re.search` on the path) of
        what is frozen.
    variables: {'params': ..., 'batch_stats': ...} of arrays or shapes, keyed by stage.
    batch_norm: 'auto' runs a stage on batch statistics if any of its normalisation parameters train, else on running
        statistics; 'batch' and 'running' say so for all stages, (stage, mode) pairs for single ones, 'auto' for others.
    lr_scale: (pattern, factor) pairs; the first that matches a path scales its learning rate.
    rate_spread: the rate of the first stage as a part of the last one's; those between are spread geometrically, as
        fastai's `even_mults` does for `slice(low, high)`. It multiplies with lr_scale.
    weight_decays, ema_decays: (pattern, decay) pairs; the first that matches a path holds, else weight_decay and
        ema_decay. The moving averages of statistics go by their own path, such as `layer3/block2/norm1/mean`.
    Raises UserError, listing the stages, for a pattern that matches nothing and a plan that trains nothing.
    """
    paths = _paths(variables["params"])
    trains = trained_rule(strategy, paths, stages)
    statistics = _paths(variables.get("batch_stats", {}))
    named = {"lr_scale": lr_scale, "weight_decays": weight_decays, "ema_decays": ema_decays}
    for name, pattern in ((name, pattern) for name, pairs in named.items() for pattern, _ in pairs):
        check_matches(name, pattern, (*paths, *statistics) if name == "ema_decays" else paths, stages)
    spread = _spread(rate_spread, stages)

    def leaf(path: str) -> Leaf:
        if not trains(path):
            return Leaf(path, False, 0.0, 0.0, 0.0)
        rate = _first_match(path, lr_scale, 1.0) * spread[path.split("/", 1)[0]]
        decays = _first_match(path, weight_decays, weight_decay), _first_match(path, ema_decays, ema_decay)
        return Leaf(path, True, rate, *decays)

    leaves = tuple(leaf(path) for path in paths)
    if not any(leaf.trains for leaf in leaves):
        raise UserError(f"freeze {strategy!r} leaves nothing to train: the stages are {', '.join(stages)}")
    normalised = tuple(stage for stage in stages if stage in variables.get("batch_stats", {}))
    modes = _batch_norm_modes(batch_norm, leaves, normalised)
    live = tuple(stage for stage in normalised if modes[stage] == "batch")
    moving = tuple(
        Statistic(path, _first_match(path, ema_decays, ema_decay)) for path in statistics if path.split("/")[0] in live
    )
    strategy = strategy if isinstance(strategy, str) else tuple(strategy)
    return FreezePlan(strategy, tuple(stages), leaves, moving, live, normalised)


def _paths(tree: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted("/".join(path) for path in traverse_util.flatten_dict(tree)))


def _first_match(path: str, pairs: Pairs, otherwise: float) -> float:
    return next((float(value) for pattern, value in pairs if re.search(pattern, path)), float(otherwise))


def _spread(first: float, stages: tuple[str, ...]) -> dict[str, float]:
    """The rate of each stage as a part of the last one's: first ** (1 - i / (n - 1))."""
    steps = max(len(stages) - 1, 1)
    return {stage: first ** ((len(stages) - 1 - index) / steps) for index, stage in enumerate(stages)}


def _batch_norm_modes(
    batch_norm: str | tuple[tuple[str, str], ...], leaves: tuple[Leaf, ...], normalised: tuple[str, ...]
) -> dict[str, str]:
    """'batch' or 'running' of each stage that holds BatchNorm."""
    asked = dict.fromkeys(normalised, batch_norm) if isinstance(batch_norm, str) else dict(reversed(batch_norm))
    for stage, mode in asked.items():
        if stage not in normalised:
            raise UserError(
                f"batch_norm: {stage!r} is no stage with BatchNorm: allowed are {', '.join(normalised) or 'none here'}"
            )
        if mode not in BATCH_NORM_MODES:
            raise UserError(f"batch_norm: {mode!r} of {stage!r}: allowed are {', '.join(BATCH_NORM_MODES)}")
    trained = {leaf.path.split("/")[0] for leaf in leaves if leaf.trains and is_norm(leaf.path)}
    automatic = {stage: "batch" if stage in trained else "running" for stage in normalised}
    return automatic | {stage: mode for stage, mode in asked.items() if mode != "auto"}


def _nested(pairs: Any) -> dict[str, Any]:
    return traverse_util.unflatten_dict({tuple(path.split("/")): value for path, value in pairs})
