"""Fused chains at run time: which modules and steps one has, when it may hold its value back, and how it is computed.

A convolution chain is conv [+ batch norm] [+ residual] [+ activation] in one kernel with folded weights, for inference, the
convolution transposed or not: it steps aside while its batch norm trains and where a gradient is needed. (Linear layers: [+ batch
norm] [+ activation], or + batch norm on torch's product.) A batch norm chain is batch norm [+ residual] + activation on
batch_norm_act, or batch norm + activation + max pooling on batch_norm_max_pool2d, also with gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .._gpu import serves
from ..functional import conv as convolutions
from ..functional._common import autocast_dtype, needs_grad
from . import recompute
from .fold_cache import FoldCache
from .kernels import DTYPES, LINEAR, any_global_hook, has_hooks, is_managed, kind_of, op_of, under_transform
from .linear import linear
from .packed_weights import PackedWeights
from .pending import Pending, version_of
from .prepared import Prepared, is_plain
from .region import Region, current_frame

_OF_CONV = ("relu", "relu6", "silu", "hardswish", "gelu", "leaky_relu")
_CONVOLUTIONS = tuple(f"conv{kind}{nd}d" for kind in ("", "_transpose") for nd in (1, 2, 3))
ACTIVATIONS = {
    **dict.fromkeys((*_CONVOLUTIONS, LINEAR), _OF_CONV),
    "batch_norm": ("relu", "relu6", "leaky_relu"),
}

_DIMS = {"BatchNorm1d": (2, 3), "BatchNorm2d": (4,), "BatchNorm3d": (5,)}


def _seen(x: Tensor) -> tuple[tuple[Tensor, int | None], ...]:
    return ((x, version_of(x)),)


class Chain(ABC):
    """What both kinds share. name: the head's; steps: of "batch_norm", "add", "activation", "max_pool" those that follow the head."""

    prepared: Prepared | None = None  # how the last call was computed, for others like it

    def __init__(self, name: str, head: nn.Module, steps: Sequence[str], region: Region, watched: Sequence[nn.Module]) -> None:
        self.name = name
        self.head = head
        self.steps = tuple(steps)
        self.pools = "max_pool" in steps
        self.region = region
        self.watched = tuple(watched)
        self.activations = ACTIVATIONS.get(op_of(head), ())

    def describe(self) -> str:
        """Such as "conv1: Conv2d + batch_norm + activation"."""
        return f"{self.name}: {' + '.join([type(self.head).__name__, *self.steps])}"

    def begin(self, x: Any) -> Pending | None:
        """The held-back value of head(x), or None if the head is to compute now."""
        if torch.compiler.is_compiling():
            return None
        prepared = self.prepared
        if prepared is not None and prepared.holds(x):
            frame = current_frame(self.region)
            return None if frame is None or frame.grad_mode else frame.hold(Pending(self, frame, x, _seen(x), False, False, prepared))
        if type(x) is not Tensor or under_transform():
            return None
        frame = current_frame(self.region)
        if frame is None or not serves(x) or x.dtype not in DTYPES or x.numel() == 0 or x.layout is not torch.strided:
            return None
        if not self.may_begin(x) or any_global_hook():
            return None
        if frame.grad_mode != torch.is_grad_enabled():  # a part in another mode, whose end may lie before the chain's: checkpoint's
            return None
        for module in self.watched:
            if has_hooks(module):
                return None
        return frame.hold(Pending(self, frame, x, _seen(x), isinstance(self, BatchNormChain), frame.grad_mode, None))

    def defer(self, pending: Pending, step: str) -> Pending | Tensor:
        """``pending`` after ``step``: held back if the chain goes on, else computed."""
        return pending.value() if step == self.steps[-1] else pending.frame.hold(pending)

    def takes_activation(self, activation: str) -> bool:
        """True if the kernel applies this activation."""
        return activation in self.activations

    @abstractmethod
    def may_begin(self, x: Tensor) -> bool:
        """True if the head may hold back its value of the dense tensor x, without changing any answer or error."""

    @abstractmethod
    def takes_residual(self, pending: Pending, other: Any) -> bool:
        """True if the kernel can add ``other`` as torch's addition would."""

    @abstractmethod
    def compute(self, pending: Pending, activation: str | None, again: bool, windows: dict[str, Any] | None = None) -> Tensor:
        """The value of ``pending`` through ``activation`` and, where the chain pools, max pooling over ``windows``. again: it was
        computed before, so state must not advance twice.
        """


