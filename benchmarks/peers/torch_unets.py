"""U-Nets in plain `torch.nn`, as ordered stages, with the names of ours; the encoder has those of torchvision."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import work
from benchmarks.peers.torch_networks import ResNet, Staged, Stages


class TwoConvolutions(nn.Module):
    """Twice a 3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)

    def forward(self, x: Any) -> Any:
        """x: [batch, channels, height, width] -> [batch, features, height, width]."""
        x = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(x)))


class Up(TwoConvolutions):
    """Transposed convolution, join with the skip, two convolutions."""

    def __init__(self, in_features: int, skip_features: int, features: int) -> None:
        super().__init__(skip_features + features, features)
        self.up_conv = nn.ConvTranspose2d(in_features, features, 2, 2)

    def forward(self, x: Any) -> Any:
        """x: (*skips, skip, [batch, channels, height, width]) -> (*skips, [batch, features, 2 * height, 2 * width])."""
        *skips, skip, map_ = x
        return (*skips, super().forward(torch.cat([skip, self.up_conv(map_)], 1)))


class PixelHead(nn.Module):
    """1x1 convolution of the last map."""

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_features, classes, 1)

    def forward(self, x: Any) -> Any:
        """x: ([batch, features, height, width],) -> logits [batch, classes, height, width]."""
        return self.conv(x[-1])


class UNet(Staged):
    """The U-Net with BatchNorm and transposed convolutions."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(work.UNET_LEVELS + 1)]
        self.pool = nn.MaxPool2d(2, 2)
        for level in range(work.UNET_LEVELS):
            setattr(self, f"down{level + 1}", TwoConvolutions(widths[level - 1] if level else channels, widths[level]))
            deep, shallow = widths[-1 - level], widths[-2 - level]
            setattr(self, f"up{level + 1}", Up(deep, shallow, shallow))
        self.middle = TwoConvolutions(widths[-2], widths[-1])
        self.head = PixelHead(width, classes)

    def down(self, name: str, x: Any) -> Any:
        """Two convolutions, whose result skips ahead, and the maximum."""
        *skips, map_ = x if isinstance(x, tuple) else (x,)
        skip = getattr(self, name)(map_)
        return (*skips, skip, self.pool(skip))

    def stages(self) -> Stages:
        """See `Staged`."""
        stages: Stages = []
        for name in work.network("unet").stages:
            module = getattr(self, name)
            if name.startswith("down"):
                stages.append((name, partial(self.down, name), (module,)))
            else:
                stages.append((name, partial(_on_last, module) if name == "middle" else module, (module,)))
        return stages


class UNetResNet(Staged):
    """A U-Net whose contracting path is a ResNet with basic blocks."""

    def __init__(self, num_blocks: Sequence[int], channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = ResNet(num_blocks, bottleneck=False, num_classes=0)
        skips, in_features = (256, 128, 64, 64, channels), 512
        ups = []
        for skip_features, features in zip(skips, work.UNET_RESNET_FEATURES, strict=True):
            ups.append(Up(in_features, skip_features, features))
            in_features = features
        self.decoder = nn.ModuleDict({f"up{number}": up for number, up in enumerate(ups, start=1)})
        self.head = PixelHead(in_features, classes)

    def first(self, x: Any) -> Any:
        """Images, the map before the maximum, the map behind it."""
        map_ = self.encoder.stem(x)
        return (x, map_, self.encoder.maxpool(map_))

    def expand(self, x: Any) -> Any:
        """The decoder."""
        for up in self.decoder.values():
            x = up(x)
        return x

    def stages(self) -> Stages:
        """See `Staged`."""
        encoder = self.encoder
        return [
            ("stem", self.first, (encoder.conv1, encoder.bn1)),
            ("layer1", partial(_on_last, encoder.layer1), (encoder.layer1,)),
            *((name, partial(_on_last, layer, keep=True), (layer,)) for name, layer in encoder.deeper()),
            ("decoder", self.expand, (self.decoder,)),
            ("head", self.head, (self.head,)),
        ]


def _on_last(module: nn.Module, maps: Any, keep: bool = False) -> Any:
    """A module on the last of several maps, whose place its result takes unless that is kept."""
    return (*(maps if keep else maps[:-1]), module(maps[-1]))
