"""DeepLabV3 (Chen et al. 2017, arXiv:1706.05587): parallel dilated convolutions and image pooling on a dilated ResNet.

Keys and shapes are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model
from ._segmentation import BackboneWithHeads, conv_norm_relu, dilated_resnet, fcn_head, refuse_one_pixel, resized
from .resnet import resnet50, resnet101

__all__ = ["ASPP", "deeplabv3_resnet50", "deeplabv3_resnet101"]


class ImagePooling(nn.Sequential):
    """The mean of each map, a 1x1 convolution, and the result at every pixel."""

    def __init__(self, before: int, after: int, layers: Any) -> None:
        super().__init__(layers.AdaptiveAvgPool2d(1), *conv_norm_relu(before, after, 1, layers))

    def forward(self, x: Tensor) -> Tensor:
        refuse_one_pixel(x, self[2], "the image pooling of ASPP")
        return resized(super().forward(x), x.shape[-2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: [N, before, H, W] to [N, after, H, W]. A 1x1 and three dilated 3x3 convolutions and image
    pooling, concatenated and projected. Raises ValueError when training on one image.
    """

    def __init__(self, before: int, rates: Sequence[int], layers: Any, after: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        branches = [nn.Sequential(*conv_norm_relu(before, after, 1, layers))]
        branches += [nn.Sequential(*conv_norm_relu(before, after, 3, layers, rate)) for rate in rates]
        branches.append(ImagePooling(before, after, layers))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*conv_norm_relu(len(branches) * after, after, 1, layers), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.convs], 1))


def _deeplabv3(
    build: Callable[..., nn.Module], num_classes: int = 21, in_chans: int = 3, aux_loss: bool = False, layers: Any = fastcv_nn
) -> BackboneWithHeads:
    backbone = dilated_resnet(build, 8, in_chans, layers, ("layer3", "layer4"))
    classifier = nn.Sequential(ASPP(2048, (12, 24, 36), layers), *conv_norm_relu(256, 256, 3, layers), layers.Conv2d(256, num_classes, 1))
    return BackboneWithHeads(backbone, classifier, fcn_head(1024, num_classes, layers) if aux_loss else None)


@register_model("segmentation", (3, 520, 520))
def deeplabv3_resnet50(**config: Any) -> BackboneWithHeads:
    """On a ResNet-50 of output stride 8; aux_loss: with an auxiliary head on its third stage."""
    return _deeplabv3(resnet50, **config)


@register_model("segmentation", (3, 520, 520))
def deeplabv3_resnet101(**config: Any) -> BackboneWithHeads:
    """On a ResNet-101 of output stride 8; aux_loss: with an auxiliary head on its third stage."""
    return _deeplabv3(resnet101, **config)
