"""Two small networks for the tests of training, named on the command line as train_models:net and train_models:masks."""

from typing import Any

import torch
from torch import Tensor, nn


class _Net(nn.Sequential):
    def __init__(self, num_classes: int, in_chans: int, layers: Any) -> None:
        super().__init__(
            layers.Conv2d(in_chans, 8, 3, 2, 1, bias=False),
            layers.BatchNorm2d(8),
            nn.ReLU(),
            layers.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(32, num_classes),
        )


def net(num_classes: int, in_chans: int, layers: Any = nn) -> nn.Module:
    """A convolution, a batch norm, dropout and a linear layer."""
    return _Net(num_classes, in_chans, layers)


class _Masks(nn.Module):
    def __init__(self, num_classes: int, in_chans: int, layers: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(layers.Conv2d(in_chans, 8, 3, 1, 1, bias=False), layers.BatchNorm2d(8), nn.ReLU())
        self.head, self.aux = layers.Conv2d(8, num_classes, 1), layers.Conv2d(8, num_classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"out": self.head(x), "aux": self.aux(x)} if self.training else {"out": self.head(x)}


def masks(num_classes: int, in_chans: int, layers: Any = nn) -> nn.Module:
    """One convolution, a head and an auxiliary head."""
    return _Masks(num_classes, in_chans, layers)


def not_a_number(num_classes: int, in_chans: int) -> nn.Module:
    """A network whose loss is NaN."""
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
    network(torch.zeros(1, in_chans, 8, 8))
    nn.init.constant_(network[1].bias, float("nan"))
    return network


def seven(num_classes: int, in_chans: int) -> int:
    """No network at all."""
    return 7


def two(num_classes: int, in_chans: int) -> nn.Module:
    """Two logits, however many classes there are."""
    return _Net(2, in_chans, nn)


def raises(num_classes: int, in_chans: int) -> nn.Module:
    """No network either."""
    return {}["width"]
