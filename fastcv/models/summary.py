"""What a network is made of, layer by layer: shape, memory, parameters, multiply-adds and receptive field.

The network runs once on the meta device: shapes without values, so that no model is too large. Counts are exact for what runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..explainer import work
from ._receptive import ReceptiveFields

__all__ = ["Layer", "Summary", "summarise"]


@dataclass
class Layer:
    """One call of one module. shape: of its first output; memory: bytes of its outputs that are new, not views nor in place;
    parameters: its own, counted at its first call, those of attention with its output projection; multiply_adds: of
    its own ops; sees: rows and columns of the image that one value of the output depends on, None where that is not known;
    computes: False for one that passes its input on.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    memory: int = 0
    parameters: int = 0
    multiply_adds: int = 0
    sees: tuple[float, float] | None = None
    computes: bool = False


@dataclass(frozen=True)
class Summary:
    """layers: in the order of their outputs, those that compute something or hold parameters. unused: parameters of modules that
    did not run.
    """

    input_size: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    trainable: int
    unused: int

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def memory(self) -> int:
        """Bytes of all layers' outputs: what a training step keeps at most, without the input."""
        return sum(layer.memory for layer in self.layers)


class _Recorder(TorchDispatchMode):
    """Adds each op to the innermost module that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[Layer] = []
        self.fields = ReceptiveFields()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = op(*args, **kwargs)
        self.fields.see(op, args, kwargs, out)
        if self.stack and not work.only_views(op):
            layer = self.stack[-1]
            layer.multiply_adds += work.flops(op, args, kwargs, out) // 2
            if any(isinstance(t, Tensor) and t in self.fields for t in pytree.tree_leaves(out)):
                layer.computes = True
        return out


@contextmanager
def _recording(model: nn.Module, recorder: _Recorder, layers: list[Layer]) -> Iterator[None]:
    """Within the block a row is added to ``layers`` whenever a module of ``model`` returns."""
    names = {module: name for name, module in model.named_modules()}
    called: set[nn.Module] = set()

    def enter(module: nn.Module, args: Any) -> None:
        recorder.stack.append(Layer(names[module], type(module).__name__))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        layer = recorder.stack.pop()
        outputs = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        storages = {t.untyped_storage()._cdata for t in pytree.tree_leaves(args) if isinstance(t, Tensor)}
        if outputs:
            layer.shape = tuple(outputs[0].shape)
            seen = recorder.fields.of(outputs[0])
            layer.sees = None if seen is None else seen.sizes
        if layer.computes:
            layer.memory = sum(t.nbytes for t in outputs if t.untyped_storage()._cdata not in storages)
        if module not in called:
            layer.parameters = sum(p.numel() for p in module.parameters(recurse=False))
        called.add(module)
        if layer.computes or layer.parameters or not any(True for _ in module.children()):
            layers.append(layer)

    handles = [m.register_forward_pre_hook(enter) for m in names] + [m.register_forward_hook(leave) for m in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    _adopt(model, layers)


def _adopt(model: nn.Module, layers: list[Layer]) -> None:
    """Gives the output projection of multi-head attention, whose weight is used without a call, to the attention's row."""
    rows = {layer.name: layer for layer in reversed(layers)}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and name in rows:
            rows[name].parameters += sum(p.numel() for p in module.out_proj.parameters())


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Multi-head attention as separate ops: its fused inference op is not counted by anybody."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def summarise(model: nn.Module, size: Sequence[int]) -> Summary:
    """The layers of ``model`` on an input of ``size``, such as (1, 3, 224, 224), in evaluation mode; ``model`` stays as it is.

    Memory is in the dtype of the model's parameters. Raises what the model raises for such an input; a model that needs values,
    not shapes only, raises NotImplementedError or RuntimeError.
    """
    counted = list(model.parameters())
    model = copy.deepcopy(model).to("meta").eval()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    image = torch.empty(tuple(size), dtype=dtype, device="meta")
    recorder, layers = _Recorder(), []
    with torch.no_grad(), _plain_attention(), _recording(model, recorder, layers), recorder:
        recorder.fields.start(image)
        model(image)
    parameters = sum(p.numel() for p in counted)
    return Summary(
        tuple(size),
        tuple(layers),
        parameters,
        sum(p.numel() for p in counted if p.requires_grad),
        parameters - sum(layer.parameters for layer in layers),
    )
