"""nn.Linear on the kernel of 1x1 convolutions, with packed weights: the rows of the input are the pixels of one line, channels_last.

For calls that record no gradient. A sample, which is a row or what the first dimension counts, has the same bits alone and within any
batch, from any number of threads: which kernel is taken depends on the layer and the rows of a sample, never on the batch, and the
weight is arranged at the first call. Everything is torch's that torch.nn.functional.linear decides: shapes, errors, autocast. What the
kernel does not take runs there.

float32 is multiplied as such, numbers below the normal range too; with AMX, samples of many rows are multiplied as in a convolution:
as parts of numbers, no less exact, numbers below the normal range taken for zeros, unless torch asks for "ieee".
"""

from __future__ import annotations

import functools
import math

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

# From how many products per row the kernel is worth its call, which costs some 20 us more than torch's; measured over rows from 1 to
# 3136 (docs/optimize.md). torch converts the bfloat16 operands of small products, so that ours is faster much earlier.
_LEAST = {torch.float32: 1 << 16, torch.bfloat16: 1 << 12}
_LEAST_OUTPUTS = 8  # a vector of outputs is the kernel's unit
_UNMEASURED = ("portable",)  # instruction sets of processors whose torch has kernels of its own
_HIGHEST, _DIRECT_SUM = 0, 3  # csrc/conv/conv.h: Precision::highest and ieee; the second keeps numbers below the normal range
# Samples from how many rows on matrix tiles multiply faster; and layers below _LEAST, from how many outputs and products of a sample.
_TILE_ROWS, _TILE_OUTPUTS, _TILE_PRODUCTS = 32, 64, 24_000_000


@functools.cache
def why_torch(outputs: int, inputs: int, dtype: torch.dtype) -> str:
    """Why torch's kernel is taken for a layer of this size, in a few words; "" if fastcv's is, if only for samples of many rows."""
    name = str(dtype).removeprefix("torch.")
    if dtype not in _LEAST:
        return f"fastcv multiplies float32 and bfloat16, not {name}"
    if _ext.cpu_isa() in _UNMEASURED:
        return f"fastcv's {_ext.cpu_isa()} kernels are for any processor, torch's for this one"
    if outputs * inputs < _LEAST[dtype] and (outputs < _TILE_OUTPUTS or not _has_tiles(dtype)):
        return f"{inputs} to {outputs} features in {name} is too small to gain"
    return f"{outputs} features are too few to gain" if outputs < _LEAST_OUTPUTS else ""


def why_torch_for(module: nn.Linear) -> str:
    """The same of a linear layer as it is."""
    if module.weight.is_cuda:
        return "on a GPU torch multiplies"
    if not module.weight.is_contiguous():
        return "its weight is not contiguous"
    return why_torch(*module.weight.shape, module.weight.dtype)


def packed_bytes(weight: Tensor) -> int:
    """Of the memory that the packed weight takes, at most: tiles keep float32 as three parts of 16 bits."""
    return weight.numel() * (6 if _has_tiles(weight.dtype) else weight.element_size())


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
    dtype, precision = (None, None) if packs is None else _kernel_of(x, weight, bias)
    if precision is None:
        y = F.linear(x, weight, bias)
        return y if activation is None else ACTIVATIONS[activation](y, *([slope] if activation == "leaky_relu" else []))
    samples = x.shape[0] if precision == _HIGHEST else 1
    rows = x.reshape(samples, 1, -1, x.shape[-1]).to(dtype).contiguous()
    image = rows.permute(0, 3, 1, 2)
    filters, packed = packs.of_linear(image, weight, precision)
    b = bias if bias is None or bias.dtype is dtype else bias.to(dtype)
    y = _conv(image, filters, b, *POINTWISE, None, CODES[activation], precision, packed, slope)
    # As torch's own product ends: no view to autograd, so that a caller may write to it in any mode.
    return torch.ops.aten._unsafe_view(y.permute(0, 2, 3, 1), [*x.shape[:-1], weight.shape[0]])


def is_served(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether linear() takes the kernel where it is given packs."""
    return _kernel_of(x, weight, bias)[1] is not None


def _kernel_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[torch.dtype | None, int | None]:
    """What the kernel multiplies, and computes with; None where torch's is to run."""
    dtype = _dtype_of_kernel(x, weight, bias)
    return dtype, None if dtype is None else _precision_of_kernel(x, weight, dtype)


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
    return None if dtype is torch.float32 and _float32_products() not in ("none", "ieee") else dtype  # with less: torch has kernels


def _precision_of_kernel(x: Tensor, weight: Tensor, dtype: torch.dtype) -> int | None:
    """What the kernel computes with, or None where it is not worth its call."""
    rows, enough = math.prod(x.shape[1:-1]), weight.numel() >= _LEAST[dtype]
    pays = enough or (weight.shape[0] >= _TILE_OUTPUTS and rows * weight.numel() >= _TILE_PRODUCTS)
    if pays and x.dim() > 2 and rows >= _TILE_ROWS and _has_tiles(dtype) and _float32_products() != "ieee":
        return _HIGHEST
    return _DIRECT_SUM if enough else None


def _has_tiles(dtype: torch.dtype) -> bool:
    return dtype is torch.float32 and _ext.cpu_isa() == "amx"


def _float32_products() -> str:
    """What torch's float32 products may be computed with, in its own words."""
    return torch._C._get_fp32_precision_getter("mkldnn", "matmul")
