"""A small convolutional network for any input size and number of channels."""

import flax.linen as nn
import jax

from covidjax import ops
from covidjax.models.layers import BatchNorm, Conv, Head, Module, Staged, he_normal

NORMALISATIONS = ("batch", "none")


class Block(Module):
    """3x3 convolution, BatchNorm, ReLU, and a 2x2 maximum where the map is still larger than one position.

    Without normalisation the convolution is as Keras makes it: with a bias, initialised by Glorot and Bengio 2010.
    """

    features: int
    normalisation: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height // 2, width // 2, features]."""
        normalised = self.normalisation == "batch"
        kernel_init = he_normal if normalised else nn.initializers.glorot_uniform()
        conv = Conv(
            self.features,
            3,
            padding=1,
            use_bias=not normalised,
            kernel_init=kernel_init,
            numerics=self.numerics,
            name="conv",
        )
        if normalised:
            norm = BatchNorm(numerics=self.numerics, name="norm")
            x = norm(x, conv=conv, use_batch_statistics=use_batch_statistics, relu=True)
        else:
            x = conv(x, relu=True)
        return ops.max_pool(x, window=(2, 2), strides=(2, 2)) if min(x.shape[1:3]) > 1 else x


class CNN(Staged):
    """Stages `block1 .. blockN, head`; the width doubles with each block."""

    num_classes: int
    width: int = 16
    num_blocks: int = 4
    normalisation: str = "batch"
    dropout: float = 0.0
    pooling: str = "average"
    normalised_features: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return (*(f"block{number}" for number in range(1, self.num_blocks + 1)), "head")

    def setup(self) -> None:
        """One submodule a stage."""
        for index in range(self.num_blocks):
            setattr(self, f"block{index + 1}", Block(self.width * 2**index, self.normalisation, numerics=self.numerics))
        self.head = Head(self.num_classes, self.dropout, self.pooling, self.normalised_features, numerics=self.numerics)
