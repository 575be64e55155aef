"""Multilayer perceptrons on the pixels of an image, with the activation functions of the textbooks.

Maxout (Goodfellow et al. 2013, arXiv:1302.4389) is the larger of two linear functions; ELU is Clevert et al. 2015, arXiv:1511.07289.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model
from .init import he_, xavier_

__all__ = ["MLP", "Maxout", "mlp2", "mlp3"]

ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "maxout", "elu")


class Maxout(nn.Module):
    """A linear layer of twice the width, then the maximum of each pair: [..., in_features] to [..., out_features]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (-1, 2)).amax(-1)


_POINTWISE = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU}


class MLP(nn.Module):
    """[N, in_chans, image_size, image_size] to logits [N, num_classes] through hidden layers of the widths ``hidden``.

    Weights start by He's rule, before tanh and sigmoid by Xavier's. dropout: of every hidden layer's output. ``layers`` is
    accepted as by all models; there is no kernel in these layers. Raises ValueError for an unknown activation.
    """

    HEAD = ("fc",)

    def __init__(
        self,
        hidden: Sequence[int],
        activation: str = "relu",
        num_classes: int = 10,
        in_chans: int = 3,
        image_size: int = 32,
        dropout: float = 0.0,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        stages: list[nn.Module] = [nn.Flatten()]
        before = in_chans * image_size**2
        for width in hidden:
            if activation == "maxout":
                stages.append(Maxout(before, width))
            else:
                stages += [nn.Linear(before, width), _POINTWISE[activation]()]
            if dropout:
                stages.append(nn.Dropout(dropout))
            before = width
        self.hidden = nn.Sequential(*stages)
        self.fc = nn.Linear(before, num_classes)
        if activation in ("sigmoid", "tanh"):
            xavier_(self)
        else:
            he_(self, "fan_in", (nn.Linear,))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x))


@register_model(input_size=(3, 32, 32), sized=True)
def mlp2(hidden: int = 100, **config: Any) -> MLP:
    """Two layers: one hidden layer of ``hidden`` units."""
    return MLP((hidden,), **config)


@register_model(input_size=(3, 32, 32), sized=True)
def mlp3(hidden: int = 100, **config: Any) -> MLP:
    """Three layers: two hidden layers of ``hidden`` units each."""
    return MLP((hidden, hidden), **config)
