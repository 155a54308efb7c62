"""A reference network of PyTorch whose last map is a module, which hooks can be put on."""

from typing import Any

from torch import nn


class Classifier(nn.Module):
    """The reference network with its last stage's output as a module of its own, which all three can hook."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        *before, (_, self.last, _) = module.stages()
        self.before, self.head, self.map = before[:-1], self.last, nn.Identity()
        self.map_stage, self.module = before[-1][1], module

    def forward(self, x: Any) -> Any:
        for _, stage, _ in self.before:
            x = stage(x)
        return self.head(self.map(self.map_stage(x)))
