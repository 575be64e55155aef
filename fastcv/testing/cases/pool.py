"""Cases of the pool family: layers of ResNet, VGG, GoogLeNet, DenseNet and SegNet, and windows that meet every border."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ._case import Arguments, Case, randn

CASES: list[Case] = []


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _map(
    op: str,
    name: str,
    sizes: tuple[int, ...],
    *args: Any,
    grad: bool = True,
    bench: bool = False,
    peer: Any = None,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    **kwargs: Any,
) -> None:
    def build(generator: torch.Generator) -> Arguments:
        return (randn(generator, *sizes), *args), kwargs

    CASES.append(Case(op, name, build, peer=peer, bench=bench, grad=(0,) if grad else (), dtypes=dtypes))


def _layer(op: str, name: str, sizes: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
    """A layer of a model: for inference, and (named -train) with its gradient."""
    _map(op, name, sizes, *args, grad=False, bench=True, **kwargs)
    _map(op, f"{name}-train", sizes, *args, bench=True, **kwargs)


def _sum_pool2d(input: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False) -> torch.Tensor:
    return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, True, 1)


def _bed_of_nails(input: torch.Tensor, scale_factor: Any = 2) -> torch.Tensor:
    """In torch's own words: the values, padded with zeros inside each cell."""
    down, across = (scale_factor, scale_factor) if isinstance(scale_factor, int) else scale_factor
    spread = F.pad(input[..., :, None, :, None], (0, across - 1, 0, 0, 0, down - 1))
    result = spread.flatten(-2).flatten(-3, -2)
    channels_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _unpool(
    name: str, sizes: tuple[int, ...], kernel: Any, stride: Any = None, padding: Any = 0, bench: bool = False, **kwargs: Any
) -> None:
    def build(generator: torch.Generator) -> Arguments:
        # Overlapping windows may name a place twice; torch then keeps one value or the other, but both are the maximum.
        return (*F.max_pool2d(randn(generator, *sizes), kernel, stride, padding, return_indices=True), kernel, stride, padding), kwargs

    CASES.append(Case("max_unpool2d", name, build, bench=bench, grad=(0,)))


# Layers of models, timed.
_layer("max_pool2d", "resnet-stem-n8", (8, 64, 112, 112), 3, 2, 1)
_layer("max_pool2d", "resnet-stem-n1", (1, 64, 112, 112), 3, 2, 1)
_layer("max_pool2d", "vgg-pool2-n8", (8, 64, 112, 112), 2, 2)
_layer("max_pool2d", "vgg-pool1-n1", (1, 64, 224, 224), 2, 2)
_layer("max_pool2d", "inception3a-n8", (8, 192, 28, 28), 3, 1, 1)
_map("max_pool2d", "segnet-indices-n2", (2, 64, 112, 112), 2, 2, return_indices=True, bench=True)
_layer("avg_pool2d", "densenet-transition-n8", (8, 128, 56, 56), 2, 2)
_layer("avg_pool2d", "inception-3x3-n8", (8, 192, 28, 28), 3, 1, 1)
_layer("adaptive_avg_pool2d", "resnet-head-n32", (32, 2048, 7, 7), (1, 1))
_layer("adaptive_avg_pool2d", "vgg-head-14-to-7-n8", (8, 512, 14, 14), (7, 7))
_unpool("segnet-decoder-n2", (2, 64, 112, 112), 2, 2, bench=True)
_map("upsample_bed_of_nails", "x2-n2", (2, 64, 56, 56), 2, peer=_bed_of_nails, bench=True)

# Borders, strides, layouts' tails.
for _name, _sizes, _args, _kwargs in [
    ("k2s2", (2, 3, 8, 8), (2, 2), {}),
    ("k2s2-odd", (2, 17, 7, 9), (2,), {}),
    ("k3s2p1", (2, 5, 15, 17), (3, 2, 1), {}),
    ("k3s2p1-ceil", (1, 16, 14, 16), (3, 2, 1), {"ceil_mode": True}),
    ("k3s1p1", (2, 33, 7, 7), (3, 1, 1), {}),
    ("k2x3s1x2p1x0", (1, 8, 9, 33), ((2, 3), (1, 2), (1, 0)), {}),
    ("k3s3", (1, 20, 20, 20), (3, 3), {}),
    ("k2s5", (1, 3, 17, 17), (2, 5), {}),
    ("k4s4p2-ceil", (2, 7, 13, 19), (4, 4, 2), {"ceil_mode": True}),
    ("whole-map", (3, 6, 5, 4), ((5, 4),), {}),
    ("one-pixel", (2, 3, 1, 1), (1,), {}),
    ("wide", (1, 2, 3, 130), (3, 2, 1), {}),
    ("unbatched", (5, 9, 11), (3, 2, 1), {}),
    ("empty-batch", (0, 3, 8, 8), (2,), {}),
]:
    _map("max_pool2d", _name, _sizes, *_args, **_kwargs)
    _map("avg_pool2d", _name, _sizes, *_args, **_kwargs)
