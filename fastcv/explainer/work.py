"""What one op call does: floating-point operations and bytes, from its schema, its arguments and its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry


def _filter(weight: Tensor) -> int:
    """Multiply-adds of a convolution per output element: input channels of a group times taps."""
    return math.prod(weight.shape[1:])


# Operations per multiply-add: 2. What is bound by memory (norms, pooling, losses, element-wise ops) counts bytes only.
_FASTCV_FLOPS: dict[str, Callable[[Any, Any], int]] = {
    "conv": lambda args, out: 2 * out.numel() * _filter(args[1]),
    "conv_dgrad": lambda args, out: 2 * args[0].numel() * _filter(args[1]),
    "conv_wgrad": lambda args, out: 2 * args[1].numel() * _filter(out),
    "cdist": lambda args, out: 2 * out.numel() * args[0].shape[-1],
    "knn": lambda args, out: 2 * math.prod(args[0].shape) * args[1].shape[-2],
    "linear_cross_entropy": lambda args, out: 2 * args[0].numel() * args[1].shape[0],
    "linear_cross_entropy_with_grad": lambda args, out: 6 * args[0].numel() * args[1].shape[0],
}


def flops(op: torch._ops.OpOverload, args: Any, kwargs: Any, out: Any) -> int:
    """Floating-point operations of the call; 0 for ops that do few per byte."""
    if op.namespace == "fastcv":
        count = _FASTCV_FLOPS.get(op._opname)
        return 0 if count is None else count(args, out)
    count = flop_registry.get(op.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))


def _size(t: Tensor) -> int:
    """Bytes that ``t`` names: an expanded dimension is read once."""
    if t.layout is not torch.strided:
        return t.numel() * t.element_size()
    return math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or not size) * t.element_size()


def bytes_moved(args: Any, kwargs: Any, out: Any) -> int:
    """Bytes of all tensors that the call reads and writes, each once."""
    return sum(_size(t) for t in pytree.tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))


_MOVES_NOTHING = frozenset(
    ("detach", "alias", "_unsafe_view", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
)


def only_views(op: torch._ops.OpOverload) -> bool:
    """True if the op returns another view of an argument, or memory without values: it moves no bytes."""
    if op._opname in _MOVES_NOTHING:
        return True
    aliases = [r.alias_info for r in op._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def layout(t: Tensor) -> str:
    """ "NCHW", "channels_last", "dense" or "strided": how the elements lie in memory."""
    if t.dim() in (4, 5):
        last = torch.channels_last if t.dim() == 4 else torch.channels_last_3d
        if t.is_contiguous():
            return "either" if t.is_contiguous(memory_format=last) else "NCHW"
        return "channels_last" if t.is_contiguous(memory_format=last) else "strided"
    return "dense" if t.is_contiguous() else "strided"
