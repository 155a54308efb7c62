"""DenseNet-121 in plain `torch.nn`, with the tensor names and the arithmetic of torchvision's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.torch_networks import Staged, Stages

GROWTH, WIDE = 32, 128


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_features)
        self.conv1 = nn.Conv2d(in_features, WIDE, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(WIDE)
        self.conv2 = nn.Conv2d(WIDE, GROWTH, 3, 1, 1, bias=False)

    def forward(self, x: Any) -> Any:
        """x: [batch, features, height, width] -> [batch, GROWTH, height, width]."""
        x = self.conv1(torch.relu(self.norm1(x)))
        return self.conv2(torch.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    """Each layer takes what all before it gave, and the input."""

    def __init__(self, in_features: int, count: int) -> None:
        super().__init__()
        for number in range(1, count + 1):
            self.add_module(f"denselayer{number}", DenseLayer(in_features + GROWTH * (number - 1)))

    def forward(self, x: Any) -> Any:
        """x: [batch, features, height, width] -> [batch, features + count * GROWTH, height, width]."""
        maps = [x]
        for layer in self.children():
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to half of the features, mean of 2x2 positions."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(features)
        self.conv = nn.Conv2d(features, features // 2, 1, bias=False)

    def forward(self, x: Any) -> Any:
        """x: [batch, features, height, width] -> [batch, features / 2, height // 2, width // 2]."""
        return functional.avg_pool2d(self.conv(torch.relu(self.norm(x))), 2)


class DenseNet(Staged):
    """num_layers: of each block; channels: of the images."""

    def __init__(self, num_layers: Sequence[int], *, num_classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Module()
        self.features.conv0 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.features.norm0 = nn.BatchNorm2d(64)
        features = 64
        for number, count in enumerate(num_layers, start=1):
            setattr(self.features, f"denseblock{number}", DenseBlock(features, count))
            features += count * GROWTH
            if number < len(num_layers):
                setattr(self.features, f"transition{number}", Transition(features))
                features //= 2
        self.features.norm5 = nn.BatchNorm2d(features)
        self.classifier = nn.Linear(features, num_classes)
        self._count = len(num_layers)

    def stages(self) -> Stages:
        """See `Staged`."""
        parts: Any = self.features

        def stem(x: Any) -> Any:
            return functional.max_pool2d(torch.relu(parts.norm0(parts.conv0(x))), 3, 2, 1)

        blocks: Stages = []
        for number in range(1, self._count):
            modules = getattr(parts, f"denseblock{number}"), getattr(parts, f"transition{number}")
            blocks.append((f"block{number}", nn.Sequential(*modules), modules))
        last = getattr(parts, f"denseblock{self._count}"), parts.norm5
        return [
            ("stem", stem, (parts.conv0, parts.norm0)),
            *blocks,
            (f"block{self._count}", nn.Sequential(*last, nn.ReLU()), last),
            ("head", lambda x: self.classifier(x.mean((2, 3))), (self.classifier,)),
        ]
