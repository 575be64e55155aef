"""A convolutional autoencoder (Masci et al. 2011, Stacked convolutional auto-encoders): an image through a narrow code and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model
from .init import he_

__all__ = ["Autoencoder", "autoencoder"]


class Autoencoder(nn.Module):
    """[N, in_chans, H, W] to its reconstruction of the same shape, any H and W. widths: channels of each stage, which halves the sides.

    ``encode`` gives the code, [N, widths[-1], ceil(H / 2^stages), ceil(W / 2^stages)].
    """

    def __init__(self, in_chans: int = 3, widths: Sequence[int] = (16, 32, 64), layers: Any = fastcv_nn) -> None:
        super().__init__()
        channels = [in_chans, *widths]
        pairs = list(zip(channels, widths, strict=False))
        self.encoder = nn.ModuleList(layers.Conv2d(before, after, 3, 2, 1) for before, after in pairs)
        self.decoder = nn.ModuleList(layers.ConvTranspose2d(after, before, 3, 2, 1) for before, after in reversed(pairs))
        self.relu = nn.ReLU()
        he_(self, "fan_in", (nn.Conv2d, nn.ConvTranspose2d))

    def _encoded(self, x: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        sizes = []
        for layer in self.encoder:
            sizes.append(x.shape[-2:])
            x = self.relu(layer(x))
        return x, sizes

    def encode(self, x: Tensor) -> Tensor:
        return self._encoded(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        x, sizes = self._encoded(x)
        for i, (layer, size) in enumerate(zip(self.decoder, reversed(sizes), strict=True)):
            x = layer(x, output_size=size)
            x = self.relu(x) if i + 1 < len(self.decoder) else x
        return x


@register_model("reconstruction", (3, 32, 32))
def autoencoder(**config: Any) -> Autoencoder:
    """Three stages of 16, 32 and 64 channels."""
    return Autoencoder(**config)
