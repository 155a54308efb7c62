"""FreezePlan: the one place that knows what is trainable, and what follows from it."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from covidjax.errors import UserError

STRATEGIES = {
    "none": "everything trains",
    "backbone": "all stages but the last are frozen",
    "until:<stage>": "the stages up to and including <stage> are frozen",
    "all_but_norm": "normalisation parameters and the last stage train",
    "all_but_bias": "biases and the last stage train",
}
HOLE = optax.MaskedNode()


@dataclasses.dataclass(frozen=True)
class FreezePlan:
    """Static, hashable description of what trains.

    stages: the network's stages, input first
    leaves: (path, trains, rate factor) of every parameter, the path as in `layer3/block2/conv1/kernel`
    batch_norm_stages: the stages whose BatchNorm runs on, and updates, batch statistics
    normalised_stages: the stages that hold BatchNorm at all
    strategy: the config value that the plan was made from
    """

    strategy: str | tuple[str, ...]
    stages: tuple[str, ...]
    leaves: tuple[tuple[str, bool, float], ...]
    batch_norm_stages: tuple[str, ...]
    normalised_stages: tuple[str, ...]

    @property
    def frozen_prefix(self) -> tuple[str, ...]:
        """The longest run of leading stages with nothing trainable and no drifting statistics."""
        trained = {path.split("/")[0] for path, trains, _ in self.leaves if trains}
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
        return _nested((path, trains) for path, trains, _ in self.leaves)

    def rates(self) -> dict[str, Any]:
        """The tree of learning-rate factors, with holes where a parameter is frozen."""
        return _nested((path, rate if trains else HOLE) for path, trains, rate in self.leaves)

    def split(self, params: Mapping[str, Any]) -> tuple[Any, Any]:
        """The trainable and the frozen tree; each has `optax.MaskedNode` holes where the other has leaves."""
        mask = self.mask()
        trainable = jax.tree.map(lambda trains, leaf: leaf if trains else HOLE, mask, params)
        frozen = jax.tree.map(lambda trains, leaf: HOLE if trains else leaf, mask, params)
        return trainable, frozen

    def merge(self, trainable: Any, frozen: Any) -> Any:
        """The whole tree again: the inverse of `split`."""
        return jax.tree.map(lambda a, b: b if _is_hole(a) else a, trainable, frozen, is_leaf=_is_hole)


def make_plan(
    strategy: str | tuple[str, ...],
    variables: Mapping[str, Any],
    stages: tuple[str, ...],
    *,
    batch_norm: str = "auto",
    lr_scale: tuple[tuple[str, float], ...] = (),
) -> FreezePlan:
    """The plan that a config value describes.

    strategy: a name in STRATEGIES, or regular expressions (`re.search` on the path) of what is frozen.
    variables: {'params': ..., 'batch_stats': ...} of arrays or shapes, keyed by stage.
    batch_norm: 'auto' runs a stage on batch statistics if any of its normalisation parameters train, else on running
        statistics; 'batch' and 'running' say so for all stages.
    lr_scale: (pattern, factor) pairs; the first that matches a path scales its learning rate.
    Raises UserError, listing the stages, for a pattern that matches nothing and a plan that trains nothing.
    """
    paths = tuple("/".join(path) for path in traverse_util.flatten_dict(variables["params"]))
    is_frozen = _frozen_rule(strategy, paths, stages)
    for pattern, _ in lr_scale:
        _check_matches("lr_scale", pattern, paths, stages)
    leaves = tuple((path, not is_frozen(path), _rate(path, lr_scale)) for path in sorted(paths))
    if not any(trains for _, trains, _ in leaves):
        raise UserError(f"freeze {strategy!r} leaves nothing to train: the stages are {', '.join(stages)}")
    normalised = tuple(stage for stage in stages if stage in variables.get("batch_stats", {}))
    if batch_norm == "auto":
        live = {path.split("/")[0] for path, trains, _ in leaves if trains and _is_norm(path)}
        batch_norm_stages = tuple(stage for stage in normalised if stage in live)
    else:
        batch_norm_stages = normalised if batch_norm == "batch" else ()
    strategy = strategy if isinstance(strategy, str) else tuple(strategy)
    return FreezePlan(strategy, tuple(stages), leaves, batch_norm_stages, normalised)


def freeze_table(
    plan: FreezePlan, model: Any, variables: Mapping[str, Any], images: jax.ShapeDtypeStruct, tx: Any
) -> tuple[list[dict[str, Any]], str]:
    """Per stage what it holds and costs, and one sentence on what the plan saves. Nothing is computed on arrays.

    variables: shapes of 'params' and 'batch_stats'; images: shape and dtype of a batch as it enters the network.
    Rows: stage, parameters, trainable, optimizer_bytes, batch_norm ('batch', 'running' or '-'), and FLOPs per step
    counted by XLA in the stage's program before optimisation: forward_flops, backward_flops, and full_backward_flops,
    what the backward pass would cost if everything trained.
    """
    trainable, _ = plan.split(variables["params"])
    rows, flowing, reached, first = [], images, False, True
    for index, stage in enumerate(plan.stages):
        stop = plan.stages[index + 1] if index + 1 < len(plan.stages) else None
        forward = partial(_stage_forward, model, plan, variables.get("batch_stats", {}), stage, stop)
        params, own_trainable = variables["params"][stage], trainable[stage]
        outputs = jax.eval_shape(forward, params, flowing)
        forward_flops = _flops(forward, params, flowing)
        trained = sum(leaf.size for leaf in jax.tree.leaves(own_trainable))
        backward = _backward_flops(forward, params, own_trainable, flowing, outputs, with_input=reached)
        full = backward
        if plan.strategy != "none":
            full = _backward_flops(forward, params, params, flowing, outputs, with_input=not first)
        rows.append(
            {
                "stage": stage,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "trainable": trained,
                "optimizer_bytes": _bytes(jax.eval_shape(tx.init, {stage: own_trainable})) if trained else 0,
                "forward_flops": forward_flops,
                "backward_flops": max(backward - forward_flops, 0.0) if trained or reached else 0.0,
                "full_backward_flops": max(full - forward_flops, 0.0),
                "batch_norm": _batch_norm_mode(plan, stage),
            }
        )
        reached, first, flowing = reached or trained > 0, False, outputs
    return rows, _summary(rows)


def format_table(rows: list[dict[str, Any]], summary: str) -> str:
    """The table of `freeze_table` as text for a terminal."""
    head = ("stage", "parameters", "trainable", "optimizer", "forward", "backward", "BatchNorm")
    body = [
        (
            row["stage"],
            f"{row['parameters']:,}",
            f"{row['trainable']:,}",
            f"{row['optimizer_bytes'] / 2**20:.2f} MiB",
            f"{row['forward_flops'] / 1e9:.3f} GFLOP",
            f"{row['backward_flops'] / 1e9:.3f} GFLOP",
            row["batch_norm"],
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [
        "  ".join(
            f"{cell:<{w}}" if i in (0, 6) else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    ]
    return "\n".join([*lines, summary])


def _stage_forward(
    model: Any, plan: FreezePlan, batch_stats: Mapping[str, Any], stage: str, stop: str | None, params: Any, x: Any
) -> Any:
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch_stats.get(stage, {}))
    own = {"params": {stage: params}, "batch_stats": {stage: zeros} if zeros else {}}
    live = plan.batch_norm_stages
    outputs, _ = model.apply(own, x, start=stage, stop=stop, batch_norm_stages=live, mutable=["batch_stats"])
    return outputs


def _frozen_rule(strategy: Any, paths: tuple[str, ...], stages: tuple[str, ...]) -> Callable[[str], bool]:
    last = stages[-1]
    if isinstance(strategy, str):
        name, _, argument = strategy.partition(":")
        if strategy == "none":
            return lambda path: False
        if strategy == "backbone":
            return lambda path: path.split("/")[0] != last
        if name == "until" and argument:
            if argument not in stages:
                raise UserError(f"freeze {strategy!r}: there is no stage {argument!r}: allowed are {', '.join(stages)}")
            frozen = stages[: stages.index(argument) + 1]
            return lambda path: path.split("/")[0] in frozen
        if strategy == "all_but_norm":
            return lambda path: path.split("/")[0] != last and not _is_norm(path)
        if strategy == "all_but_bias":
            return lambda path: path.split("/")[0] != last and not path.endswith("/bias")
        strategy = (strategy,)
    patterns = tuple(strategy)
    for pattern in patterns:
        _check_matches("freeze", pattern, paths, stages)
    return lambda path: any(re.search(pattern, path) for pattern in patterns)


def _check_matches(name: str, pattern: str, paths: tuple[str, ...], stages: tuple[str, ...]) -> None:
    try:
        matched = any(re.search(pattern, path) for path in paths)
    except (re.error, TypeError) as error:
        raise UserError(f"{name}: {pattern!r} is not a regular expression: {error}") from error
    if not matched:
        known = f"; strategies are {', '.join(STRATEGIES)}" if name == "freeze" else ""
        raise UserError(
            f"{name}: {pattern!r} matches no parameter: the stages are {', '.join(stages)}, "
            f"a path reads like {paths[0]!r}{known}"
        )


def _rate(path: str, lr_scale: tuple[tuple[str, float], ...]) -> float:
    return next((float(factor) for pattern, factor in lr_scale if re.search(pattern, path)), 1.0)


def _is_norm(path: str) -> bool:
    return any("norm" in part for part in path.split("/")[1:-1])


def _is_hole(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _nested(pairs: Any) -> dict[str, Any]:
    return traverse_util.unflatten_dict({tuple(path.split("/")): value for path, value in pairs})


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _flops(function: Callable[..., Any], *arguments: Any) -> float:
    return float((jax.jit(function).lower(*arguments).cost_analysis() or {}).get("flops", 0.0))


def _backward_flops(
    forward: Callable[..., Any], params: Any, trainable: Any, x: Any, outputs: Any, *, with_input: bool
) -> float:
    """FLOPs of forward and backward of one stage, for its trainable parameters and, if asked, its input."""

    def both(trainable: Any, params: Any, x: Any, cotangent: Any) -> Any:
        def of(trainable: Any, x: Any) -> Any:
            merged = jax.tree.map(lambda a, b: b if _is_hole(a) else a, trainable, params, is_leaf=_is_hole)
            return forward(merged, x)

        if with_input:
            value, pullback = jax.vjp(of, trainable, x)
        else:
            value, pullback = jax.vjp(lambda t: of(t, x), trainable)
        return value, pullback(cotangent)

    return _flops(both, trainable, params, x, outputs)


def _batch_norm_mode(plan: FreezePlan, stage: str) -> str:
    if stage not in plan.normalised_stages:
        return "-"
    return "batch" if stage in plan.batch_norm_stages else "running"


def _summary(rows: list[dict[str, Any]]) -> str:
    total, trained = (sum(row[key] for row in rows) for key in ("parameters", "trainable"))
    forward, backward, full = (
        sum(row[key] for row in rows) for key in ("forward_flops", "backward_flops", "full_backward_flops")
    )
    step, full_step = forward + backward, forward + full
    share = f"{trained:,} of {total:,} parameters train"
    if trained == total:
        return f"{share}; a step costs {step / 1e9:.2f} GFLOP"
    return (
        f"{share}; a step costs {step / 1e9:.2f} GFLOP, {step / full_step:.0%} of the {full_step / 1e9:.2f} GFLOP "
        f"of training everything"
    )
