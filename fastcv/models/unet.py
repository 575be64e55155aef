"""U-Net (Ronneberger, Fischer and Brox 2015, arXiv:1505.04597): an encoder and a decoder with skip connections between equal sizes.

Convolutions are padded, so that the answer has the image's size; the paper's are not. Without skips it is a plain encoder-decoder.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model
from ._segmentation import SegmentationNetwork
from .init import he_

__all__ = ["UNet", "unet", "unet_small"]


class UNet(SegmentationNetwork):
    """[N, in_chans, H, W] to logits [N, num_classes, H, W], any H and W of 2^depth and up.

    width: channels of the first stage, doubled at each of ``depth`` poolings. skips: False leaves out the concatenations.
    batch_norm: after each 3x3 convolution, which then has no bias; the paper has none.
    """

    HEAD = ("score",)

    def __init__(
        self,
        num_classes: int = 2,
        in_chans: int = 3,
        width: int = 64,
        depth: int = 4,
        skips: bool = True,
        batch_norm: bool = False,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()

        def twice(before: int, after: int) -> nn.Sequential:
            stages: list[nn.Module] = []
            for channels in (before, after):
                stages.append(layers.Conv2d(channels, after, 3, padding=1, bias=not batch_norm))
                stages += [layers.BatchNorm2d(after)] if batch_norm else []
                stages.append(nn.ReLU(inplace=True))
            return nn.Sequential(*stages)

        widths = [width << i for i in range(depth + 1)]
        self.skips = skips
        self.down = nn.ModuleList(twice(before, after) for before, after in zip([in_chans, *widths], widths, strict=False))
        self.pool = layers.MaxPool2d(2)
        self.grow = nn.ModuleList(layers.ConvTranspose2d(2 * after, after, 2, stride=2) for after in reversed(widths[:-1]))
        self.up = nn.ModuleList(twice(2 * after if skips else after, after) for after in reversed(widths[:-1]))
        self.score = layers.Conv2d(width, num_classes, 1)
        he_(self, "fan_in")

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor] | Tensor:
        maps = []
        for i, stage in enumerate(self.down):
            x = stage(x if i == 0 else self.pool(x))
            maps.append(x)
        for grow, stage, skip in zip(self.grow, self.up, reversed(maps[:-1]), strict=True):
            x = grow(x, output_size=skip.shape[-2:])
            x = stage(torch.cat((skip, x), 1) if self.skips else x)
        return self.answer(self.score(x))


@register_model("segmentation", (3, 512, 512))
def unet(**config: Any) -> UNet:
    """The paper's widths, 64 to 1024: 31 M parameters."""
    return UNet(**config)


@register_model("segmentation", (3, 64, 64))
def unet_small(width: int = 16, depth: int = 3, batch_norm: bool = True, **config: Any) -> UNet:
    """Widths 16 to 128 with batch norm, for small images: 0.5 M parameters."""
    return UNet(width=width, depth=depth, batch_norm=batch_norm, **config)
