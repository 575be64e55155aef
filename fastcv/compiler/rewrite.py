"""Rewrites a graph that torch.compile has captured: torch's functions to fastcv's, chains of them to one fused call.

The graph is of calls as the user wrote them (torch.nn.functional, operators, methods), with example values of fake tensors.
What is fused is what fastcv.optimize fuses: convolution (or linear layer) + batch norm in evaluation + addition + activation
where no gradient is recorded, batch norm + addition + activation anywhere. A chain's values have one use each, the next step, and
between its first and last step nothing is changed in place but what the chain itself changes. Convolutions by a module's parameter
become calls that keep the packed weight, where no gradient is recorded, and such calls in a row become one (sequence.py).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .. import functional
from ..optimizer.kernels import DTYPES, LINEAR
from ..optimizer.linear import why_torch
from . import calls
from .sequence import join_convolutions

# What a batch norm may be folded into: the name, and the arguments after the bias with their defaults.
_CONV = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_HEADS: dict[Any, tuple[str, dict[str, int]]] = {
    torch.conv1d: ("conv1d", _CONV),
    torch.conv2d: ("conv2d", _CONV),
    torch.conv3d: ("conv3d", _CONV),
    torch.conv_transpose1d: ("conv_transpose1d", _TRANSPOSED),
    torch.conv_transpose2d: ("conv_transpose2d", _TRANSPOSED),
    torch.conv_transpose3d: ("conv_transpose3d", _TRANSPOSED),
    F.linear: (LINEAR, {}),
}
_ADDITIONS = (operator.add, torch.add, "add", operator.iadd, "add_", "__iadd__")
_IN_PLACE = (operator.iadd, "add_", "__iadd__")
_ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.gelu: "gelu",
}
_OF_CONV = ("relu", "relu6", "silu", "hardswish", "gelu", "leaky_relu")
_OF_NORM = ("relu", "relu6", "leaky_relu")


def _peers() -> dict[Any, Callable[..., Any]]:
    """torch's functions that fastcv.functional has with the same arguments in the same places.

    torch.batch_norm, torch.kl_div and their like have others than torch.nn.functional's and are left alone.
    """
    peers = {getattr(F, name): getattr(functional, name) for name in functional.__all__ if hasattr(F, name)}
    same = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "max_pool2d", "cdist")
    peers |= {getattr(torch, name): getattr(functional, name) for name in same}
    return peers | {F.batch_norm: calls.batch_norm}


_SOFTMAX = {torch.softmax: functional.softmax, torch.log_softmax: functional.log_softmax}  # a third argument is another than F's
_SOFTMAX |= {"softmax": functional.softmax, "log_softmax": functional.log_softmax}
_PEERS = _peers()


def _value(node: Any) -> Tensor | None:
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _served(node: fx.Node) -> bool:
    """True if fastcv has kernels for the tensor that the call's first argument is."""
    x = _value(node.args[0]) if node.args else None
    return x is not None and x.device.type == "cpu" and x.dtype in DTYPES and x.layout is torch.strided and not _is_subclass(x)


def _is_subclass(x: Tensor) -> bool:
    return torch.utils._python_dispatch.is_traceable_wrapper_subclass(x)


def _shows_changes(node: Any) -> bool:
    """True for an input or a constant of the graph whose changes its version counter shows: not those of FSDP's parameters."""
    if not isinstance(node, fx.Node) or node.op not in ("placeholder", "get_attr"):
        return False
    source = getattr(node.meta.get("grapharg"), "source", None)
    return source is None or not source.guard_source.is_fsdp_module()


def _is_parameter(node: Any) -> bool:
    """True for a weight that is the same tensor at every call: a module's parameter, or a constant of the graph."""
    return _shows_changes(node) and (node.op == "get_attr" or isinstance(_value(node), nn.Parameter))


def _shape(t: Tensor) -> tuple[str, ...]:
    """Sizes by name: comparing symbols themselves would add a guard, and a guard a recompilation."""
    return tuple(map(str, t.shape))


