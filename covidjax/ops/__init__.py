"""Operations of the networks: one public function each, in the formulation that is fastest on the platform."""

from covidjax.ops.batch_norm import affine, batch_norm, batch_statistics, normalise
from covidjax.ops.convolution import convolution, dense, transposed_convolution
from covidjax.ops.epilogue import KEPT, add_and_relu, gelu
from covidjax.ops.pooling import global_average_pool, global_max_pool, max_pool

__all__ = [
    "KEPT",
    "add_and_relu",
    "affine",
    "batch_norm",
    "batch_statistics",
    "convolution",
    "dense",
    "gelu",
    "global_average_pool",
    "global_max_pool",
    "max_pool",
    "normalise",
    "transposed_convolution",
]
