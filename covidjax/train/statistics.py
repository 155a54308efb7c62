"""How many values stand behind each statistic of a training step."""

from functools import partial
from typing import Any

import jax
from flax import linen as nn

from covidjax.errors import UserError
from covidjax.models.layers import BatchNorm
from covidjax.train.step import Recipe, train_forward


def check_batch_statistics(recipe: Recipe, variables: Any, images: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Refuses a step in which a BatchNorm takes its statistics of one value a channel.

    That variance is 0: the layer puts out its bias alone, and its running variance decays to nothing, so that
    validation fails where training does not.
    images: [batch, height, width, channels], as many as share their statistics. Returns the shape of their logits.
    Raises UserError.
    """
    alone: list[str] = []

    def counted(layer: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = layer(*args, **kwargs)
        if isinstance(context.module, BatchNorm) and kwargs.get("use_batch_statistics"):
            alone.extend(["/".join(context.module.path)] if outputs.size == outputs.shape[-1] else [])
        return outputs

    with nn.intercept_methods(counted):
        statistics = variables.get("batch_stats", {})
        logits, _ = jax.eval_shape(
            partial(train_forward, recipe), variables["params"], statistics, images, jax.random.key(0)
        )
    if alone:
        names = alone[0] + (f" and {len(alone) - 1} more" if len(alone) > 1 else "")
        count, height, width, _ = images.shape
        raise UserError(
            f"BatchNorm {names} has 1 value a channel for its variance ({count} image of {height} x {width} pixels at "
            f"a time): use at least 2 images in each part of a batch (config.batch_size), larger images "
            f"(config.dataset.image_size), or config.batch_norm='running'"
        )
    shape: tuple[int, ...] = logits.shape
    return shape
