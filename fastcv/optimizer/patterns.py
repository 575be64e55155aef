"""Which modules may be fused, proved from the graphs of the forwards.

From each convolution or linear layer (inference) or batch norm the chain is followed for as long as the value just computed has exactly one
use and that use is the next step: a batch norm module, an addition, an activation, a max pooling. Modules that are called more than once,
shared under several names, hooked or left alone are no part of a chain. No step between the head and the end may change a
tensor in place, but for the chain's own addition and activation: the head's input and the residual must still be what they
were when the kernel reads them.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..functional._batch_norm_max_pool2d import MOST_OFFSETS
from ..nn.fold import outputs_of
from .chain import ACTIVATIONS
from .kernels import IN_PLACE_ACTIVATIONS, LINEAR, SYNCHRONISED, has_hooks, is_linear, is_sharded, kind_of, op_of, why_left_alone
from .linear import why_torch_for
from .trace import IN_PLACE_OPERATORS, Trace, common_owner

_ACTIVATION_MODULES = IN_PLACE_ACTIVATIONS | {nn.LeakyReLU: "leaky_relu", nn.GELU: "gelu"}
_ACTIVATION_FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
    F.gelu: "gelu",
}
_RAW_OPS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_ADDITIONS = (operator.add, torch.add)
_IN_PLACE_ADDITIONS = (operator.iadd,)


@dataclass
class Plan:
    """A proved chain, all modules by full name. labels: the steps after the head as the report shows them. readers: the
    convolutions that read its result, if nothing else does.
    """

    head: str
    bn: str | None
    steps: list[str]
    labels: list[str]
    owner: str
    watched: list[str]
    node: fx.Node
    readers: list[str] = field(default_factory=list)


class Prover:
    """Finds the chains of one trace. modules: every module of the model by each of its names."""

    def __init__(self, trace: Trace, modules: dict[str, nn.Module], ops: frozenset[str], calls: Counter[int]) -> None:
        self.trace = trace
        self.modules = modules
        self.ops = ops
        self.calls = calls
        self.names = Counter(id(m) for m in modules.values())
        self.position = {node: i for i, node in enumerate(trace.graph.nodes)}
        self.mutations = [n for n in trace.graph.nodes if self._mutates(n)]
        self.claimed: set[fx.Node] = set()

    def chains(self, training: bool) -> tuple[list[Plan], dict[str, str]]:
        """The chains, and by the head's name why a batch norm after a convolution or linear layer is not folded."""
        plans: list[Plan] = []
        refused: dict[str, str] = {}
        calls = [(n, self._module(n)) for n in self.trace.graph.nodes if n.op == "call_module"]
        convs = [(n, m) for n, m in calls if ((isinstance(m, _ConvNd) and op_of(m) in self.ops) or is_linear(m)) and not training]
        norms = [(n, m) for n, m in calls if isinstance(m, _BatchNorm) and op_of(m) in self.ops]
        # From the last to the first: where two branches are added the later one adds, for the other is a tensor by then.
        for find, candidates in ((self._conv_chain, convs), (self._batch_norm_chain, norms)):
            for node, module in reversed(candidates):
                outcome = "" if node in self.claimed else find(node, module)
                if isinstance(outcome, Plan):
                    plans.append(outcome)
                elif outcome:
                    refused[self.trace.full_name(node)] = outcome
        return sorted(plans, key=lambda plan: self.position[plan.node]), refused

    def _conv_chain(self, node: fx.Node, conv: nn.Module) -> Plan | str:
        norms = [u for u in node.users if self._module(u) is not None and isinstance(self._module(u), _BatchNorm)]
        reason = self._why_not_member(node, conv)
        if reason is None and getattr(conv, "padding_mode", "zeros") != "zeros":
            reason = f"padding_mode={conv.padding_mode!r} is not fused"
        if reason:
            return reason if norms else ""
        if len(node.users) != 1:
            return f"its output is used {len(node.users)} times" if norms else ""
        nodes, steps, bn_name = [node], [], None
        if norms:
            bn, bn_name = self._module(norms[0]), self.trace.full_name(norms[0])
            if op_of(bn) is not None and op_of(bn) not in self.ops:
                return ""
            if self._only_use(nodes) is None:
                return f"a tensor is changed in place before batch norm {bn_name}"
            reason = self._why_not_member(norms[0], bn) or _why_not_foldable(bn, conv)
            if reason:
                return f"batch norm {bn_name}: {reason}"
            nodes.append(norms[0])
            steps.append("batch_norm")
        if not is_linear(conv):
            self._extend(nodes, steps, ACTIVATIONS[op_of(conv)])
        elif LINEAR in self.ops and not why_torch_for(conv):
            self._extend(nodes, steps, ACTIVATIONS[LINEAR], addition=False)
        return self._plan(nodes, steps, bn_name) if steps else ""

    def _batch_norm_chain(self, node: fx.Node, bn: nn.Module) -> Plan | str:
        if isinstance(bn, SYNCHRONISED) or self._why_not_member(node, bn):
            return ""
        nodes, steps = [node], []
        self._extend(nodes, steps, ACTIVATIONS["batch_norm"])
        if "activation" not in steps:
            return ""
        pooling = self._pooling_behind(nodes) if steps == ["activation"] and kind_of(bn).__name__ == "BatchNorm2d" else None
        if pooling is not None:
            plan = self._plan([*nodes, pooling], [*steps, "max_pool"], None)
            if isinstance(plan, Plan):
                plan.readers = []  # a pooled map is small: its readers keep it
                return plan
        return self._plan(nodes, steps, None)

    def _pooling_behind(self, nodes: list[fx.Node]) -> fx.Node | None:
        """The max pooling module that is the only use of the last of ``nodes``, if the kernel has its windows."""
        use = self._only_use(nodes)
        module = None if use is None else self._module(use)
        if module is None or op_of(module) != "max_pool2d" or "max_pool2d" not in self.ops or self._why_not_member(use, module):
            return None
        rows, columns = _pair(module.kernel_size)
        plain = not module.return_indices and _pair(module.dilation) == (1, 1) and rows * columns <= MOST_OFFSETS
        return use if plain else None

    def _extend(self, nodes: list[fx.Node], steps: list[str], activations: tuple[str, ...], addition: bool = True) -> None:
        """Follows an addition, if one may be there, and an activation from the last of ``nodes``."""
        use = self._only_use(nodes)
        if addition and use is not None and self._is_addition(use, nodes[-1]):
            nodes.append(use)
            steps.append("add")
            use = self._only_use(nodes)
        if use is not None and _activation(use, self._module(use), nodes[-1]) in activations:
            module = self._module(use)
            if module is None or not has_hooks(module):
                nodes.append(use)
                steps.append("activation")

    def _only_use(self, nodes: list[fx.Node]) -> fx.Node | None:
        """The one use of the last node, if nobody has it yet and nothing changes in place from the head to there."""
        users = list(nodes[-1].users)
        if len(users) != 1 or users[0] in self.claimed or nodes[-1] not in users[0].args:
            return None
        first, last = self.position[nodes[0]], self.position[users[0]]
        if any(first < self.position[m] < last and m not in nodes for m in self.mutations):
            return None
        return users[0]

    def _plan(self, nodes: list[fx.Node], steps: list[str], bn: str | None) -> Plan | str:
        owners = [self.trace.owners[n] for n in nodes]
        owner = common_owner(owners)
        crossed = {name for stack in owners for name in stack[stack.index(owner) + 1 :]}
        members = [self.trace.full_name(n) for n in nodes if n.op == "call_module"]
        watched = [*members, *sorted(crossed)]
        hooked = next((name for name in watched if has_hooks(self.modules[name])), None)
        if hooked is not None:
            return f"{hooked} between it and the end of the chain has hooks"
        replaced = next((name for name in (owner, *crossed) if "forward" in vars(self.modules[name])), None)
        if replaced is not None:
            return f"the forward of {replaced or 'the model'} was already replaced"
        self.claimed.update(nodes)
        labels = [self.trace.full_name(n) if n.op == "call_module" else _function_name(n) for n in nodes[1:]]
        return Plan(members[0], bn, steps, labels, owner, watched, nodes[0], self._readers(nodes[-1]))

    def _readers(self, node: fx.Node) -> list[str]:
        """The convolutions that read the value, or none if anything else uses it."""
        users = list(node.users)
        modules = [self._module(user) for user in users]
        if not all(isinstance(m, _ConvNd) and why_left_alone(m) is None and op_of(m) in self.ops for m in modules):
            return []
        return [self.trace.full_name(user) for user in users]

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[self.trace.full_name(node)] if node.op == "call_module" else None

    def _why_not_member(self, node: fx.Node, module: nn.Module) -> str | None:
        reason = why_left_alone(module)
        if reason:
            return reason
        if any(is_sharded(t) for t in module.parameters()):
            return "its parameters are sharded"
        if self.calls[id(module)] > 1:
            return f"it is called {self.calls[id(module)]} times"
        if self.names[id(module)] > 1:
            return f"it is shared by {self.names[id(module)]} names"
        if len(node.args) != 1 or node.kwargs:
            return "it is called with further arguments"
        if any(t is not None and t.is_inference() for t in (*module.parameters(), *module.buffers())):
            return "its parameters are inference tensors, whose changes cannot be seen"
        return None

    def _is_addition(self, node: fx.Node, value: fx.Node) -> bool:
        if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args) or node.args[0] is node.args[1]:
            return False
        in_place = (node.op == "call_function" and node.target in _IN_PLACE_ADDITIONS) or (
            node.op == "call_method" and node.target == "add_"
        )
        if in_place:
            return node.args[0] is value
        return (node.op == "call_function" and node.target in _ADDITIONS) or (node.op == "call_method" and node.target == "add")

    def _mutates(self, node: fx.Node) -> bool:
        """True unless the call is known to leave its arguments as they are."""
        if node.op == "call_module":
            module = self.modules[self.trace.full_name(node)]
            return self.trace.full_name(node) in self.trace.opaque or bool(getattr(module, "inplace", False))
        if node.op == "call_method":
            return (node.target.endswith("_") and not node.target.endswith("__")) or node.target == "__setitem__" or "out" in node.kwargs
        if node.op != "call_function":
            return False
        name = getattr(node.target, "__name__", "")
        if name in ("setitem", "delitem") or name.endswith("_") or "out" in node.kwargs or node.kwargs.get("inplace"):
            return True
        home = getattr(node.target, "__module__", None) or ""  # of torch.add and its like: None
        if home == "_operator":
            return name in IN_PLACE_OPERATORS
        known = home.split(".")[0] in ("", "torch", "math", "builtins") and not isinstance(node.target, _RAW_OPS)
        return not known or any(a is True for a in node.args)


