"""nn.MultiheadAttention whose projections run on the kernel of linear layers (linear.py), with packed weights; between them torch's
scaled_dot_product_attention.

For what networks of images ask for: one sequence attending to itself, no masks, no weights returned, no gradient. What else a call asks
for runs on torch, which otherwise reads the four parameters itself, past the forward of out_proj.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..functional._common import needs_grad
from . import linear
from .packed_weights import PackedWeights

# The arguments of nn.MultiheadAttention.forward, in order.
_NAMES = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


def why_torch_for(module: nn.MultiheadAttention) -> str:
    """Why torch's kernels are taken for the module as it is, in a few words; "" if fastcv's are, if only for some inputs."""
    weight = module.in_proj_weight
    if weight is None:
        return "its query, key and value are of different widths"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys of its own to the sequence"
    if parametrize.is_parametrized(module.out_proj):
        return "its output projection is parametrised"
    if weight.is_cuda:
        return "on a GPU torch multiplies"
    return linear.why_torch(*weight.shape, weight.dtype)


def packed_bytes(module: nn.MultiheadAttention) -> int:
    """Of the memory that the packed weights take, at most."""
    return linear.packed_bytes(module.in_proj_weight) + linear.packed_bytes(module.out_proj.weight)


def sequence_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The one sequence that a call of nn.MultiheadAttention with these arguments attends over, to itself; None if it asks for more."""
    given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
    x = given.get("query")
    if len(given) != len(args) + len(kwargs) or type(x) is not Tensor or given.get("key") is not x or given.get("value") is not x:
        return None
    if given.get("need_weights", True) or given.get("is_causal") or not given.keys() <= set(_NAMES):
        return None
    return None if given.get("attn_mask") is not None or given.get("key_padding_mask") is not None else x


def forward(module: nn.MultiheadAttention, x: Tensor, in_packs: PackedWeights, out_packs: PackedWeights) -> Tensor | None:
    """The attention of x [L, E], [N, L, E] (batch_first) or [L, N, E] to itself, of the same shape; None where torch's is to run.

    in_packs, out_packs: of this module's two projections. A sample has the same bits alone and within any batch.
    """
    weight, bias, out = module._parameters.get("in_proj_weight"), module._parameters.get("in_proj_bias"), module.out_proj
    if weight is None or x.is_nested or x.dim() not in (2, 3):
        return None
    if torch.is_grad_enabled() and needs_grad(x, weight, bias, out.weight, out.bias):
        return None
    samples_first = module.batch_first and x.dim() == 3
    tokens = x if samples_first else x.unsqueeze(0) if x.dim() == 2 else x.transpose(0, 1)
    if not linear.is_served(tokens, weight, bias):
        return None
    projected = linear.linear(tokens, weight, bias, None, in_packs)
    q, k, v = projected.view(*tokens.shape[:2], 3, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v)
    y = linear.linear(heads.transpose(1, 2).flatten(2), out.weight, out.bias, None, out_packs)
    return y if samples_first else y[0] if x.dim() == 2 else y.transpose(0, 1).contiguous()
