"""Distances and nearest neighbours; same stem as csrc/neighbors."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import autocast_float32, differentiable, needs_grad

__all__ = ["cdist", "knn", "nearest"]

_cdist = _ext.op("cdist")
_cdist_backward = _ext.op("cdist_backward")
_knn = _ext.op("knn")
_knn_backward = _ext.op("knn_backward")

_COMPUTE_MODES = ("use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8)
_HALVES = (torch.bfloat16, torch.float16)


# Shapes: fake kernels and vmap rules ----------------------------------------------------------------------------------


@_ext.fake("cdist")
def _(x1: Tensor, x2: Tensor, p: float) -> Tensor:
    dtype = torch.float32 if x1.dtype == torch.uint8 else x1.dtype
    return x1.new_empty((*x1.shape[:-1], x2.shape[-2]), dtype=dtype)


@_ext.fake("cdist_backward")
def _(grad: Tensor, x1: Tensor, x2: Tensor, p: float, distance: Tensor) -> Tensor:
    return x1.new_empty(x1.shape)


@_ext.fake("knn")
def _(x: Tensor, y: Tensor, k: int, p: float, squared: bool) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:-1], k)
    dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


@_ext.fake("knn_backward")
def _(
    grad: Tensor, x: Tensor, y: Tensor, distance: Tensor, index: Tensor, p: float, squared: bool, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0,)), y.new_empty(y.shape if need_y else (0,))


def _fold(info: Any, in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> tuple[list[Tensor], Any]:
    """The mapped dimension in front of every tensor, folded into the batch; and the function that takes it out again."""
    size, folded, batch = info.batch_size, [], None
    for t, dim in zip(tensors, in_dims, strict=True):
        t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        if t.dim() == 4:
            batch = t.shape[1]
            t = t.reshape(-1, *t.shape[2:])
        folded.append(t)
    return folded, lambda t: t if batch is None else t.unflatten(0, (size, batch))


@_ext.vmap("cdist")
def _(info: Any, in_dims: tuple[int | None, ...], x1: Tensor, x2: Tensor, p: float) -> tuple[Tensor, int]:
    (x1, x2), unfold = _fold(info, in_dims[:2], (x1, x2))
    return unfold(_cdist(x1, x2, p)), 0


@_ext.vmap("cdist_backward")
def _(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, x1: Tensor, x2: Tensor, p: float, distance: Tensor) -> tuple[Tensor, int]:
    (grad, x1, x2, distance), unfold = _fold(info, (*in_dims[:3], in_dims[4]), (grad, x1, x2, distance))
    return unfold(_cdist_backward(grad, x1, x2, p, distance)), 0


@_ext.vmap("knn")
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor, k: int, p: float, squared: bool) -> Any:
    (x, y), unfold = _fold(info, in_dims[:2], (x, y))
    distances, indices = _knn(x, y, k, p, squared)
    return (unfold(distances), unfold(indices)), (0, 0)


@_ext.vmap("knn_backward")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    tensors, unfold = _fold(info, in_dims[:5], args[:5])
    need_x, need_y = args[7:]
    grad_x, grad_y = _knn_backward(*tensors, *args[5:])
    none = grad_x.new_empty((info.batch_size, 0))
    return (unfold(grad_x) if need_x else none, unfold(grad_y) if need_y else none), (0, 0)


# Gradients. The first order runs in the kernels; the second and higher orders differentiate the formulas below, which are
# made of torch operations and take memory for all pairs' coordinates ([M, N, D] for cdist, [M, k, D] for knn). -----------


def _slope(difference: Tensor, p: float, squared: bool) -> Tensor:
    """The derivative of the distance by each coordinate of the difference (the last dimension), with torch's subgradients."""
    if squared:
        return 2 * difference
    if p == 0:
        return torch.zeros_like(difference)
    if p == 1:
        return difference.sign()
    size = difference.abs()
    if p == math.inf:
        return torch.where(size == size.amax(-1, keepdim=True), difference.sign(), 0)
    zero = size == 0
    size = torch.where(zero, 1, size)
    total = torch.where(zero, 0, size**p).sum(-1, keepdim=True)
    total = torch.where(total == 0, 1, total)
    return torch.where(zero, 0, difference.sign() * size ** (p - 1) / total ** ((p - 1) / p))


