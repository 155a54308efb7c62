"""Where a classifier looks: Grad-CAM of any stage, integrated gradients, and occlusion. Pure functions of arrays.

None of them knows what was frozen: the gradient is that of activations or pixels, never of parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from covidjax.errors import UserError
from covidjax.losses import at_least_float32
from covidjax.mesh import by_example, replicated
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing

METHODS = ("grad_cam", "integrated_gradients", "occlusion")
STEPS = 32  # of the path of integrated gradients
PATCHES = 8  # along a side of the image, of occlusion

Explain = Callable[[Any, Any, Any], jax.Array]


def grad_cam(
    model: Staged, preprocessing: Preprocessing, variables: Any, images: jax.Array, classes: jax.Array, stage: str
) -> jax.Array:
    """The class activation map of Grad-CAM on what leaves a stage (Selvaraju et al. 2017, arXiv 1610.02391, eq. 1, 2).

    images: [batch, height, width, channels], values 0 to 255, of the dtype of the parameters; classes: [batch] int.
    Returns [batch, rows, columns] of at least float32, at least 0, in the unit of a logit: the size of the stage's map.
    Raises UserError for a stage without a map, such as the last.
    """
    following = _following(model, stage)
    flowing = model.apply(variables, preprocessing(images), stop=following)
    if not isinstance(flowing, jax.Array) or flowing.ndim != 4:
        raise UserError(
            f"what leaves the stage {stage!r} is no map [height, width, features]: choose another stage or method"
        )

    def score(flowing: jax.Array) -> jax.Array:
        return _chosen(model.apply(variables, flowing, start=following), classes).sum()

    weights = jnp.mean(at_least_float32(jax.grad(score)(flowing)), axis=(1, 2))
    return jax.nn.relu(jnp.einsum("bhwf,bf->bhw", at_least_float32(flowing), weights, precision="highest"))


def integrated_gradients(
    model: Staged, preprocessing: Preprocessing, variables: Any, images: jax.Array, classes: jax.Array
) -> jax.Array:
    """What each pixel adds to the logit, on the way from a black image (Sundararajan et al. 2017, arXiv 1703.01365).

    Arguments as those of `grad_cam` -> [batch, height, width] of either sign, in the unit of a logit. Its sum is the
    logit less that of the black image, but for the error of the sum over `STEPS` midpoints in place of the integral.
    """

    def score(images: jax.Array) -> jax.Array:
        return _chosen(model.apply(variables, preprocessing(images)), classes).sum()

    def add(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
        return total + jax.grad(score)(part * images), None

    parts = (jnp.arange(STEPS, dtype=images.dtype) + 0.5) / STEPS
    total, _ = lax.scan(add, jnp.zeros_like(images), parts)
    return jnp.sum(total / STEPS * images, axis=-1)


def occlusion(
    model: Staged, preprocessing: Preprocessing, variables: Any, images: jax.Array, classes: jax.Array
) -> jax.Array:
    """What the logit loses when a patch of the image is gray (Zeiler and Fergus 2014, arXiv 1311.2901, 4.2).

    Arguments as those of `grad_cam` -> [batch, 8, 8] of either sign, in the unit of a logit. A patch is an eighth of a
    side long and has the mean of its image; the patches do not overlap.
    """
    height, width = images.shape[1:3]
    rows, columns = (jnp.arange(length) * PATCHES // length for length in (height, width))
    gray = jnp.mean(images, axis=(1, 2), keepdims=True)

    def score(images: jax.Array) -> jax.Array:
        return _chosen(model.apply(variables, preprocessing(images)), classes)

    def loss(patch: jax.Array) -> jax.Array:
        inside = (rows[:, None] == patch // PATCHES) & (columns == patch % PATCHES)
        return whole - score(jnp.where(inside[..., None], gray, images))

    whole = score(images)
    losses = lax.map(loss, jnp.arange(PATCHES**2))
    return losses.T.reshape(-1, PATCHES, PATCHES)


def last_map(model: Staged) -> str:
    """The stage before the last, where a classifier's map is smallest and means most."""
    if len(model.stages) < 2:
        raise UserError("the network is one stage: there is no map before its logits")
    return model.stages[-2]


def make_explain(model: Staged, preprocessing: Preprocessing, mesh: Mesh, method: str, stage: str) -> Explain:
    """The compiled method: (variables, images [batch, height, width, channels] uint8, classes [batch] int) -> its maps.

    stage: of Grad-CAM; the other methods have none. Raises UserError for an unknown method or stage.
    """
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}: allowed are {', '.join(METHODS)}")
    found = {"integrated_gradients": integrated_gradients, "occlusion": occlusion}
    _following(model, stage)
    function = found.get(method, partial(grad_cam, stage=stage))

    def explain(variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        return function(model, preprocessing, variables, images.astype(model.numerics.param_dtype), classes)

    parts = by_example(mesh)
    return jax.jit(explain, in_shardings=(replicated(mesh), parts, parts), out_shardings=parts)


def share_inside(maps: Any, masks: Any) -> jax.Array:
    """The part of what a map has above 0 that lies inside a mask: [n], NaN where it has nothing there.

    maps, masks: [n, height, width]; a mask is above 0 inside.
    """
    mass = jnp.maximum(jnp.asarray(maps), 0)
    return jnp.sum(mass * (jnp.asarray(masks) > 0), axis=(1, 2)) / jnp.sum(mass, axis=(1, 2))


def _chosen(logits: Any, classes: jax.Array) -> jax.Array:
    """The logit of the class of each example, [batch], of at least float32."""
    return jnp.take_along_axis(at_least_float32(logits), classes[:, None], axis=1)[:, 0]


def _following(model: Staged, stage: str) -> str:
    """The stage after one. Raises UserError for the last one, and for one that is none."""
    able = model.stages[:-1]
    if stage not in able:
        raise UserError(f"there is no map behind a stage {stage!r}: the stages are {', '.join(able)}")
    return model.stages[able.index(stage) + 1]
