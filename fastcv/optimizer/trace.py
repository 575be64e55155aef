"""The graphs of a model's forwards, by torch.fx, for the proofs of patterns.py. The graphs are read, never run.

Tracing runs the user's code, so it runs on a copy of the model whose tensors are on the meta device: what the code leaves
behind is left there. Where the code branches on a shape, which tracing does not know, one branch is followed: "no", and
where that raises, "yes". A forward that cannot be traced (control flow on values) hides only itself: the modules within it are
traced by themselves, and the modules around it see it as one opaque call.
"""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from .kernels import kind_of

IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")


@dataclass
class Trace:
    """graph: of the module named root ("" is the model), calls named relative to it. owners: node -> the modules whose
    forwards contain the call, outermost first, by full name. opaque: full names of modules that were not looked into.
    """

    root: str
    graph: fx.Graph
    owners: dict[fx.Node, tuple[str, ...]]
    opaque: set[str] = field(default_factory=set)

    def full_name(self, node: fx.Node) -> str:
        """Of the module that a call_module node calls."""
        return join(self.root, node.target)


def join(prefix: str, name: str) -> str:
    """The name of a module within another, by full name."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def model_copy(model: nn.Module, meta: bool = False) -> nn.Module:
    """A deep copy. Tensors that a module only computes (a weight-normed weight, a cache) are copied too; meta: by shape alone."""
    memo: dict[int, Any] = {}
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()] if meta else []
    for module in model.modules():
        values = pytree.tree_leaves(list(vars(module).values()))
        tensors += [v for v in values if isinstance(v, Tensor) and (meta or v.grad_fn is not None)]
    for t in tensors:
        if not is_lazy(t):
            twin = torch.empty_like(t, device="meta") if meta else t.clone()
            memo[id(t)] = nn.Parameter(twin.detach(), t.requires_grad) if isinstance(t, nn.Parameter) else twin.detach()
    return copy.deepcopy(model, memo)


def random_states_kept(model: nn.Module, *values: Any) -> AbstractContextManager[Any]:
    """Within it seeds may be set: after it the CPU's random state, and those of the GPUs that tensors of ``model`` and of ``values``
    are on, are what they were.
    """
    tensors = [*model.parameters(), *model.buffers(), *(v for v in pytree.tree_leaves(values) if isinstance(v, Tensor))]
    return torch.random.fork_rng(devices=sorted({t.get_device() for t in tensors if t.is_cuda}))


class _Proxy(fx.Proxy):
    """A Proxy that tells ``x += y`` from ``x = x + y``, and gives some number where a size is asked for as an int."""

    def __int__(self) -> int:
        if _of_shape(self.node):
            return _SOME_SIZE
        raise TypeError("int() of a traced value")


def _in_place(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


_SOME_SIZE = 224
_MOST_BRANCHES = 100
_MOST_ATTEMPTS = 8
_SHAPES = ("shape", "ndim", "size", "dim", "ndimension", "numel", "dtype", "device", "is_cuda")


def _of_shape(node: fx.Node) -> bool:
    """True if the node's value follows from shapes and dtypes alone."""
    if node.op == "call_method" or (node.op == "call_function" and node.target is getattr):
        return (node.target if node.op == "call_method" else node.args[1]) in _SHAPES
    simple = node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
    return simple and bool(node.all_input_nodes) and all(map(_of_shape, node.all_input_nodes))


class _Tracer(fx.Tracer):
    """answers: to the questions that the code asks of shapes, in order; further ones are answered with no."""

    def __init__(self, root: str, opaque: set[nn.Module], answers: Sequence[bool]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked = 0
        self.prefix = root
        self.opaque = opaque
        self.stack = [root]
        self.owners: dict[fx.Node, tuple[str, ...]] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if not _of_shape(obj.node) or self.asked == _MOST_BRANCHES:
            return super().to_bool(obj)
        self.asked += 1
        self.answers += [False] * (self.asked - len(self.answers))
        return self.answers[self.asked - 1]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.opaque or kind_of(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        self.stack.append(join(self.prefix, name))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.stack.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.owners[node] = tuple(self.stack)
        return node


def _defaults(module: nn.Module) -> dict[str, Any]:
    """The optional arguments of the forward at their defaults: the call that gives the required ones only."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _attempt(module: nn.Module, name: str, opaque: dict[str, nn.Module]) -> Trace | str:
    answers: list[bool] = []
    failure = ""
    for _ in range(_MOST_ATTEMPTS):
        tracer = _Tracer(name, set(opaque.values()), answers)
        try:
            return Trace(name, tracer.trace(module, concrete_args=_defaults(module)), tracer.owners, set(opaque))
        except Exception as error:  # the user's code may raise anything when it meets a Proxy
            failure = failure or f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        answers = tracer.answers
        while answers and answers[-1]:  # the last question that was answered with no is answered with yes
            answers.pop()
        if not answers:
            break
        answers[-1] = True
    return failure


def _explore(module: nn.Module, name: str, failures: dict[str, str]) -> tuple[list[Trace], dict[str, nn.Module]]:
    """Traces of everything within ``module`` that can be traced, and the modules that cannot be looked into."""
    whole = _attempt(module, name, {})
    if isinstance(whole, Trace):
        return [whole], {}
    traces: list[Trace] = []
    opaque: dict[str, nn.Module] = {}
    for child_name, child in module.named_children():
        if kind_of(child) is None and next(child.children(), None) is not None:
            inner_traces, inner_opaque = _explore(child, join(name, child_name), failures)
            traces += inner_traces
            opaque |= inner_opaque
    around = _attempt(module, name, opaque) if opaque else whole
    if isinstance(around, Trace):
        hidden = tuple(f"{o}." for o in opaque)
        return [around, *(t for t in traces if f"{t.root}.".startswith(hidden))], opaque
    failures[name] = around
    return traces, {name: module}


def trace(model: nn.Module, training: bool) -> tuple[list[Trace], dict[str, str]]:
    """The graphs of ``model``'s forwards in the given mode, and why the other forwards cannot be traced, by name."""
    try:
        skeleton = model_copy(model, meta=True).train(training)
    except Exception as error:  # a model that cannot be copied is served module by module
        return [], {"": f"the model cannot be copied: {type(error).__name__}: {error}"}
    for module in skeleton.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            vars(module).get(hooks, {}).clear()
    failures: dict[str, str] = {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        if isinstance(skeleton, torch.jit.ScriptModule):
            return [], {"": "it is a ScriptModule"}
        return _explore(skeleton, "", failures)[0], failures


def common_owner(owners: Iterable[tuple[str, ...]]) -> str:
    """The innermost module whose forward contains all the calls."""
    stacks = list(owners)
    shared = stacks[0]
    for stack in stacks[1:]:
        length = next((i for i, (a, b) in enumerate(zip(shared, stack, strict=False)) if a != b), min(len(shared), len(stack)))
        shared = shared[:length]
    return shared[-1]