def _pair(size: Any) -> tuple[Any, Any]:
    values = size if isinstance(size, (tuple, list)) else (size,)
    return (values[0], values[-1])


def _why_not_foldable(bn: nn.Module, conv: nn.Module) -> str | None:
    if bn.running_mean is None or bn.running_var is None:
        return "it has no running statistics"
    if bn.num_features != outputs_of(conv):
        return f"it has {bn.num_features} channels, the layer before it {outputs_of(conv)}"
    return None


def _activation(node: fx.Node, module: nn.Module | None, value: fx.Node) -> str | None:
    """The activation that the node applies to ``value``, or None."""
    if not node.args or node.args[0] is not value:
        return None
    approximate = module.approximate if isinstance(module, nn.GELU) else node.kwargs.get("approximate", "none")
    if approximate != "none":
        return None
    if module is not None:
        return _ACTIVATION_MODULES.get(type(module)) if "forward" not in vars(module) and len(node.args) == 1 else None
    if node.op == "call_method" and node.target in ("relu", "relu_"):
        return "relu"
    return _ACTIVATION_FUNCTIONS.get(node.target) if node.op == "call_function" else None


def _function_name(node: fx.Node) -> str:
    name: Any = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return {"iadd": "add", "add_": "add", "relu_": "relu"}.get(name, name)