class Rewriter:
    """Rewrites ``graph`` in place; done counts what became of it: "conv2d", "conv2d_fused", "folded" ..."""

    def __init__(self, gm: fx.GraphModule, gradients: bool, cached: bool) -> None:
        self.gm = gm
        self.graph = gm.graph
        self.gradients = gradients
        self.cached = cached  # whether the graph runs as it is, so that a call may keep folded and packed weights
        self.done: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        """Fuses from the last node to the first: where two branches are added, the later one takes the addition."""
        self.position = {node: i for i, node in enumerate(self.graph.nodes)}
        self.changes = [node for node in self.graph.nodes if _changes_in_place(node)]
        for find in (self._conv_chain, self._norm_chain):
            for node in reversed(list(self.graph.nodes)):
                if node.op == "call_function":
                    find(node)
        for node in self.graph.nodes:
            peer = _PEERS.get(node.target) if node.op == "call_function" else None
            if node.op in ("call_function", "call_method") and len(node.args) <= 2:
                peer = peer or _SOFTMAX.get(node.target)
            if peer is not None and _served(node) and not _has_out(node):
                node.op, node.target = "call_function", peer
                self.done[peer.__name__] += 1
        join_convolutions(self.gm)
        self.graph.lint()
        self.gm.recompile()
        return self.done

    # ---- chains ---------------------------------------------------------------------------------------------------------------

    def _conv_chain(self, node: fx.Node) -> None:
        if self.gradients or node.target not in _HEADS or not _served(node) or _value(node) is None:
            return
        op, after_bias = _HEADS[node.target]
        nodes, norm = [node], None
        use = self._only_use(nodes)
        if op == LINEAR and _value(node).dim() != 2:  # a batch norm's channels are elsewhere then
            use = None
        if use is not None and self._is_norm_of(use, node) and self.cached and not _norm(use)["training"] and self._plain(use):
            norm = _norm(use)
            nodes.append(use)
        residual, activation, slope = None, None, 0.0
        takes_product = op == LINEAR and self._takes_product(node)
        if op != LINEAR or takes_product:
            residual, activation, slope = self._extend(nodes, _OF_CONV, addition=op != LINEAR)
        conv = _bound(node, ("input", "weight", "bias", *after_bias), (None, *after_bias.values()))
        geometry = None if conv is None else tuple(conv[k] for k in after_bias)
        if conv is None or any(isinstance(v, fx.Node) for v in pytree.tree_leaves((geometry, slope))):  # a number that follows from a size
            return
        weight_stays = (op != LINEAR or takes_product) and self.cached and _is_parameter(conv["weight"])
        if norm is not None:
            tensors = (conv["weight"], conv["bias"], norm["weight"], norm["bias"], norm["running_mean"], norm["running_var"])
            args = (conv["input"], residual, *tensors, norm["eps"])
            self._replace_by_module(nodes, "folded", calls.FoldedConv(op, geometry, activation, slope), args)
        elif weight_stays:
            name = op if len(nodes) == 1 or op == LINEAR else f"{op}_fused"
            args = (conv["input"], conv["weight"], conv["bias"], residual)
            self._replace_by_module(nodes, name, calls.PackedConv(op, geometry, activation, slope), args)
        elif len(nodes) > 1:
            args = (op, conv["input"], conv["weight"], conv["bias"], geometry, None, residual, activation, slope)
            self._replace(nodes, "call_function", calls.conv_fused, args)
            self.done[f"{op}_fused"] += 1

    def _takes_product(self, node: fx.Node) -> bool:
        """True for a linear layer whose weight is a parameter, of a size that fastcv's kernel multiplies faster."""
        layer = _bound(node, ("input", "weight", "bias"), (None,))
        weight = None if layer is None else _value(layer["weight"])
        if weight is None or not (self.cached and _is_parameter(layer["weight"])) or weight.dim() != 2 or not weight.is_contiguous():
            return False
        return not why_torch(*map(int, weight.shape), weight.dtype)

    def _replace_by_module(self, nodes: list[fx.Node], done: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        name = f"_fastcv_{done}_{self.done[done]}"
        self.gm.add_submodule(name, module)
        self._replace(nodes, "call_module", name, args)
        self.done[done] += 1

    def _norm_chain(self, node: fx.Node) -> None:
        if node.target is not F.batch_norm or not _served(node):
            return
        nodes = [node]
        residual, activation, slope = self._extend(nodes, _OF_NORM)
        norm = _norm(node)
        if activation is None or norm is None:
            return
        args = (*(norm[k] for k in _NORM), residual, activation, slope)
        self._replace(nodes, "call_function", calls.batch_norm_act, args)
        self.done["batch_norm_act"] += 1

    def _extend(self, nodes: list[fx.Node], activations: tuple[str, ...], addition: bool = True) -> tuple[fx.Node | None, str | None, Any]:
        """Appends an addition, if one may be there, and an activation that follow; returns the residual, the activation and its slope."""
        residual = activation = None
        slope: Any = 0.01
        use = self._only_use(nodes)
        if addition and use is not None and use.target in _ADDITIONS and len(use.args) == 2 and not use.kwargs:
            other = use.args[1] if use.args[0] is nodes[-1] else use.args[0]
            mine, theirs = _value(nodes[-1]), _value(other)
            same = mine is not None and theirs is not None and _shape(mine) == _shape(theirs) and mine.dtype is theirs.dtype
            if (
                same
                and other is not nodes[-1]
                and mine.device == theirs.device
                and (use.target not in _IN_PLACE or use.args[0] is nodes[-1])
            ):
                residual = other
                nodes.append(use)
                use = self._only_use(nodes)
        name = _activation(use) if use is not None and use.args[0] is nodes[-1] else None
        if name in activations:
            if name == "leaky_relu":
                slope = use.kwargs.get("negative_slope", use.args[1] if len(use.args) > 1 else 0.01)
            activation = name
            nodes.append(use)
        return residual, activation, slope

    def _only_use(self, nodes: list[fx.Node]) -> fx.Node | None:
        users = list(nodes[-1].users)
        if len(users) != 1 or users[0].op not in ("call_function", "call_method") or not users[0].args:
            return None
        first, last = self.position[nodes[0]], self.position[users[0]]
        if any(first < self.position[change] < last and change not in nodes for change in self.changes):
            return None
        return users[0] if nodes[-1] in users[0].args else None

    def _is_norm_of(self, node: fx.Node, conv: fx.Node) -> bool:
        norm = _norm(node) if node.target is F.batch_norm else None
        return norm is not None and norm["input"] is conv and norm["running_mean"] is not None and norm["running_var"] is not None

    def _plain(self, node: fx.Node) -> bool:
        """True if the statistics and parameters are inputs of the graph, whose changes their version counters show."""
        norm = _norm(node)
        tensors = [norm[k] for k in ("running_mean", "running_var", "weight", "bias")] + [*node.args[0].args[1:3]]
        return all(t is None or _shows_changes(t) for t in tensors)

    def _replace(self, nodes: list[fx.Node], op: str, target: Any, args: tuple[Any, ...]) -> None:
        last = nodes[-1]
        with self.graph.inserting_before(last):
            fused = self.graph.create_node(op, target, args, {})
        fused.meta = dict(last.meta)
        self.position[fused] = self.position[last]
        last.replace_all_uses_with(fused)
        for node in reversed(nodes):
            self.graph.erase_node(node)
        self.changes = [change for change in self.changes if change not in nodes]


def _activation(node: fx.Node) -> str | None:
    """The activation that the call applies to its first argument; nn.ReLU6 calls hardtanh from 0 to 6."""
    if node.target in (F.hardtanh, F.hardtanh_):
        bound = _bound(node, ("input", "min_val", "max_val", "inplace"), (-1.0, 1.0, False))
        return "relu6" if bound is not None and (bound["min_val"], bound["max_val"]) == (0.0, 6.0) else None
    if node.target is F.gelu and node.kwargs.get("approximate", "none") != "none":
        return None
    return _ACTIVATIONS.get(node.target)


_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def _norm(node: fx.Node) -> dict[str, Any] | None:
    norm = _bound(node, _NORM, (None, None, False, 0.1, 1e-5))
    if norm is None or not isinstance(norm["training"], bool):
        return None
    return norm


def _bound(node: fx.Node, names: tuple[str, ...], defaults: tuple[Any, ...]) -> dict[str, Any] | None:
    """The call's arguments by name, or None if they are not those."""
    bound: dict[str, Any] = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    bound.update(zip(names, node.args, strict=False))
    if len(node.args) > len(names) or any(k not in names for k in node.kwargs):
        return None
    bound.update(node.kwargs)
    return bound if all(k in bound for k in names) else None


def _has_out(node: fx.Node) -> bool:
    return "out" in node.kwargs


def _changes_in_place(node: fx.Node) -> bool:
    """True unless the call is known to leave floating tensors as they are."""
    if node.op == "call_method":
        changes = (node.target.endswith("_") and not node.target.endswith("__")) or node.target in ("__setitem__", "__iadd__")
    elif node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        home = getattr(node.target, "__module__", None) or ""
        known = home.split(".")[0] in ("", "torch", "math", "builtins", "_operator")
        # An argument inplace may stand in any place; batch_norm's True is for training.
        flagged = node.kwargs.get("inplace") or (node.target is not F.batch_norm and any(a is True for a in node.args[1:]))
        in_place_operator = home == "_operator" and name in ("iadd", "isub", "imul", "itruediv", "ipow", "setitem", "ifloordiv", "imod")
        changes = not known or bool(flagged) or _has_out(node) or in_place_operator or (name.endswith("_") and not name.endswith("__"))
    else:
        return node.op == "call_module"
    target = _value(node.args[0]) if node.args else None
    return changes and not (target is not None and not target.is_floating_point())  # a batch norm counts its batches in an int
