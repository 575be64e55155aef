"""Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929): patches of 16x16 pixels as words of a Transformer encoder.

Keys and shapes are torchvision's.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model

__all__ = ["VisionTransformer", "vit_b_16"]


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); [N, tokens, width] throughout."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float, layers: Any) -> None:
        super().__init__()
        self.ln_1 = layers.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = layers.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_width, width), nn.Dropout(dropout)
        )
        for layer in (self.mlp[0], self.mlp[3]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.ln_1(x)
        x = x + self.dropout(self.self_attention(tokens, tokens, tokens, need_weights=False)[0])
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Adds the position embedding; the blocks; a last norm."""

    def __init__(self, tokens: int, depth: int, width: int, heads: int, mlp_width: int, dropout: float, layers: Any) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, width).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            OrderedDict((f"encoder_layer_{i}", EncoderBlock(width, heads, mlp_width, dropout, layers)) for i in range(depth))
        )
        self.ln = layers.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(self.layers(self.dropout(x + self.pos_embedding)))


class VisionTransformer(nn.Module):
    """[N, in_chans, image_size, image_size] to logits [N, num_classes]. The head starts at zero, as in the paper.

    Raises ValueError for an image_size that is no multiple of patch_size, and for images of another size than that.
    """

    HEAD = ("heads",)

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        depth: int = 12,
        heads: int = 12,
        width: int = 768,
        mlp_width: int = 3072,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.0,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size ({patch_size}), got {image_size}")
        self.image_size = image_size
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_proj = layers.Conv2d(in_chans, width, patch_size, patch_size)
        self.encoder = Encoder((image_size // patch_size) ** 2 + 1, depth, width, heads, mlp_width, dropout, layers)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, num_classes)))
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (in_chans * patch_size**2)))
        nn.init.zeros_(self.conv_proj.bias)
        nn.init.zeros_(self.heads.head.weight)
        nn.init.zeros_(self.heads.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"this VisionTransformer takes images of {self.image_size}x{self.image_size}, got {x.shape[-2]}x{x.shape[-1]}")
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(x.shape[0], -1, -1), tokens), 1)
        return self.heads(self.encoder(tokens)[:, 0])


@register_model(sized=True)
def vit_b_16(**config: Any) -> VisionTransformer:
    """ViT-B/16: 12 layers of width 768."""
    return VisionTransformer(**config)
