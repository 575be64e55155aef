"""Batch norm in training over the processes of a torch.distributed group; the kernels are those of csrc/norm/batch_norm*.

Forward: each process takes the statistics of its own part, all of them gather (mean, variance, count), and each merges them
in the order of the ranks by Chan's formula in float64; so every process has the same bits. Backward: the two sums of the
formula are added up over the processes; the parameters' gradients stay those of the own part, for DistributedDataParallel adds
them up. A process without values takes part with a count of zero.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _ext
from ._batch_norm import empty_like, evaluate, fold, fold_vector, unfold, unfold_vector, update
from ._common import needs_grad

_statistics = _ext.op("batch_norm_statistics")
_sums = _ext.op("batch_norm_backward")
_input_grad = _ext.op("batch_norm_input_grad")

_DWEIGHT_DBIAS = 2 | 4


@_ext.fake("batch_norm_statistics")
def _(input: Tensor) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape[1], dtype=torch.float64), input.new_empty(input.shape[1], dtype=torch.float64)


@_ext.fake("batch_norm_input_grad")
def _(grad: Tensor, input: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, sums: Tensor, count: int, eps: float) -> Tensor:
    return empty_like(input)


@_ext.vmap("batch_norm_statistics")
def _(info: Any, in_dims: Any, input: Tensor) -> Any:
    size = info.batch_size
    return tuple(unfold_vector(t, size) for t in _statistics(fold(input, in_dims[0], size))), (0, 0)


@_ext.vmap("batch_norm_input_grad")
def _(info: Any, in_dims: Any, grad: Tensor, input: Tensor, *rest: Any) -> Any:
    size = info.batch_size
    images = [fold(t, d, size) for t, d in zip((grad, input), in_dims[:2], strict=True)]
    vectors = [fold_vector(t, d, size) for t, d in zip(rest[:3], in_dims[2:5], strict=True)]
    sums = fold(rest[3], in_dims[5], size)
    return unfold(_input_grad(*images, *vectors, sums, *rest[4:]), size), 1


def _gathered(t: Tensor, group: Any) -> Tensor:
    """[processes, *t.shape]."""
    if group is None:
        return t.unsqueeze(0)
    parts = [torch.empty_like(t) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, t, group)
    return torch.stack(parts)


def _merged(input: Tensor, group: Any) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance [C] in float64 of all processes' values, and how many values a channel has."""
    channels = input.shape[1]
    own = input.numel() // channels
    mean, var = _statistics(input)
    parts = _gathered(torch.cat([mean, var, mean.new_full((1,), own)]), group)
    means, variances, counts = parts.split((channels, channels, 1), dim=1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count.clamp(min=1)
    var = ((variances + (means - mean).square()) * counts).sum(0) / count.clamp(min=1)
    return mean, var, int(count)


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *rest: Any) -> Tensor:
        ctx.eps, ctx.count, ctx.group = rest
        ctx.save_for_backward(input, weight, mean, var)
        return evaluate(input, None, mean, var, weight, bias, ctx.eps, 1.0, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, mean, var = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        ones = torch.ones_like(mean)  # float64 parameters: the sums come back in float64
        sums = _sums(grad, input, None, mean, var, ones, ones, False, ctx.eps, 1.0, 0.0, _DWEIGHT_DBIAS)[1:3]
        dx = None
        if wants_input:
            totals = torch.stack([sums[1], sums[0]])
            if ctx.group is not None:
                dist.all_reduce(totals, group=ctx.group)
            dx = _input_grad(grad, input, mean, var, weight, totals, ctx.count, ctx.eps) if input.numel() else torch.empty_like(input)
        dweight, dbias = (s.to(weight.dtype) if wanted else None for s, wanted in zip(sums, (wants_weight, wants_bias), strict=True))
        return dx, dweight, dbias, None, None, None, None, None


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    group: Any = None,
) -> Tensor:
    """batch_norm with training=True over all processes of ``group``; None is this process alone. Every process must call it.

    input: [N, C, ...] with C > 0; N may differ between processes and be zero. float32, float64, bfloat16, float16; vectors of
    the input's dtype or float32. Differentiable once. Raises ValueError, in every process, if there is one value per channel in
    all, RuntimeError for sizes and dtypes. Source: csrc/norm/batch_norm.h.
    """
    mean, var, count = _merged(input.detach(), group)
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got one in all processes, here {list(input.shape)}")
    if running_mean is not None and count:
        update(running_mean, running_var, mean, var, count, momentum)
    if needs_grad(input, weight, bias):
        return _SyncBatchNorm.apply(input, weight, bias, mean, var, eps, count, group)
    return evaluate(input, None, mean, var, weight, bias, eps, 1.0, 0.0)
