"""ViT-B in plain `torch.nn`, with the tensor names of timm's and, for the scales of branches, of DINOv2's."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks import work
from benchmarks.peers.torch_networks import Staged, Stages


class Scale(nn.Module):
    """A factor for each feature."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(features))

    def forward(self, x: Any) -> Any:
        """x: [batch, positions, features] -> the same shape."""
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention; query, key and value are one product."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)
        self._heads = heads

    def forward(self, x: Any) -> Any:
        """x: [batch, positions, features] -> the same shape."""
        batch, positions, features = x.shape
        heads = self.qkv(x).reshape(batch, positions, 3, self._heads, features // self._heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*heads)
        return self.proj(seen.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """Two dense layers with GELU in between."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.fc2 = nn.Linear(4 * features, features)

    def forward(self, x: Any) -> Any:
        """x: [batch, positions, features] -> the same shape."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """LayerNorm, attention; LayerNorm, dense layers; both scaled where asked, and added."""

    def __init__(self, features: int, heads: int, *, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(features, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(features, heads), Mlp(features)
        self.ls1, self.ls2 = (Scale(features) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x: Any) -> Any:
        """x: [batch, positions, features] -> the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Patches become positions."""

    def __init__(self, patch: int, features: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, features, patch, patch)

    def forward(self, x: Any) -> Any:
        """x: [batch, 3, height, width] -> [batch, patches, features]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(Staged):
    """patch: pixels a side; scaled: whether branches have scales."""

    def __init__(
        self,
        patch: int,
        scaled: bool,
        *,
        image_size: int = 224,
        num_classes: int = 1000,
        num_blocks: int = work.VIT_BLOCKS,
        features: int = work.VIT_FEATURES,
        heads: int = work.VIT_HEADS,
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, features))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, features))
        self.patch_embed = PatchEmbed(patch, features)
        self.blocks = nn.Sequential(*(Block(features, heads, scaled=scaled) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(features, eps=1e-6)
        self.head = nn.Linear(features, num_classes)

    def stem(self, x: Any) -> Any:
        """x: [batch, 3, height, width] -> [batch, 1 + patches, features]."""
        return torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1) + self.pos_embed

    def stages(self) -> Stages:
        """See `Staged`."""
        *blocks, last = self.blocks
        count = len(blocks) + 1
        return [
            ("stem", self.stem, (self.patch_embed, StemParameters(self))),
            *((f"block{number}", block, (block,)) for number, block in enumerate(blocks, start=1)),
            (f"block{count}", nn.Sequential(last, self.norm), (last, self.norm)),
            ("head", lambda x: self.head(x[:, 0]), (self.head,)),
        ]


class StemParameters(nn.Module):
    """The class token and the positions, which belong to no module of their own."""

    def __init__(self, network: ViT) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = network.cls_token, network.pos_embed
