"""A small computation with every operation of the shim beside XLA's, before any network uses them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covidjax.ops.by_platform import Geometry
from covidjax.ops.epilogue import followed
from covidjax.ops.native import batch_norm as norms
from covidjax.ops.native import convolution as convolutions
from covidjax.ops.native import pooling

TOLERANCE = 1e-4  # of the largest value
GEOMETRY = Geometry((2, 7, 6, 3), (3, 3, 3, 17), (2, 1), ((1, 0), (1, 1)), (1, 1))


def wrong() -> str:
    """What the shim gets wrong, or nothing."""
    random = np.random.default_rng(0)
    shapes = [GEOMETRY.inputs, GEOMETRY.kernel, (17,), (2, *GEOMETRY.size, 17), (17,), (17,)]
    arrays = [random.standard_normal(shape, np.float32) for shape in shapes]
    with jax.enable_x64(False):
        try:
            ours, xlas = (jax.device_get(_values(*arrays, native=native)) for native in (True, False))
        except jax.errors.JaxRuntimeError as error:
            return " ".join(str(error).split())
    for name, own in ours.items():
        for first, second in zip(jax.tree.leaves(own), jax.tree.leaves(xlas[name]), strict=True):
            if not np.allclose(first, second, rtol=0, atol=TOLERANCE * np.abs(second).max()):
                return f"{name} differs by {np.abs(first - second).max():.2g} from XLA's"
    return ""


@partial(jax.jit, static_argnames="native")
def _values(
    inputs: Any, kernel: Any, bias: Any, residual: Any, scale: Any, shift: Any, native: bool
) -> dict[str, Any]:
    """Outputs and gradients of each operation."""
    from covidjax.ops.batch_norm import plain as plain_norm  # noqa: PLC0415 (these choose the operations of here)
    from covidjax.ops.convolution import PLAIN  # noqa: PLC0415
    from covidjax.ops.pooling import plain as plain_pool  # noqa: PLC0415

    def convolve(inputs: Any, kernel: Any, bias: Any, residual: Any) -> Any:
        if native:
            return convolutions.convolution(inputs, kernel, bias, residual, GEOMETRY, True, PLAIN)
        return followed(PLAIN.outputs(inputs, kernel, GEOMETRY), bias, residual, relu=True)

    def normalise(residual: Any, scale: Any, shift: Any) -> Any:
        plain = partial(plain_norm, epsilon=1e-3, relu=True)
        if native:
            return norms.batch_norm(residual, scale, shift, -residual / 2, 1e-3, True, plain)[0]
        return plain(residual, scale, shift, -residual / 2)[0]

    def pool(residual: Any) -> Any:
        window: Any = ((2, 2), (2, 1), ((0, 0), (1, 0)))
        return pooling.max_pool(residual, *window, partial(plain_pool, window=window[0], strides=window[1], padding=window[2])) if native else plain_pool(residual, *window)

    def both(function: Any, *arguments: Any) -> Any:
        outputs, pullback = jax.vjp(function, *arguments)
        return outputs, pullback(jnp.sin(1 + jnp.arange(outputs.size, dtype=outputs.dtype)).reshape(outputs.shape))

    return {
        "convolution": both(convolve, inputs, kernel, bias, residual),
        "batch normalisation": both(normalise, residual, scale, shift),
        "maximum pooling": both(pool, residual),
    }
