"""DeepLabV3 in plain torch.nn under torchvision's tensor names, written from its published description."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.torch_networks import Bottleneck


def layer(channels: int, features: int, count: int, stride: int, dilations: tuple[int, int]) -> nn.Sequential:
    blocks = [Bottleneck(channels, features, stride)]
    blocks += [Bottleneck(4 * features, features, 1) for _ in range(count - 1)]
    for number, block in enumerate(blocks):
        block.conv2.dilation = block.conv2.padding = (dilations[number > 0],) * 2
    return nn.Sequential(*blocks)


def conv_norm_relu(channels: int, features: int, size: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (size // 2)
    conv = nn.Conv2d(channels, features, size, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(features), nn.ReLU()]


class ASPP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        branches = [nn.Sequential(*conv_norm_relu(2048, 256, 1))]
        branches += [nn.Sequential(*conv_norm_relu(2048, 256, 3, rate)) for rate in (12, 24, 36)]
        branches.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(2048, 256, 1)))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*conv_norm_relu(5 * 256, 256, 1), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [branch(x) for branch in self.convs]
        branches[-1] = functional.interpolate(branches[-1], x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat(branches, dim=1))


class DeepLabV3(nn.Module):
    def __init__(self, counts: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.backbone.bn1 = nn.BatchNorm2d(64)
        self.backbone.layer1 = layer(64, 64, counts[0], 1, (1, 1))
        self.backbone.layer2 = layer(256, 128, counts[1], 2, (1, 1))
        self.backbone.layer3 = layer(512, 256, counts[2], 1, (1, 2))
        self.backbone.layer4 = layer(1024, 512, counts[3], 1, (2, 4))
        last = conv_norm_relu(256, 256, 3)
        self.classifier = nn.Sequential(ASPP(), *last, nn.Conv2d(256, num_classes, 1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The output of each stage of ours, by its name."""
        body: Any = self.backbone
        found = {"stem": functional.max_pool2d(body.bn1(body.conv1(images)).relu(), 3, 2, padding=1)}
        x = found["stem"]
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = found[name] = getattr(body, name)(x)
        x = found["decoder"] = self.classifier[:-1](x)
        x = self.classifier[-1](x)
        found["head"] = functional.interpolate(x, images.shape[-2:], mode="bilinear", align_corners=False)
        return found
