"""Gradients of the norms' gradients: small compositions of torch's elementwise operations, used only for double backward.

The first-order kernels stand in csrc/norm. What is here is itself differentiable, so any order of gradient exists.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Parts = tuple[Tensor | None, Tensor | None, Tensor | None]


def second_order(
    v: Tensor | None,
    vw: Tensor | None,
    vb: Tensor | None,
    g: Tensor,
    x: Tensor,
    w: Tensor | None,
    dims: Sequence[int],
    eps: float,
    fixed: tuple[Tensor, Tensor] | None = None,
) -> Parts:
    """Gradients of <v, dx> + <vw, dweight> + <vb, dbias> with respect to g, x and (not yet summed) w.

    y = (x - mean) r * w + b, r = 1 / sqrt(var + eps); g is the gradient of y. All tensors broadcast against x. dims: what mean
    and var run over; fixed: statistics that do not depend on x. With P(t) = t - mean(t) - n mean(t n), n = (x - mean) r, the
    first-order gradient is dx = r P(w g); P is its own adjoint, and P is the identity for fixed statistics.
    """
    if fixed is None:
        mean = x.mean(dims, keepdim=True)
        var = (x - mean).square().mean(dims, keepdim=True)
    else:
        mean, var = fixed
    r = torch.rsqrt(var + eps)
    n = (x - mean) * r

    def average(t: Tensor) -> Tensor:
        return t.mean(dims, keepdim=True)

    def project(t: Tensor) -> Tensor:
        return t - average(t) - n * average(t * n) if fixed is None else t

    scaled = g if w is None else g * w
    dg = dx = dw = None
    if v is not None:
        pv = r * project(v)
        dg = pv if w is None else w * pv
        dw = g * pv
        if fixed is None:
            inner = -r * (v * average(scaled * n) + scaled * average(v * n))
            dx = r * project(inner) - r * n * average(pv * scaled)
    if vw is not None:
        dg = vw * n if dg is None else dg + vw * n
        extra = r * project(vw * g)
        dx = extra if dx is None else dx + extra
    if vb is not None:
        dg = vb.expand_as(x) if dg is None else dg + vb
    return dg, dx, dw


def widen(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """16-bit tensors as float32, the others as they are."""
    return tuple(t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def summed(t: Tensor | None, dims: Sequence[int], like: Tensor | None) -> Tensor | None:
    """t summed over dims, with the shape and dtype of `like`."""
    return None if t is None or like is None else t.sum(dims).reshape(like.shape).to(like.dtype)


def cast(t: Tensor | None, like: Tensor) -> Tensor | None:
    """t with the shape and dtype of `like`."""
    return None if t is None else t.reshape(like.shape).to(like.dtype)
