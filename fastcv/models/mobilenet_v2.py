"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381): residual blocks that are wide inside and narrow between.

Keys and shapes are torchvision's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model
from .init import he_, linear_normal_

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2"]

# Expansion, output channels, repetitions, first stride: the paper's table 2.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def round_to_eight(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not below nine tenths of ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _conv_relu6(before: int, after: int, kernel: int, stride: int, groups: int, layers: Any) -> nn.Sequential:
    convolution = layers.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, layers.BatchNorm2d(after), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the channels, 3x3 depthwise, 1x1 without activation; added to x where the shape stays."""

    def __init__(self, before: int, after: int, stride: int, expansion: int, layers: Any) -> None:
        super().__init__()
        inner = before * expansion
        stages: list[nn.Module] = [] if expansion == 1 else [_conv_relu6(before, inner, 1, 1, 1, layers)]
        stages.append(_conv_relu6(inner, inner, 3, stride, inner, layers))
        stages += [layers.Conv2d(inner, after, 1, bias=False), layers.BatchNorm2d(after)]
        self.conv = nn.Sequential(*stages)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]. width_mult: all channels are multiplied by it and rounded to 8."""

    HEAD = ("classifier.1",)

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0, dropout: float = 0.2, layers: Any = fastcv_nn
    ) -> None:
        super().__init__()
        before, last = round_to_eight(32 * width_mult), round_to_eight(1280 * max(1.0, width_mult))
        stages: list[nn.Module] = [_conv_relu6(in_chans, before, 3, 2, 1, layers)]
        self.channels = []  # of each stage of the table
        for expansion, channels, count, first in _STAGES:
            after = round_to_eight(channels * width_mult)
            self.channels.append(after)
            for i in range(count):
                stages.append(InvertedResidual(before, after, first if i == 0 else 1, expansion, layers))
                before = after
        stages.append(_conv_relu6(before, last, 1, 1, 1, layers))
        self.features = nn.Sequential(*stages)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        he_(self)
        linear_normal_(self, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@register_model()
def mobilenet_v2(features_only: bool = False, **config: Any) -> nn.Module:
    """3.5 M parameters, 301 M multiply-adds. features_only: five maps at strides 2, 4, 8, 16 and 32."""
    network = MobileNetV2(**config)
    if not features_only:
        return network
    return FeatureMaps(network, ("1", "3", "6", "13", "17"), [network.channels[i] for i in (0, 1, 2, 4, 6)])
