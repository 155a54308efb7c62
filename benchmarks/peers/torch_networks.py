"""Classifiers in plain `torch.nn`, as ordered stages.

The ResNets and VGG-16 are written from the papers with the tensor names and the arithmetic of torchvision's; the small
network has the names of ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks import work

Stages = list[tuple[str, Callable[[Any], Any], tuple[nn.Module, ...]]]


class Staged(nn.Module):
    """A network as stages: (name, what it does, the modules that hold its parameters)."""

    def stages(self) -> Stages:
        """The stages, input first."""
        raise NotImplementedError

    def forward(self, x: Any) -> Any:
        """x: [batch, channels, height, width] -> logits."""
        for _, stage, _ in self.stages():
            x = stage(x)
        return x

    def stage_outputs(self, x: Any) -> list[Any]:
        """What leaves each stage; the logits are the last."""
        outputs = []
        for _, stage, _ in self.stages():
            x = stage(x)
            outputs.append(x)
        return outputs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first carries the stride."""

    expansion = 1

    def __init__(self, in_features: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.downsample = _downsample(in_features, features, stride)

    def forward(self, x: Any) -> Any:
        """x: [batch, channels, height, width] -> [batch, features, height / stride, width / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (self.downsample(x) if self.downsample else x))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 with four times the width."""

    expansion = 4

    def __init__(self, in_features: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * features)
        self.downsample = _downsample(in_features, 4 * features, stride)

    def forward(self, x: Any) -> Any:
        """x: [batch, channels, height, width] -> [batch, 4 * features, height / stride, width / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (self.downsample(x) if self.downsample else x))


def _downsample(in_features: int, features: int, stride: int) -> Any:
    if stride == 1 and in_features == features:
        return None
    return nn.Sequential(nn.Conv2d(in_features, features, 1, stride, bias=False), nn.BatchNorm2d(features))


class ResNet(Staged):
    """ResNet v1.5. num_classes 0: without a head."""

    def __init__(self, num_blocks: Sequence[int], *, bottleneck: bool, num_classes: int = 1000) -> None:
        super().__init__()
        block = Bottleneck if bottleneck else BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        in_features = 64
        for index, count in enumerate(num_blocks):
            blocks = []
            for number in range(count):
                stride = 2 if index > 0 and number == 0 else 1
                blocks.append(block(in_features, 64 * 2**index, stride))
                in_features = 64 * 2**index * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        if num_classes:
            self.fc = nn.Linear(in_features, num_classes)

    def stem(self, x: Any) -> Any:
        """Without the maximum."""
        return torch.relu(self.bn1(self.conv1(x)))

    def deeper(self) -> list[tuple[str, nn.Module]]:
        """layer2 .. layer4."""
        return [(name, getattr(self, name)) for name in work.RESNET_STAGES[2:]]

    def stages(self) -> Stages:
        """See `Staged`."""
        layers = [("layer1", self.layer1), *self.deeper()]
        return [
            ("stem", lambda x: self.maxpool(self.stem(x)), (self.conv1, self.bn1)),
            *((name, layer, (layer,)) for name, layer in layers),
            ("head", lambda x: self.fc(x.mean((2, 3))), (self.fc,)),
        ]


class VGG16(Staged):
    """Configuration D. The adaptive pooling to 7x7 before the head is the identity at 224 pixels.

    hidden: features of the dense layers of the head before the last; dropout: between them; side: of the map that the
    head takes, 0 for that adaptive pooling.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        with_head: bool = True,
        hidden: Sequence[int] = (4096, 4096),
        dropout: float = 0.5,
        side: int = 0,
    ) -> None:
        super().__init__()
        modules: list[Any] = []
        in_features = 3
        for features, num_convs in work.VGG_BLOCKS:
            for _ in range(num_convs):
                modules += [nn.Conv2d(in_features, features, 3, 1, 1), nn.ReLU()]
                in_features = features
            modules.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*modules)
        self.avgpool = nn.Identity() if side else nn.AdaptiveAvgPool2d((7, 7))
        if with_head:
            widths, dense = (512 * (side or 7) ** 2, *hidden), []
            for wide, features in zip(widths, hidden, strict=False):
                dense += [nn.Linear(wide, features), nn.ReLU(), nn.Dropout(dropout)]
            self.classifier = nn.Sequential(*dense, nn.Linear(widths[-1], num_classes))

    def stages(self) -> Stages:
        """See `Staged`."""
        stages: Stages = []
        first = 0
        for index, module in enumerate(self.features):
            if isinstance(module, nn.MaxPool2d):
                block = self.features[first : index + 1]
                stages.append((f"block{len(stages) + 1}", block, (block,)))
                first = index + 1
        if hasattr(self, "classifier"):
            stages.append(("head", lambda x: self.classifier(torch.flatten(self.avgpool(x), 1)), (self.classifier,)))
        return stages


class CNNBlock(nn.Module):
    """Convolution, BatchNorm, ReLU, maximum."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_features, features, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(features)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: Any) -> Any:
        """x: [batch, channels, height, width] -> [batch, features, height // 2, width // 2]."""
        return self.pool(torch.relu(self.norm(self.conv(x))))


class DenseHead(nn.Module):
    """Global average, dense layer."""

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, classes)

    def forward(self, x: Any) -> Any:
        """x: [batch, features, height, width] -> logits [batch, classes]."""
        return self.dense(x.mean((2, 3)))


class CNN(Staged):
    """The small network."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        for level in range(work.CNN_BLOCKS):
            block = CNNBlock(channels if level == 0 else width * 2 ** (level - 1), width * 2**level)
            setattr(self, f"block{level + 1}", block)
        self.head = DenseHead(width * 2 ** (work.CNN_BLOCKS - 1), classes)

    def stages(self) -> Stages:
        """See `Staged`."""
        modules = ((name, getattr(self, name)) for name in work.network("cnn").stages)
        return [(name, module, (module,)) for name, module in modules]
