"""Fully convolutional networks (Long, Shelhamer and Darrell 2014, arXiv:1411.4038).

``fcn32s_vgg16``, ``fcn16s_vgg16`` and ``fcn8s_vgg16`` are the paper's: VGG16 with its linear layers as convolutions, and learnt
upsampling that starts as bilinear and adds the scores of finer stages. ``fcn_resnet50`` and ``fcn_resnet101`` are torchvision's,
with its keys and shapes: a dilated ResNet, one head, and bilinear upsampling.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model
from ._segmentation import BackboneWithHeads, SegmentationNetwork, dilated_resnet, fcn_head
from .init import he_
from .resnet import resnet50, resnet101
from .vgg import vgg16

__all__ = ["FCNVGG16", "fcn8s_vgg16", "fcn16s_vgg16", "fcn32s_vgg16", "fcn_resnet50", "fcn_resnet101"]


def bilinear_kernel(size: int) -> Tensor:
    """[size, size]: the filter whose transposed convolution of stride size / 2 interpolates bilinearly."""
    distance = (torch.arange(size) - (size - 1) / 2).abs()
    ramp = 1 - distance / (size / 2)
    return ramp[:, None] * ramp[None, :]


class FCNVGG16(SegmentationNetwork):
    """[N, in_chans, H, W] to logits [N, num_classes, H, W], any H and W of 32 and up.

    stride: 32 upsamples the last scores at once; 16 first adds those of pool4; 8 those of pool3 too. Each upsampling is a
    transposed convolution with one bilinear filter per class to start with. code_channels: of the convolutions that stand for
    VGG's linear layers. The paper pads the image by 100 pixels and crops; here the 7x7 convolution is padded instead, with as many
    parameters. Score layers start at zero, as in the paper.
    """

    HEAD = ("score", "score_pool4", "score_pool3", "upscore", "upscore_pool4", "upscore_pool3")

    def __init__(
        self,
        stride: int,
        num_classes: int = 21,
        in_chans: int = 3,
        code_channels: int = 4096,
        dropout: float = 0.5,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        if stride not in (8, 16, 32):
            raise ValueError(f"stride must be 8, 16 or 32, got {stride}")
        network = vgg16(num_classes=0, in_chans=in_chans, layers=layers)
        self.backbone = FeatureMaps(network, ("16", "23", "30"), (256, 512, 512))
        self.classifier = nn.Sequential(
            *(layers.Conv2d(512, code_channels, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(layers.Conv2d(code_channels, code_channels, 1), nn.ReLU(inplace=True), nn.Dropout(dropout)),
        )
        he_(self)

        def upsampling(factor: int) -> nn.Module:
            return layers.ConvTranspose2d(num_classes, num_classes, 2 * factor, factor, factor // 2, bias=False)

        self.score = layers.Conv2d(code_channels, num_classes, 1)
        self.score_pool4 = layers.Conv2d(512, num_classes, 1) if stride <= 16 else None
        self.score_pool3 = layers.Conv2d(256, num_classes, 1) if stride == 8 else None
        self.upscore_pool4 = upsampling(2) if stride <= 16 else None
        self.upscore_pool3 = upsampling(2) if stride == 8 else None
        self.upscore = upsampling(stride)
        self._reset_scores()

    @torch.no_grad()
    def _reset_scores(self) -> None:
        for layer in (self.score, self.score_pool4, self.score_pool3):
            if layer is not None:
                layer.weight.zero_()
                layer.bias.zero_()
        for layer in (self.upscore, self.upscore_pool4, self.upscore_pool3):
            if layer is not None:
                layer.weight.zero_()
                layer.weight.diagonal(dim1=0, dim2=1).copy_(bilinear_kernel(layer.kernel_size[0])[..., None])

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor] | Tensor:
        pool3, pool4, pool5 = self.backbone(x)
        score = self.score(self.classifier(pool5))
        if self.score_pool4 is not None:
            score = _grown(self.upscore_pool4, score, pool4.shape[-2:]) + self.score_pool4(pool4)
        if self.score_pool3 is not None:
            score = _grown(self.upscore_pool3, score, pool3.shape[-2:]) + self.score_pool3(pool3)
        return self.answer(_grown(self.upscore, score, x.shape[-2:]))


def _grown(upsampling: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsampled to at least ``size``, and cut there: pooling rounds sizes down, so up to a stride of pixels may be missing."""
    factor = upsampling.stride[0]
    missing = [max(0, wanted - have * factor) for wanted, have in zip(size, x.shape[-2:], strict=True)]
    if any(missing):
        x = nn.functional.pad(x, (0, -(-missing[1] // factor), 0, -(-missing[0] // factor)), mode="replicate")
    return upsampling(x)[..., : size[0], : size[1]]


def _fcn_resnet(
    build: Callable[..., nn.Module], num_classes: int = 21, in_chans: int = 3, aux_loss: bool = False, layers: Any = fastcv_nn
) -> BackboneWithHeads:
    backbone = dilated_resnet(build, 8, in_chans, layers, ("layer3", "layer4"))
    return BackboneWithHeads(backbone, fcn_head(2048, num_classes, layers), fcn_head(1024, num_classes, layers) if aux_loss else None)


@register_model("segmentation", (3, 520, 520))
def fcn32s_vgg16(**config: Any) -> FCNVGG16:
    """The scores of stride 32, upsampled at once."""
    return FCNVGG16(32, **config)


@register_model("segmentation", (3, 520, 520))
def fcn16s_vgg16(**config: Any) -> FCNVGG16:
    """With the scores of pool4."""
    return FCNVGG16(16, **config)


@register_model("segmentation", (3, 520, 520))
def fcn8s_vgg16(**config: Any) -> FCNVGG16:
    """With the scores of pool4 and pool3."""
    return FCNVGG16(8, **config)


@register_model("segmentation", (3, 520, 520))
def fcn_resnet50(**config: Any) -> BackboneWithHeads:
    """On a ResNet-50 of output stride 8; aux_loss: with an auxiliary head on its third stage."""
    return _fcn_resnet(resnet50, **config)


@register_model("segmentation", (3, 520, 520))
def fcn_resnet101(**config: Any) -> BackboneWithHeads:
    """On a ResNet-101 of output stride 8; aux_loss: with an auxiliary head on its third stage."""
    return _fcn_resnet(resnet101, **config)
