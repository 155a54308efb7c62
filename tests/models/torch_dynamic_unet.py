"""fastai 1's DynamicUnet in plain torch.nn, written from its structure; its decoder has the names of ours."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers import torch_networks


class Shuffle(nn.Module):
    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(self.conv(x).relu(), 2)


class Up(nn.Module):
    def __init__(self, channels: int, skipping: int, features: int) -> None:
        super().__init__()
        self.shuffle, self.skip_norm = Shuffle(channels, channels // 2), nn.BatchNorm2d(skipping)
        self.conv1 = nn.Conv2d(channels // 2 + skipping, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = functional.interpolate(self.shuffle(x), skip.shape[-2:], mode="nearest")
        return self.conv2(self.conv1(torch.cat([x, self.skip_norm(skip)], 1).relu()).relu()).relu()


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = (nn.Conv2d(channels, channels // 8, 1, bias=False) for _ in range(2))
        self.value_conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.scale = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        weights = torch.bmm(query.transpose(1, 2), key).softmax(2)
        return x + self.scale * torch.bmm(value, weights.transpose(1, 2)).view(x.shape)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(512)
        self.middle_conv1, self.middle_conv2 = nn.Conv2d(512, 1024, 3, padding=1), nn.Conv2d(1024, 512, 3, padding=1)
        self.up1, self.up2 = Up(512, 256, 512), Up(512, 128, 384)
        self.attention = Attention(384)
        self.up3, self.up4 = Up(384, 64, 256), Up(256, 64, 96)
        self.shuffle = Shuffle(96, 96)
        self.conv1, self.conv2 = (nn.Conv2d(99, 99, 3, padding=1) for _ in range(2))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        images, stem, layer1, layer2, layer3, layer4 = maps
        x = self.middle_conv2(self.middle_conv1(self.norm(layer4).relu()).relu()).relu()
        x = self.attention(self.up2(self.up1(x, layer3), layer2))
        x = self.shuffle(self.up4(self.up3(x, layer1), stem))
        x = torch.cat([functional.interpolate(x, images.shape[-2:], mode="nearest"), images], 1)
        return x + self.conv2(self.conv1(x).relu()).relu()


class Head(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(99, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class DynamicUnet(torch_networks.ResNet):
    def __init__(self, num_blocks: Sequence[int], num_classes: int) -> None:
        super().__init__(num_blocks, bottleneck=False, num_classes=0)
        self.decoder, self.head = Decoder(), Head(num_classes)

    def stage_outputs(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The last map behind each stage of ours."""
        stem = self.stem(images)
        outputs = [self.layer1(self.maxpool(stem))]
        for _, layer in self.deeper():
            outputs.append(layer(outputs[-1]))
        decoded = self.decoder((images, stem, *outputs))
        return [self.maxpool(stem), *outputs, decoded, self.head(decoded)]
