"""A small computation with every operation of the shim beside XLA's, before any network uses them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covidjax.ops.by_platform import Geometry
from covidjax.ops.convolution import PLAIN
from covidjax.ops.epilogue import followed
from covidjax.ops.native.convolution import NATIVE, fused

TOLERANCE = 1e-4  # of the largest value
GEOMETRY = Geometry((2, 7, 6, 3), (3, 3, 3, 17), (2, 1), ((1, 0), (1, 1)), (1, 1))


def wrong() -> str:
    """What the shim gets wrong, or nothing."""
    random = np.random.default_rng(0)
    shapes = [GEOMETRY.inputs, GEOMETRY.kernel, (17,), (2, *GEOMETRY.size, 17)]
    arrays = [random.standard_normal(shape, np.float32) for shape in shapes]
    # Now, also where somebody asks in the middle of a trace, and in single precision.
    with jax.ensure_compile_time_eval(), jax.enable_x64(False):
        try:
            ours, xlas = (jax.device_get(_values(*arrays, native=native)) for native in (True, False))
        except jax.errors.JaxRuntimeError as error:
            return " ".join(str(error).split())
    for name, own in ours.items():
        if not np.allclose(own, xlas[name], rtol=0, atol=TOLERANCE * np.abs(xlas[name]).max()):
            return f"the {name} of a convolution differ by {np.abs(own - xlas[name]).max():.2g} from XLA's"
    return ""


@partial(jax.jit, static_argnames="native")
def _values(inputs: Any, kernel: Any, bias: Any, residual: Any, native: bool) -> dict[str, Any]:
    """Outputs and gradients."""

    def convolve(*arrays: Any) -> Any:
        if native:
            return fused(*arrays, GEOMETRY, True, NATIVE, PLAIN)
        outputs = PLAIN.outputs(arrays[0], arrays[1], GEOMETRY)
        return followed(outputs, *arrays[2:], relu=True)

    outputs, pullback = jax.vjp(convolve, inputs, kernel, bias, residual)
    cotangent = jnp.sin(1 + jnp.arange(outputs.size, dtype=outputs.dtype)).reshape(outputs.shape)
    names = ("input gradients", "kernel gradients", "bias gradients", "residual gradients")
    return {"outputs": outputs, **dict(zip(names, pullback(cotangent), strict=True))}
