"""The forwards that optimize sets on instances. Each is an object that holds its module, so that copies and pickles of a
model carry forwards that point into the copy.
"""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.conv import _ConvNd

from .._gpu import serves
from ..functional._conv_statistics import convolve_measured
from ..functional.conv import geometry_of
from ..nn.conv import forward as convolution_forward
from . import attention, linear, recompute
from .chain import Chain, ConvChain
from .kernels import DTYPES, IN_PLACE_ACTIVATIONS, has_hooks, is_linear, is_managed, is_sharded, kernel_class, under_transform
from .packed_weights import PackedWeights
from .pending import Pending, value_of
from .prepared import Prepared, is_plain
from .region import Frame, Region


class InstanceForward:
    """A forward set on one instance; restore() takes it away, and the class's forward serves again."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.module).forward.__get__(self.module))

    @property
    def __code__(self) -> CodeType:
        return type(self.module).forward.__code__  # torch.export reads the file and line of a forward here

    __name__ = "forward"

    def install(self) -> None:
        self.module.forward = self


class KernelForward(InstanceForward):
    """Runs the forward of fastcv.nn where fastcv has a kernel for the input, else torch's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.kernel = kernel_class(module)
        self.sharded = any(is_sharded(t) for t in module.parameters(recurse=False))
        self.linear = is_linear(module)
        self.packs = PackedWeights() if isinstance(module, _ConvNd) or self.linear else None
        self.reader: nn.Module | None = None  # the batch norm that reads a convolution's output
        self.prepared: Prepared | None = None  # how the last call of a convolution was computed, for others like it

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"prepared": None}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prepared = None if torch.compiler.is_compiling() else self.prepared
        if prepared is not None and len(args) == 1 and not kwargs and prepared.holds(args[0]):
            return prepared(args[0], None, None, 0.0)
        args, kwargs = value_of(args), value_of(kwargs)
        x = args[0] if args else next(iter(kwargs.values()), None)
        served = _served(x) and not (self.sharded and any(is_sharded(t) for t in self.module.parameters(recurse=False)))
        if served and self._measures(args, kwargs):
            conv = self.module
            geometry = geometry_of(x.dim() - 2, conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups)
            return convolve_measured(x, conv.weight, conv.bias, geometry)
        if served and self.packs is not None and len(args) == 1 and not kwargs and type(x) is Tensor and not under_transform():
            if not (self.module.training or is_managed(self.module) or has_hooks(self.module)):
                if self.linear:
                    return linear.forward(self.module, x, self.packs)
                y = convolution_forward(self.module, x, packs=self.packs)
                self.prepared = self._prepare(x)
                return y
            self.packs.drop()
            self.prepared = None
        return (self.kernel if served else type(self.module)).forward(self.module, *args, **kwargs)

    def _prepare(self, x: Tensor) -> Prepared | None:
        """For the call that was just made on packed weights."""
        conv = self.module
        if not is_plain(x, self.packs) or conv.transposed or conv.padding_mode != "zeros" or x.dim() != conv.weight.dim():
            return None
        geometry = geometry_of(x.dim() - 2, conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups)
        return Prepared(x, conv, None, [conv], None, geometry, self.packs)

    def _measures(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True if the convolution is to take the statistics that the batch norm behind it needs in training."""
        if self.reader is None or not self.reader.training or len(args) != 1 or kwargs or type(args[0]) is not Tensor:
            return False
        x = args[0]
        return statistics_pay(x) and x.dim() == self.module.weight.dim() and x.numel() > 0 and not under_transform()


class AttentionForward(KernelForward):
    """nn.MultiheadAttention with its projections on the kernel of linear layers (attention.py), or torch's."""

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__(module)
        self.packs, self.out_packs = PackedWeights(), PackedWeights()

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        module, args, kwargs = self.module, value_of(args), value_of(kwargs)
        x = None if under_transform() else attention.sequence_of(args, kwargs)
        if x is not None and not (module.training or is_managed(module) or is_managed(module.out_proj) or has_hooks(module)):
            y = attention.forward(module, x, self.packs, self.out_packs)
            if y is not None:
                return y, None
        elif module.training:
            self.packs.drop()
            self.out_packs.drop()
        return nn.MultiheadAttention.forward(module, *args, **kwargs)


class RecomputingForward(KernelForward):
    """A convolution that reads the output of a fused batch norm, and computes it again rather than keep it (recompute.py)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recipe = recompute.recipe_of(args[0]) if len(args) == 1 and not kwargs else None
        if recipe is None:
            return super().__call__(*args, **kwargs)
        with recompute.saving(args[0], recipe):
            return super().__call__(*args)


class HeadForward(KernelForward):
    """The first module of a chain: holds its value back where the chain may begin."""

    def __init__(self, module: nn.Module, chain: Chain) -> None:
        super().__init__(module)
        self.chain = chain
        if isinstance(chain, ConvChain) and chain.torchs_product:
            self.packs = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pending = self.chain.begin(args[0]) if len(args) == 1 and not kwargs else None
        return super().__call__(*args, **kwargs) if pending is None else pending


class MemberForward(KernelForward):
    """A later module of a chain: a step of it for the chain's own value, by itself for any other."""

    def __init__(self, module: nn.Module, chain: Chain) -> None:
        super().__init__(module)
        self.chain = chain


class BatchNormForward(MemberForward):
    """The batch norm of a convolution chain."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else None
        if type(x) is Pending and x.chain is self.chain and not x.normalised and x.residual is None and x.extensible():
            return x.batch_norm()
        return super().__call__(*args, **kwargs)


class MaxPoolForward(MemberForward):
    """The max pooling at the end of a batch norm chain."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        x, pool = args[0] if len(args) == 1 and not kwargs else None, self.module
        if type(x) is Pending and x.chain is self.chain and not pool.return_indices:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            pooled = x.max_pool({name: getattr(pool, name) for name in names})
            if pooled is not None:
                return pooled
        return super().__call__(*args, **kwargs)


class ActivationForward(InstanceForward):
    """An activation at the end of chains: a step of theirs for a value held back, torch's forward for any other."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.activation = IN_PLACE_ACTIVATIONS[type(module)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if len(args) == 1 and not kwargs and type(args[0]) is Pending:
            result = args[0].activate(self.activation, module.inplace, 0.0)
            if result is not None:
                return result
        return type(module).forward(module, *args, **kwargs)


class OwnerForward(InstanceForward):
    """The module whose forward contains a chain: the user's forward runs, and within it the chain may hold values back."""

    def __init__(self, module: nn.Module, region: Region) -> None:
        super().__init__(module)
        self.region = region

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.module).forward
        if torch.compiler.is_compiling():
            return forward(self.module, *args, **kwargs)
        with Frame(self.region) as frame:
            return frame.settle(forward(self.module, *args, **kwargs))


def statistics_pay(x: Tensor) -> bool:
    """True where a convolution's kernel may take statistics from its sums; a CPU's batch norm reads a channel twice from its cache."""
    return x.is_cuda


def _served(x: Any) -> bool:
    if type(x) not in (Tensor, nn.Parameter, FakeTensor):
        return False
    return serves(x) and x.dtype in DTYPES and x.layout is torch.strided


def installed(module: nn.Module) -> InstanceForward | None:
    """The forward that optimize has set on the module, or None."""
    forward = module.__dict__.get("forward")
    return forward if isinstance(forward, InstanceForward) else None
