"""The residual network for small images (He et al. 2015, section 4.2): a 3x3 stem, three stages of basic blocks, global
average pooling and one linear layer; and its plain twin without shortcuts. Module names are those of torchvision's ResNet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import nn as fastcv_nn
from ..nn.fold import fold_batch_norm
from ._registry import register_model
from .init import he_

__all__ = ["ResNetCifar", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]

NORMS = ("batch", "group", "layer", "instance")
SHORTCUTS = ("projection", "pad", "none")


def _norm_of(kind: str, layers: Any) -> Callable[[int], nn.Module]:
    """Channels to a norm. Group: 8 groups; layer: all of an image; instance: each channel of an image, with scale and shift."""
    return {
        "batch": layers.BatchNorm2d,
        "group": lambda channels: layers.GroupNorm(8, channels),
        "layer": lambda channels: layers.GroupNorm(1, channels),
        "instance": lambda channels: layers.InstanceNorm2d(channels, affine=True),
    }[kind]


class PadShortcut(nn.Module):
    """The paper's option A: every ``stride``-th pixel, and zeros for the channels that x does not have. No parameters."""

    def __init__(self, more_channels: int, stride: int) -> None:
        super().__init__()
        self.more_channels, self.stride = more_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more_channels // 2, self.more_channels - self.more_channels // 2)
        )


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x)), without the last term for shortcut="none"."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, layers: Any, norm: Callable[[int], nn.Module], shortcut: str = "projection"
    ) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = layers.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.residual = shortcut != "none"
        self.downsample = None
        if self.residual and (stride != 1 or in_channels != channels):
            if shortcut == "pad":
                self.downsample = PadShortcut(channels - in_channels, stride)
            else:
                self.downsample = nn.Sequential(layers.Conv2d(in_channels, channels, 1, stride, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return torch.relu(x + shortcut if self.residual else x)


class ResNetCifar(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]; H and W of 8 and up (each stage after the first halves them).

    blocks: the number of basic blocks per stage; widths: channels per stage. norm: "batch", "group", "layer" or "instance".
    shortcut: where the shape changes, "projection" is a 1x1 convolution with norm and "pad" the paper's parameter-free option
    A; "none" is the plain network without any. layers: the namespace of the modules, torch.nn or fastcv.nn; the same seed gives
    the same parameters with either.
    """

    HEAD = ("fc",)

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        in_chans: int = 3,
        num_classes: int = 10,
        norm: str = "batch",
        shortcut: str = "projection",
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        if len(blocks) != 3 or len(widths) != 3:
            raise ValueError(f"ResNetCifar has three stages, got blocks={tuple(blocks)} and widths={tuple(widths)}")
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {', '.join(SHORTCUTS)}, got {shortcut!r}")
        make_norm = _norm_of(norm, layers)
        self.conv1 = layers.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        self.bn1 = make_norm(widths[0])
        before = widths[0]
        for stage, (count, channels) in enumerate(zip(blocks, widths, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            modules = [
                BasicBlock(before if i == 0 else channels, channels, stride, layers, make_norm, shortcut)
                for i, stride in enumerate(strides)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*modules))
            before = channels
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, num_classes)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))

    def _conv_bn_pairs(self) -> Iterator[tuple[nn.Module, str, str]]:
        yield self, "conv1", "bn1"
        for block in (m for m in self.modules() if isinstance(m, BasicBlock)):
            yield block, "conv1", "bn1"
            yield block, "conv2", "bn2"
            if isinstance(block.downsample, nn.Sequential):
                yield block.downsample, "0", "1"

    def folded(self) -> ResNetCifar:
        """A copy in evaluation mode whose batch norms are folded into their convolutions (in float64). Other norms raise TypeError."""
        network = copy.deepcopy(self).eval()
        for parent, conv, bn in list(network._conv_bn_pairs()):
            setattr(parent, conv, fold_batch_norm(getattr(parent, conv), getattr(parent, bn)))
            setattr(parent, bn, nn.Identity())
        return network


@register_model(input_size=(3, 32, 32))
def resnet8(**config: Any) -> ResNetCifar:
    """One block per stage: the smallest of the family."""
    return ResNetCifar((1, 1, 1), **config)


@register_model(input_size=(3, 32, 32))
def resnet20(**config: Any) -> ResNetCifar:
    """Three blocks per stage, 0.27 M parameters."""
    return ResNetCifar((3, 3, 3), **config)


@register_model(input_size=(3, 32, 32))
def resnet32(**config: Any) -> ResNetCifar:
    """Five blocks per stage, 0.47 M parameters."""
    return ResNetCifar((5, 5, 5), **config)


@register_model(input_size=(3, 32, 32))
def resnet44(**config: Any) -> ResNetCifar:
    """Seven blocks per stage, 0.66 M parameters."""
    return ResNetCifar((7, 7, 7), **config)


@register_model(input_size=(3, 32, 32))
def resnet56(**config: Any) -> ResNetCifar:
    """Nine blocks per stage, 0.86 M parameters."""
    return ResNetCifar((9, 9, 9), **config)


@register_model(input_size=(3, 32, 32))
def resnet110(**config: Any) -> ResNetCifar:
    """Eighteen blocks per stage, 1.7 M parameters."""
    return ResNetCifar((18, 18, 18), **config)
