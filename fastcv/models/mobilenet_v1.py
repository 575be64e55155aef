"""MobileNetV1 (Howard et al. 2017, arXiv:1704.04861): a 3x3 depthwise and a 1x1 convolution in place of each 3x3 convolution.

That costs 9 C H W + C^2 H W multiply-adds instead of 9 C^2 H W.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model
from .init import he_

__all__ = ["MobileNetV1", "mobilenet_v1"]

# Output channels and stride of each separable convolution: the paper's table 1.
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def _conv(before: int, after: int, kernel: int, stride: int, groups: int, layers: Any) -> list[nn.Module]:
    convolution = layers.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, layers.BatchNorm2d(after), nn.ReLU(inplace=True)]


class MobileNetV1(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]. width_mult: all channels are multiplied by it."""

    HEAD = ("classifier.1",)

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0, dropout: float = 0.001, layers: Any = fastcv_nn
    ) -> None:
        super().__init__()
        before = int(32 * width_mult)
        stages = [nn.Sequential(*_conv(in_chans, before, 3, 2, 1, layers))]
        for channels, stride in _BLOCKS:
            after = int(channels * width_mult)
            stages.append(nn.Sequential(*_conv(before, before, 3, stride, before, layers), *_conv(before, after, 1, 1, 1, layers)))
            before = after
        self.features = nn.Sequential(*stages)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(before, num_classes))
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@register_model()
def mobilenet_v1(features_only: bool = False, **config: Any) -> nn.Module:
    """4.2 M parameters, 569 M multiply-adds. features_only: five maps at strides 2, 4, 8, 16 and 32."""
    network = MobileNetV1(**config)
    if not features_only:
        return network
    return FeatureMaps(network, ("1", "3", "5", "11", "13"), [network.features[i][-2].num_features for i in (1, 3, 5, 11, 13)])
