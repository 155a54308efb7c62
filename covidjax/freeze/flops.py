"""Floating-point operations of a stage, by XLA's count of its program before optimisation. Nothing is computed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from covidjax.freeze.plan import merge

Forward = Callable[[Any, Any], Any]


def stage_forward(
    model: Any, stage: str, stop: str | None, batch_stats: Mapping[str, Any], batch_norm_stages: tuple[str, ...]
) -> Forward:
    """(params of the stage, what flows in) -> what flows out. batch_stats: shapes of the stage's statistics."""

    def forward(params: Any, x: Any) -> Any:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch_stats)
        own = {"params": {stage: params}, "batch_stats": {stage: zeros} if zeros else {}}
        outputs, _ = model.apply(
            own, x, start=stage, stop=stop, batch_norm_stages=batch_norm_stages, mutable=["batch_stats"]
        )
        return outputs

    return forward


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of a call on arguments of these shapes, of convolutions as they are defined.

    Lowered for a platform where they stay convolutions, so that the figure does not depend on the formulation that is
    fastest here: on a CPU some take a quarter of the multiplications.
    """
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def with_backward(forward: Forward, params: Any, trainable: Any, x: Any, outputs: Any, *, with_input: bool) -> float:
    """FLOPs of forward and backward of one stage, for its trainable parameters and, if asked, its input.

    trainable: `params` with `optax.MaskedNode` holes; outputs: shapes of what flows out.
    """

    def both(trainable: Any, params: Any, x: Any, cotangent: Any) -> Any:
        def of(trainable: Any, x: Any) -> Any:
            return forward(merge(trainable, params), x)

        value, pullback = jax.vjp(of, trainable, x) if with_input else jax.vjp(lambda t: of(t, x), trainable)
        return value, pullback(cotangent)

    return count(both, trainable, params, x, outputs)
