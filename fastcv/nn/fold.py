"""Folding a batch norm in evaluation mode into the convolution before it.

bn(conv(x)) = scale * conv(x) + shift per output channel, with scale = gamma / sqrt(var + eps) and
shift = beta - mean * scale; so conv.weight * scale and conv.bias * scale + shift compute both in one pass. Padding of any
mode stands before the convolution and is not touched.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

__all__ = ["fold_batch_norm"]


def fold_batch_norm(conv: nn.Module, bn: nn.Module) -> nn.Module:
    """Returns a new convolution, in evaluation mode, that computes ``bn(conv(x))``; both arguments stay as they are.

    conv: any Conv1d/2d/3d or ConvTranspose1d/2d/3d, any groups and padding mode. bn: a batch norm in evaluation mode with
    running statistics. The folding is done in float64 and rounded once to the dtype of ``conv.weight``.
    Raises TypeError for other modules and ValueError for a pair that cannot be folded, with the reason.
    """
    weight, bias = folded_parameters(conv, bn)
    folded = copy.deepcopy(conv).eval()
    folded.weight = nn.Parameter(weight, conv.weight.requires_grad)
    folded.bias = nn.Parameter(bias, conv.weight.requires_grad)
    return folded


def folded_parameters(conv: nn.Module, bn: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias of the convolution that ``fold_batch_norm`` returns, with its rules and errors."""
    if not isinstance(conv, _ConvNd):
        raise TypeError(f"fold_batch_norm: conv must be a convolution module, got {type(conv).__name__}")
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
    if bn.num_features != conv.out_channels:
        raise ValueError(f"fold_batch_norm: the batch norm has {bn.num_features} channels, the convolution {conv.out_channels} outputs")

    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -bn.running_mean.double() * scale
    if bn.bias is not None:
        shift = shift + bn.bias.detach().double()
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double() * scale
    weight = (conv.weight.detach().double() * _per_filter(scale, conv)).to(conv.weight.dtype)
    return weight, shift.to(weight.dtype)


def _per_filter(scale: Tensor, conv: _ConvNd) -> Tensor:
    """The scale [C_out] shaped to multiply conv.weight: [C_out, C_in/g, ...], or [C_in, C_out/g, ...] when transposed."""
    spatial = (1,) * len(conv.kernel_size)
    if not conv.transposed:
        return scale.reshape(-1, 1, *spatial)
    per_group = scale.reshape(conv.groups, 1, -1).expand(-1, conv.in_channels // conv.groups, -1)
    return per_group.reshape(conv.in_channels, -1, *spatial)
