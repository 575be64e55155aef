"""The linear classifier: scores = W x + b on the pixels of an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model

__all__ = ["LinearClassifier", "linear_classifier"]


class LinearClassifier(nn.Module):
    """[N, in_chans, image_size, image_size] to logits [N, num_classes]. ``layers`` is accepted as by all models; it has no kernel."""

    HEAD = ("fc",)

    def __init__(self, num_classes: int = 10, in_chans: int = 3, image_size: int = 32, layers: Any = fastcv_nn) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(in_chans * image_size**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(x))


@register_model(input_size=(3, 32, 32), sized=True)
def linear_classifier(**config: Any) -> LinearClassifier:
    """One linear layer; 30,730 parameters on CIFAR-10."""
    return LinearClassifier(**config)
