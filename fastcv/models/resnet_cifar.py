"""The residual network for small images (He et al. 2015, section 4.2): a 3x3 stem, three stages of basic blocks, global
average pooling and one linear layer. Module names are those of torchvision's ResNet. Shortcuts that change the shape are
1x1 convolutions with batch norm.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.fold import fold_batch_norm

__all__ = ["ResNetCifar", "resnet8", "resnet20", "resnet32", "resnet56"]


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x))."""

    def __init__(self, in_channels: int, channels: int, stride: int, layers: Any) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = layers.BatchNorm2d(channels)
        self.conv2 = layers.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = layers.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(layers.Conv2d(in_channels, channels, 1, stride, bias=False), layers.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNetCifar(nn.Module):
    """[N, in_channels, H, W] to logits [N, num_classes]; H and W of 8 and up (each stage after the first halves them).

    blocks: the number of basic blocks per stage; widths: channels per stage. layers: the namespace of Conv2d, BatchNorm2d
    and AdaptiveAvgPool2d, torch.nn or fastcv.nn; the same seed gives the same parameters with either.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
        num_classes: int = 10,
        layers: Any = nn,
    ) -> None:
        super().__init__()
        if len(blocks) != 3 or len(widths) != 3:
            raise ValueError(f"ResNetCifar has three stages, got blocks={tuple(blocks)} and widths={tuple(widths)}")
        self.conv1 = layers.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = layers.BatchNorm2d(widths[0])
        before = widths[0]
        for stage, (count, channels) in enumerate(zip(blocks, widths, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            modules = [BasicBlock(before if i == 0 else channels, channels, stride, layers) for i, stride in enumerate(strides)]
            setattr(self, f"layer{stage}", nn.Sequential(*modules))
            before = channels
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))

    def _conv_bn_pairs(self) -> Iterator[tuple[nn.Module, str, str]]:
        yield self, "conv1", "bn1"
        for block in (m for m in self.modules() if isinstance(m, BasicBlock)):
            yield block, "conv1", "bn1"
            yield block, "conv2", "bn2"
            if block.downsample is not None:
                yield block.downsample, "0", "1"

    def folded(self) -> ResNetCifar:
        """A copy in evaluation mode whose batch norms are folded into their convolutions (in float64)."""
        network = copy.deepcopy(self).eval()
        for parent, conv, bn in list(network._conv_bn_pairs()):
            setattr(parent, conv, fold_batch_norm(getattr(parent, conv), getattr(parent, bn)))
            setattr(parent, bn, nn.Identity())
        return network


def resnet8(**kwargs: Any) -> ResNetCifar:
    """One block per stage: the smallest of the family."""
    return ResNetCifar((1, 1, 1), **kwargs)


def resnet20(**kwargs: Any) -> ResNetCifar:
    """Three blocks per stage, 0.27 M parameters."""
    return ResNetCifar((3, 3, 3), **kwargs)


def resnet32(**kwargs: Any) -> ResNetCifar:
    """Five blocks per stage, 0.47 M parameters."""
    return ResNetCifar((5, 5, 5), **kwargs)


def resnet56(**kwargs: Any) -> ResNetCifar:
    """Nine blocks per stage, 0.86 M parameters."""
    return ResNetCifar((9, 9, 9), **kwargs)
