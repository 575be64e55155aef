"""A convolution's call as it was made before, for calls that find everything as it was then: the same kind of input, the modules,
their parameters and torch's modes unchanged. Between two kernels Python finds none of its own in the caches, so that what a call
looks at costs several times what it costs alone; this look is one call into csrc/common/steady.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import _ext
from ..functional._conv_arguments import precision_of
from ..functional._conv_ops import conv_raw
from ..functional.conv import ACTIVATIONS, Geometry
from .packed_weights import PackedWeights
from .watch import elements_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [(vars(nn.modules.module), name) for name in vars(nn.modules.module) if name.startswith("_global_") and "_hooks" in name]
_MODES = (
    torch.is_grad_enabled,
    torch._C._is_any_autocast_enabled,
    torch._C._get_tracing_state,
    torch._C._are_functorch_transforms_active,
    torch._C._get_float32_matmul_precision,
    partial(torch._C._get_fp32_precision_getter, "mkldnn", "conv"),
)
_SETTINGS = [(vars(forward_ad), "_current_level"), (vars(_ext), "choices")]
_CONV = ("training", "stride", "padding", "dilation", "groups", "in_channels", "out_channels", "padding_mode")
_NORM = ("training", "eps")


class Prepared:
    """conv [+ batch norm] with the weights as they are arranged. folded: the weight and bias with the batch norm in them."""

    __slots__ = ("_conv", "_end", "_folded", "_geometry", "holds")

    def __init__(
        self,
        x: Tensor,
        conv: nn.Module,
        bn: nn.Module | None,
        watched: Sequence[nn.Module],
        folded: tuple[Tensor, Tensor] | None,
        geometry: Geometry,
        packs: PackedWeights,
    ) -> None:
        space, norm = vars(conv), {} if bn is None else vars(bn)
        tensors = [(space["_parameters"], "weight"), (space["_parameters"], "bias")]
        values = [*_SETTINGS, *((space, name) for name in _CONV)]
        if bn is not None:
            tensors += [(norm["_parameters"], "weight"), (norm["_parameters"], "bias")]
            tensors += [(norm["_buffers"], "running_mean"), (norm["_buffers"], "running_var")]
            values += [(norm, name) for name in _NORM]
        empty = [*_GLOBAL_HOOKS, *((vars(m), name) for m in watched for name in _HOOKS)]
        absent = [(names, "_is_fsdp_managed_module") for names in (space, norm)]
        elements = elements_of([names[name] for names, name in tensors])
        self.holds = _ext.module().Steady(x, tensors, elements, values, empty, absent, _MODES).holds
        self._conv = conv
        self._folded = folded
        self._geometry = geometry
        self._end = (precision_of(x), packs.packed)

    def __call__(self, x: Tensor, residual: Tensor | None, activation: str | None, slope: float) -> Tensor:
        """activation(conv(x) [through its batch norm] + residual), for an x that holds() has just confirmed."""
        parameters = self._conv._parameters
        weight, bias = self._folded or (parameters["weight"], parameters["bias"])
        stride, padding, dilation, groups = self._geometry
        precision, packed = self._end
        return conv_raw(x, weight, bias, stride, padding, dilation, groups, residual, ACTIVATIONS[activation], precision, packed, slope)


def is_plain(x: Tensor, packs: PackedWeights) -> bool:
    """True if the call that was just made with x may be made again as it was: on the CPU with arranged weights, without gradients and
    autocast.
    """
    plain = type(x) is Tensor and x.is_cpu and packs.packed is not None
    return plain and not torch.is_grad_enabled() and not torch._C._is_any_autocast_enabled()
