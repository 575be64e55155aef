"""LeNet-5 (LeCun et al. 1998, Gradient-based learning applied to document recognition).

Two 5x5 convolutions with average pooling, then three linear layers. As is usual, every map of the second convolution sees all
maps of the first, and the output is linear instead of radial basis functions: 61,706 parameters for 32x32 images of one channel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model
from .init import xavier_

__all__ = ["LeNet5", "lenet5"]


class LeNet5(nn.Module):
    """[N, in_chans, image_size, image_size] to logits [N, num_classes]; image_size of 16 and up."""

    HEAD = ("classifier.4",)

    def __init__(self, num_classes: int = 10, in_chans: int = 1, image_size: int = 32, layers: Any = fastcv_nn) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"LeNet-5 needs images of 16 pixels and up, got image_size={image_size}")
        self.features = nn.Sequential(
            layers.Conv2d(in_chans, 6, 5), nn.Tanh(), layers.AvgPool2d(2), layers.Conv2d(6, 16, 5), nn.Tanh(), layers.AvgPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(16 * side**2, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, num_classes))
        xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@register_model(input_size=(1, 32, 32), sized=True)
def lenet5(**config: Any) -> LeNet5:
    """LeNet-5 with tanh and average pooling."""
    return LeNet5(**config)