def prove(traces: list[Trace], modules: dict[str, nn.Module], ops: frozenset[str], training: bool) -> tuple[list[Plan], dict[str, str]]:
    """The chains of all traces, and by name why a convolution or linear layer with a batch norm after it has none."""
    plans: list[Plan] = []
    refused: dict[str, str] = {}
    calls = Counter(id(modules[t.full_name(n)]) for t in traces for n in t.graph.nodes if n.op == "call_module")
    for trace in traces:
        found, reasons = Prover(trace, modules, ops, calls).chains(training)
        plans += found
        refused |= reasons
    return plans, refused


def measured(traces: list[Trace], modules: dict[str, nn.Module], ops: frozenset[str]) -> dict[str, str]:
    """Convolution -> the batch norm that reads its output, of those that fastcv serves. What happens between the two, hooks and
    changes in place, shows at the call (functional/_batch_norm.py: statistics_left).
    """
    found: dict[str, str] = {}
    for trace in traces:
        for node in trace.graph.nodes:
            conv = modules[trace.full_name(node)] if node.op == "call_module" else None
            if not isinstance(conv, _ConvNd) or conv.transposed or conv.padding_mode != "zeros":
                continue
            for user in node.users:
                bn = modules[trace.full_name(user)] if user.op == "call_module" else None
                if not isinstance(bn, _BatchNorm) or isinstance(bn, SYNCHRONISED):
                    continue
                if all(op_of(m) in ops and why_left_alone(m) is None for m in (conv, bn)):
                    found[trace.full_name(node)] = trace.full_name(user)
    return found
