"""VGG (Simonyan and Zisserman 2014, arXiv:1409.1556): stacks of 3x3 convolutions, pooling between them, three linear layers.

Configurations A, B, D and E of the paper's table 1, with and without batch norm. Keys and shapes are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model
from .init import he_, linear_normal_

__all__ = ["VGG", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]; H and W of 32 and up, 224 in the paper. counts: convolutions per stage.

    num_classes=0 leaves out the linear layers; the answer is then the pooled maps, [N, 25088].
    """

    HEAD = ("classifier.6",)

    def __init__(
        self,
        counts: Sequence[int],
        batch_norm: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.5,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        self.stage_ends = []  # the index of each stage's last ReLU
        before = in_chans
        for count, width in zip(counts, WIDTHS, strict=True):
            for _ in range(count):
                stages.append(layers.Conv2d(before, width, 3, padding=1))
                if batch_norm:
                    stages.append(layers.BatchNorm2d(width))
                stages.append(nn.ReLU(inplace=True))
                before = width
            self.stage_ends.append(len(stages) - 1)
            stages.append(layers.MaxPool2d(2))
        self.features = nn.Sequential(*stages)
        self.avgpool = layers.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential()
        if num_classes:
            self.classifier = nn.Sequential(
                *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout)),
                *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout)),
                nn.Linear(4096, num_classes),
            )
        he_(self)
        linear_normal_(self, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _vgg(counts: Sequence[int], batch_norm: bool, features_only: bool = False, **config: Any) -> nn.Module:
    """features_only: five maps, after the last ReLU of each stage, at strides 1, 2, 4, 8 and 16."""
    if not features_only:
        return VGG(counts, batch_norm, **config)
    network = VGG(counts, batch_norm, **{**config, "num_classes": 0})
    return FeatureMaps(network, [str(i) for i in network.stage_ends], WIDTHS)


@register_model()
def vgg11(**config: Any) -> nn.Module:
    """Configuration A: 8 convolutions."""
    return _vgg((1, 1, 2, 2, 2), False, **config)


@register_model()
def vgg11_bn(**config: Any) -> nn.Module:
    """Configuration A with batch norm."""
    return _vgg((1, 1, 2, 2, 2), True, **config)


@register_model()
def vgg13(**config: Any) -> nn.Module:
    """Configuration B: 10 convolutions."""
    return _vgg((2, 2, 2, 2, 2), False, **config)


@register_model()
def vgg13_bn(**config: Any) -> nn.Module:
    """Configuration B with batch norm."""
    return _vgg((2, 2, 2, 2, 2), True, **config)


@register_model()
def vgg16(**config: Any) -> nn.Module:
    """Configuration D: 13 convolutions."""
    return _vgg((2, 2, 3, 3, 3), False, **config)


@register_model()
def vgg16_bn(**config: Any) -> nn.Module:
    """Configuration D with batch norm."""
    return _vgg((2, 2, 3, 3, 3), True, **config)


@register_model()
def vgg19(**config: Any) -> nn.Module:
    """Configuration E: 16 convolutions."""
    return _vgg((2, 2, 4, 4, 4), False, **config)


@register_model()
def vgg19_bn(**config: Any) -> nn.Module:
    """Configuration E with batch norm."""
    return _vgg((2, 2, 4, 4, 4), True, **config)
