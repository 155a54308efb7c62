"""Networks in plain `torch.nn`, written from the papers, with the tensor names and the arithmetic of torchvision's.

`forward` returns what leaves each of our stages, in order; the logits are the last.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

VGG16_PLAN = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


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
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (self.downsample(x) if self.downsample else x))


def _downsample(in_features: int, features: int, stride: int) -> Any:
    if stride == 1 and in_features == features:
        return None
    return nn.Sequential(nn.Conv2d(in_features, features, 1, stride, bias=False), nn.BatchNorm2d(features))


class ResNet(nn.Module):
    """ResNet v1.5."""

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
        self.fc = nn.Linear(in_features, num_classes)

    def forward(self, x: Any) -> list[Any]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        outputs = [x]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            outputs.append(layer(outputs[-1]))
        return [*outputs, self.fc(outputs[-1].mean((2, 3)))]


class VGG16(nn.Module):
    """Configuration D. The adaptive pooling to 7x7 before the head is the identity at 224 pixels."""

    def __init__(self, num_classes: int = 1000, *, with_head: bool = True) -> None:
        super().__init__()
        modules: list[Any] = []
        in_features = 3
        for features, num_convs in VGG16_PLAN:
            for _ in range(num_convs):
                modules += [nn.Conv2d(in_features, features, 3, 1, 1), nn.ReLU()]
                in_features = features
            modules.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*modules)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        if with_head:
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(4096, num_classes),
            )

    def forward(self, x: Any) -> list[Any]:
        outputs = []
        for module in self.features:
            x = module(x)
            if isinstance(module, nn.MaxPool2d):
                outputs.append(x)
        if hasattr(self, "classifier"):
            outputs.append(self.classifier(torch.flatten(self.avgpool(x), 1)))
        return outputs
