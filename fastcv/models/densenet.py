"""DenseNet (Huang et al. 2016, arXiv:1608.06993): every layer sees the outputs of all layers before it in its block.

Keys and shapes are torchvision's; checkpoints with the older spelling "norm.1", "conv.2" load too.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model
from .init import he_

__all__ = ["DenseNet", "densenet121", "densenet161", "densenet169", "densenet201"]

_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class DenseLayer(nn.Module):
    """conv3x3(relu(bn(conv1x1(relu(bn(x)))))): ``growth`` new channels."""

    def __init__(self, before: int, growth: int, bottleneck: int, layers: Any) -> None:
        super().__init__()
        self.norm1 = layers.BatchNorm2d(before)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = layers.Conv2d(before, bottleneck * growth, 1, bias=False)
        self.norm2 = layers.BatchNorm2d(bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = layers.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))


class DenseBlock(nn.ModuleDict):
    """``count`` layers; the output is the input and all layers' outputs, concatenated by channels."""

    def __init__(self, count: int, before: int, growth: int, bottleneck: int, layers: Any) -> None:
        super().__init__({f"denselayer{i + 1}": DenseLayer(before + i * growth, growth, bottleneck, layers) for i in range(count)})

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.values():
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


def _transition(before: int, layers: Any) -> nn.Sequential:
    """Half the channels, half the sides."""
    return nn.Sequential(
        OrderedDict(
            norm=layers.BatchNorm2d(before),
            relu=nn.ReLU(inplace=True),
            conv=layers.Conv2d(before, before // 2, 1, bias=False),
            pool=layers.AvgPool2d(2),
        )
    )


class DenseNet(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]; H and W of 29 and up, 224 in the paper. blocks: layers per block."""

    HEAD = ("classifier",)

    def __init__(
        self,
        growth: int,
        blocks: Sequence[int],
        stem: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        bottleneck: int = 4,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        stages: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=layers.Conv2d(in_chans, stem, 7, 2, 3, bias=False),
            norm0=layers.BatchNorm2d(stem),
            relu0=nn.ReLU(inplace=True),
            pool0=layers.MaxPool2d(3, 2, 1),
        )
        self.channels, channels = [stem], stem
        for i, count in enumerate(blocks, start=1):
            stages[f"denseblock{i}"] = DenseBlock(count, channels, growth, bottleneck, layers)
            channels += count * growth
            self.channels.append(channels)
            if i < len(blocks):
                stages[f"transition{i}"] = _transition(channels, layers)
                channels //= 2
        stages["norm5"] = layers.BatchNorm2d(channels)
        self.features = nn.Sequential(stages)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        he_(self, "fan_in")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.relu(self.features(x))).flatten(1))

    @staticmethod
    def renamed_key(key: str) -> str:
        """Today's name of a parameter of an old checkpoint: denselayer1.norm.1.weight is denselayer1.norm1.weight."""
        return _OLD_KEY.sub(r"\1\2", key)


def _densenet(growth: int, blocks: Sequence[int], stem: int, features_only: bool = False, **config: Any) -> nn.Module:
    """features_only: five maps, after the stem's ReLU, after blocks 1 to 3 and after the last norm, at strides 2 to 32."""
    network = DenseNet(growth, blocks, stem, **config)
    if not features_only:
        return network
    return FeatureMaps(network, ("relu0", "denseblock1", "denseblock2", "denseblock3", "norm5"), network.channels)


@register_model()
def densenet121(**config: Any) -> nn.Module:
    """Growth 32, blocks of 6, 12, 24 and 16 layers."""
    return _densenet(32, (6, 12, 24, 16), 64, **config)


@register_model()
def densenet161(**config: Any) -> nn.Module:
    """Growth 48, blocks of 6, 12, 36 and 24 layers."""
    return _densenet(48, (6, 12, 36, 24), 96, **config)


@register_model()
def densenet169(**config: Any) -> nn.Module:
    """Growth 32, blocks of 6, 12, 32 and 32 layers."""
    return _densenet(32, (6, 12, 32, 32), 64, **config)


@register_model()
def densenet201(**config: Any) -> nn.Module:
    """Growth 32, blocks of 6, 12, 48 and 32 layers."""
    return _densenet(32, (6, 12, 48, 32), 64, **config)
