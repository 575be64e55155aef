"""What the functions of the loss family share: dtypes, reductions and where values may be looked at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def _check_float(op: str, input: Tensor) -> None:
    if input.dtype not in _FLOATS:
        raise NotImplementedError(f"{op}: no kernel for {input.dtype}; it takes float32, float64, bfloat16 and float16")


def _reduction_number(reduction: str, size_average: bool | None, reduce: bool | None) -> int:
    """0 none, 1 mean, 2 sum, as torch counts; torch's warnings and ValueError for legacy and unknown names."""
    if size_average is None and reduce is None:
        if reduction == "mean":
            return 1
    else:
        reduction = _Reduction.legacy_get_string(size_average, reduce)
    return _Reduction.get_enum(reduction)


def _in_transform() -> bool:
    """True where Python may not look at values: while compiling, and inside torch.func transforms."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
