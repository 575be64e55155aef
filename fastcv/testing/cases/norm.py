"""Cases of the norm family: layers of ResNet, ViT, diffusion and style networks; odd, small, empty and hostile shapes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ._case import Case, randn

# torch's float64 statistics, one long chain of additions, are no reference for float64: tests/test_norm.py has its own.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _vectors(g: torch.Generator, channels: int) -> list[torch.Tensor]:
    return [randn(g, channels), randn(g, channels)]


def _statistics(g: torch.Generator, channels: int) -> list[torch.Tensor]:
    return [randn(g, channels), randn(g, channels).abs() + 0.5]


def _batch_norm(
    name: str, *sizes: int, training: bool = True, affine: bool = True, running: bool = True, eps: float = 1e-5, **more: Any
) -> Case:
    def build(g: torch.Generator) -> Any:
        c = sizes[1]
        statistics = _statistics(g, c) if running or not training else [None, None]
        vectors = _vectors(g, c) if affine else [None, None]
        return (randn(g, *sizes), *statistics, *vectors), {"training": training, "eps": eps}

    return Case("batch_norm", name, build, grad=(0, 3, 4) if affine else (0,), dtypes=DTYPES, **more)


def batch_norm_act_peer(
    input: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    training: bool,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """What batch_norm_act replaces: three of torch's operations."""
    y = F.batch_norm(input, running_mean, running_var, weight, bias, training)
    y = y if residual is None else y + residual
    return y if activation is None else getattr(F, activation)(y)


def _batch_norm_act(name: str, *sizes: int, training: bool, activation: str | None, residual: bool, **more: Any) -> Case:
    def build(g: torch.Generator) -> Any:
        c = sizes[1]
        args = (randn(g, *sizes), *_statistics(g, c), *_vectors(g, c), training)
        return args, {"activation": activation, "residual": randn(g, *sizes) if residual else None}

    return Case("batch_norm_act", name, build, peer=batch_norm_act_peer, grad=(0, 3, 4), dtypes=DTYPES, **more)


def batch_norm_max_pool2d_peer(
    input: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    training: bool,
    activation: str | None = None,
    **windows: Any,
) -> torch.Tensor:
    """What batch_norm_max_pool2d replaces: three of torch's operations."""
    y = batch_norm_act_peer(input, running_mean, running_var, weight, bias, training, activation=activation)
    return F.max_pool2d(y, **windows)


