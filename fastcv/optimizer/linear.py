"""nn.Linear on the kernel of 1x1 convolutions, with packed weights: the rows of the input are the pixels of one line, channels_last.

For calls that record no gradient. A row has the same bits alone and within any batch, from any number of threads: whether
the kernel is taken depends on the layer, never on the rows, and the weight is arranged at the first call. Everything is
torch's that torch.nn.functional.linear decides: shapes, errors, autocast, numbers below the normal range. What the kernel does not take
runs there.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _ext
from ..functional._common import autocast_dtype, needs_grad
from ..functional.conv import ACTIVATIONS as CODES
from .packed_weights import PLAIN, POINTWISE, PackedWeights

_conv = _ext.op("conv")

# The activations of the kernel as torch computes them.
ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish, "gelu": F.gelu, "leaky_relu": F.leaky_relu}

# From how many products per row the kernel is worth its call, which costs some 6 us more than torch's; measured over rows from 1 to
# 3136 (docs/optimize.md). torch converts the bfloat16 operands of small products, so that ours is faster much earlier.
_LEAST = {torch.float32: 1 << 16, torch.bfloat16: 1 << 12}
_LEAST_OUTPUTS = 8  # a vector of outputs is the kernel's unit
_UNMEASURED = ("portable",)  # instruction sets of processors whose torch has kernels of its own
_DIRECT_SUM = 3  # csrc/conv/conv.h: Precision::ieee, which keeps numbers below the normal range


@functools.cache
def why_torch(outputs: int, inputs: int, dtype: torch.dtype) -> str:
    """Why torch's kernel is taken for a layer of this size, in a few words; "" if fastcv's is."""
    name = str(dtype).removeprefix("torch.")
    if dtype not in _LEAST:
        return f"fastcv multiplies float32 and bfloat16, not {name}"
    if _ext.cpu_isa() in _UNMEASURED:
        return f"fastcv's {_ext.cpu_isa()} kernels are for any processor, torch's for this one"
    if outputs * inputs < _LEAST[dtype]:
        return f"{inputs} to {outputs} features in {name} is too small to gain"
    return f"{outputs} features are too few to gain" if outputs < _LEAST_OUTPUTS else ""


def why_torch_for(module: nn.Linear) -> str:
    """The same of a linear layer as it is."""
    if module.weight.is_cuda:
        return "on a GPU torch multiplies"
    if not module.weight.is_contiguous():
        return "its weight is not contiguous"
    return why_torch(*module.weight.shape, module.weight.dtype)


def forward(module: nn.Linear, x: Tensor, packs: PackedWeights) -> Tensor:
    """The forward of nn.Linear; packs: of this module."""
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or (torch.is_grad_enabled() and needs_grad(x, weight, bias)):
        return nn.Linear.forward(module, x)
    return linear(x, weight, bias, None, packs)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, packs: PackedWeights | None, slope: float = 0.01
) -> Tensor:
    """activation(F.linear(x, weight, bias)) without gradients: x [..., C], weight [K, C], bias [K] or None -> [..., K].

    packs: what keeps the packed weight; without it torch multiplies. slope: of leaky_relu.
    """
    dtype = None if packs is None else _dtype_of_kernel(x, weight, bias)
    if dtype is None:
        y = F.linear(x, weight, bias)
        return y if activation is None else ACTIVATIONS[activation](y, *([slope] if activation == "leaky_relu" else []))
    rows = x.reshape(-1, weight.shape[1]).to(dtype).contiguous()
    image = rows.view(1, 1, *rows.shape).permute(0, 3, 1, 2)
    filters, packed = packs.of_linear(image, weight, _DIRECT_SUM)
    b = bias if bias is None or bias.dtype is dtype else bias.to(dtype)
    y = _conv(image, filters, b, *POINTWISE, None, CODES[activation], _DIRECT_SUM, packed, slope)
    # As torch's own product ends: no view to autograd, so that a caller may write to it in any mode.
    return torch.ops.aten._unsafe_view(y.permute(0, 2, 3, 1), [*x.shape[:-1], weight.shape[0]])


def _dtype_of_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """What the kernel multiplies, or None where torch's is to run: to compute it, or to raise its error."""
    if type(weight) not in PLAIN or type(bias) not in (*PLAIN, type(None)):
        return None
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1] or x.numel() == 0:
        return None
    lowered = autocast_dtype(x)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if lowered is None:
        dtype = weight.dtype
        if any(t.dtype is not dtype for t in tensors):
            return None
    else:
        dtype = lowered
        if any(t.dtype is torch.float64 or not t.is_floating_point() for t in tensors):
            return None
    if any(t.device.type != "cpu" or t.layout is not torch.strided for t in tensors) or not weight.is_contiguous():
        return None
    if weight.is_inference() or why_torch(weight.shape[0], weight.shape[1], dtype):  # the first has no version counter
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return None if dtype is torch.float32 and _reduced() else dtype


def _reduced() -> bool:
    """True if float32 products may be computed with less: torch has kernels for that."""
    return torch._C._get_fp32_precision_getter("mkldnn", "matmul") not in ("none", "ieee")
