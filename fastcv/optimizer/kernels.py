"""Which modules fastcv has a kernel for, and why a module that looks like one of them is left alone."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .. import nn as fastcv_nn
from .._gpu import serves, why_not

# Module class, of torch.nn or fastcv.nn -> the op of fastcv.functional that serves it.
OPS: dict[type[nn.Module], str] = {
    getattr(package, name): op
    for name, op in {
        "Conv1d": "conv1d",
        "Conv2d": "conv2d",
        "Conv3d": "conv3d",
        "ConvTranspose1d": "conv_transpose1d",
        "ConvTranspose2d": "conv_transpose2d",
        "ConvTranspose3d": "conv_transpose3d",
        "BatchNorm1d": "batch_norm",
        "BatchNorm2d": "batch_norm",
        "BatchNorm3d": "batch_norm",
        "SyncBatchNorm": "batch_norm",
        "GroupNorm": "group_norm",
        "LayerNorm": "layer_norm",
        "InstanceNorm1d": "instance_norm",
        "InstanceNorm2d": "instance_norm",
        "InstanceNorm3d": "instance_norm",
        "LocalResponseNorm": "local_response_norm",
        "MaxPool2d": "max_pool2d",
        "AvgPool2d": "avg_pool2d",
        "AdaptiveAvgPool2d": "adaptive_avg_pool2d",
        "AdaptiveMaxPool2d": "adaptive_max_pool2d",
        "MaxUnpool2d": "max_unpool2d",
        "Softmax": "softmax",
        "LogSoftmax": "log_softmax",
        "CrossEntropyLoss": "cross_entropy",
        "NLLLoss": "nll_loss",
        "MultiMarginLoss": "multi_margin_loss",
        "KLDivLoss": "kl_div",
    }.items()
    if name in fastcv_nn.__all__
    for package in (nn, fastcv_nn)
}

# Activations that have one option, whether they change their input; what chains call them.
IN_PLACE_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"}

LINEAR = "linear"  # nn.Linear's op: no function of fastcv.functional, but the kernel of 1x1 convolutions (linear.py)

# Their statistics come from several processes: no kernel fuses what follows, and torch has none on the CPU to compare with.
SYNCHRONISED = (nn.SyncBatchNorm, fastcv_nn.SyncBatchNorm)

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


# What a subclass may define without computing anything else; the rest are names that Python itself puts into a class.
_HARMLESS = frozenset(
    (
        *("__init__", "reset_parameters", "extra_repr", "__constants__", "__module__", "__qualname__", "__doc__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__"),
    )
)


@functools.cache
def _kind(cls: type[nn.Module]) -> type[nn.Module] | None:
    mro = cls.__mro__
    for i, base in enumerate(mro):
        if base in OPS:
            return base if mro[i:] == base.__mro__ else None
        if not vars(base).keys() <= _HARMLESS:
            return None
    return None


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of OPS that ``module`` is, or derives from with nothing but a constructor of its own; None if there is none."""
    return _kind(type(module))


def op_of(module: nn.Module) -> str | None:
    """The op that serves modules of this kind, or None."""
    if is_linear(module) or is_attention(module):
        return LINEAR
    kind = kind_of(module)
    return None if kind is None else OPS[kind]


def kernel_class(module: nn.Module) -> type[nn.Module]:
    """The class of fastcv.nn whose forward serves ``module``, which is of a kind of OPS; for those of LINEAR torch's own."""
    return type(module) if op_of(module) == LINEAR else getattr(fastcv_nn, kind_of(module).__name__)


def is_linear(module: nn.Module) -> bool:
    """True for nn.Linear itself: of its subclasses some are read by others, such as the one within nn.MultiheadAttention."""
    return type(module) is nn.Linear


def is_attention(module: nn.Module) -> bool:
    """True for nn.MultiheadAttention itself, whose two projections are linear layers."""
    return type(module) is nn.MultiheadAttention


def resembles(module: nn.Module) -> type[nn.Module] | None:
    """The class, of OPS or nn.Linear, that ``module`` is, derives from, or stands in for under torch.ao; nn.MultiheadAttention for
    itself alone, whose subclasses hold a projection that torch reads; None if there is none.
    """
    if is_attention(module):
        return nn.MultiheadAttention
    for cls in type(module).__mro__:
        if cls in OPS or cls is nn.Linear:
            return cls
    if type(module).__module__.startswith("torch.ao."):
        return next((cls for cls in (*OPS, nn.Linear) if cls.__name__ == type(module).__name__), None)
    return None


def has_hooks(module: nn.Module) -> bool:
    """True if a forward or backward hook is registered on the module."""
    state = module.__dict__
    return bool(state["_forward_hooks"] or state["_forward_pre_hooks"] or state["_backward_hooks"] or state["_backward_pre_hooks"])


def any_global_hook() -> bool:
    """True if hooks are registered that torch runs around every module."""
    return nn.modules.module._has_any_global_hook()


def under_transform() -> bool:
    """True where Python may keep no values from one call to the next: compiling, tracing, inside torch.func."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active()


def is_sharded(t: Tensor) -> bool:
    """True for a parameter under fully_shard: between its forwards a DTensor, within them a plain tensor."""
    return type(t).__name__ == "DTensor" and type(t).__module__.startswith("torch.distributed.")


def is_managed(module: nn.Module) -> bool:
    """True for a module whose parameters FSDP brings and takes away: it writes them into the same tensor without a new version."""
    return "_is_fsdp_managed_module" in module.__dict__


def why_left_alone(module: nn.Module) -> str | None:
    """Why ``module`` keeps torch's forward; None if fastcv serves it."""
    kind = type(module)
    parameters = list(module.parameters(recurse=False))
    if any(is_lazy(t) for t in parameters):
        return f"lazy: {kind.__name__} has no parameters before its first call"
    if parametrize.is_parametrized(module):
        return f"parametrised: {', '.join(module.parametrizations)} is computed anew at each call"
    if kind.__module__.startswith("torch.ao."):
        return f"quantised: {kind.__module__}.{kind.__qualname__}"
    if op_of(module) is None:
        like = resembles(module)
        if like is None:
            return f"fastcv has no kernel for {kind.__qualname__}"
        return f"{kind.__qualname__} is a subclass of nn.{like.__name__} and may compute something else"
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            return f"{type(hook).__name__}: its weight is computed anew at each call"
    if has_hooks(module):
        return "it has hooks"
    if "forward" in module.__dict__:
        return "its forward was already replaced"
    tensors = [t for t in (*parameters, *module.buffers(recurse=False)) if t.is_floating_point() or t.is_complex()]
    for t in tensors:
        if type(t) not in (Tensor, nn.Parameter) and not is_sharded(t):
            return f"its parameters are {type(t).__name__}, not plain tensors"
        if t.dtype not in DTYPES:
            return f"dtype {str(t.dtype).removeprefix('torch.')} has no kernel"
        if t.is_meta:
            return "its parameters are on the meta device"
        if not serves(t):
            why = why_not(t.get_device()) if t.is_cuda else f"{op_of(module) or kind.__name__} has no kernel there"
            return f"its parameters are on {t.device}: {why}"
    padding_mode = getattr(module, "padding_mode", "zeros")
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and padding_mode != "zeros":
        return f"padding_mode={padding_mode!r} is not supported"
    return None
