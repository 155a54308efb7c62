"""Parameters and costs of a plan, stage by stage, as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from covidjax import console
from covidjax.freeze import flops
from covidjax.freeze.plan import FreezePlan


def freeze_table(
    plan: FreezePlan,
    model: Any,
    variables: Mapping[str, Any],
    images: jax.ShapeDtypeStruct,
    tx: Any,
    learning_rate: float,
) -> tuple[list[dict[str, Any]], str]:
    """Per stage what it holds and costs, and one sentence on what the plan saves. Nothing is computed on arrays.

    variables: shapes of 'params' and 'batch_stats'; images: shape and dtype of a batch as it enters the network;
    learning_rate: of the optimizer, which a schedule may scale.
    Rows: stage, learning_rates (the lowest and the highest of what trains in it, factors applied; none where it is
    frozen), parameters, trainable, statistics (of BatchNorm, which are no parameters), optimizer_bytes, batch_norm
    ('batch', 'running' or '-'), and FLOPs per step counted by XLA in the stage's program before optimisation:
    forward_flops, backward_flops, and full_backward_flops, what the backward pass would cost if everything trained.
    """
    trainable, _ = plan.split(variables["params"])
    factors = plan.rates()
    rows, flowing, reached = [], images, False
    for index, stage in enumerate(plan.stages):
        stop = plan.stages[index + 1] if index + 1 < len(plan.stages) else None
        statistics = variables.get("batch_stats", {}).get(stage, {})
        forward = flops.stage_forward(model, stage, stop, statistics, plan.batch_norm_stages)
        params, own_trainable = variables["params"][stage], trainable[stage]
        outputs = jax.eval_shape(forward, params, flowing)
        forward_flops = flops.count(forward, params, flowing)
        trained = sum(leaf.size for leaf in jax.tree.leaves(own_trainable))
        backward = flops.with_backward(forward, params, own_trainable, flowing, outputs, with_input=reached)
        full = backward
        if plan.strategy != "none":
            full = flops.with_backward(forward, params, params, flowing, outputs, with_input=index > 0)
        rates = [learning_rate * factor for factor in jax.tree.leaves(factors[stage])]
        slots = jax.tree.leaves(jax.eval_shape(tx.init, {stage: own_trainable}))
        live = "batch" if stage in plan.batch_norm_stages else "running"
        rows.append(
            {
                "stage": stage,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "trainable": trained,
                "statistics": sum(leaf.size for leaf in jax.tree.leaves(statistics)),
                "optimizer_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in slots) if trained else 0,
                "forward_flops": forward_flops,
                "backward_flops": max(backward - forward_flops, 0.0) if trained or reached else 0.0,
                "full_backward_flops": max(full - forward_flops, 0.0),
                "learning_rates": sorted({min(rates), max(rates)}) if rates else [],
                "batch_norm": live if stage in plan.normalised_stages else "-",
            }
        )
        reached, flowing = reached or trained > 0, outputs
    return rows, _summary(rows)


def step_flops(rows: Sequence[Mapping[str, Any]]) -> float:
    """FLOPs of forward and backward pass through the stages of these rows of `freeze_table`."""
    return sum(row["forward_flops"] + row["backward_flops"] for row in rows)


def rates_text(rates: Sequence[float]) -> str:
    """'0.001', of two '1e-05 to 0.001', and '' of none."""
    return " to ".join(f"{rate:.4g}" for rate in rates)


def format_table(rows: list[dict[str, Any]], summary: str) -> str:
    """The table of `freeze_table` as text for a terminal."""
    head = ("stage", "parameters", "trainable", "optimizer", "forward", "backward", "rate", "BatchNorm")
    body = [
        (
            row["stage"],
            f"{row['parameters']:,}",
            f"{row['trainable']:,}",
            f"{row['optimizer_bytes'] / 2**20:.2f} MiB",
            f"{row['forward_flops'] / 1e9:.3f} GFLOP",
            f"{row['backward_flops'] / 1e9:.3f} GFLOP",
            rates_text(row["learning_rates"]) or "-",
            row["batch_norm"],
        )
        for row in rows
    ]
    return f"{console.format_table((head, *body), '<>>>>>><')}\n{summary}"


def _summary(rows: list[dict[str, Any]]) -> str:
    total, trained, statistics = (sum(row[key] for row in rows) for key in ("parameters", "trainable", "statistics"))
    forward, backward, full = (
        sum(row[key] for row in rows) for key in ("forward_flops", "backward_flops", "full_backward_flops")
    )
    step, full_step = forward + backward, forward + full
    share = f"{trained:,} of {total:,} parameters train"
    cost = f"a step costs {step / 1e9:.2f} GFLOP"
    if trained < total:
        cost += f", {step / full_step:.0%} of the {full_step / 1e9:.2f} GFLOP of training everything"
    keras = f"; Keras counts {total + statistics:,}, with the statistics of BatchNorm" if statistics else ""
    return f"{share}; {cost}{keras}"
