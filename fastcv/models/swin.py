"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030): attention within windows that shift from block to block.

Maps are [N, H, W, C]. Keys and shapes are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model

__all__ = ["SwinTransformer", "swin_t"]

# Added to the scores of pixels that are neighbours only because the map was rolled: their weight vanishes after softmax.
_FAR = -100.0


class ToChannelsLast(nn.Module):
    """[N, C, H, W] to [N, H, W, C], a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class StochasticDepth(nn.Module):
    """Training: each image's x is zero with probability p, and divided by 1 - p otherwise (Huang et al. 2016, arXiv:1603.09382)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.empty((x.shape[0],) + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * (kept / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def windows_of(x: Tensor, side: int) -> Tensor:
    """[N, H, W, C] to [N * windows, side * side, C]; H and W are multiples of side."""
    return x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(0, 2).flatten(1, 2)


def map_of(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of ``windows_of``."""
    rows, columns = height // side, width // side
    return windows.unflatten(1, (side, side)).unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_index(side: int) -> Tensor:
    """[side^4]: for each pair of a window's pixels, the row of the bias table that belongs to their offset."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pixels = torch.stack((rows.flatten(), columns.flatten()))
    offset = pixels[:, :, None] - pixels[:, None, :] + side - 1
    return (offset[0] * (2 * side - 1) + offset[1]).flatten()


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows of ``side`` pixels, with a learnt bias per offset; shifted by ``shift`` pixels."""

    def __init__(self, width: int, heads: int, side: int, shift: int, layers: Any) -> None:
        super().__init__()
        self.heads, self.side, self.shift = heads, side, shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_index(side))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.softmax = layers.Softmax(-1)

    def _mask(self, height: int, width: int, shifts: tuple[int, int], like: Tensor) -> Tensor:
        """[windows, 1, side^2, side^2]: 0 between pixels of one region of the unrolled map, _FAR between the others."""
        region = torch.zeros(2, max(height, width), device=like.device)
        for axis, (size, shift) in enumerate(zip((height, width), shifts, strict=True)):
            if shift:
                region[axis, size - self.side : size - shift] = 1
                region[axis, size - shift : size] = 2
        regions = region[0, :height, None] * 3 + region[1, None, :width]
        of_window = windows_of(regions[None, :, :, None], self.side).squeeze(-1)
        far = of_window[:, :, None] != of_window[:, None, :]
        return (far * _FAR).to(like.dtype)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width = x.shape[:3]
        side = self.side
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1:3]
        # A window that covers the map needs no shift along that side.
        shifts = (0 if side >= rows else self.shift, 0 if side >= columns else self.shift)
        if any(shifts):
            x = x.roll((-shifts[0], -shifts[1]), (1, 2))
        tokens = windows_of(x, side)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].unflatten(0, (side**2, side**2)).permute(2, 0, 1)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
        if any(shifts):
            scores = (scores.unflatten(0, (batch, -1)) + self._mask(rows, columns, shifts, scores)).flatten(0, 1)
        tokens = self.proj((self.softmax(scores) @ v).transpose(1, 2).flatten(2))
        x = map_of(tokens, side, rows, columns)
        if any(shifts):
            x = x.roll(shifts, (1, 2))
        return x[:, :height, :width]


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each dropped with probability ``drop`` while training."""

    def __init__(self, width: int, heads: int, side: int, shift: int, drop: float, dropout: float, layers: Any) -> None:
        super().__init__()
        self.norm1 = layers.LayerNorm(width)
        self.attn = WindowAttention(width, heads, side, shift, layers)
        self.stochastic_depth = StochasticDepth(drop)
        self.norm2 = layers.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stochastic_depth(self.attn(self.norm1(x)))
        return x + self.stochastic_depth(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """[N, H, W, C] to [N, ceil(H / 2), ceil(W / 2), 2 C]: the four pixels of each 2x2 square side by side, then a linear layer."""

    def __init__(self, width: int, layers: Any) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = layers.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        return self.reduction(self.norm(torch.cat(corners, -1)))


class SwinTransformer(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes], any H and W of patch_size and up.

    depths, heads: blocks and attention heads of each stage. width: channels of the first stage, doubled from stage to stage.
    drop_path: probability that the last block is dropped while training, rising linearly from 0.
    """

    HEAD = ("head",)

    def __init__(
        self,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        patch_size: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path: float = 0.2,
        dropout: float = 0.0,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        self.widths = tuple(width << stage for stage in range(len(depths)))
        stages = [nn.Sequential(layers.Conv2d(in_chans, width, patch_size, patch_size), ToChannelsLast(), layers.LayerNorm(width))]
        done, last = 0, max(1, sum(depths) - 1)
        for stage, (channels, depth, count) in enumerate(zip(self.widths, depths, heads, strict=True)):
            if stage:
                stages.append(PatchMerging(self.widths[stage - 1], layers))
            blocks = []
            for i in range(depth):
                shift = 0 if i % 2 == 0 else window // 2
                blocks.append(SwinBlock(channels, count, window, shift, drop_path * (done + i) / last, dropout, layers))
            stages.append(nn.Sequential(*blocks))
            done += depth
        self.features = nn.Sequential(*stages)
        self.norm = layers.LayerNorm(self.widths[-1])
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(self.widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.features(x)).permute(0, 3, 1, 2)
        return self.head(self.avgpool(x).flatten(1))


@register_model()
def swin_t(features_only: bool = False, **config: Any) -> nn.Module:
    """Swin-T. features_only: four maps [N, C, H, W] at strides 4, 8, 16 and 32."""
    network = SwinTransformer(**config)
    if not features_only:
        return network
    return FeatureMaps(network, ("1", "3", "5", "7"), network.widths, nhwc=True)
