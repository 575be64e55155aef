"""DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611): DeepLabV3's pyramid at stride 16 and a decoder that adds detail of stride 4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model
from ._segmentation import BackboneWithHeads, conv_norm_relu, dilated_resnet, fcn_head, resized
from .deeplabv3 import ASPP
from .resnet import resnet50, resnet101

__all__ = ["Decoder", "deeplabv3plus_resnet50", "deeplabv3plus_resnet101"]

# Dilation of the pyramid's 3x3 convolutions, by output stride: sections 3.1 and 4 of the paper.
_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}


class Decoder(nn.Module):
    """Feature maps of the first and last stage to logits at the first's size: 48 channels of detail beside 256 of the pyramid."""

    def __init__(self, channels: Sequence[int], rates: Sequence[int], num_classes: int, layers: Any) -> None:
        super().__init__()
        self.aspp = ASPP(channels[-1], rates, layers)
        self.reduce = nn.Sequential(*conv_norm_relu(channels[0], 48, 1, layers))
        self.fuse = nn.Sequential(*conv_norm_relu(256 + 48, 256, 3, layers), *conv_norm_relu(256, 256, 3, layers), nn.Dropout(0.1))
        self.score = layers.Conv2d(256, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        detail = self.reduce(maps[0])
        return self.score(self.fuse(torch.cat((resized(self.aspp(maps[-1]), detail.shape[-2:]), detail), 1)))


def _deeplabv3plus(
    build: Callable[..., nn.Module],
    num_classes: int = 21,
    in_chans: int = 3,
    output_stride: int = 16,
    aux_loss: bool = False,
    layers: Any = fastcv_nn,
) -> BackboneWithHeads:
    if output_stride not in _RATES:
        raise ValueError(f"output_stride must be 8 or 16, got {output_stride}")
    backbone = dilated_resnet(build, output_stride, in_chans, layers, ("layer1", "layer3", "layer4"))
    decoder = Decoder(backbone.channels, _RATES[output_stride], num_classes, layers)
    return BackboneWithHeads(backbone, decoder, fcn_head(1024, num_classes, layers) if aux_loss else None, last_only=False)


@register_model("segmentation", (3, 512, 512))
def deeplabv3plus_resnet50(**config: Any) -> BackboneWithHeads:
    """On a ResNet-50 of output_stride 16 (default) or 8."""
    return _deeplabv3plus(resnet50, **config)


@register_model("segmentation", (3, 512, 512))
def deeplabv3plus_resnet101(**config: Any) -> BackboneWithHeads:
    """On a ResNet-101 of output_stride 16 (default) or 8."""
    return _deeplabv3plus(resnet101, **config)
