"""ShuffleNetV2 (Ma et al. 2018, arXiv:1807.11164): half of the channels pass, half are convolved, then both are interleaved.

Keys and shapes are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model

__all__ = ["ShuffleNetV2", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"]


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """The channels of ``groups`` equal parts of [N, C, H, W], taken in turn."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _depthwise(channels: int, stride: int, layers: Any) -> list[nn.Module]:
    return [layers.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), layers.BatchNorm2d(channels)]


def _pointwise(before: int, after: int, layers: Any) -> list[nn.Module]:
    return [layers.Conv2d(before, after, 1, bias=False), layers.BatchNorm2d(after), nn.ReLU(inplace=True)]


class ShuffleUnit(nn.Module):
    """Stride 1: one half of the channels passes. Stride 2: both branches see the whole input. Then the channels are shuffled."""

    def __init__(self, before: int, after: int, stride: int, layers: Any) -> None:
        super().__init__()
        half = after // 2
        self.stride = stride
        self.branch1 = nn.Sequential(*_depthwise(before, 2, layers), *_pointwise(before, half, layers)) if stride == 2 else nn.Sequential()
        self.branch2 = nn.Sequential(
            *_pointwise(before if stride == 2 else half, half, layers), *_depthwise(half, stride, layers), *_pointwise(half, half, layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, convolved = (x, x) if self.stride == 2 else x.chunk(2, 1)
        return channel_shuffle(torch.cat((self.branch1(passed), self.branch2(convolved)), 1), 2)


class ShuffleNetV2(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]. widths: channels of the three stages and of the last convolution."""

    HEAD = ("fc",)

    def __init__(self, widths: Sequence[int], num_classes: int = 1000, in_chans: int = 3, layers: Any = fastcv_nn) -> None:
        super().__init__()
        before = 24
        self.conv1 = nn.Sequential(layers.Conv2d(in_chans, before, 3, 2, 1, bias=False), layers.BatchNorm2d(before), nn.ReLU(inplace=True))
        self.maxpool = layers.MaxPool2d(3, 2, 1)
        for stage, (after, count) in enumerate(zip(widths[:3], (4, 8, 4), strict=True), start=2):
            units = [ShuffleUnit(before if i == 0 else after, after, 2 if i == 0 else 1, layers) for i in range(count)]
            setattr(self, f"stage{stage}", nn.Sequential(*units))
            before = after
        self.conv5 = nn.Sequential(*_pointwise(before, widths[3], layers))
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _shufflenet(widths: Sequence[int], features_only: bool = False, **config: Any) -> nn.Module:
    """features_only: four maps, after the stem and each stage, at strides 2, 8, 16 and 32."""
    network = ShuffleNetV2(widths, **config)
    return FeatureMaps(network, ("conv1", "stage2", "stage3", "stage4"), (24, *widths[:3])) if features_only else network


@register_model()
def shufflenet_v2_x0_5(**config: Any) -> nn.Module:
    """Stages of 48, 96 and 192 channels."""
    return _shufflenet((48, 96, 192, 1024), **config)


@register_model()
def shufflenet_v2_x1_0(**config: Any) -> nn.Module:
    """Stages of 116, 232 and 464 channels."""
    return _shufflenet((116, 232, 464, 1024), **config)


@register_model()
def shufflenet_v2_x1_5(**config: Any) -> nn.Module:
    """Stages of 176, 352 and 704 channels."""
    return _shufflenet((176, 352, 704, 1024), **config)


@register_model()
def shufflenet_v2_x2_0(**config: Any) -> nn.Module:
    """Stages of 244, 488 and 976 channels."""
    return _shufflenet((244, 488, 976, 2048), **config)
