"""What runs on GPUs that fastcv's kernels do not serve (older than compute capability 8.0, or a build without CUDA): torch.

Importing this puts a guard before each function of the families, if torch itself knows CUDA: without it no tensor can be on a GPU,
and a call costs nothing more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _gpu
from . import _batch_norm_max_pool2d, conv, loss, neighbors, norm, pool

# ---- what torch has no function for -------------------------------------------------------------------------------------


def _activated(y: Tensor, residual: Tensor | None, activation: str | None, slope: float) -> Tensor:
    y = y if residual is None else y + residual
    if activation == "leaky_relu":
        return F.leaky_relu(y, slope)
    return y if activation is None else getattr(F, activation)(y)


def _convolve(nd: int, name: str, *args: Any) -> Tensor:
    """As conv.convolve: the seven arguments of torch's function, packed weights, and what follows the convolution."""
    torchs = F.conv2d if name == "conv2d_fused" else getattr(F, name)
    _, residual, activation, slope = (*args[7:], *(None, None, None, 0.0)[len(args) - 7 :])
    return _activated(torchs(*args[:7]), residual, activation, slope)


def _transposed(nd: int, name: str, *args: Any) -> Tensor:
    """As conv.transposed, with eight arguments of torch's."""
    _, residual, activation, slope = (*args[8:], *(None, None, None, 0.0)[len(args) - 8 :])
    return _activated(getattr(F, name)(*args[:8]), residual, activation, slope)


def _batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    if activation not in norm._ACTIVATIONS:
        raise ValueError(f"fastcv batch_norm_act: activation must be None, 'relu', 'relu6' or 'leaky_relu', got {activation!r}")
    y = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _activated(y, residual, activation, negative_slope)


def _batch_norm_then_max_pool2d(*args: Any, **kwargs: Any) -> Tensor:
    """All arguments behind the tenth are max pooling's, by name."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    windows = {k: kwargs.pop(k) for k in names if k in kwargs}
    head, tail = args[:8], dict(zip(("activation", "negative_slope"), args[8:], strict=False))
    return F.max_pool2d(_batch_norm_act(*head, **kwargs, **tail), **windows)


def _sum_pool2d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False) -> Tensor:
    return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, True, 1)


def _upsample_bed_of_nails(input: Tensor, scale_factor: Any = 2) -> Tensor:
    down, across = pool._pair(scale_factor, "upsample_bed_of_nails", "scale_factor")
    cells = F.pad(input[..., :, None, :, None], (0, across - 1, 0, 0, 0, down - 1))
    last = input.dim() == 4 and pool.is_channels_last(input)
    return cells.flatten(-2).flatten(-3, -2).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _soft_iou_loss(input: Tensor, target: Tensor, reduction: str = "whole", eps: float = 0.0) -> Tensor:
    if reduction not in ("whole", "none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction; it is one of whole, none, mean, sum")
    dims = tuple(range(0 if reduction == "whole" else 1, input.dim()))
    both, either = (input * target).sum(dims) + eps, (input + target - input * target).sum(dims) + eps
    each = torch.where(either == 0, torch.zeros_like(either), 1 - both / either)
    return each.mean() if reduction == "mean" else each.sum() if reduction == "sum" else each


def _linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    classes, *extra, features = linear_weight.shape
    rows = linear_weight.reshape(-1, features)
    scores = F.linear(input, rows, None if linear_bias is None else linear_bias.reshape(-1)).unflatten(-1, (classes, *extra))
    ignored = -100 if ignore_index is None else ignore_index
    return F.cross_entropy(scores, target, weight, None, ignored, None, reduction, label_smoothing)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = neighbors._COMPUTE_MODES[0], *, metric: str = "minkowski") -> Tensor:
    if neighbors._cosine("cdist", metric, p):
        return (torch.cdist(neighbors.unit_rows(x1, 0), neighbors.unit_rows(x2, 1)).square() / 2).to(x1.dtype)
    if x1.dtype not in (torch.uint8, *neighbors._HALVES):
        return torch.cdist(x1, x2, p, compute_mode)
    distances = torch.cdist(x1.float(), x2.float(), p, compute_mode)
    return distances if x1.dtype == torch.uint8 else distances.to(x1.dtype)


def _knn(
    x: Tensor, y: Tensor, k: int, p: float = 2.0, *, squared: bool = False, pad: bool = False, metric: str = "minkowski"
) -> tuple[Tensor, Tensor]:
    points = y.shape[-2]
    if k < 1:
        raise ValueError(f"k={k}, but at least one neighbour must be asked for")
    if k > points and not pad:
        raise ValueError(f"k={k} but there are {points} points; pass pad=True to fill with (inf, -1)")
    if squared and (p != 2 or metric != "minkowski"):
        raise ValueError(f"squared distances exist for p=2 only, got p={p:g}, metric={metric!r}")
    distances, indices = _cdist(x, y, p, neighbors._COMPUTE_MODES[2], metric=metric).sort(dim=-1, stable=True)
    distances, indices = distances[..., :k], indices[..., :k]
    if k > points:
        distances, indices = F.pad(distances, (0, k - points), value=torch.inf), F.pad(indices, (0, k - points), value=-1)
    return (distances.square() if squared else distances), indices


def _nearest(x: Tensor, y: Tensor, p: float = 2.0, *, squared: bool = False, metric: str = "minkowski") -> tuple[Tensor, Tensor]:
    distances, indices = _knn(x, y, 1, p, squared=squared, metric=metric)
    return distances.squeeze(-1), indices.squeeze(-1)


# ---- the guard ------------------------------------------------------------------------------------------------------------

_OWN = {
    conv: {"convolve": _convolve, "transposed": _transposed},
    norm: {"batch_norm_act": _batch_norm_act},
    _batch_norm_max_pool2d: {"batch_norm_max_pool2d": _batch_norm_then_max_pool2d},
    pool: {"sum_pool2d": _sum_pool2d, "upsample_bed_of_nails": _upsample_bed_of_nails},
    loss: {"soft_iou_loss": _soft_iou_loss, "linear_cross_entropy": _linear_cross_entropy},
    neighbors: {"cdist": _cdist, "knn": _knn, "nearest": _nearest},
}


def peers(family: ModuleType) -> dict[str, Callable[..., Any]]:
    """Function of a family -> what torch computes it with. Convolutions all pass through two functions."""
    named = {} if family is conv else {name: getattr(F, name) for name in family.__all__ if hasattr(F, name)}
    return named | _OWN[family]


def guarded(function: Callable[..., Any], peer: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, and ``peer`` for tensors on GPUs that it cannot serve."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for t in (*args, *kwargs.values()):
            if isinstance(t, Tensor):
                if t.is_cuda and _gpu.leaves_to_torch(t.get_device()):
                    return peer(*args, **kwargs)
                break
        return function(*args, **kwargs)

    return call


if torch.backends.cuda.is_built():
    for _family in _OWN:
        for _name, _peer in peers(_family).items():
            setattr(_family, _name, guarded(getattr(_family, _name), _peer))
