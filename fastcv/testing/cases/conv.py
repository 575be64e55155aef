"""Cases of the conv family: layers of known networks, and every odd geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ._case import Arguments, Case, randn

ACTIVATIONS: dict[str | None, Callable[..., torch.Tensor]] = {
    None: lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
}


def fused_reference(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    negative_slope: float | None = None,
) -> torch.Tensor:
    """conv2d_fused as torch writes it."""
    y = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return ACTIVATIONS[activation](y if residual is None else y + residual, *([] if negative_slope is None else [negative_slope]))


def _ntuple(value: int | Sequence[int], nd: int) -> tuple[int, ...]:
    return (value,) * nd if isinstance(value, int) else tuple(value)


def _case(
    name: str,
    input: Sequence[int],
    out_channels: int,
    kernel: int | Sequence[int],
    *,
    transposed: bool = False,
    groups: int = 1,
    bias: bool = True,
    bench: bool = False,
    **kwargs: Any,
) -> Case:
    """A convolution of ``input`` sizes; kwargs go to the function. The weight has the scale of an initialised layer."""
    nd = len(input) - 2
    kernel = _ntuple(kernel, nd)
    channels = input[1]
    shape = (channels, out_channels // groups, *kernel) if transposed else (out_channels, channels // groups, *kernel)
    fan_in = max(1, channels // groups * math.prod(kernel))

    def build(generator: torch.Generator) -> Arguments:
        weight = (randn(generator, *shape) * fan_in**-0.5).half().double()
        arguments = [randn(generator, *input), weight]
        if bias:
            arguments.append(randn(generator, out_channels))
        return tuple(arguments), {"groups": groups, **kwargs}

    if transposed:
        pixels = math.prod(input[2:])
    else:
        padding, stride, dilation = (_ntuple(kwargs.get(k, d), nd) for k, d in (("padding", 0), ("stride", 1), ("dilation", 1)))
        pixels = (
            math.prod(
                (i + 2 * p - d * (k - 1) - 1) // s + 1 for i, p, d, k, s in zip(input[2:], padding, dilation, kernel, stride, strict=True)
            )
            if not isinstance(padding[0], str)
            else math.prod(input[2:])
        )
    flops = 2 * input[0] * pixels * math.prod(kernel) * channels * out_channels // groups
    return Case(
        op=f"conv{'_transpose' if transposed else ''}{nd}d",
        name=name,
        build=build,
        flops=flops,
        bench=bench,
        grad=(0, 1, 2) if bias else (0, 1),
        # torch's layout for small 5-dimensional outputs varies with its threads and the CPU.
        layouts=("contiguous", "channels_last") if nd == 2 or (nd == 3 and bench) else ("contiguous",),
    )


def _fused(
    name: str,
    input: Sequence[int],
    out_channels: int,
    kernel: int,
    *,
    residual: bool,
    activation: str | None,
    negative_slope: float | None = None,
    bench: bool = False,
    **kwargs: Any,
) -> Case:
    plain = _case(name, input, out_channels, kernel, **kwargs)

    def build(generator: torch.Generator) -> Arguments:
        args, options = plain.build(generator)
        sizes = F.conv2d(torch.empty(input, device="meta"), torch.empty(args[1].shape, device="meta"), **options).shape
        end = {"residual": randn(generator, *sizes) if residual else None, "activation": activation}
        return args, {**options, **end, **({} if negative_slope is None else {"negative_slope": negative_slope})}

    return Case("conv2d_fused", name, build, peer=fused_reference, flops=plain.flops, bench=bench, grad=(0, 1, 2))


_LAYERS = [
    _case("resnet50-stem", (1, 3, 224, 224), 64, 7, stride=2, padding=3, bias=False, bench=True),
    _case("resnet50-1x1-64-256", (1, 64, 56, 56), 256, 1, bias=False, bench=True),
    _case("resnet50-1x1-1024-256", (1, 1024, 14, 14), 256, 1, bias=False, bench=True),
    _case("resnet50-3x3-64", (1, 64, 56, 56), 64, 3, padding=1, bias=False, bench=True),
    _case("resnet50-3x3-128", (1, 128, 28, 28), 128, 3, padding=1, bias=False, bench=True),
    _case("resnet50-3x3-256", (1, 256, 14, 14), 256, 3, padding=1, bias=False, bench=True),
    _case("resnet50-3x3-512", (1, 512, 7, 7), 512, 3, padding=1, bias=False, bench=True),
    _case("resnet50-3x3-128-stride2", (1, 128, 56, 56), 128, 3, stride=2, padding=1, bias=False, bench=True),
    _case("resnet50-3x3-256-batch8", (8, 256, 14, 14), 256, 3, padding=1, bias=False, bench=True),
    _case("vgg16-3x3-64", (1, 64, 224, 224), 64, 3, padding=1, bench=True),
    _case("vgg16-3x3-256", (1, 256, 56, 56), 256, 3, padding=1, bench=True),
    _case("mobilenet-depthwise-32", (1, 32, 112, 112), 32, 3, padding=1, groups=32, bias=False, bench=True),
    _case("mobilenet-depthwise-512", (8, 512, 14, 14), 512, 3, padding=1, groups=512, bias=False, bench=True),
    _case("mobilenet-depthwise-144-stride2", (1, 144, 56, 56), 144, 3, stride=2, padding=1, groups=144, bias=False, bench=True),
    _case("resnext50-3x3-256-groups32", (1, 256, 28, 28), 256, 3, padding=1, groups=32, bias=False, bench=True),
    _case("deeplab-3x3-512-dilation12", (1, 512, 28, 28), 256, 3, padding=12, dilation=12, bias=False, bench=True),
    _case("unet-up-128-64", (1, 128, 56, 56), 64, 2, transposed=True, stride=2, bench=True),
    _case("fcn32s-up-21", (1, 21, 7, 7), 21, 64, transposed=True, stride=32, bias=False, bench=True),
    _case("dcgan-up-256-128", (8, 256, 8, 8), 128, 4, transposed=True, stride=2, padding=1, bias=False, bench=True),
    _case("dcgan-image-64-3", (8, 64, 32, 32), 3, 4, transposed=True, stride=2, padding=1, bias=False, bench=True),
    _case("dncnn-3x3-64-1", (1, 64, 180, 180), 1, 3, padding=1, bias=False, bench=True),
    _case("audio-256-9", (4, 128, 1000), 256, 9, padding=4, bench=True),
    _case("video-64", (1, 64, 8, 28, 28), 64, 3, padding=1, bias=False, bench=True),
    _fused("resnet50-block-end", (1, 64, 56, 56), 256, 1, residual=True, activation="relu", bench=True),
]

_ODD = [
    _case("plain", (2, 4, 9, 8), 6, 3),
    _case("one-of-everything", (1, 1, 1, 1), 1, 1),
    _case("one-channel", (2, 1, 11, 10), 3, 5, padding=2),
    _case("one-output-channel", (2, 5, 9, 9), 1, 3, padding=1),
    _case("pointwise", (2, 17, 7, 5), 33, 1),
    _case("pointwise-stride2", (2, 16, 7, 6), 8, 1, stride=2),
    _case("pointwise-padded", (1, 3, 4, 4), 5, 1, padding=1),
    _case("even-kernel", (2, 3, 8, 9), 4, (2, 4), padding=(1, 2)),
    _case("stride-over-kernel", (2, 3, 17, 16), 4, 2, stride=5),
    _case("stride-uneven", (2, 3, 13, 16), 4, 3, stride=(3, 1), padding=(0, 2)),
    _case("pad-over-kernel", (2, 3, 5, 4), 4, 3, padding=(4, 5)),
    _case("pad-only-corners", (1, 2, 1, 1), 3, 2, padding=3, stride=3),
    _case("dilated", (2, 3, 15, 14), 4, 3, dilation=(2, 3), padding=(2, 0)),
    _case("dilated-strided", (1, 6, 20, 17), 5, 3, dilation=4, padding=4, stride=2),
    _case("dilation-beyond-image", (1, 3, 5, 5), 4, 3, dilation=7, padding=7),
    _case("groups", (2, 6, 9, 8), 9, 3, groups=3, padding=1),
    _case("groups-of-16", (1, 32, 8, 8), 64, 3, groups=2, padding=1),
    _case("groups-of-2", (2, 20, 7, 9), 20, 3, groups=10, padding=1),
    _case("groups-of-4", (1, 24, 9, 8), 24, (5, 3), groups=6, stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
    _case("groups-of-8-stride2", (2, 24, 9, 10), 24, 3, groups=3, stride=2, padding=1),
    _case("groups-of-16-alike", (1, 48, 6, 7), 48, 2, groups=3),
    _case("groups-strided", (2, 16, 9, 9), 8, 3, groups=4, stride=2, padding=1),
    _case("depthwise", (2, 19, 9, 8), 19, 3, groups=19, padding=1),
    _case("depthwise-multiplier", (2, 5, 9, 8), 15, 3, groups=5, padding=1),
    _case("depthwise-5x5-stride2", (1, 16, 12, 13), 16, 5, groups=16, padding=2, stride=2),
    _case("dilated-small-map", (2, 64, 13, 13), 32, 3, padding=6, dilation=6),
    _case("depthwise-dilated", (1, 7, 12, 13), 7, 3, groups=7, padding=2, dilation=2),
    _case("weights-over-cache", (2, 256, 5, 4), 130, 3, padding=1),
    _case("row-kernel", (2, 3, 6, 20), 4, (1, 7), padding=(0, 3)),
    _case("column-kernel", (2, 3, 20, 6), 4, (7, 1), padding=(3, 0)),
    _case("kernel-of-image", (3, 8, 5, 6), 10, (5, 6)),
    _case("wide", (1, 3, 1, 67), 17, (1, 3)),
    _case("channels-15", (1, 15, 6, 7), 15, 3, padding=1),
    _case("channels-16", (1, 16, 6, 7), 16, 3, padding=1),
    _case("channels-17", (1, 17, 6, 7), 17, 3, padding=1),
    _case("channels-49", (1, 49, 9, 9), 49, 3, padding=1),
    _case("no-bias", (2, 4, 9, 8), 6, 3, bias=False),
    _case("empty-batch", (0, 4, 9, 8), 6, 3),
    _case("same", (2, 3, 9, 8), 4, 3, padding="same"),
    _case("same-dilated", (2, 3, 9, 8), 4, (3, 5), padding="same", dilation=(2, 1)),
    _case("valid", (2, 3, 9, 8), 4, 3, padding="valid", stride=2),
    _case("plain", (2, 4, 15), 6, 3),
    _case("strided-grouped", (2, 4, 31), 6, 5, stride=2, padding=2, groups=2, dilation=2),
    _case("one", (1, 1, 1), 1, 1),
    _case("same-even", (1, 2, 12), 3, 4, padding="same"),
    _case("empty-batch", (0, 2, 12), 3, 4),
    _case("plain", (2, 3, 5, 6, 7), 4, 3, padding=1),
    _case("uneven", (1, 4, 6, 7, 5), 6, (1, 3, 2), stride=(2, 1, 3), padding=(0, 1, 1), dilation=(1, 2, 1), groups=2),
    _case("pointwise", (1, 5, 3, 4, 2), 7, 1),
    _case("plain", (2, 4, 7, 6), 6, 3, transposed=True),
    _case("stride2", (2, 4, 7, 6), 6, 3, transposed=True, stride=2, padding=1, output_padding=1),
    _case("stride-over-kernel", (1, 3, 4, 5), 2, 2, transposed=True, stride=(3, 4)),
    _case("stride-over-kernel-output-padding", (1, 3, 4, 5), 2, 2, transposed=True, stride=4, output_padding=(3, 0)),
    _case("wide-stride", (2, 5, 6, 5), 3, 16, transposed=True, stride=8, padding=4),
    _case("wide-stride-whole-vectors", (2, 40, 3, 4), 3, (4, 32), transposed=True, stride=(2, 16)),
    _case("wide-stride-grouped", (1, 8, 3, 4), 4, (5, 40), transposed=True, stride=(2, 17), padding=(1, 3), output_padding=1, groups=2),
    _case("wide-stride-over-kernel", (1, 4, 2, 2), 2, 3, transposed=True, stride=20, output_padding=7),
    _case("wide-stride-dilated-height", (1, 3, 5, 4), 2, (3, 19), transposed=True, stride=(2, 18), padding=(2, 5), dilation=(3, 1)),
    _case("wide-stride-many-cells", (1, 16, 12, 12), 8, (3, 18), transposed=True, stride=(1, 16), padding=(1, 1), bias=False),
    _case("few-channels-long-lines", (1, 2, 3, 110), 2, (3, 10), transposed=True, stride=(1, 8), padding=(1, 1)),
    _case("grouped", (2, 6, 5, 5), 4, 4, transposed=True, stride=2, padding=1, groups=2),
    _case("depthwise", (2, 17, 5, 6), 17, 3, transposed=True, stride=2, padding=1, groups=17),
    _case("dilated", (1, 3, 6, 5), 4, 3, transposed=True, dilation=(2, 3), stride=2, padding=2, output_padding=(1, 0)),
    _case("dilated-phases", (1, 9, 7, 8), 10, 3, transposed=True, stride=2, padding=3, dilation=3),
    _case("dilation-output-padding", (1, 3, 6, 5), 4, 3, transposed=True, dilation=3, output_padding=2),
    _case("cropped-to-little", (1, 3, 4, 4), 2, 3, transposed=True, padding=2),
    _case("pointwise", (2, 16, 5, 4), 24, 1, transposed=True),
    _case("one-of-everything", (1, 1, 1, 1), 1, 1, transposed=True),
    _case("empty-batch", (0, 4, 7, 6), 6, 3, transposed=True),
    _case("plain", (2, 4, 9), 3, 3, transposed=True, stride=2, output_padding=1),
    _case("plain", (1, 4, 3, 4, 5), 3, (2, 3, 3), transposed=True, stride=(1, 2, 2), padding=(0, 1, 1), output_padding=(0, 1, 0)),
]  # fmt: skip

_FUSED = [
    _fused(f"{activation}{'-residual' if residual else ''}", (2, 5, 8, 7), 6, 3, residual=residual, activation=activation, padding=1)
    for activation in ACTIVATIONS
    for residual in (False, True)
]
_FUSED += [
    _fused(f"leaky_relu{slope}", (2, 5, 8, 7), 6, 3, residual=True, activation="leaky_relu", negative_slope=slope, padding=1)
    for slope in (0.2, -0.5)
]

CASES: list[Case] = [*_LAYERS, *_ODD, *_FUSED]
