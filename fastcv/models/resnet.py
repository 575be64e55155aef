"""Residual networks for large images: ResNet, ResNeXt, Wide ResNet and SE-ResNet.

ResNet: He et al. 2015, arXiv:1512.03385, with the stride in the 3x3 convolution of a bottleneck ("v1.5"). ResNeXt: Xie et al.
2016, arXiv:1611.05431, whose 3x3 convolutions have groups. Wide ResNet: Zagoruyko and Komodakis 2016, arXiv:1605.07146, twice as
wide inside the bottleneck. SE: Hu et al. 2017, arXiv:1709.01507, which rescales the channels of each block by a gate. Keys and
shapes are torchvision's, those of SE-ResNet timm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import nn as fastcv_nn
from ._features import FeatureMaps
from ._registry import register_model
from .init import he_

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "SqueezeExcitation",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "seresnet18",
    "seresnet34",
    "seresnet50",
    "seresnet101",
    "seresnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


class SqueezeExcitation(nn.Module):
    """x * sigmoid(fc2(relu(fc1(mean of x over the pixels)))), one gate per channel; fc1 narrows to channels // reduction."""

    def __init__(self, channels: int, layers: Any, reduction: int = 16) -> None:
        super().__init__()
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.fc1 = layers.Conv2d(channels, max(8, channels // reduction), 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = layers.Conv2d(max(8, channels // reduction), channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.relu(self.fc1(self.avgpool(x)))))


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x))."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int, shortcut: nn.Module | None, layers: Any, **options: Any) -> None:
        super().__init__()
        if options["groups"] != 1 or options["base_width"] != 64 or options["dilation"] != 1:
            raise ValueError(f"a BasicBlock has one group, base width 64 and dilation 1, got {options}")
        self.conv1 = layers.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = layers.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = layers.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = layers.BatchNorm2d(width)
        self.se = SqueezeExcitation(width, layers) if options["squeeze"] else None
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        return self.relu(x + identity)


class Bottleneck(nn.Module):
    """relu(bn(conv1x1(relu(bn(conv3x3(relu(bn(conv1x1(x)))))))) + shortcut(x)); the output has 4 * width channels."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int, shortcut: nn.Module | None, layers: Any, **options: Any) -> None:
        super().__init__()
        inner = width * options["base_width"] // 64 * options["groups"]
        dilation, after = options["dilation"], width * self.expansion
        self.conv1 = layers.Conv2d(before, inner, 1, bias=False)
        self.bn1 = layers.BatchNorm2d(inner)
        self.conv2 = layers.Conv2d(inner, inner, 3, stride, dilation, dilation, options["groups"], bias=False)
        self.bn2 = layers.BatchNorm2d(inner)
        self.conv3 = layers.Conv2d(inner, after, 1, bias=False)
        self.bn3 = layers.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.se = SqueezeExcitation(after, layers) if options["squeeze"] else None
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        return self.relu(x + identity)


class ResNet(nn.Module):
    """[N, in_chans, H, W] to logits [N, num_classes]; the feature maps have strides 2, 4, 8, 16 and 32.

    blocks: per stage. groups, width_per_group: of the 3x3 convolutions of a Bottleneck. squeeze: SE gates.
    replace_stride_with_dilation: for stages 2, 3, 4, whether the stage dilates its 3x3 convolutions instead of striding
    (Bottleneck only), as segmentation needs.
    """

    HEAD = ("fc",)

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        groups: int = 1,
        width_per_group: int = 64,
        squeeze: bool = False,
        replace_stride_with_dilation: Sequence[bool] = (False, False, False),
        layers: Any = fastcv_nn,
    ) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(in_chans, 64, 7, 2, 3, bias=False)
        self.bn1 = layers.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = layers.MaxPool2d(3, 2, 1)
        before, dilation = 64, 1
        for stage, (count, dilate) in enumerate(zip(blocks, (False, *replace_stride_with_dilation), strict=True)):
            width, stride, first_dilation = 64 << stage, 1 if stage == 0 else 2, dilation
            if dilate:
                dilation, stride = dilation * stride, 1
            options = {"groups": groups, "base_width": width_per_group, "squeeze": squeeze}
            modules = []
            for i in range(count):
                shortcut, step, after = None, stride if i == 0 else 1, width * block.expansion
                if step != 1 or before != after:
                    shortcut = nn.Sequential(layers.Conv2d(before, after, 1, step, bias=False), layers.BatchNorm2d(after))
                modules.append(block(before, width, step, shortcut, layers, dilation=first_dilation if i == 0 else dilation, **options))
                before = after
            setattr(self, f"layer{stage + 1}", nn.Sequential(*modules))
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, num_classes)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _resnet(block: type[BasicBlock] | type[Bottleneck], blocks: Sequence[int], features_only: bool = False, **config: Any) -> nn.Module:
    """features_only: five maps, after the stem's ReLU and after each stage, at strides 2, 4, 8, 16 and 32."""
    network = ResNet(block, blocks, **config)
    if not features_only:
        return network
    return FeatureMaps(network, ("relu", "layer1", "layer2", "layer3", "layer4"), (64, *((64 << i) * block.expansion for i in range(4))))


