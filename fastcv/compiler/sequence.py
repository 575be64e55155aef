"""Convolutions in a row as one call of a graph: between their kernels stands nothing but C++.

The first two calls of a kind go step by step, as the graph would without this: so the steps fold and pack their weights. The
second also writes down what each step hands to its kernel; later calls look whether anything is another than it was, and hand all
of it to the raw op conv_sequence (csrc/conv/conv_sequence_torch.cpp). Whatever is unusual goes step by step.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .. import _ext
from ..functional._common import needs_grad
from ..functional._conv_arguments import float32_precision
from ..functional._conv_ops import sequence_raw, step_numbers
from ..optimizer.kernels import under_transform
from ..optimizer.packed_weights import PLAIN
from ..optimizer.watch import watch_of
from .calls import FoldedConv, PackedConv, RawCall

if TYPE_CHECKING:
    from .._C import Watch

_OPS = ("conv1d", "conv2d", "conv3d")


class Step(NamedTuple):
    """One convolution, by the numbers of the values that it takes; None for none.

    A value's number is its place among those from outside, or, of the output of a step, their count and that of the steps before it.
    parameters: in the module's order, and eps of a folded batch norm. last: the outputs that nothing needs after this step.
    """

    conv: PackedConv
    image: int
    residual: int | None
    parameters: tuple[int | None, ...]
    last: tuple[int, ...]

    def arguments(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Those of the module."""
        image, residual = values[self.image], None if self.residual is None else values[self.residual]
        parameters = [None if i is None else values[i] for i in self.parameters]
        if isinstance(self.conv, FoldedConv):
            return (image, residual, *parameters)
        return (image, *parameters, residual)


class _Seen(NamedTuple):
    """The kind of the latest call, the parameters then, and from the second such call on how to make it again."""

    kind: tuple[Any, ...]
    watch: Watch
    call: tuple[tuple[Tensor, ...], list[int], list[float], list[int]] | None


