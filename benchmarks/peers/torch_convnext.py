"""ConvNeXt in plain `torch.nn`, with the tensor names and the arithmetic of torchvision's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.torch_networks import Staged, Stages


class LayerNorm2d(nn.LayerNorm):
    """Over the features of maps whose features come second."""

    def forward(self, x: Any) -> Any:
        """x: [batch, features, height, width] -> the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """Puts axes in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Any) -> Any:
        """x: any array of as many axes."""
        return x.permute(self.order)


class Block(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, two dense layers, scaled and added."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(features, features, 7, 1, 3, groups=features),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(features, eps=1e-6),
            nn.Linear(features, 4 * features),
            nn.GELU(),
            nn.Linear(4 * features, features),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((features, 1, 1), 1e-6))

    def forward(self, x: Any) -> Any:
        """x: [batch, features, height, width] -> the same shape."""
        return x + self.layer_scale * self.block(x)


class ConvNeXt(Staged):
    """num_blocks, features: of each stage."""

    def __init__(self, num_blocks: Sequence[int], features: Sequence[int], *, num_classes: int = 1000) -> None:
        super().__init__()
        parts: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, features[0], 4, 4), LayerNorm2d(features[0], eps=1e-6)),
            nn.Sequential(*(Block(features[0]) for _ in range(num_blocks[0]))),
        ]
        for before, wide, count in zip(features, features[1:], num_blocks[1:], strict=False):
            parts.append(nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, wide, 2, 2)))
            parts.append(nn.Sequential(*(Block(wide) for _ in range(count))))
        self.features = nn.Sequential(*parts)
        last = features[-1]
        self.classifier = nn.Sequential(LayerNorm2d(last, eps=1e-6), nn.Flatten(1), nn.Linear(last, num_classes))

    def stages(self) -> Stages:
        """See `Staged`."""
        stem, first, *others = self.features
        stages: Stages = [("stem", stem, (stem,)), ("stage1", first, (first,))]
        for number, pair in enumerate(zip(others[::2], others[1::2], strict=True), start=2):
            stages.append((f"stage{number}", nn.Sequential(*pair), pair))

        def head(x: Any) -> Any:
            return self.classifier(functional.adaptive_avg_pool2d(x, 1))

        return [*stages, ("head", head, (self.classifier,))]
