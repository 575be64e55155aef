"""MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601): perceptrons across patches and across channels in turn. Keys are timm's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._registry import register_model

__all__ = ["MLPMixer", "mixer_b_16"]


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) on the last dimension."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MixerBlock(nn.Module):
    """[N, tokens, width]: x + mlp over the tokens, then x + mlp over the channels."""

    def __init__(self, tokens: int, width: int, layers: Any) -> None:
        super().__init__()
        self.norm1 = layers.LayerNorm(width, eps=1e-6)
        self.mlp_tokens = Mlp(tokens, width // 2)
        self.norm2 = layers.LayerNorm(width, eps=1e-6)
        self.mlp_channels = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class PatchEmbedding(nn.Module):
    """[N, in_chans, H, W] to [N, patches, width]."""

    def __init__(self, in_chans: int, width: int, patch_size: int, layers: Any) -> None:
        super().__init__()
        self.proj = layers.Conv2d(in_chans, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MLPMixer(nn.Module):
    """[N, in_chans, image_size, image_size] to logits [N, num_classes]; image_size must be a multiple of patch_size (ValueError)."""

    HEAD = ("head",)

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        depth: int = 12,
        width: int = 768,
        num_classes: int = 1000,
        in_chans: int = 3,
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size ({patch_size}), got {image_size}")
        self.stem = PatchEmbedding(in_chans, width, patch_size, layers)
        self.blocks = nn.Sequential(*(MixerBlock((image_size // patch_size) ** 2, width, layers) for _ in range(depth)))
        self.norm = layers.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(1))


@register_model(sized=True)
def mixer_b_16(**config: Any) -> MLPMixer:
    """Mixer-B/16: 12 blocks of width 768, 59.9 M parameters."""
    return MLPMixer(**config)
