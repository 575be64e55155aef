"""AlexNet, in two forms.

``alexnet`` is that of Krizhevsky 2014 (One weird trick, arXiv:1404.5997), as torchvision has it. ``alexnet_2012`` is that of
Krizhevsky, Sutskever and Hinton 2012: local response norms, overlapping pooling, convolutions 2, 4 and 5 split into two groups
(the two GPUs), 60,965,224 parameters, 227x227 images.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model

__all__ = ["AlexNet", "AlexNet2012", "alexnet", "alexnet_2012"]


def _classifier(num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Dropout(dropout), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True)),
        *(nn.Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU(inplace=True)),
        nn.Linear(4096, num_classes),
    )


class AlexNet(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]; H and W of 63 and up, 224 in the paper. Keys and shapes are torchvision's."""

    HEAD = ("classifier.6",)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.5, layers: Any = fastcv_nn) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(layers.Conv2d(in_chans, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), layers.MaxPool2d(3, stride=2)),
            *(layers.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), layers.MaxPool2d(3, stride=2)),
            *(layers.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(layers.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
            *(layers.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), layers.MaxPool2d(3, stride=2)),
        )
        self.avgpool = layers.AdaptiveAvgPool2d(6)
        self.classifier = _classifier(num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class AlexNet2012(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]; H and W of 67 and up, 227 in the paper, where the last pooling is the identity.

    The paper's norm divides by (2 + 1e-4 sum)^0.75 over 5 channels; torch's takes the mean of the squares, hence alpha = 5e-4.
    Weights and biases start as in the paper's section 5.
    """

    HEAD = ("classifier.6",)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.5, layers: Any = fastcv_nn) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return layers.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

        self.features = nn.Sequential(
            *(layers.Conv2d(in_chans, 96, 11, stride=4), nn.ReLU(inplace=True), norm(), layers.MaxPool2d(3, stride=2)),
            *(layers.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True), norm(), layers.MaxPool2d(3, stride=2)),
            *(layers.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(layers.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True)),
            *(layers.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True), layers.MaxPool2d(3, stride=2)),
        )
        self.avgpool = layers.AdaptiveAvgPool2d(6)
        self.classifier = _classifier(num_classes, dropout)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, 0, 0.01)
                paired = isinstance(module, nn.Conv2d) and module.groups == 2
                hidden = isinstance(module, nn.Linear) and module is not self.classifier[-1]
                nn.init.constant_(module.bias, 1.0 if paired or hidden else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@register_model()
def alexnet(**config: Any) -> AlexNet:
    """AlexNet of 2014, one tower without norms: torchvision's."""
    return AlexNet(**config)


@register_model(input_size=(3, 227, 227))
def alexnet_2012(**config: Any) -> AlexNet2012:
    """AlexNet of 2012, with local response norms and two groups."""
    return AlexNet2012(**config)
