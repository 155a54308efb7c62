"""A small computation with every operation of the shim beside XLA's, before any network uses them."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covidjax.ops.by_platform import Formulation, Geometry
from covidjax.ops.convolution import PLAIN
from covidjax.ops.epilogue import followed
from covidjax.ops.native.convolution import NATIVE, NATIVE_WINOGRAD, fused
from covidjax.ops.pooling import max_pool

TOLERANCE = 1e-4  # of the largest value
CASES = (
    (NATIVE, Geometry((2, 7, 6, 3), (3, 3, 3, 17), (2, 1), ((1, 0), (1, 1)), (1, 1))),
    (NATIVE, Geometry((2, 7, 6, 3), (3, 3, 3, 16), (2, 1), ((1, 0), (1, 1)), (1, 1))),
    (NATIVE_WINOGRAD, Geometry((2, 9, 6, 16), (3, 3, 16, 48), (1, 1), ((1, 0), (1, 1)), (1, 1))),
)


def wrong() -> str:
    """What the shim gets wrong, or nothing."""
    # Now, also where somebody asks in the middle of a trace, and in single precision.
    with jax.ensure_compile_time_eval(), jax.enable_x64(False):
        try:
            return next(filter(None, itertools.starmap(_wrong_convolution, CASES)), "") or _wrong_maxima()
        except jax.errors.JaxRuntimeError as error:
            return " ".join(str(error).split())


def _wrong_convolution(formulation: Formulation, geometry: Geometry) -> str:
    random = np.random.default_rng(0)
    features = geometry.kernel[-1]
    outputs = (geometry.inputs[0], *geometry.size, features)
    shapes = [geometry.inputs, geometry.kernel, (features,), outputs, outputs]
    arrays = [random.standard_normal(shape, np.float32) for shape in shapes]
    ours, xlas = (jax.device_get(_values(*arrays, geometry, own)) for own in (formulation, None))
    for name, own in ours.items():
        if not np.allclose(own, xlas[name], rtol=0, atol=TOLERANCE * np.abs(xlas[name]).max()):
            return f"the {name} of a convolution differ by {np.abs(own - xlas[name]).max():.2g} from XLA's"
    return ""


@partial(jax.jit, static_argnames=("geometry", "formulation"))
def _values(
    inputs: Any,
    kernel: Any,
    bias: Any,
    residual: Any,
    cotangent: Any,
    geometry: Geometry,
    formulation: Formulation | None,
) -> dict[str, Any]:
    """Outputs and gradients, of XLA's where there is no formulation."""

    def convolve(*arrays: Any) -> Any:
        if formulation:
            return fused(*arrays, geometry, True, formulation, PLAIN)
        outputs = PLAIN.outputs(arrays[0], arrays[1], geometry)
        return followed(outputs, *arrays[2:], relu=True)

    outputs, pullback = jax.vjp(convolve, inputs, kernel, bias, residual)
    # Of what is near zero rounding decides whether it is cut off.
    cotangent = jnp.where(outputs > 1e-2, cotangent, 0)
    names = ("input gradients", "kernel gradients", "bias gradients", "residual gradients")
    return {"outputs": outputs, **dict(zip(names, pullback(cotangent), strict=True))}


def _wrong_maxima() -> str:
    random = np.random.default_rng(0)
    inputs, cotangent = (random.integers(0, 9, (2, size, 6, 16)).astype(np.float32) for size in (13, 7))
    pool = partial(max_pool, window=(3, 2), strides=(2, 1), padding=((1, 1), (1, 0)))

    def values(native: bool) -> Any:
        outputs, pullback = jax.vjp(partial(pool, native=native), inputs)
        return jax.device_get((outputs, *pullback(cotangent)))

    (ours, own), (xlas, other) = values(True), values(False)
    if np.any(ours != xlas):
        return "the maxima differ from XLA's"
    return "" if np.all(np.abs(own - other) < TOLERANCE * 9) else "the gradients of maxima differ from XLA's"
