"""A small computation with every operation of the shim beside XLA's, before any network uses them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covidjax.ops.batch_norm import batch_norm
from covidjax.ops.by_platform import Formulation, Geometry, Work, product
from covidjax.ops.convolution import PLAIN
from covidjax.ops.epilogue import add_and_relu
from covidjax.ops.native.convolution import NATIVE, NATIVE_WINOGRAD
from covidjax.ops.pooling import max_pool

TOLERANCE = 1e-4  # of the largest value
CASES = (
    (NATIVE, Geometry((2, 7, 6, 3), (3, 3, 3, 17), (2, 1), ((1, 0), (1, 1)), (1, 1))),
    (NATIVE, Geometry((2, 7, 6, 3), (3, 3, 3, 16), (2, 1), ((1, 0), (1, 1)), (1, 1))),
    (NATIVE, Geometry((2, 7, 6, 16), (3, 3, 1, 16), (1, 1), ((1, 1), (1, 1)), (1, 1))),
    (NATIVE_WINOGRAD, Geometry((2, 9, 6, 16), (3, 3, 16, 48), (1, 1), ((1, 0), (1, 1)), (1, 1))),
    (NATIVE_WINOGRAD, Geometry((2, 9, 6, 16), (3, 3, 16, 32), (2, 2), ((1, 0), (1, 1)), (1, 1))),
)
KINDS = ("outputs", "input gradients", "gradients of the kernel or scale", "bias gradients", "residual gradients")


def wrong() -> str:
    """The first operation that the shim gets wrong, in words; empty if none."""
    # Now, also where somebody asks in the middle of a trace, and in single precision.
    with jax.ensure_compile_time_eval(), jax.enable_x64(False):
        try:
            ours, xlas = (jax.device_get(_values(_arrays(), native=native)) for native in (True, False))
        except jax.errors.JaxRuntimeError as error:
            return " ".join(str(error).split())
    for name, own in ours.items():
        apart = np.abs(own - xlas[name])
        if not np.all(apart <= TOLERANCE * np.abs(xlas[name]).max()):
            return f"the {name} differ by {apart.max():.2g} from XLA's"
    return ""


def _arrays() -> list[list[np.ndarray]]:
    """Of each convolution inputs, kernel, bias and residual; of the maxima inputs and cotangent."""
    random = np.random.default_rng(0)
    every = []
    for _, geometry in CASES:
        features = geometry.kernel[-1]
        shapes = [geometry.inputs, geometry.kernel, (features,), (geometry.inputs[0], *geometry.size, features)]
        every.append([random.standard_normal(shape, np.float32) for shape in shapes])
    return [*every, [random.integers(0, 9, (2, size, 6, 16)).astype(np.float32) for size in (13, 7)]]


@partial(jax.jit, static_argnames="native", compiler_options={"xla_backend_optimization_level": "0"})
def _values(arrays: Any, *, native: bool) -> dict[str, Any]:
    """Outputs and gradients of everything, in one program: compiling several would take longer."""
    *convolutions, (inputs, cotangent) = arrays
    found: dict[str, Any] = {}
    for (formulation, geometry), own in zip(CASES, convolutions, strict=True):
        convolve = partial(_convolution, geometry=geometry, formulation=formulation if native else None)
        found |= _with_gradients(f"of a convolution {geometry.kernel}", convolve, *own)
    _, _, scale, maps = convolutions[-1]

    def normalisation(inputs: Any, scale: Any, bias: Any, residual: Any) -> Any:
        return batch_norm(inputs, scale, bias, bias, 1e-3, residual=residual, relu=True, native=native)[0]

    found |= _with_gradients("of a normalisation", normalisation, maps, scale, scale, maps)
    pool = partial(max_pool, window=(3, 2), strides=(2, 1), padding=((1, 1), (1, 0)), native=native)
    outputs, pullback = jax.vjp(pool, inputs)
    return found | {"maxima": outputs, "gradients of maxima": pullback(cotangent)[0]}


def _convolution(*arrays: Any, geometry: Geometry, formulation: Formulation | None) -> Any:
    if formulation:
        inputs, kernel, *terms = arrays
        return product(inputs, kernel, Work(geometry, formulation, PLAIN), *terms, True)
    return add_and_relu(PLAIN.outputs(arrays[0], arrays[1], geometry), *arrays[2:], relu=True)


def _with_gradients(name: str, function: Any, *arrays: Any) -> dict[str, Any]:
    outputs, pullback = jax.vjp(function, *arrays)
    # Of what is near zero rounding decides whether it is cut off.
    gradients = pullback(jnp.where(outputs > 1e-2, outputs, 0))
    return {f"{kind} {name}": value for kind, value in zip(KINDS, (outputs, *gradients), strict=False)}
