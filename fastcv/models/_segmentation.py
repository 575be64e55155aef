"""What the networks that label pixels share: the form of their answer, and a backbone with one or two heads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ._features import FeatureMaps

__all__ = [
    "BackboneWithHeads",
    "SegmentationNetwork",
    "as_tensor",
    "conv_norm_relu",
    "dilated_resnet",
    "fcn_head",
    "refuse_one_pixel",
    "resized",
]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, C, h, w] to [N, C, *size], bilinear between pixel centres."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def conv_norm_relu(before: int, after: int, kernel: int, layers: Any, dilation: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    convolution = layers.Conv2d(before, after, kernel, padding=padding, dilation=dilation, bias=False)
    return [convolution, layers.BatchNorm2d(after), nn.ReLU()]


def refuse_one_pixel(x: Tensor, norm: nn.Module, where: str) -> None:
    """Raises torch's ValueError, with what to do, where ``norm`` would train on the mean of a single image."""
    if x.shape[0] == 1 and norm.training:
        raise ValueError(
            f"Expected more than 1 value per channel when training: {where} leaves one pixel, and the batch norm after it has no "
            "statistics from one image. Train with two images or more in a batch (drop_last=True), or call .eval() on that batch norm"
        )


class SegmentationNetwork(nn.Module):
    """[N, in_chans, H, W] to OrderedDict(out=..., aux=...) of logits [N, num_classes, H, W]; aux only where there is an auxiliary head.

    With ``return_dict = False`` (``as_tensor``) the answer is the tensor ``out`` alone, as export and ``torch.nn.Sequential`` need it.
    """

    return_dict = True

    def answer(self, out: Tensor, aux: Tensor | None = None) -> OrderedDict[str, Tensor] | Tensor:
        if not self.return_dict:
            return out
        return OrderedDict(out=out) if aux is None else OrderedDict(out=out, aux=aux)


def as_tensor(model: SegmentationNetwork) -> SegmentationNetwork:
    """``model`` itself, which from now on returns the logits as one tensor. Raises TypeError for a model that always does."""
    if not isinstance(model, SegmentationNetwork):
        raise TypeError(f"{type(model).__name__} is no segmentation network of fastcv.models")
    model.return_dict = False
    return model


class BackboneWithHeads(SegmentationNetwork):
    """A head on the backbone's feature maps, an auxiliary head on its last but one; both resized to the input's size.

    backbone: gives a list of feature maps. last_only: the head takes the last map instead of the list.
    """

    HEAD = ("classifier", "aux_classifier")
    OPTIONAL = ("aux_classifier",)

    def __init__(self, backbone: nn.Module, classifier: nn.Module, aux_classifier: nn.Module | None, last_only: bool = True) -> None:
        super().__init__()
        self.backbone, self.classifier, self.aux_classifier = backbone, classifier, aux_classifier
        self.last_only = last_only

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor] | Tensor:
        size, maps = x.shape[-2:], self.backbone(x)
        out = resized(self.classifier(maps[-1] if self.last_only else maps), size)
        if self.aux_classifier is None or not self.return_dict:
            return self.answer(out)
        return self.answer(out, resized(self.aux_classifier(maps[-2]), size))


def fcn_head(before: int, num_classes: int, layers: Any, dropout: float = 0.1) -> nn.Sequential:
    """A 3x3 convolution to a quarter of the channels and a 1x1 convolution to the classes."""
    inner = before // 4
    return nn.Sequential(*conv_norm_relu(before, inner, 3, layers), nn.Dropout(dropout), layers.Conv2d(inner, num_classes, 1))


def dilated_resnet(build: Callable[..., nn.Module], output_stride: int, in_chans: int, layers: Any, taps: tuple[str, ...]) -> nn.Module:
    """The feature maps ``taps`` of a ResNet whose last stages dilate, so that its last map has stride 8, 16 or 32.

    Raises ValueError for another output stride.
    """
    dilate = {8: (False, True, True), 16: (False, False, True), 32: (False, False, False)}.get(output_stride)
    if dilate is None:
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
    network = build(in_chans=in_chans, layers=layers, replace_stride_with_dilation=dilate)
    channels = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}
    return FeatureMaps(network, taps, [channels[tap] for tap in taps])
