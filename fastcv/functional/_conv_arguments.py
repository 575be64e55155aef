"""Arguments of convolutions as torch takes them, checked and in the form that the raw ops take."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LEVELS = {"highest": 0, "high": 1, "tf32": 1, "medium": 2, "bf16": 2, "ieee": 3}
_FOR_ALL = (_LEVELS["highest"], _LEVELS["ieee"])  # what other dtypes have too


@torch.compiler.assume_constant_result
def float32_precision(cuda: bool) -> int:
    """What float32 may be computed with (csrc/conv/conv.h: enum Precision), from torch's own switches.

    The convolution's switch decides; on the CPU, where it is unset, the one of matrix products. "highest", the default,
    is float32 arithmetic in any algorithm within the accuracy rule. A convolution's switch set to "ieee" admits the direct
    sum only: torch.backends.mkldnn.conv.fp32_precision = "ieee" keeps every NaN and infinity to the outputs that read it.
    """
    setting = torch._C._get_fp32_precision_getter("cuda" if cuda else "mkldnn", "conv")
    if setting == "none":
        setting = "highest" if cuda else torch._C._get_float32_matmul_precision()
    elif cuda and setting == "ieee":
        setting = "highest"  # torch's own default there
    return _LEVELS[setting]


def precision_of(t: Tensor) -> int:
    """What a convolution of ``t`` may be computed with, as the raw ops take it."""
    level = float32_precision(t.is_cuda)
    return level if level in _FOR_ALL or t.dtype is torch.float32 else _LEVELS["highest"]


def as_int(value: Any, name: str) -> int:
    """``value`` as an int, as torch's argument parser takes it."""
    if not isinstance(value, (bool, float)):
        if isinstance(value, (int, torch.SymInt)):
            return value
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}")


def as_ints(value: Any, nd: int, name: str) -> Sequence[int]:
    """``value`` as nd ints; one is repeated."""
    if type(value) is int:
        return (value,) * nd
    if not isinstance(value, (tuple, list)):
        return (as_int(value, name),) * nd
    for v in value:
        if type(v) is not int:
            value = [as_int(v, name) for v in value]
            break
    if len(value) != nd:
        if len(value) != 1:
            raise RuntimeError(f"expected {name} to be a single integer value or a list of {nd} values, but got {name}={[*value]}")
        return (value[0],) * nd
    return value


def as_pads(value: Any, nd: int, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Sequence[int]:
    """padding as nd ints, or as the nd before and the nd after; where 'same' cannot be even, the end has one more."""
    if not isinstance(value, str):
        return as_ints(value, nd, "padding")
    if value == "valid":
        return (0,) * nd
    if value != "same":
        raise RuntimeError(f"Invalid padding string: {value!r}")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride={[*stride]}")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


def check(name: str, nd: int, input: Any, weight: Any, bias: Any, groups: Any) -> bool:
    """The types and numbers of dimensions; everything else is the door's. Returns whether the input is batched."""
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        types = ", ".join(type(t).__name__ for t in (input, weight, bias))
        raise TypeError(f"{name}: input and weight must be tensors and bias a tensor or None, got {types}")
    if type(groups) is not int:
        as_int(groups, "groups")
    dims = input.dim()
    if dims != nd + 2 and dims != nd + 1:
        raise RuntimeError(
            f"Expected {nd + 1}D (unbatched) or {nd + 2}D (batched) input to {name}, but got input of size: {[*input.shape]}"
        )
    if weight.dim() != nd + 2:
        raise RuntimeError(f"{name}: expected a weight of {nd + 2} dimensions, got weight of size {[*weight.shape]}")
    if input.numel() == 0 and 0 in input.shape[-nd:] and 0 not in input.shape[:-nd]:
        raise RuntimeError(f"Only zero batch or zero channel inputs are supported, but got input shape: {[*input.shape]}")
    return dims == nd + 2
