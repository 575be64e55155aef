"""Cases of the loss family: classifiers' and language models' heads, segmentation maps in both layouts, attention rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ._case import Case, randn

# Where long sums meet float64 the reference has the same rounding error as we do: such rows leave float64 out.
NARROW = (torch.float32, torch.bfloat16, torch.float16)


def _scores(*shape: int, dim: int, **kwargs: Any) -> Callable[[torch.Generator], Any]:
    return lambda g: ((2 * (randn(g, *shape) if shape else randn(g, 1)[0]), dim), kwargs)


def _classes(*shape: int, ignore: bool = False, weight: bool = False, log: bool = False, **kwargs: Any) -> Callable[[torch.Generator], Any]:
    """Scores of this shape (or log-probabilities), class indices, and what else the options ask for."""

    def build(g: torch.Generator) -> Any:
        axis = 0 if len(shape) == 1 else 1
        x = 2 * randn(g, *shape)
        options = dict(kwargs)
        target = torch.randint(0, shape[axis], shape[:axis] + shape[axis + 1 :], generator=g)
        if ignore:
            target[torch.rand(target.shape, generator=g) < 0.3] = -100
        if weight:
            options["weight"] = torch.rand(shape[axis], generator=g, dtype=torch.float64).half().double() + 0.25
        return (x.log_softmax(axis) if log else x, target), options

    return build


def _probabilities(*shape: int, **kwargs: Any) -> Callable[[torch.Generator], Any]:
    return lambda g: ((2 * randn(g, *shape), randn(g, *shape).softmax(0 if len(shape) == 1 else 1).half().double()), kwargs)


def _pair(*shape: int, log_target: bool = False, **kwargs: Any) -> Callable[[torch.Generator], Any]:
    def build(g: torch.Generator) -> Any:
        x, t = randn(g, *shape).log_softmax(-1), randn(g, *shape).softmax(-1).half().double()
        return (x, t.log().half().double() if log_target else t), {"log_target": log_target, **kwargs}

    return build


def _masks(*shape: int, **kwargs: Any) -> Callable[[torch.Generator], Any]:
    return lambda g: ((randn(g, *shape).sigmoid().half().double(), (randn(g, *shape) > 0).double()), kwargs)


def _linear(rows: int, features: int, classes: int, bias: bool = True, **kwargs: Any) -> Callable[[torch.Generator], Any]:
    def build(g: torch.Generator) -> Any:
        options = dict(kwargs)
        if bias:
            options["linear_bias"] = randn(g, classes)
        x, w = randn(g, rows, features), (randn(g, classes, features) / features**0.5).half().double()
        return (x, w, torch.randint(0, classes, (rows,), generator=g)), options

    return build


def soft_iou_reference(input: torch.Tensor, target: torch.Tensor, reduction: str = "whole", eps: float = 0.0) -> torch.Tensor:
    """The formula, in torch."""
    dims = tuple(range(0 if reduction == "whole" else 1, input.dim()))
    both, either = (input * target).sum(dims), (input + target - input * target).sum(dims)
    loss = 1 - (both + eps) / (either + eps)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _softmax_cases() -> list[Case]:
    cases = []
    for op in ("softmax", "log_softmax"):
        shapes = [
            ("classes_8192x1000", (8192, 1000), 1, True, NARROW),
            ("attention_8x12x197x197", (8, 12, 197, 197), 3, True, NARROW),
            ("vocabulary_64x50257", (64, 50257), 1, True, NARROW),
            ("segmentation_2x21x256x256", (2, 21, 256, 256), 1, True, NARROW),
            ("classes_4096x10", (4096, 10), 1, True, NARROW),
            ("short_rows", (37, 13), 1, False, NARROW),
            ("long_rows", (5, 131), 1, False, NARROW),
            ("columns", (2, 5, 9, 15), 1, False, NARROW),
            ("many_columns", (3, 70, 33), 1, False, NARROW),
            ("middle", (2, 3, 4, 17), 2, False, NARROW),
            ("first", (7, 6), 0, False, NARROW),
            ("scalar", (), 0, False, NARROW),
            ("one", (3, 1), 1, False, NARROW),
            ("float64", (3, 9), -1, False, (torch.float64,)),
            ("empty", (0, 4), 1, False, (torch.float32, torch.float64)),
        ]
        cases += [Case(op, name, _scores(*s, dim=d), bench=b, grad=(0,), dtypes=t) for name, s, d, b, t in shapes]
    return cases


CASES: list[Case] = [
    *_softmax_cases(),
    Case("cross_entropy", "cifar_256x10", _classes(256, 10), bench=True, grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "cifar_4096x10", _classes(4096, 10), bench=True, grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "imagenet_256x1000", _classes(256, 1000), bench=True, grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "imagenet_8192x1000", _classes(8192, 1000), bench=True, grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "imagenet_256x1000_smoothing", _classes(256, 1000, label_smoothing=0.1), bench=True, grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "vocabulary_64x50257", _classes(64, 50257), bench=True, grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "segmentation_2x21x256x256", _classes(2, 21, 256, 256, ignore=True), bench=True, grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "distillation_256x1000", _probabilities(256, 1000), bench=True, grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "unbatched", _classes(7), grad=(0,)),
    Case("cross_entropy", "none", _classes(19, 5, reduction="none"), grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "sum_weight", _classes(33, 12, weight=True, reduction="sum"), grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "map_weight_ignore", _classes(2, 5, 7, 9, weight=True, ignore=True), grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "map_smoothing", _classes(2, 3, 4, 17, ignore=True, label_smoothing=0.2), grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "map_none", _classes(2, 3, 9, 8, weight=True, ignore=True, reduction="none"), grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "volume", _classes(2, 4, 3, 2, 5, ignore=True), grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "long_rows", _classes(5, 131, weight=True, label_smoothing=0.3), grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "probabilities_map", _probabilities(2, 5, 3, 7, label_smoothing=0.1), grad=(0,), dtypes=NARROW),
    Case("cross_entropy", "probabilities_both", _probabilities(6, 9, reduction="sum"), grad=(0, 1), dtypes=(torch.float32,)),
    Case("cross_entropy", "float64", _classes(4, 6), grad=(0,), dtypes=(torch.float64,)),
    Case("cross_entropy", "empty", _classes(0, 4), grad=(0,), dtypes=(torch.float32,)),
    Case("nll_loss", "imagenet_8192x1000", _classes(8192, 1000, log=True), bench=True, grad=(0,), dtypes=NARROW),
    Case(
        "nll_loss",
        "segmentation_2x21x256x256",
        _classes(2, 21, 256, 256, log=True, ignore=True),
        bench=True,
        grad=(0,),
        layouts=("contiguous",),
        dtypes=NARROW,
    ),
    Case("nll_loss", "weight", _classes(33, 12, log=True, weight=True), grad=(0,)),
    Case("nll_loss", "map_none", _classes(2, 3, 5, 7, log=True, ignore=True, reduction="none"), grad=(0,), layouts=("contiguous",)),
    Case(
        "linear_cross_entropy",
        "head_512x256x2000",
        _linear(512, 256, 2000),
        flops=2 * 512 * 256 * 2000,
        bench=True,
        grad=(0, 1),
        dtypes=NARROW,
    ),
    Case(
        "linear_cross_entropy",
        "head_64x128x20000",
        _linear(64, 128, 20000),
        flops=2 * 64 * 128 * 20000,
        bench=True,
        grad=(0, 1),
        dtypes=NARROW,
    ),
    Case("linear_cross_entropy", "long_sums", _linear(150, 40, 9000), grad=(0, 1), layouts=("contiguous",), dtypes=(torch.float32,)),
    Case("linear_cross_entropy", "odd", _linear(13, 37, 41, reduction="sum"), grad=(0, 1), dtypes=NARROW),
    Case("linear_cross_entropy", "none", _linear(5, 9, 70, bias=False, reduction="none"), grad=(0, 1), dtypes=NARROW),
    Case("multi_margin_loss", "svm_4096x10", _classes(4096, 10), bench=True, grad=(0,), dtypes=(torch.float32,)),
    Case("multi_margin_loss", "imagenet_256x1000", _classes(256, 1000), bench=True, grad=(0,), dtypes=(torch.float32,)),
    Case("multi_margin_loss", "squared", _classes(9, 21, weight=True, p=2, margin=0.5), grad=(0,), dtypes=(torch.float32, torch.float64)),
    Case("multi_margin_loss", "none", _classes(6, 17, reduction="none"), grad=(0,), dtypes=(torch.float32, torch.float64)),
    Case("kl_div", "distillation_256x1000", _pair(256, 1000, reduction="batchmean"), bench=True, grad=(0,), dtypes=NARROW),
    Case("kl_div", "map_8x64x56x56", _pair(8, 64, 56, 56, reduction="sum"), bench=True, grad=(0,), dtypes=(torch.float32,)),
    Case("kl_div", "log_target", _pair(5, 33, log_target=True, reduction="batchmean"), grad=(0, 1), dtypes=(torch.float32, torch.float64)),
    Case("kl_div", "none", _pair(3, 4, 5, 7, reduction="none"), grad=(0, 1), dtypes=(torch.float32,)),
    Case("soft_iou_loss", "masks_4x1x256x256", _masks(4, 1, 256, 256), soft_iou_reference, bench=True, grad=(0,), dtypes=(torch.float32,)),
    Case("soft_iou_loss", "samples", _masks(3, 2, 7, 5, reduction="mean", eps=0.5), soft_iou_reference, grad=(0, 1), dtypes=NARROW),
    Case("soft_iou_loss", "each", _masks(3, 9, reduction="none"), soft_iou_reference, grad=(0, 1), dtypes=(torch.float32,)),
]