def _batch_norm_max_pool2d(
    name: str, *sizes: int, training: bool = True, activation: str | None = "relu", grad: bool = True, **more: Any
) -> Case:
    """``more`` has the windows' options, and the case's. Gradients in float32 alone: where 16 bits round two elements of a window to one
    number the gradient is the first's, in float64 the larger's.
    """
    windows = {k: more.pop(k) for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode") if k in more}

    def build(g: torch.Generator) -> Any:
        c = sizes[1]
        names = ("input", "running_mean", "running_var", "weight", "bias", "training")
        values = (randn(g, *sizes), *_statistics(g, c), *_vectors(g, c), training)
        count = len(values) if grad else 1  # by name what has no gradient
        return values[:count], {**dict(zip(names[count:], values[count:], strict=True)), "activation": activation, **windows}

    how = {"grad": (0, 3, 4), "dtypes": (torch.float32,)} if grad else {"dtypes": DTYPES}
    return Case("batch_norm_max_pool2d", name, build, peer=batch_norm_max_pool2d_peer, **how, **more)


def _group_norm(name: str, *sizes: int, groups: int, affine: bool = True, **more: Any) -> Case:
    def build(g: torch.Generator) -> Any:
        return (randn(g, *sizes), groups, *(_vectors(g, sizes[1]) if affine else [])), {}

    return Case("group_norm", name, build, grad=(0, 2, 3) if affine else (0,), dtypes=DTYPES, **more)


def _layer_norm(name: str, *sizes: int, dims: int = 1, affine: bool = True, **more: Any) -> Case:
    def build(g: torch.Generator) -> Any:
        shape = sizes[-dims:]
        return (randn(g, *sizes), shape, *([randn(g, *shape), randn(g, *shape)] if affine else [])), {}

    return Case("layer_norm", name, build, grad=(0, 2, 3) if affine else (0,), **{"dtypes": DTYPES, "layouts": ("contiguous",), **more})


def _instance_norm(name: str, *sizes: int, affine: bool = True, running: bool = False, use_input_stats: bool = True, **more: Any) -> Case:
    def build(g: torch.Generator) -> Any:
        c = sizes[1]
        statistics = _statistics(g, c) if running else [None, None]
        return (randn(g, *sizes), *statistics, *(_vectors(g, c) if affine else [None, None]), use_input_stats), {}

    return Case("instance_norm", name, build, grad=(0, 3, 4) if affine else (0,), dtypes=DTYPES, **more)


def _response(name: str, *sizes: int, size: int = 5, **more: Any) -> Case:
    options = {k: more.pop(k) for k in ("alpha", "beta", "k") if k in more}
    # torch's CPU kernel has no 16-bit dtypes here
    dtypes = (torch.float32, torch.float64)
    return Case("local_response_norm", name, lambda g: ((randn(g, *sizes), size), options), grad=(0,), dtypes=dtypes, **more)


CASES: list[Case] = [
    # ResNet, train and evaluation
    _batch_norm("resnet-stem-8x64x112", 8, 64, 112, 112, bench=True),
    _batch_norm("resnet-8x64x56", 8, 64, 56, 56, bench=True),
    _batch_norm("resnet-8x256x56", 8, 256, 56, 56, bench=True),
    _batch_norm("resnet-32x128x28", 32, 128, 28, 28, bench=True),
    _batch_norm("resnet-32x512x7", 32, 512, 7, 7, bench=True),
    _batch_norm("mlp-256x1024", 256, 1024, bench=True, layouts=("contiguous",)),
    _batch_norm("eval-8x64x56", 8, 64, 56, 56, training=False, bench=True),
    _batch_norm_act("eval-add-relu-8x64x56", 8, 64, 56, 56, training=False, activation="relu", residual=True, bench=True),
    _batch_norm_act("train-add-relu-8x256x28", 8, 256, 28, 28, training=True, activation="relu", residual=True, bench=True),
    _batch_norm_act("train-relu-8x64x56", 8, 64, 56, 56, training=True, activation="relu", residual=False, bench=True),
    # the stem of ResNet and a stage of VGG, down to the pooled map
    _batch_norm_max_pool2d("resnet-stem-8x64x112", 8, 64, 112, 112, kernel_size=3, stride=2, padding=1, bench=True),
    _batch_norm_max_pool2d(
        "resnet-stem-eval-8x64x112", 8, 64, 112, 112, training=False, kernel_size=3, stride=2, padding=1, grad=False, bench=True
    ),
    _batch_norm_max_pool2d("vgg-pool2-8x128x112", 8, 128, 112, 112, kernel_size=2, bench=True),
    # transformers, diffusion, style transfer, AlexNet
    _layer_norm("vit-64x197x768", 64, 197, 768, bench=True),
    _layer_norm("bert-4096x768", 4096, 768, bench=True),
    _layer_norm("convnext-8x784x96", 8, 784, 96, bench=True),
    _group_norm("diffusion-8x256x32-g32", 8, 256, 32, 32, groups=32, bench=True),
    _group_norm("unet-2x64x128-g8", 2, 64, 128, 128, groups=8, bench=True),
    _instance_norm("style-4x64x128", 4, 64, 128, 128, bench=True),
    _response("alexnet-8x64x55", 8, 64, 55, 55, bench=True, layouts=("contiguous", "channels_last")),
    # small and odd
    _batch_norm("odd-3x5x7x3", 3, 5, 7, 3),
    _batch_norm("channels-67", 2, 67, 5, 3),
    _batch_norm("channels-1", 3, 1, 4, 5, layouts=("contiguous",)),
    _batch_norm("three-values", 3, 3, layouts=("contiguous",)),
    _batch_norm("sequence", 4, 6, 37, layouts=("contiguous",)),
    _batch_norm("volume", 2, 5, 3, 4, 5),
    _batch_norm("few-channels-large-plane", 2, 3, 190, 181, affine=False),
    _batch_norm("no-affine-no-running", 4, 19, 9, affine=False, running=False, layouts=("contiguous",)),
    _batch_norm("eval-odd", 3, 19, 5, 7, training=False),
    _batch_norm("eval-one-value", 1, 4, 1, 1, training=False, layouts=("contiguous",)),
    _batch_norm("eval-no-affine", 2, 5, 3, 3, training=False, affine=False),
    _batch_norm("empty-batch", 0, 4, 3, 3, layouts=("contiguous",)),
    _batch_norm("empty-plane", 2, 4, 0, layouts=("contiguous",)),
    _batch_norm("large-eps", 4, 6, 5, 5, eps=3.0),
    *(
        _batch_norm_act(
            f"{mode}-{act}-{'add' if residual else 'plain'}", 3, 21, 5, 6, training=mode == "train", activation=act, residual=residual
        )
        for mode in ("train", "eval")
        for act in (None, "relu", "relu6", "leaky_relu")
        for residual in (False, True)
    ),
    _batch_norm_max_pool2d("k3s2p1", 2, 5, 15, 17, kernel_size=3, stride=2, padding=1),
    _batch_norm_max_pool2d("k3s2p1-ceil", 1, 16, 14, 16, kernel_size=3, stride=2, padding=1, ceil_mode=True),
    _batch_norm_max_pool2d("k2", 3, 33, 7, 9, activation="leaky_relu", kernel_size=2),
    _batch_norm_max_pool2d("k2x3s1x2p1x0", 1, 8, 9, 33, activation=None, kernel_size=(2, 3), stride=(1, 2), padding=(1, 0)),
    _batch_norm_max_pool2d("k3s1p1", 2, 17, 9, 8, activation="relu6", kernel_size=3, stride=1, padding=1),
    _batch_norm_max_pool2d("k2s3", 2, 4, 14, 13, kernel_size=2, stride=3),
    _batch_norm_max_pool2d("dilated", 2, 6, 13, 12, kernel_size=3, stride=2, padding=1, dilation=2),
    _batch_norm_max_pool2d("k17-past-a-byte", 1, 3, 20, 21, kernel_size=17, stride=2, padding=8),
    _batch_norm_max_pool2d("several-bands", 1, 3, 150, 81, kernel_size=3, stride=2, padding=1),
    _batch_norm_max_pool2d("one-pixel", 4, 6, 1, 1, activation=None, kernel_size=2, stride=1, padding=1),
    _batch_norm_max_pool2d("eval", 3, 19, 8, 7, training=False, kernel_size=3, stride=2, padding=1),
    _batch_norm_max_pool2d("train-inference", 2, 18, 21, 15, kernel_size=3, stride=2, padding=1, grad=False),
    _batch_norm_max_pool2d("eval-inference", 2, 9, 12, 35, training=False, activation="relu6", kernel_size=2, grad=False),
    _batch_norm_max_pool2d("empty-batch", 0, 4, 5, 6, kernel_size=2),
    _group_norm("odd-2x6x5x3-g3", 2, 6, 5, 3, groups=3),
    _group_norm("one-group", 3, 10, 7, 4, groups=1),
    _group_norm("group-per-channel", 2, 21, 5, 5, groups=21),
    _group_norm("vectors", 5, 12, groups=4, layouts=("contiguous",)),
    _group_norm("sequence", 2, 6, 19, groups=2, layouts=("contiguous",)),
    _group_norm("volume", 2, 4, 3, 4, 5, groups=2),
    _group_norm("no-affine", 1, 8, 9, 9, groups=2, affine=False),
    _group_norm("empty", 0, 6, 4, 4, groups=3, layouts=("contiguous",)),
    _layer_norm("odd-5x37", 5, 37),
    _layer_norm("odd-37x150", 37, 150),
    _layer_norm("three-dims", 4, 3, 5, 7, dims=3, layouts=("contiguous", "channels_last")),
    _layer_norm("two-of-three", 6, 4, 9, dims=2),
    _layer_norm("whole", 33, dims=1),
    _layer_norm("no-affine", 70, 16, affine=False),
    _layer_norm("long-row", 2, 10007),
    _layer_norm("many-rows", 2100, 8),
    _layer_norm("empty-rows", 0, 5),
    _instance_norm("odd-2x5x7x3", 2, 5, 7, 3),
    _instance_norm("running", 3, 6, 9, 5, running=True),
    _instance_norm("evaluation", 3, 6, 9, 5, running=True, use_input_stats=False),
    _instance_norm("sequence", 2, 7, 33, affine=False, layouts=("contiguous",)),
    _instance_norm("volume", 2, 3, 3, 4, 5),
    _response("odd-2x7x5x3", 2, 7, 5, 3, size=3, alpha=0.1),
    _response("even-size", 2, 20, 4, 5, size=4, alpha=0.5, beta=0.5),
    _response("wide", 2, 5, 3, 4, size=11, alpha=2.0, beta=1.0),
    _response("general-power", 1, 6, 9, 4, size=3, alpha=0.3, beta=1.3, k=2.0),
    _response("sequence", 2, 6, 37, size=3, layouts=("contiguous",)),
    _response("volume", 2, 5, 2, 3, 4, size=3),
]
