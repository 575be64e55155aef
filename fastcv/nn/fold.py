"""Folding a batch norm in evaluation mode into the convolution or linear layer before it.

bn(conv(x)) = scale * conv(x) + shift per output channel, with scale = gamma / sqrt(var + eps) and
shift = beta - mean * scale; so conv.weight * scale and conv.bias * scale + shift compute both in one pass. Padding of any
mode stands before the convolution and is not touched.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

__all__ = ["fold_batch_norm"]


def fold_batch_norm(conv: nn.Module, bn: nn.Module) -> nn.Module:
    """Returns a new module like ``conv``, in evaluation mode, that computes ``bn(conv(x))``; both arguments stay as they are.

    conv: any Conv1d/2d/3d or ConvTranspose1d/2d/3d, any groups and padding mode, or a Linear (of inputs [N, C]). bn: a batch
    norm in evaluation mode with running statistics. The folding is done in float64 and rounded once to the dtype of ``conv.weight``.
    Raises TypeError for other modules and ValueError for a pair that cannot be folded, with the reason.
    """
    weight, bias = folded_parameters(conv, bn)
    folded = copy.deepcopy(conv).eval()
    folded.weight = nn.Parameter(weight, conv.weight.requires_grad)
    folded.bias = nn.Parameter(bias, conv.weight.requires_grad)
    return folded


def folded_parameters(conv: nn.Module, bn: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias of the module that ``fold_batch_norm`` returns, with its rules and errors."""
    if not isinstance(conv, (_ConvNd, nn.Linear)):
        raise TypeError(f"fold_batch_norm: conv must be a convolution or linear module, got {type(conv).__name__}")
    if not isinstance(bn, _BatchNorm):
        raise TypeError(f"fold_batch_norm: bn must be a batch norm module, got {type(bn).__name__}")
    if any(is_lazy(p) for module in (conv, bn) for p in module.parameters()):
        raise ValueError("fold_batch_norm: a lazy module has no parameters before its first call")
    if parametrize.is_parametrized(conv) or parametrize.is_parametrized(bn):
        raise ValueError("fold_batch_norm: a parametrised module recomputes its weight; remove the parametrisation first")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("fold_batch_norm: the batch norm has no running statistics (track_running_stats=False)")
    if bn.training:
        raise ValueError("fold_batch_norm: the batch norm is in training mode, where it uses the batch's statistics; call eval() first")
    if bn.num_features != outputs_of(conv):
        raise ValueError(f"fold_batch_norm: the batch norm has {bn.num_features} channels, the {_noun(conv)} {outputs_of(conv)} outputs")

    groups = conv.groups if getattr(conv, "transposed", False) else None
    return fold_tensors(conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps, groups)


@torch.inference_mode(False)
@torch.no_grad()
def fold_tensors(
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    transposed_groups: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(weight, bias) folded in float64 and rounded once to weight's dtype; detached, and no inference tensors, even where they
    are folded within torch.inference_mode: those have no versions, so that nothing made of them could be kept.

    weight: [C_out, ...], or [C_in, C_out / groups, ...] of a transposed convolution of ``transposed_groups`` groups; the
    others: [C_out] or None.
    """
    scale = (var.double() + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    if bias is not None:
        shift = shift + bias.double() * scale
    rows, ones = weight.shape[0], (1,) * (weight.dim() - 1)
    if transposed_groups is None:
        per_output = scale.reshape(-1, *ones)
    else:
        per_group = scale.reshape(transposed_groups, 1, -1).expand(-1, rows // transposed_groups, -1)
        per_output = per_group.reshape(rows, -1, *ones[1:])
    return (weight.double() * per_output).to(weight.dtype), shift.to(weight.dtype)


def outputs_of(conv: nn.Module) -> int:
    """Channels or features that a convolution or linear layer puts out."""
    return conv.out_features if isinstance(conv, nn.Linear) else conv.out_channels


def _noun(conv: nn.Module) -> str:
    return "linear layer" if isinstance(conv, nn.Linear) else "convolution"
