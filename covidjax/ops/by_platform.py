"""Products of inputs and a kernel that are written differently for different platforms, with their gradients."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from covidjax.ops.epilogue import add_and_relu


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Shapes, strides, padding and dilation of a two-dimensional convolution.

    inputs: shape [batch, height, width, in_features]; kernel: shape [height, width, in_features, features], or
    [height, width, 1, in_features] of a depthwise one;
    padding: before and after, of height and width; dilation: the distance of neighbouring taps in the input.
    """

    inputs: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    @property
    def depthwise(self) -> bool:
        """Whether each feature is convolved by itself."""
        return self.kernel[2] == 1 < self.inputs[3]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output."""
        rows, columns = (
            (self.inputs[1 + axis] + sum(self.padding[axis]) - self.dilation[axis] * (self.kernel[axis] - 1) - 1)
            // self.strides[axis]
            + 1
            for axis in range(2)
        )
        return rows, columns


Optional = jax.Array | None
Product = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Formulation:
    """One way to compute a product that is linear in both arrays.

    outputs: (inputs, kernel) -> outputs; input_gradient: (cotangent, kernel) -> of the shape of inputs;
    kernel_gradient: (cotangent, inputs) -> of the shape of kernel. All take the geometry last.
    fuses: `outputs` takes bias, residual and relu behind the geometry: what follows goes into the same operation.
    """

    outputs: Product
    input_gradient: Product
    kernel_gradient: Product
    fuses: bool = False


@dataclasses.dataclass(frozen=True)
class Work:
    """A convolution to compute: its geometry, and its formulations where the program is for a CPU and elsewhere.

    on_tpu: where it is for a TPU, if that is another one.
    """

    geometry: Geometry
    on_cpu: Formulation
    elsewhere: Formulation
    on_tpu: Formulation | None = None


def transpose(linear: Callable[[Any], jax.Array], shape: tuple[int, ...], cotangent: jax.Array) -> jax.Array:
    """The gradient of a linear function of an array [*shape], which needs no forward pass."""
    (gradient,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, cotangent.dtype))(cotangent)
    return gradient


def transposed(outputs: Product) -> Formulation:
    """The formulation whose gradients JAX derives."""

    def input_gradient(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
        return transpose(lambda inputs: outputs(inputs, kernel, geometry), geometry.inputs, cotangent)

    def kernel_gradient(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        return transpose(lambda kernel: outputs(inputs, kernel, geometry), geometry.kernel, cotangent)

    return Formulation(outputs, input_gradient, kernel_gradient)


def after(cotangent: jax.Array, inputs: jax.Array) -> jax.Array:
    """The inputs, as something that XLA cannot compute before the cotangent. Both: [batch, ...].

    XLA:CPU orders a program by the names of its operations where it finds nothing better, and would transform the
    inputs of the backward pass during the forward pass and keep the results, several times as large as the inputs.
    It drops optimization barriers before it orders. No absolute value is below -1, nor is NaN: XLA does not know.
    Example by example, so that devices that share a batch need not tell each other anything.
    """
    first = cotangent[(slice(None), *(slice(0, 1),) * (inputs.ndim - 1))]
    return jnp.where(jnp.abs(first) < -1, jnp.zeros_like(inputs), inputs)


def kernel_after(cotangent: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same for a kernel, which all examples share; where there are several devices, the kernel as it is.

    They would have to tell each other the first example's cotangent, in every layer.
    """
    if jax.device_count() > 1:
        return kernel
    return jnp.where(jnp.abs(cotangent[(0,) * cotangent.ndim]) < -1, jnp.zeros_like(kernel), kernel)


@partial(jax.custom_vjp, nondiff_argnums=(2, 5))
def product(
    inputs: jax.Array,
    kernel: jax.Array,
    work: Work,
    bias: Optional = None,
    residual: Optional = None,
    relu: bool = False,
) -> jax.Array:
    """`relu(product + bias + residual)` in the formulation of the platform that the program is lowered for.

    bias: [features] or None; residual: as the outputs, or None; with any of these and relu, work.on_cpu has to fuse.
    `lax.platform_dependent` and not `jax.default_backend()`: a program can be lowered ahead of time for a platform
    that is not there, or run on CPU devices of a machine whose default is a GPU; both are known when JAX lowers, and
    only the chosen branch reaches the compiler. It stands inside of the derivative rules because a branch that is
    differentiated from outside has to hand over the residuals of all branches.
    """
    if bias is None and residual is None and not relu:
        return on_platform("outputs", inputs, kernel, work)

    def fused(inputs: jax.Array, kernel: jax.Array, *terms: Optional) -> jax.Array:
        return work.on_cpu.outputs(inputs, kernel, work.geometry, *terms, relu)

    def library(inputs: jax.Array, kernel: jax.Array, *terms: Optional) -> jax.Array:
        return add_and_relu(work.elsewhere.outputs(inputs, kernel, work.geometry), *terms, relu=relu)

    return lax.platform_dependent(inputs, kernel, bias, residual, cpu=fused, default=library)


def _product_forward(inputs: Any, kernel: Any, work: Work, bias: Any, residual: Any, relu: bool) -> Any:
    """Keeps of each array what the gradient of the other needs; nothing for a gradient that nobody wants."""
    terms = [None if term is None else term.value for term in (bias, residual)]
    outputs = product(inputs.value, kernel.value, work, *terms, relu)
    wanted = tuple(() if term is not None and term.perturbed else None for term in (bias, residual))
    kept_inputs, kept_kernel = inputs.value if kernel.perturbed else None, kernel.value if inputs.perturbed else None
    return outputs, (kept_inputs, kept_kernel, outputs if relu else None, wanted)


def _product_backward(work: Work, relu: bool, kept: Any, cotangent: Any) -> tuple[Optional, ...]:
    inputs, kernel, outputs, (bias_wanted, residual_wanted) = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None, None, None
    if relu:
        cotangent = jnp.where(outputs > 0, cotangent, 0)
    return (
        None if kernel is None else on_platform("input_gradient", cotangent, kernel, work),
        None if inputs is None else on_platform("kernel_gradient", cotangent, inputs, work),
        None if bias_wanted is None else jnp.sum(cotangent, (0, 1, 2)),
        None if residual_wanted is None else cotangent,
    )


product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


# Jitted, so that calls from outside of a jitted function do not run transform by transform.
@partial(jax.jit, static_argnames=("direction", "work"))
def on_platform(direction: str, first: jax.Array, second: jax.Array, work: Work) -> jax.Array:
    """A direction, named as in `Formulation`, in the way of the platform that the program is lowered for."""
    here, elsewhere, tpu = (
        partial(getattr(way, direction), geometry=work.geometry)
        for way in (work.on_cpu, work.elsewhere, work.on_tpu or work.elsewhere)
    )
    return lax.platform_dependent(first, second, cpu=here, tpu=tpu, default=elsewhere)