# Windows of two by two over whole maps: last vectors of two and of one load.
_map("avg_pool2d", "k2s2-58", (2, 3, 6, 58), 2)
_map("avg_pool2d", "k2s2-40", (2, 3, 6, 40), 2)
_map("adaptive_avg_pool2d", "halves-narrow", (3, 5, 6, 14), (3, 7))
_map("adaptive_avg_pool2d", "halves-wide", (2, 3, 6, 58), (3, 29))
# Gradients of 25 windows each: in float64 the rule would compare with torch's own order of summation.
_map("avg_pool2d", "k5s1p2", (1, 4, 13, 31), 5, 1, 2, dtypes=(torch.float32, torch.bfloat16, torch.float16))
_map("max_pool2d", "k5s1p2", (1, 4, 13, 31), 5, 1, 2)
_map("max_pool2d", "inference", (2, 19, 13, 15), 3, 2, 1, grad=False)
_map("max_pool2d", "inference-k3s1", (2, 4, 13, 35), 3, 1, 1, grad=False)
_map("max_pool2d", "inference-k3s3", (2, 4, 13, 35), 3, 3, 1, grad=False)
_map("max_pool2d", "indices", (2, 18, 13, 15), 3, 2, 1, return_indices=True)
_map("max_pool2d", "indices-k3s3", (2, 18, 13, 15), 3, 3, 1, return_indices=True)
_map("max_pool2d", "dilated", (2, 5, 17, 19), 3, 2, 1, 2)
_map("max_pool2d", "dilated-s1", (2, 16, 17, 19), 2, 1, 1, 3)
_map("max_pool2d", "dilated-s3-indices", (2, 5, 17, 19), 3, 3, 1, (2, 3), return_indices=True)
_map("max_pool2d", "k17-past-a-byte", (1, 3, 20, 21), 17, 2, 8)
_map("avg_pool2d", "valid-only", (2, 17, 9, 10), 3, 2, 1, False, False)
_map("avg_pool2d", "valid-only-ceil", (2, 5, 10, 9), 3, 2, 1, True, False)
_map("avg_pool2d", "divisor", (2, 5, 10, 9), 3, 1, 1, False, True, 7)
_map("avg_pool2d", "inference", (2, 5, 10, 9), 3, 1, 1, grad=False)
_map("sum_pool2d", "k2", (2, 5, 8, 9), 2, peer=_sum_pool2d)
_map("sum_pool2d", "k3s2p1", (2, 16, 9, 9), 3, 2, 1, peer=_sum_pool2d)
for _op in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
    _map(_op, "1x1", (2, 37, 7, 7), 1)
    _map(_op, "even", (2, 5, 12, 12), (3, 6))
    _map(_op, "uneven", (2, 17, 13, 11), (4, 5))
    _map(_op, "larger-than-input", (1, 3, 5, 4), (7, 9))
    _map(_op, "one-axis", (1, 6, 9, 10), (None, 3))
    _map(_op, "unbatched", (4, 9, 10), (2, 3))
    _map(_op, "empty-batch", (0, 4, 9, 10), (2, 3))
    _map(_op, "inference", (2, 4, 9, 10), (2, 3), grad=False)
# Large 16-bit planes.
for _op in ("max_pool2d", "avg_pool2d"):
    _map(_op, "large-plane", (1, 2, 201, 211), 3, 2, 1, dtypes=(torch.bfloat16, torch.float16))
for _op in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
    _map(_op, "large-plane", (1, 2, 190, 190), (70, 13), dtypes=(torch.bfloat16, torch.float16))
    _map(_op, "large-plane-larger-than-input", (1, 1, 40, 41), (190, 180), dtypes=(torch.bfloat16,))
_map("adaptive_max_pool2d", "indices", (2, 17, 13, 11), (4, 5), return_indices=True)
_map("adaptive_max_pool2d", "indices-inference", (2, 17, 13, 11), (4, 5), return_indices=True, grad=False)
_map("max_pool2d", "indices-inference", (2, 17, 13, 11), 3, 2, return_indices=True, grad=False)
_unpool("k2", (2, 5, 8, 10), 2)
_unpool("k3s3p1", (2, 17, 10, 10), 3, 3, 1)
_unpool("k3s2-overlap", (1, 16, 11, 11), 3, 2)
_unpool("output-size", (2, 5, 9, 11), 2, output_size=(9, 11))
_unpool("unbatched", (5, 8, 8), 2)
_map("upsample_bed_of_nails", "x2", (2, 5, 4, 3), peer=_bed_of_nails)
_map("upsample_bed_of_nails", "x3x1", (2, 16, 4, 5), (3, 1), peer=_bed_of_nails)
_map("upsample_bed_of_nails", "unbatched", (3, 4, 5), 2, peer=_bed_of_nails)