@register_model()
def resnet18(**config: Any) -> nn.Module:
    """Basic blocks 2, 2, 2, 2."""
    return _resnet(BasicBlock, (2, 2, 2, 2), **config)


@register_model()
def resnet34(**config: Any) -> nn.Module:
    """Basic blocks 3, 4, 6, 3."""
    return _resnet(BasicBlock, (3, 4, 6, 3), **config)


@register_model()
def resnet50(**config: Any) -> nn.Module:
    """Bottlenecks 3, 4, 6, 3."""
    return _resnet(Bottleneck, (3, 4, 6, 3), **config)


@register_model()
def resnet101(**config: Any) -> nn.Module:
    """Bottlenecks 3, 4, 23, 3."""
    return _resnet(Bottleneck, (3, 4, 23, 3), **config)


@register_model()
def resnet152(**config: Any) -> nn.Module:
    """Bottlenecks 3, 8, 36, 3."""
    return _resnet(Bottleneck, (3, 8, 36, 3), **config)


@register_model()
def resnext50_32x4d(**config: Any) -> nn.Module:
    """ResNet-50 with 32 groups of 4 channels in the first stage's 3x3 convolutions."""
    return _resnet(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4, **config)


@register_model()
def resnext101_32x8d(**config: Any) -> nn.Module:
    """ResNet-101 with 32 groups of 8 channels in the first stage's 3x3 convolutions."""
    return _resnet(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8, **config)


@register_model()
def wide_resnet50_2(**config: Any) -> nn.Module:
    """ResNet-50 with 3x3 convolutions of twice the channels."""
    return _resnet(Bottleneck, (3, 4, 6, 3), width_per_group=128, **config)


@register_model()
def wide_resnet101_2(**config: Any) -> nn.Module:
    """ResNet-101 with 3x3 convolutions of twice the channels."""
    return _resnet(Bottleneck, (3, 4, 23, 3), width_per_group=128, **config)


@register_model()
def seresnet18(**config: Any) -> nn.Module:
    """ResNet-18 with squeeze-and-excitation."""
    return _resnet(BasicBlock, (2, 2, 2, 2), squeeze=True, **config)


@register_model()
def seresnet34(**config: Any) -> nn.Module:
    """ResNet-34 with squeeze-and-excitation."""
    return _resnet(BasicBlock, (3, 4, 6, 3), squeeze=True, **config)


@register_model()
def seresnet50(**config: Any) -> nn.Module:
    """ResNet-50 with squeeze-and-excitation."""
    return _resnet(Bottleneck, (3, 4, 6, 3), squeeze=True, **config)


@register_model()
def seresnet101(**config: Any) -> nn.Module:
    """ResNet-101 with squeeze-and-excitation."""
    return _resnet(Bottleneck, (3, 4, 23, 3), squeeze=True, **config)


@register_model()
def seresnet152(**config: Any) -> nn.Module:
    """ResNet-152 with squeeze-and-excitation."""
    return _resnet(Bottleneck, (3, 8, 36, 3), squeeze=True, **config)
