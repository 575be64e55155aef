"""DeconvNet (Noh, Hong and Han 2015, arXiv:1505.04366): VGG16 and its mirror image.

Max pooling remembers where the maxima were; unpooling puts values back there, and transposed convolutions fill in the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model
from ._segmentation import SegmentationNetwork
from .init import he_

__all__ = ["DeconvNet", "deconvnet_vgg16"]


class DeconvNet(SegmentationNetwork):
    """[N, in_chans, H, W] to logits [N, num_classes, H, W]; the last pooling must leave ``code_kernel`` pixels, 224 in the paper.

    widths, counts: channels and convolutions of each stage. code_channels, code_kernel: of the convolutions between encoder and
    decoder, VGG's linear layers. Batch norm follows every layer but the last, as in the paper.
    """

    HEAD = ("score",)

    def __init__(
        self,
        num_classes: int = 21,
        in_chans: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        counts: Sequence[int] = (2, 2, 3, 3, 3),
        code_channels: int = 4096,
        code_kernel: int = 7,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()

        def stage(kind: Any, channels: Sequence[int], kernel: int = 3, padding: int = 1) -> nn.Sequential:
            modules: list[nn.Module] = []
            for before, after in pairwise(channels):
                modules += [kind(before, after, kernel, padding=padding), layers.BatchNorm2d(after), nn.ReLU(inplace=True)]
            return nn.Sequential(*modules)

        befores = [in_chans, *widths]
        plan = [(before, *(width,) * count) for before, width, count in zip(befores, widths, counts, strict=False)]
        self.encoder = nn.ModuleList(stage(layers.Conv2d, channels) for channels in plan)
        self.pool = layers.MaxPool2d(2, return_indices=True)
        self.code = nn.Sequential(
            *stage(layers.Conv2d, (widths[-1], code_channels), code_kernel, 0),
            *stage(layers.Conv2d, (code_channels, code_channels), 1, 0),
            *stage(layers.ConvTranspose2d, (code_channels, widths[-1]), code_kernel, 0),
        )
        self.unpool = layers.MaxUnpool2d(2)
        mirrored = [(*(width,) * count, before) for before, width, count in zip([widths[0], *widths], widths, counts, strict=False)]
        self.decoder = nn.ModuleList(stage(layers.ConvTranspose2d, channels) for channels in reversed(mirrored))
        self.score = layers.Conv2d(widths[0], num_classes, 1)
        he_(self, kinds=(nn.Conv2d, nn.ConvTranspose2d))

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor] | Tensor:
        places = []
        for stage in self.encoder:
            x = stage(x)
            size = x.shape[-2:]
            x, indices = self.pool(x)
            places.append((indices, size))
        x = self.code(x)
        for stage, (indices, size) in zip(self.decoder, reversed(places), strict=True):
            x = stage(self.unpool(x, indices, output_size=size))
        return self.answer(self.score(x))


@register_model("segmentation")
def deconvnet_vgg16(**config: Any) -> DeconvNet:
    """The paper's: about 252 M parameters, images of 224 pixels."""
    return DeconvNet(**config)
