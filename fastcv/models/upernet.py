"""UperNet (Xiao et al. 2018, arXiv:1807.10221): pyramid pooling on the coarsest map, a feature pyramid, all scales fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model
from ._segmentation import BackboneWithHeads, conv_norm_relu, refuse_one_pixel, resized
from .resnet import resnet50, resnet101
from .swin import swin_t

__all__ = ["UperHead", "upernet_resnet50", "upernet_resnet101", "upernet_swin_t"]

SCALES = (1, 2, 3, 6)


class UperHead(nn.Module):
    """Feature maps of all stages, finest first, to logits at the finest's size. width: channels of the pyramid."""

    def __init__(self, channels: Sequence[int], num_classes: int, layers: Any, width: int = 512, dropout: float = 0.1) -> None:
        super().__init__()

        def block(before: int, kernel: int) -> nn.Sequential:
            return nn.Sequential(*conv_norm_relu(before, width, kernel, layers))

        self.pools = nn.ModuleList(
            nn.Sequential(layers.AdaptiveAvgPool2d(scale), *conv_norm_relu(channels[-1], width, 1, layers)) for scale in SCALES
        )
        self.bottleneck = block(channels[-1] + len(SCALES) * width, 3)
        self.lateral = nn.ModuleList(block(before, 1) for before in channels[:-1])
        self.smooth = nn.ModuleList(block(width, 3) for _ in channels[:-1])
        self.fuse = block(len(channels) * width, 3)
        self.dropout = nn.Dropout(dropout)
        self.score = layers.Conv2d(width, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        coarsest = maps[-1]
        refuse_one_pixel(coarsest, self.pools[0][2], "the first scale of UperNet's pyramid pooling")
        pooled = [resized(pool(coarsest), coarsest.shape[-2:]) for pool in self.pools]
        pyramid = [self.bottleneck(torch.cat([coarsest, *pooled], 1))]
        for lateral, x in zip(reversed(self.lateral), reversed(maps[:-1]), strict=True):
            pyramid.insert(0, lateral(x) + resized(pyramid[0], x.shape[-2:]))
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, pyramid[:-1], strict=True)]
        finest = smoothed[0].shape[-2:]
        fused = [smoothed[0], *(resized(x, finest) for x in (*smoothed[1:], pyramid[-1]))]
        return self.score(self.dropout(self.fuse(torch.cat(fused, 1))))


class NormedMaps(nn.Module):
    """Swin's feature maps, each after a layer norm over its channels."""

    def __init__(self, maps: FeatureMaps, layers: Any) -> None:
        super().__init__()
        self.maps, self.channels = maps, maps.channels
        self.norms = nn.ModuleList(layers.LayerNorm(channels) for channels in maps.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(self.norms, self.maps(x), strict=True)]


def _auxiliary_head(before: int, num_classes: int, layers: Any) -> nn.Sequential:
    return nn.Sequential(*conv_norm_relu(before, 256, 3, layers), nn.Dropout(0.1), layers.Conv2d(256, num_classes, 1))


def _upernet(backbone: nn.Module, num_classes: int, aux_loss: bool, layers: Any) -> BackboneWithHeads:
    head = UperHead(backbone.channels, num_classes, layers)
    auxiliary = _auxiliary_head(backbone.channels[-2], num_classes, layers) if aux_loss else None
    return BackboneWithHeads(backbone, head, auxiliary, last_only=False)


def _on_resnet(build: Any, num_classes: int = 150, in_chans: int = 3, aux_loss: bool = False, layers: Any = fastcv_nn) -> BackboneWithHeads:
    stages = ("layer1", "layer2", "layer3", "layer4")
    backbone = FeatureMaps(build(in_chans=in_chans, layers=layers), stages, (256, 512, 1024, 2048))
    return _upernet(backbone, num_classes, aux_loss, layers)


@register_model("segmentation", (3, 512, 512))
def upernet_resnet50(**config: Any) -> BackboneWithHeads:
    """On a ResNet-50; aux_loss: with an auxiliary head on its third stage."""
    return _on_resnet(resnet50, **config)


@register_model("segmentation", (3, 512, 512))
def upernet_resnet101(**config: Any) -> BackboneWithHeads:
    """On a ResNet-101; aux_loss: with an auxiliary head on its third stage."""
    return _on_resnet(resnet101, **config)


@register_model("segmentation", (3, 512, 512))
def upernet_swin_t(
    num_classes: int = 150, in_chans: int = 3, aux_loss: bool = False, drop_path: float = 0.2, layers: Any = fastcv_nn
) -> BackboneWithHeads:
    """On Swin-T; aux_loss: with an auxiliary head on its third stage."""
    maps = swin_t(features_only=True, in_chans=in_chans, drop_path=drop_path, layers=layers)
    return _upernet(NormedMaps(maps, layers), num_classes, aux_loss, layers)
