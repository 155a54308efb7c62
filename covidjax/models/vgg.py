"""VGG-16, configuration D of Simonyan and Zisserman 2014 (arXiv 1409.1556)."""

import flax.linen as nn
import jax

from covidjax import ops
from covidjax.errors import UserError
from covidjax.models.layers import Conv, Dense, Module, Staged, pool, scaled_unit_features

# block: (features, number of convolutions)
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
HIDDEN: dict[str, tuple[int, ...]] = {"original": (4096, 4096), "paper": (1024, 1024), "pooled": ()}
ORIGINAL_DROPOUT = 0.5


class Block(Module):
    """3x3 convolutions `conv1 .. convN` with bias and ReLU, then a 2x2 maximum."""

    features: int
    num_convs: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height // 2, width // 2, features]."""
        for number in range(1, self.num_convs + 1):
            conv = Conv(self.features, 3, padding=1, use_bias=True, numerics=self.numerics, name=f"conv{number}")
            x = conv(x, relu=True)
        return ops.max_pool(x, window=(2, 2), strides=(2, 2))


class Head(Module):
    """Flatten, hidden dense layers with ReLU and dropout, a dense layer to the logits; all are `dense1 .. denseN`.

    Without hidden layers the last map is averaged, with dropout, in place of flattened.
    normalised_features: what the last takes is `scaled_unit_features`.
    """

    num_classes: int
    hidden: tuple[int, ...]
    dropout: float
    normalised_features: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, features] -> logits [batch, num_classes]; flattened, of the size of `init`.

        Raises UserError where the image was too small for five halvings.
        """
        if not x.size:
            raise UserError(
                "config.dataset.image_size is too small for vgg16, which halves it five times: allowed are 32 and more"
            )
        x = pool(x, "flatten" if self.hidden else "average")
        x = x if self.hidden else nn.Dropout(self.dropout, deterministic=not train)(x)
        for number, features in enumerate(self.hidden, start=1):
            x = nn.relu(Dense(features, numerics=self.numerics, name=f"dense{number}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = scaled_unit_features(self, x) if self.normalised_features else x
        return Dense(self.num_classes, numerics=self.numerics, name=f"dense{len(self.hidden) + 1}")(x)


class VGG16(Staged):
    """Stages `block1 .. block5, head`.

    head: 'original' (4096, 4096, dropout 0.5) or 'paper' (1024, 1024, dropout as given). Both flatten the last map, so
    the network takes images of the size it was initialised with, and no other. 'pooled' averages it (dropout as given)
    and takes images of any size from 32 pixels. num_blocks: the first so many of the five, then the head.
    """

    num_classes: int
    head_name: str = "original"
    dropout: float = 0.0
    normalised_features: bool = False
    num_blocks: int = len(BLOCKS)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return (*(f"block{number}" for number in range(1, self.num_blocks + 1)), "head")

    @property
    def whole(self) -> "VGG16":
        """The network with all five blocks."""
        return self.clone(num_blocks=len(BLOCKS))

    def setup(self) -> None:
        """One submodule a stage."""
        for number, (features, num_convs) in enumerate(BLOCKS[: self.num_blocks], start=1):
            setattr(self, f"block{number}", Block(features, num_convs, numerics=self.numerics))
        dropout = ORIGINAL_DROPOUT if self.head_name == "original" else self.dropout
        self.head = Head(
            self.num_classes, HIDDEN[self.head_name], dropout, self.normalised_features, numerics=self.numerics
        )
