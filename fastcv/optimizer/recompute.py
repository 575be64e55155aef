"""Training without keeping what a fused batch norm puts out: the convolution that reads it computes it again in its backward pass.

batch norm + activation keeps its input for its own gradient; the convolution after it would keep its output. The output
follows from the input in one pass over memory, with the same statistics and the same kernel, so to the same bits.
Nothing is held in place of the user's tensors: the output is an ordinary tensor that dies when nobody needs it any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..functional import _batch_norm

if TYPE_CHECKING:
    from .chain import BatchNormChain

_ATTRIBUTE = "_fastcv_recipe"


class Recipe:
    """How to compute the output of a batch norm in training mode again."""

    def __init__(self, chain: BatchNormChain, output: Tensor) -> None:
        node = output.grad_fn
        self.chain = chain
        self.input, _, self.mean, self.var, self.weight, self.bias = node.saved_tensors
        self.scalars = node.scalars
        self.version = output._version
        self.versions = [(t, t._version) for t in (self.input, self.weight, self.bias) if t is not None]

    def compute(self) -> Tensor:
        for t, version in self.versions:
            _check_version(t, version)
        with torch.no_grad():
            return _batch_norm.evaluate(self.input, None, self.mean, self.var, self.weight, self.bias, *self.scalars)


def _check_version(t: Tensor, version: int) -> None:
    if t._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"a {t.dtype} tensor of size {list(t.shape)} is at version {t._version}, expected version {version}"
        )


def offer(chain: BatchNormChain, output: Tensor) -> None:
    """Leaves the recipe with the tensor, for the convolution that may read it."""
    if output.requires_grad and type(output.grad_fn).__name__ == "BatchNormTrainBackward":
        setattr(output, _ATTRIBUTE, Recipe(chain, output))


def recipe_of(x: Any) -> Recipe | None:
    """The recipe of ``x`` if it has one that still holds, and an operation that saves ``x`` may save the recipe instead."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or not torch.is_grad_enabled():
        return None
    recipe = x.__dict__.get(_ATTRIBUTE)
    return recipe if recipe is not None and recipe.version == x._version and _may_hook() else None


def _may_hook() -> bool:
    """False where others have put hooks on saved tensors: checkpointing, offloading, torch.func."""
    if torch._C._are_functorch_transforms_active() or not torch._C._autograd._saved_tensors_hooks_is_enabled():
        return False
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def saving(x: Tensor, recipe: Recipe) -> saved_tensors_hooks:
    """Within the block operations save the recipe for ``x``; other tensors with their versions, which torch checks only unpacked."""
    address, shape, strides, dtype = x.data_ptr(), x.shape, x.stride(), x.dtype

    def pack(t: Tensor) -> Any:
        if t.data_ptr() == address and t.dtype is dtype and t.shape == shape and t.stride() == strides:
            recipe.chain.saved_bytes += t.numel() * t.element_size()
            return recipe
        return t, t._version

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Recipe):
            return packed.compute()
        _check_version(*packed)
        return packed[0]

    return saved_tensors_hooks(pack, unpack)
