"""What the families' Python layers share: argument normalisation, layouts for fake kernels, the autograd seam, autocast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead as _unwrap_if_dead
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad


def needs_grad(*tensors: Tensor | None) -> bool:
    """True if autograd would record an operation on these tensors.

    Also within forward-mode differentiation: there the raw ops would drop the tangents without a word, and the
    differentiable form either has a rule or says that it has none.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return any(_tracked_below(t) for t in tensors if t is not None)
    return False


def _tracked_below(t: Tensor) -> bool:
    """True if a tensor that torch.func has wrapped needs a gradient at a level further out: grad(vmap(f)), vmap of leaves."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        t = functorch.get_unwrapped(t)
        if t.requires_grad:
            return True
    return False


def plain_sizes(t: Tensor) -> Sequence[int]:
    """t.shape to compute arguments of raw ops from, which take numbers: under torch.jit.trace it holds tensors."""
    return t.shape if torch._C._get_tracing_state() is None else [int(n) for n in t.shape]


def empty_as(like: Tensor, sizes: Sequence[int], dtype: torch.dtype | None = None, channels_last: bool = False) -> Tensor:
    """For fake kernels: an empty tensor of these sizes, row-major or channels_last, as csrc/common/door.h lays it out."""
    result = like.new_empty(sizes, dtype=dtype)
    if channels_last and result.dim() in (4, 5):
        result = result.to(memory_format=torch.channels_last if result.dim() == 4 else torch.channels_last_3d)
    return result


def is_channels_last(t: Tensor) -> bool:
    """torch's rule for the layout an output takes from this input (the same as door::is_channels_last)."""
    if t.dim() not in (4, 5):
        return False
    if torch._C._get_tracing_state() is not None:  # sizes are tensors there, and suggest_memory_format asks them as numbers
        layout = torch.channels_last if t.dim() == 4 else torch.channels_last_3d
        return t.is_contiguous(memory_format=layout) and not t.is_contiguous()
    across, along = t.stride(1), t.stride(-1)
    if type(across) is int and type(along) is int and along < across:
        return False  # what the rule says of row-major images, at a tenth of its cost; symbols would add a guard
    return suggest_memory_format(t) in (torch.channels_last, torch.channels_last_3d)


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on t's device, or None outside an autocast region."""
    device = t.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def autocast_lower(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Inside an autocast region: floating tensors (not float64) cast to its dtype, as aten does for convolution."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    first = next(t for t in tensors if t is not None)
    dtype = autocast_dtype(first)
    if dtype is None:
        return tensors
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def autocast_float32(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Inside an autocast region: 16-bit tensors cast to float32, as aten does for losses, softmax and distances."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    first = next(t for t in tensors if t is not None)
    if autocast_dtype(first) is None:
        return tensors
    return tuple(t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def _own(outputs: Any) -> Any:
    """The outputs as no views of others to autograd, so that a caller may write to them: batching rules end in views."""
    if isinstance(outputs, tuple):
        return tuple(map(_own, outputs))
    return torch.ops.aten._unsafe_view(outputs, outputs.shape) if isinstance(outputs, Tensor) else outputs


_NO_TENSORS = {type(None), bool, int, float, list, tuple}  # known at a look, where isinstance asks torch's metaclass


def differentiable(
    name: str,
    forward: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
    one_result: bool = False,
) -> Callable[..., Any]:
    """One autograd formula as a function to call when a gradient is needed.

    forward(*args) computes the outputs with raw ops; save(ctx, args, outputs) keeps what backward(ctx, *grads) needs.
    backward returns one gradient per argument and is built from differentiable functions, so it can be differentiated again.
    Two torch classes stand behind it: the combined form, which costs a third, and the split form that torch.func needs.
    one_result: the first output alone is the result, and has a gradient; save keeps what it needs of the others. As outputs they
    would cost half a microsecond each: only the split form, which has no other way to keep them, returns them to autograd.
    """

    def combined(ctx: Any, *args: Any) -> Any:
        outputs = forward(*args)
        save(ctx, args, outputs)
        return outputs[0] if one_result else outputs

    def setup_context(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
        save(ctx, args, outputs)
        if one_result:
            ctx.mark_non_differentiable(*(o for o in outputs[1:] if o is not None))
            ctx.set_materialize_grads(False)

    def of_first(ctx: Any, grad: Tensor | None, *_: None) -> Any:
        return (None,) * len(ctx.needs_input_grad) if grad is None else backward(ctx, grad)

    fast = type(name, (torch.autograd.Function,), {"forward": staticmethod(combined), "backward": staticmethod(backward)})
    split = type(
        name,
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(lambda *args: _own(forward(*args))),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(of_first if one_result else backward),
        },
    )

    record = super(torch.autograd.Function, fast).apply  # what fast.apply ends in, without its looking for a setup_context

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return fast.apply(*args)
        if torch._C._are_functorch_transforms_active():
            return split.apply(*args)[0] if one_result else split.apply(*args)
        return record(*[a if type(a) in _NO_TENSORS or not isinstance(a, Tensor) else _unwrap_if_dead(a) for a in args])

    return apply