def _cdist_backward_formula(grad: Tensor, x1: Tensor, x2: Tensor, p: float) -> Tensor:
    return (grad.unsqueeze(-1) * _slope(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, False)).sum(-2)


def _knn_backward_formula(grad: Tensor, x: Tensor, y: Tensor, index: Tensor, p: float, squared: bool) -> tuple[Tensor, Tensor]:
    grad = torch.where(index < 0, 0, grad)
    rows = index.clamp(min=0).unsqueeze(-1).expand(*index.shape, x.shape[-1])
    chosen = y.unsqueeze(-3).expand(*y.shape[:-2], x.shape[-2], *y.shape[-2:]).gather(-2, rows)
    each = grad.unsqueeze(-1) * _slope(x.unsqueeze(-2) - chosen, p, squared)
    return each.sum(-2), torch.zeros_like(y).scatter_add(-2, rows.flatten(-3, -2), -each.flatten(-3, -2))


def _save_cdist_backward(ctx: Any, args: tuple[Any, ...], _output: Tensor) -> None:
    ctx.save_for_backward(*args[:3])
    ctx.p = args[3]


def _cdist_second(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    _, pull = torch.func.vjp(lambda *t: _cdist_backward_formula(*t, ctx.p), *ctx.saved_tensors)
    return (*pull(grad), None, None)


def _save_knn_backward(ctx: Any, args: tuple[Any, ...], _outputs: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(args[0], args[1], args[2], args[4])
    ctx.p, ctx.squared, ctx.needs = args[5], args[6], args[7:]


def _knn_second(ctx: Any, grad_x: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, index = ctx.saved_tensors
    _, pull = torch.func.vjp(lambda *t: _knn_backward_formula(*t, index, ctx.p, ctx.squared), *tensors)
    x, y = tensors[1:]
    result = pull((grad_x if ctx.needs[0] else torch.zeros_like(x), grad_y if ctx.needs[1] else torch.zeros_like(y)))
    return (*result, None, None, None, None, None, None)


_cdist_backward_with_grad = differentiable("CdistBackward", _cdist_backward, _save_cdist_backward, _cdist_second)
_knn_backward_with_grad = differentiable("KnnBackward", _knn_backward, _save_knn_backward, _knn_second)


def _save_cdist(ctx: Any, args: tuple[Any, ...], distance: Tensor) -> None:
    ctx.save_for_backward(args[0], args[1], distance)
    ctx.p = args[2]


def _cdist_first(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x1, x2, distance = ctx.saved_tensors
    distance = distance.detach()
    run = _cdist_backward_with_grad if needs_grad(grad, x1, x2) else _cdist_backward
    return (
        run(grad, x1, x2, ctx.p, distance) if ctx.needs_input_grad[0] else None,
        run(grad.mT, x2, x1, ctx.p, distance.mT) if ctx.needs_input_grad[1] else None,
        None,
    )


def _save_knn(ctx: Any, args: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(args[0], args[1], *outputs)
    ctx.p, ctx.squared = args[3:]
    ctx.mark_non_differentiable(outputs[1])


def _knn_first(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, y, distance, index = ctx.saved_tensors
    need_x, need_y = ctx.needs_input_grad[:2]
    run = _knn_backward_with_grad if needs_grad(grad, x, y) else _knn_backward
    grad_x, grad_y = run(grad, x, y, distance.detach(), index, ctx.p, ctx.squared, need_x, need_y)
    return grad_x if need_x else None, grad_y if need_y else None, None, None, None


_cdist_with_grad = differentiable("Cdist", _cdist, _save_cdist, _cdist_first)
_knn_with_grad = differentiable("Knn", _knn, _save_knn, _knn_first)


# Public functions -------------------------------------------------------------------------------------------------------


def _check_points(name: str, x1: Tensor, x2: Tensor, labels: tuple[str, str]) -> None:
    for position, t in ((1, x1), (2, x2)):
        if isinstance(t, Tensor) and t.dtype in _DTYPES and t.dim() >= 2:
            continue
        label = labels[position - 1]
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}(): argument '{label}' (position {position}) must be Tensor, not {type(t).__name__}")
        if t.dtype not in _DTYPES:
            raise RuntimeError(f"{name} only supports floating-point dtypes and uint8, {label} got: {t.dtype}")
        raise RuntimeError(f"{name} only supports at least 2D tensors, {label} got: {t.dim()}D")
    if x1.shape[-1] != x2.shape[-1]:
        a, b = labels
        raise RuntimeError(f"{a} and {b} must have the same number of columns. {a}: {x1.shape[-1]} {b}: {x2.shape[-1]}")


def _exponent(name: str, p: Any) -> float:
    if type(p) is not float and not isinstance(p, numbers.Real):
        raise TypeError(f"{name}(): argument 'p' must be float, not {type(p).__name__}")
    if not p >= 0:
        raise RuntimeError(f"{name} only supports non-negative p values, got p={p}")
    return float(p)


def _same_dtype(name: str, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    x1, x2 = autocast_float32(x1, x2)
    if x1.dtype != x2.dtype:
        raise RuntimeError(f"{name}: expected both tensors to have the same dtype, but got {x1.dtype} and {x2.dtype}")
    return x1, x2


def _align(name: str, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor, torch.Size | None]:
    """Both as [rows, D] or both as [B, rows, D], and the batch's true shape where that is something else."""
    x1, x2 = _same_dtype(name, x1, x2)
    dim = x1.dim()
    if dim == x2.dim() and (dim == 2 or (dim == 3 and x1.shape[0] == x2.shape[0])):
        return x1, x2, None
    batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    items = math.prod(batch)
    x1, x2 = (
        t.expand(items, *t.shape[-2:])
        if t.shape[:-2].numel() == 1 and t.dim() <= 3
        else t.expand(*batch, *t.shape[-2:]).reshape(items, *t.shape[-2:])
        for t in (x1, x2)
    )
    return x1, x2, batch


def _cosine(name: str, metric: Any, p: Any) -> bool:
    if metric not in ("minkowski", "cosine"):
        raise ValueError(f"{name}: metric must be 'minkowski' or 'cosine', got {metric!r}")
    if metric == "cosine" and p != 2:
        raise ValueError(f"{name}: metric='cosine' takes no p, got p={p!r}")
    return metric == "cosine"


def unit_rows(x: Tensor, side: int) -> Tensor:
    """Rows of length one [..., D + 2], half of whose squared distance is one minus the cosine; uint8 and 16-bit types as float32.

    A row of zeros gets a direction of its own, the last but one (``side`` 0) or the last coordinate (1): at distance 1 from
    every row of the other side, as scikit-learn has it. Lengths are computed in float64, so none overflows.
    """
    x = x.float() if x.dtype in (*_HALVES, torch.uint8) else x
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    zero = length == 0
    rows = (x / torch.where(zero, 1, length)).to(x.dtype)
    own = zero.to(x.dtype)
    return torch.cat([rows, *((own, torch.zeros_like(own)) if side == 0 else (torch.zeros_like(own), own))], -1)


def cdist(
    x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary", *, metric: str = "minkowski"
) -> Tensor:
    """The p-norm distance of every row of x1 to every row of x2, as ``torch.cdist``.

    x1: [..., M, D], x2: [..., N, D], batch dimensions broadcast; float32, float64, bfloat16, float16, or uint8 (result
    float32, sums exact for p = 1 and 2). p: any number >= 0; 0 counts differing coordinates, inf takes the largest.
    compute_mode: torch's three values are accepted and mean the same here: differences are always subtracted directly,
    so near points keep their distance where the matrix-product form cancels to 0.
    metric: "minkowski" is the p-norm; "cosine" is one minus the cosine, 1 where a row is all zeros, as scikit-learn's. It is half
    the squared distance of the rows divided by their lengths, which keeps the digits of small angles.
    Returns [..., M, N]. Differentiable any number of times, with torch's subgradients (zero at distance zero); orders above
    the first take memory for [M, N, D]. 16-bit tensors are summed in float32; autocast computes in float32.
    Raises ValueError for an unknown compute_mode or metric and for a p with "cosine", TypeError for arguments of another type,
    RuntimeError for other dtypes, fewer than 2 dimensions, different column counts or dtypes, and p < 0.
    Source: csrc/neighbors/cdist.h.
    """
    _check_points("cdist", x1, x2, ("x1", "x2"))
    if compute_mode not in _COMPUTE_MODES:
        raise ValueError(f"{compute_mode} is not a valid value for compute_mode")
    if _cosine("cdist", metric, p):
        x1, x2 = _same_dtype("cdist", x1, x2)
        result = cdist(unit_rows(x1, 0), unit_rows(x2, 1)).square() / 2
        return result.to(x1.dtype) if x1.dtype in _HALVES else result
    p = _exponent("cdist", p)
    a, b, batch = _align("cdist", x1, x2)
    if not needs_grad(a, b):
        result = _cdist(a, b, p)
    elif a.dtype in _HALVES:
        result = _cdist_with_grad(a.float(), b.float(), p).to(a.dtype)
    else:
        result = _cdist_with_grad(a, b, p)
    return result if batch is None else result.reshape(*batch, *result.shape[-2:])


def knn(
    x: Tensor, y: Tensor, k: int, p: float = 2.0, *, squared: bool = False, pad: bool = False, metric: str = "minkowski"
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of y for each row of x, by p-norm distance: nearest first, ties to the lowest index, NaN last.

    x: [..., M, D], y: [..., N, D], batch dimensions broadcast; float32, float64, bfloat16, float16, or uint8 (compared by
    exact integers for p = 1 and 2, distances in float32). p: any number >= 0. squared: leave the root of p = 2 away.
    pad: where k > N, fill up with (inf, -1) instead of raising. metric: "minkowski", or "cosine" as in `cdist`.
    Returns (distances, indices), both [..., M, k]: distances in the dtype of x, indices int64 into the rows of y. Distances
    are direct sums of differences; no M x N matrix is ever stored. Gradients flow through the distances to x and y, any
    number of times.
    Raises ValueError for k < 1, k > N without pad, and squared with another p; TypeError and RuntimeError as cdist.
    Source: csrc/neighbors/knn.h.
    """
    _check_points("knn", x, y, ("x", "y"))
    if not isinstance(k, (int, torch.SymInt)) or isinstance(k, bool):
        raise TypeError(f"knn(): argument 'k' must be int, not {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k={k}, but at least one neighbour must be asked for")
    if k > y.shape[-2] and not pad:
        raise ValueError(f"k={k} but there are {y.shape[-2]} points; pass pad=True to fill with (inf, -1)")
    if _cosine("knn", metric, p):
        if squared:
            raise ValueError("knn: metric='cosine' has no squared distances")
        x, y = _same_dtype("knn", x, y)
        distances, indices = knn(unit_rows(x, 0), unit_rows(y, 1), k, squared=True, pad=pad)
        distances = distances / 2
        return distances.to(x.dtype) if x.dtype in _HALVES else distances, indices
    p = _exponent("knn", p)
    if squared and p != 2:
        raise ValueError(f"squared distances exist for p=2 only, got p={p:g}")
    a, b, batch = _align("knn", x, y)
    if not needs_grad(a, b):
        distances, indices = _knn(a, b, k, p, squared)
    elif a.dtype in _HALVES:
        distances, indices = _knn_with_grad(a.float(), b.float(), k, p, squared)
        distances = distances.to(a.dtype)
    else:
        distances, indices = _knn_with_grad(a, b, k, p, squared)
    if batch is None:
        return distances, indices
    return distances.reshape(*batch, *distances.shape[-2:]), indices.reshape(*batch, *indices.shape[-2:])


def nearest(x: Tensor, y: Tensor, p: float = 2.0, *, squared: bool = False, metric: str = "minkowski") -> tuple[Tensor, Tensor]:
    """The nearest row of y for each row of x: ``knn`` with k = 1, without the last dimension.

    x: [..., M, D], y: [..., N, D] with N >= 1. Returns (distance, index), both [..., M]; equal distances go to the lowest
    index. float32, float64, bfloat16, float16 or uint8; gradients and metric as ``knn``. Raises what ``knn`` raises, ValueError for N = 0.
    Source: csrc/neighbors/knn.h.
    """
    distances, indices = knn(x, y, 1, p, squared=squared, metric=metric)
    return distances.squeeze(-1), indices.squeeze(-1)