class ConvSequence(nn.Module):
    """The steps, called with the values from outside: images, the parameters that kernels read as they are, those that are folded,
    numbers. images, read, tensors: how many of them are images, these or read as they are, and no numbers.

    Returns the outputs of the steps in ``returned``.
    """

    def __init__(self, steps: Sequence[Step], images: int, read: int, tensors: int, returned: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(step.conv for step in steps)
        self.steps = tuple(steps)
        self.images = images
        self.read = read
        self.tensors = tensors
        self.returned = tuple(returned)

    def __call__(self, *values: Any) -> list[Tensor]:  # without what nn.Module does around a forward
        images, parameters, numbers = values[: self.images], values[self.images : self.tensors], values[self.tensors :]
        unusual = torch._C._is_any_autocast_enabled() or torch._C._len_torch_dispatch_stack() or under_transform()
        if unusual or needs_grad(*images, *parameters):
            return self._step_by_step(values)
        settings = (_ext.choices, float32_precision(False), numbers)
        kind = (settings, [(type(x), x.shape[1:], x.stride(), x.dtype, x.is_cpu) for x in images])
        first = self.steps[0]
        kept = first.conv.kept_of(values[first.parameters[0]])
        seen: _Seen | None = kept.sequence
        holds = seen is not None and seen.watch.holds(parameters)
        if not holds or seen.kind != kind:
            if self._is_usual(images, parameters):
                kept.sequence = _Seen(kind, seen.watch if holds else watch_of(parameters), None)
            return self._step_by_step(values)
        if seen.call is None:
            raw_calls: list[RawCall] = []
            outputs = self._step_by_step(values, raw_calls)
            kept.sequence = _Seen(kind, seen.watch, self._written_down(values, raw_calls))
            return outputs
        constants, *how = seen.call
        return sequence_raw(values[: self.read] + constants, *how)

    def _is_usual(self, images: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
        dims = int(self.steps[0].conv.op[-2]) + 2  # a batch
        if not all(type(x) in PLAIN and x.is_cpu and x.dim() == dims for x in images):
            return False
        return all(type(p) in PLAIN and p.is_cpu and not p.is_inference() for p in parameters)  # others' changes do not show

    def _step_by_step(self, values: Sequence[Any], raw_calls: list[RawCall] | None = None) -> list[Tensor]:
        held = [*values]
        for step in self.steps:
            arguments = step.arguments(held)
            held.append(step.conv(*arguments))
            if raw_calls is not None:
                raw_calls.append(step.conv.raw_call(*arguments))
            for i in step.last:
                held[i] = None
        return [held[i] for i in self.returned]

    def _written_down(self, values: Sequence[Any], raw_calls: Sequence[RawCall]) -> tuple[Any, ...]:
        """The constants, plan, slopes and outputs of the raw op; it numbers what is read, then the constants, then the outputs."""
        read = {id(t): i for i, t in enumerate(values[: self.read])}
        constants: list[Tensor] = []

        def number(t: Tensor | None) -> int:
            if t is None:
                return -1
            if id(t) not in read:
                read[id(t)] = self.read + len(constants)
                constants.append(t)
            return read[id(t)]

        tensors = [[number(t) for t in (c.weight, c.bias, c.packed)] for c in raw_calls]
        moved = self.read + len(constants) - len(values)
        plan: list[int] = []
        for step, c, (weight, bias, packed) in zip(self.steps, raw_calls, tensors, strict=True):
            x, residual = [-1 if i is None else i + moved if i >= len(values) else i for i in (step.image, step.residual)]
            plan += step_numbers(x, residual, weight, bias, packed, c.geometry, c.activation, c.precision)
        return tuple(constants), plan, [c.slope for c in raw_calls], [i + moved for i in self.returned]


def join_convolutions(gm: fx.GraphModule) -> None:
    """Makes one call of all convolutions of ``gm``'s graph that follow one another with nothing but its inputs in between."""
    run: list[fx.Node] = []
    for node in list(gm.graph.nodes):
        if _is_input(node) or (node.target == "item" and _is_input(node.args[0])):  # dynamic shapes make eps a tensor
            continue
        conv = _joinable(gm, node)
        if run and (conv is None or conv.op != gm.get_submodule(run[0].target).op):
            _join(gm, run)
            run = []
        if conv is not None:
            run.append(node)


def _joinable(gm: fx.GraphModule, node: fx.Node) -> PackedConv | None:
    """The convolution that the node calls, if its parameters are inputs or constants of the graph."""
    conv = gm.get_submodule(node.target) if node.op == "call_module" else None
    if not isinstance(conv, PackedConv) or conv.op not in _OPS:
        return None
    parameters = _parts(conv, node)[2]
    return conv if all(p is None or _is_input(p) for p in parameters) else None


def _is_input(node: fx.Node) -> bool:
    """True also for constants."""
    return node.op in ("placeholder", "get_attr")


def _parts(conv: PackedConv, node: fx.Node) -> tuple[fx.Node, fx.Node | None, list[fx.Node | None], list[Any]]:
    """Image, residual, parameters and numbers."""
    if isinstance(conv, FoldedConv):
        image, residual, *parameters, eps = node.args
        return image, residual, parameters, [eps]
    image, *parameters, residual = node.args
    return image, residual, parameters, []


def _join(gm: fx.GraphModule, run: list[fx.Node]) -> None:
    if len(run) == 1:
        return
    convs = [gm.get_submodule(node.target) for node in run]
    parts = [_parts(conv, node) for conv, node in zip(convs, run, strict=True)]
    made = set(run)
    images = dict.fromkeys(n for part in parts for n in part[:2] if n is not None and n not in made)
    read = dict.fromkeys(p for conv, part in zip(convs, parts, strict=True) if not isinstance(conv, FoldedConv) for p in part[2])
    parameters = dict.fromkeys(p for ps in (read, *(part[2] for part in parts)) for p in ps if p is not None)
    numbers = dict.fromkeys(n for part in parts for n in part[3])
    outside = [*images, *parameters, *numbers]

    of_image = {n: i for i, n in enumerate(images)} | {n: len(outside) + i for i, n in enumerate(run)}
    of_parameter = {p: len(images) + i for i, p in enumerate((*parameters, *numbers))}
    returned = [node for node in run if any(user not in made for user in node.users)]
    last: dict[int, int] = {}  # of each output that is not returned: the step that reads it last, or its own
    for i, (image, residual, *_) in enumerate(parts):
        last |= {of_image[n]: i for n in (run[i], image, residual) if n in made and n not in returned}
    steps = []
    for i, (conv, (image, residual, *others)) in enumerate(zip(convs, parts, strict=True)):
        taken = tuple(None if p is None else of_parameter[p] for p in (*others[0], *others[1]))
        dead = tuple(number for number, step in last.items() if step == i)
        steps.append(Step(conv, of_image[image], None if residual is None else of_image[residual], taken, dead))

    name = f"_fastcv_sequence_of_{run[0].target.removeprefix('_fastcv_')}"
    counts = (len(images), len(images) + len(read.keys() - {None}), len(images) + len(parameters))
    gm.add_submodule(name, ConvSequence(steps, *counts, [of_image[n] for n in returned]))
    with gm.graph.inserting_before(run[-1]):
        outputs = gm.graph.call_module(name, tuple(outside))
        for i, node in enumerate(returned):
            output = gm.graph.call_function(operator.getitem, (outputs, i))
            output.meta = dict(node.meta)
            node.replace_all_uses_with(output, lambda user: user not in made)
    for node in reversed(run):
        gm.graph.erase_node(node)
        gm.delete_submodule(node.target)
