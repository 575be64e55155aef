"""fastcv.override_aten: torch's functions on fastcv's kernels within a block, for code one cannot touch. Experimental.

A TorchFunctionMode stands between the code in the block and torch: calls of torch.nn.functional, of torch, of tensor methods
and of torch.ops.aten reach it in the thread that entered the block, and nowhere else. It stands above autograd, so gradients
are those of fastcv's functions. Code that calls torch from C++ (TorchScript, the backward passes of torch's own functions)
does not pass through it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import _ext, functional
from .optimizer.kernels import DTYPES


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """torch.ops.aten.convolution."""
    name = f"conv{'_transpose' if transposed else ''}{weight.dim() - 2}d"
    extra = (output_padding, groups, dilation) if transposed else (dilation, groups)
    return getattr(functional, name)(input, weight, bias, stride, padding, *extra)


def _with_indices(name: str) -> Callable[..., Any]:
    function = getattr(functional, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **(kwargs | {"return_indices": True}))

    return call


def _softmax(name: str) -> Callable[..., Any]:
    function = getattr(functional, name)

    def call(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return function(input, dim, dtype=dtype)

    return call


def _peers() -> dict[Any, tuple[str, Callable[..., Any]]]:
    """torch's function, as a mode is handed it -> the name of fastcv's and what to call with the same arguments."""
    peers = {getattr(F, name): (name, getattr(functional, name)) for name in functional.__all__ if hasattr(F, name)}
    for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "max_pool2d", "cdist"):
        peers[getattr(torch, name)] = (name, getattr(functional, name))
    for name in ("softmax", "log_softmax"):
        for function in (getattr(torch, name), getattr(Tensor, name)):
            peers[function] = (name, _softmax(name))
    peers[F.max_pool2d_with_indices] = ("max_pool2d", _with_indices("max_pool2d"))
    peers[F.adaptive_max_pool2d_with_indices] = ("adaptive_max_pool2d", _with_indices("adaptive_max_pool2d"))
    for function in (torch.convolution, torch.ops.aten.convolution, torch.ops.aten.convolution.default):
        peers[function] = ("convolution", _convolution)
    return peers


_PEERS = _peers()
_NAMES = frozenset(name for name, _ in _PEERS.values())


class Override(TorchFunctionMode):
    """The mode that override_aten returns. calls: how many calls of each function fastcv has served in its blocks."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        peer = _PEERS.get(function)
        if peer is not None and peer[0] in self.names and not torch.compiler.is_compiling():
            x = args[0] if args else kwargs.get("input")
            if _served(x) and all(type(t) in (Tensor, nn.Parameter) for t in (*args, *kwargs.values()) if isinstance(t, Tensor)):
                self.calls[peer[0]] += 1
                return peer[1](*args, **kwargs)
        return function(*args, **kwargs)


def _served(x: Any) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype in DTYPES and x.layout is torch.strided


def override_aten(ops: str | Iterable[str] = "all") -> Override:
    """A context manager within whose block torch's functions run on fastcv's kernels, in this thread. Experimental.

    ops: "all", or names of torch.nn.functional that fastcv.functional has too ("conv2d", "batch_norm", ...), "cdist", and
    "convolution" for torch.ops.aten.convolution. Inputs that fastcv has no kernel for - other devices and dtypes, subclasses
    of Tensor - run on torch. Blocks nest, the inner one first, and end with an exception as without one. What was replaced is
    counted: ``with fastcv.override_aten(["conv2d"]) as on: ...; print(on.calls)``. Within torch.compile it does nothing:
    compile with backend="fastcv". Raises ValueError for unknown names, naming those there are, and NotBuiltError.
    """
    names = _NAMES if ops == "all" else frozenset([ops] if isinstance(ops, str) else ops)
    if not names <= _NAMES:
        raise ValueError(
            f"fastcv.override_aten: cannot override {sorted(names - _NAMES, key=str)}; it can override {sorted(_NAMES)}, or 'all'"
        )
    _ext.module()
    return Override(names)