class ConvChain(Chain):
    """conv [+ batch norm] [+ residual] [+ activation] without gradients. bn: the batch norm's module, or None. torchs_product: of
    a linear layer, whether torch multiplies.
    """

    torchs_product = False

    def __init__(self, name: str, head: nn.Module, bn: nn.Module | None, steps: Sequence[str], region: Region, watched: Any) -> None:
        super().__init__(name, head, steps, region, watched)
        self.bn = bn
        self.op = op_of(head)
        self.geometry: tuple[Any, Any] = (None, None)  # a convolution's own with its weight's shape; as convolve_batch takes it
        self.fold = None if bn is None else FoldCache(head, bn)
        self.packs = PackedWeights()

    def may_begin(self, x: Tensor) -> bool:
        conv, bn, buffers = self.head, self.bn, {}
        if is_managed(conv) or (bn is not None and is_managed(bn)):
            self.drop()
            return False
        if bn is not None:
            buffers = bn._buffers
            if bn.training or buffers["running_mean"] is None or buffers["running_var"] is None:
                self.drop()
                return False
        if torch.is_grad_enabled() and needs_grad(x, *conv.parameters(), *([] if bn is None else bn.parameters())):
            self.drop()
            return False
        parameters = conv._parameters  # past nn.Module's slow attribute lookup: this runs at every call
        if not _has_own(parameters) or (bn is not None and not _has_own(bn._parameters)):
            self.drop()
            return False
        weight = parameters["weight"]
        if self.op == LINEAR:
            fits = x.dim() == 2 if bn is not None else x.dim() > 0  # a batch norm's channels are x.shape[1]
            if not fits or x.shape[-1] != weight.shape[1] or x.is_cuda:  # there torch multiplies
                return False
        elif x.dim() != weight.dim() or x.shape[1] != conv.in_channels:
            return False
        if weight.device != x.device or weight.is_inference():
            return False
        if x.dtype is not weight.dtype and autocast_dtype(x) is None:
            return False
        if bn is None:
            return True
        mean, var = buffers["running_mean"], buffers["running_var"]
        return (mean.dtype is weight.dtype or mean.dtype is torch.float32) and not (mean.is_inference() or var.is_inference())

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"prepared": None}

    def drop(self) -> None:
        """Forgets what was made of the parameters: they are about to change."""
        self.prepared = None
        self.packs.drop()
        if self.fold is not None:
            self.fold.drop()

    def takes_residual(self, pending: Pending, other: Any) -> bool:
        if self.op == LINEAR or type(other) is not Tensor or needs_grad(other):
            return False
        x = pending.x
        dtype = x.dtype if x.dtype is torch.float64 else autocast_dtype(x) or x.dtype
        return other.dtype is dtype and other.device == x.device and other.shape == self._output_shape(x)

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        conv, spatial = self.head, x.shape[2:]
        if conv.transposed:
            geometry = zip(spatial, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.output_padding, strict=True)
            spatial = [(size - 1) * s - 2 * p + d * (k - 1) + extra + 1 for size, k, s, p, d, extra in geometry]
        elif conv.padding != "same":
            padding = (0,) * len(spatial) if conv.padding == "valid" else conv.padding
            geometry = zip(spatial, conv.kernel_size, conv.stride, padding, conv.dilation, strict=True)
            spatial = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in geometry]
        return (x.shape[0], conv.out_channels, *spatial)

    def compute(self, pending: Pending, activation: str | None, again: bool, windows: dict[str, Any] | None = None) -> Tensor:
        conv, x, slope = self.head, pending.x, float(pending.slope)  # which the user's code may give as a tensor
        if pending.prepared is not None and pending.normalised is (self.bn is not None):
            return pending.prepared(x, pending.residual, activation, slope)
        weight, bias = self.fold.folded() if pending.normalised else (conv.weight, conv.bias)
        if self.op == LINEAR:
            return linear(x, weight, bias, activation, None if self.torchs_product else self.packs, slope)
        end = (self.packs, pending.residual, activation, slope)
        if conv.transposed:
            geometry = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
            return convolutions.transposed(weight.dim() - 2, self.op, x, weight, bias, *geometry, *end)
        geometry = self._geometry(weight)
        y = convolutions.convolve_batch(x, weight, bias, geometry, *end)
        if pending.normalised is (self.bn is not None):
            folded = (weight, bias) if pending.normalised else None
            call = (x, conv, self.bn, self.watched, folded, geometry, self.packs)
            self.prepared = Prepared(*call) if is_plain(x, self.packs) else None
        return y

    def _geometry(self, weight: Tensor) -> convolutions.Geometry:
        conv = self.head
        own = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if self.geometry[0] != (own, weight.shape):
            self.geometry = ((own, weight.shape), convolutions.geometry_of(weight.dim() - 2, weight, *own))
        return self.geometry[1]


def _has_own(parameters: dict[str, Tensor | None]) -> bool:
    """False once a parametrisation, a weight norm or pruning computes what was a parameter."""
    return "weight" in parameters and "bias" in parameters


class BatchNormChain(Chain):
    """batch norm [+ residual] + activation, or + activation + max pooling, in training and evaluation, with and without gradients.

    recomputed: whether only convolutions read the result, which then need not keep it. saved_bytes: what they did not keep, and maps
    that were not written because their pooling followed.
    """

    recomputed = False
    saved_bytes = 0

    def may_begin(self, x: Tensor) -> bool:
        bn = self.head
        if not _has_own(bn._parameters) or x.dim() not in _DIMS[kind_of(bn).__name__] or x.shape[1] != bn.num_features:
            return False
        if needs_grad(x, bn.weight, bn.bias) and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            return False  # activation checkpointing: its second run must save what the first did, and may come from elsewhere
        uses_batch = bn.training or bn.running_mean is None
        if uses_batch and x.numel() == x.shape[1]:
            return False
        return all(t is None or t.dtype in (torch.float32, x.dtype) for t in (bn.weight, bn.running_mean))

    def takes_residual(self, pending: Pending, other: Any) -> bool:
        x = pending.x
        return type(other) is Tensor and other.dtype is x.dtype and other.device == x.device and other.shape == x.shape

    def compute(self, pending: Pending, activation: str | None, again: bool, windows: dict[str, Any] | None = None) -> Tensor:
        bn, x = self.head, pending.x
        mean, var, training, momentum = _running_statistics(bn, again)
        if windows is not None:
            self.saved_bytes += x.numel() * x.element_size()
            how = (training, momentum, bn.eps, activation, pending.slope)
            return functional.batch_norm_max_pool2d(x, mean, var, bn.weight, bn.bias, *how, **windows)
        residual = pending.residual
        how = (training, momentum, bn.eps, residual, activation, pending.slope)
        y = functional.batch_norm_act(x, mean, var, bn.weight, bn.bias, *how)
        if self.recomputed and residual is None and activation is not None:
            recompute.offer(self, y)
        return y


def _running_statistics(bn: nn.Module, again: bool) -> tuple[Tensor | None, Tensor | None, bool, float]:
    """running_mean, running_var, training and momentum as torch.nn's batch norm passes them on; counts the batch."""
    momentum = 0.0 if bn.momentum is None else bn.momentum
    tracked = bn.training and bn.track_running_stats
    if tracked and bn.num_batches_tracked is not None and not again:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:
            momentum = 1.0 / float(bn.num_batches_tracked)
    training = bn.training or (bn.running_mean is None and bn.running_var is None)
    if (bn.training and not bn.track_running_stats) or (training and again):
        return None, None, training, momentum
    return bn.running_mean, bn.running_var, training, momentum
