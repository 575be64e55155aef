"""The receptive field of every tensor of a running network: how many input pixels one of its values can see, in each direction.

Computed op by op, so that branches, shortcuts and dilation are exact; the rules are those of Araujo et al. 2019 (Computing receptive
fields of convolutional neural networks). What normalisation layers learn from other pixels is not counted. A value that sees the
whole image whatever its size (global pooling, attention, a linear layer over all pixels) has the size ALL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["ALL", "Field", "ReceptiveFields"]

ALL = math.inf
Labels = tuple[frozenset[int], ...]
_NONE: frozenset[int] = frozenset()
_OF_MAP: Labels = (_NONE, _NONE, frozenset((0,)), frozenset((1,)))  # of [N, C, H, W]


@dataclass(frozen=True)
class Field:
    """sizes: pixels seen along rows and columns. steps: pixels between neighbouring values. extents: values along rows and columns
    of the map. labels: for each dimension of the tensor, which of the image's axes run along it.
    """

    sizes: tuple[float, float]
    steps: tuple[float, float]
    extents: tuple[int, int]
    labels: Labels

    def mixed(self, axes: frozenset[int], count: int) -> Field | None:
        """After a sum over ``count`` values along ``axes``: all is seen; None where they are a part of the map, as in a window."""
        if count < math.prod(self.extents[axis] for axis in axes):
            return None
        return replace(self, sizes=tuple(ALL if axis in axes else size for axis, size in enumerate(self.sizes)))


def _pair(value: Any) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values if len(values) == 2 else values * 2


def _windowed(field: Field, spans: Sequence[float], strides: Sequence[float]) -> Field:
    """After a sliding window of ``spans`` inputs, moved by ``strides``."""
    sizes = tuple(size + (span - 1) * step for size, span, step in zip(field.sizes, spans, field.steps, strict=True))
    return replace(field, sizes=sizes, steps=tuple(step * stride for step, stride in zip(field.steps, strides, strict=True)))


def _convolution(field: Field, args: Sequence[Any], out: Tensor) -> Field | None:
    if out.dim() != 4:
        return None
    kernel, stride, dilation, transposed = args[1].shape[2:], _pair(args[3]), _pair(args[5]), args[6]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if transposed:
        return _windowed(field, [-(-span // s) for span, s in zip(spans, stride, strict=True)], [1 / s for s in stride])
    return _windowed(field, spans, stride)


def _fastcv_convolution(field: Field, args: Sequence[Any], out: Tensor) -> Field | None:
    return _convolution(field, (*args[:6], False), out)


def _fastcv_transposed(field: Field, args: Sequence[Any], out: Tensor) -> Field | None:
    """A transposed convolution is fastcv's input gradient."""
    return _convolution(field, (*args[:3], args[4], args[5], args[6], True), out)


def _pool(field: Field, args: Sequence[Any], out: Tensor) -> Field:
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
    dilation = _pair(args[4]) if len(args) > 4 and not isinstance(args[4], bool) else (1, 1)
    return _windowed(field, [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)], stride)


def _adaptive(field: Field, args: Sequence[Any], out: Tensor) -> Field:
    before, after = args[0].shape[-2:], out.shape[-2:]
    spans = [ALL if b > a == 1 else max(-(-(i + 1) * b // a) - i * b // a for i in range(a)) for b, a in zip(before, after, strict=True)]
    return _windowed(field, spans, [b / a for b, a in zip(before, after, strict=True)])


def _resized(linear: bool) -> Callable[[Field, Sequence[Any], Tensor], Field]:
    def rule(field: Field, args: Sequence[Any], out: Tensor) -> Field:
        before, after = args[0].shape[-2:], out.shape[-2:]
        spans = [2 if linear and b > 1 and b != a else 1 for b, a in zip(before, after, strict=True)]
        return _windowed(field, spans, [b / a for b, a in zip(before, after, strict=True)])

    return rule


def _unpooled(field: Field, args: Sequence[Any], out: Tensor) -> Field:
    return _windowed(field, (1, 1), [b / a for b, a in zip(args[0].shape[-2:], out.shape[-2:], strict=True)])


# Ops that change what a value sees of a map [N, C, H, W].
_MAPS: dict[str, Callable[[Field, Sequence[Any], Tensor], Field | None]] = {
    "convolution": _convolution,
    "conv": _fastcv_convolution,
    "conv_dgrad": _fastcv_transposed,
    "max_pool2d_with_indices": _pool,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "_adaptive_avg_pool2d": _adaptive,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": _adaptive,
    "upsample_bilinear2d": _resized(True),
    "upsample_nearest2d": _resized(False),
    "max_unpool2d": _unpooled,
    "upsample_bed_of_nails": _unpooled,
}
_MATMULS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}


def _regrouped(labels: Labels, before: Sequence[int], after: Sequence[int]) -> Labels:
    """Labels after a view: dimensions that are merged or split share the labels of their group."""
    if not math.prod(before):
        return (_NONE,) * len(after)
    old = [(size, label) for size, label in zip(before, labels, strict=True) if size != 1]
    new = [i for i, size in enumerate(after) if size != 1]
    result = [_NONE] * len(after)
    while old and new:
        (have, group), members = old.pop(0), [new.pop(0)]
        wanted = after[members[0]]
        while have != wanted:
            if have < wanted:
                size, label = old.pop(0)
                have, group = have * size, group | label
            else:
                members.append(new.pop(0))
                wanted *= after[members[-1]]
        for i in members:
            result[i] = group
    return tuple(result)


def _dims(value: Any, count: int) -> list[int]:
    return [d % count for d in ([value] if isinstance(value, int) else value or range(count))]


def _moved(name: str, field: Field, args: Sequence[Any], out: Tensor) -> Field | None:
    """After an op on one tensor that only moves its values: the labels move along."""
    x, labels = args[0], list(field.labels)
    if name in ("permute", "transpose", "t"):
        order = list(range(x.dim()))
        if name == "permute":
            order = _dims(args[1], x.dim())
        else:
            a, b = _dims(args[1:3], x.dim()) if name == "transpose" else (0, x.dim() - 1)
            order[a], order[b] = b, a
        labels = [labels[i] for i in order]
    elif name == "select":
        del labels[args[1] % x.dim()]
    elif name == "unsqueeze":
        labels.insert(args[1] % out.dim(), _NONE)
    elif name == "squeeze":
        gone = [d for d in _dims(args[1] if len(args) > 1 else None, x.dim()) if x.shape[d] == 1]
        labels = [label for i, label in enumerate(labels) if i not in gone]
    elif name in ("view", "_unsafe_view", "reshape"):
        labels = list(_regrouped(field.labels, x.shape, out.shape))
    elif name == "expand":
        labels = [_NONE] * (out.dim() - x.dim()) + labels
    elif name == "slice":
        dim, step = (args[1] if len(args) > 1 else 0) % x.dim(), args[4] if len(args) > 4 else 1
        stride = [step if axis in labels[dim] else 1 for axis in (0, 1)]
        field = _windowed(field, stride, stride)
    return replace(field, labels=tuple(labels)) if len(labels) == out.dim() else None


_MOVES = frozenset(("permute", "transpose", "t", "select", "unsqueeze", "squeeze", "view", "_unsafe_view", "reshape", "expand", "slice"))
_REDUCTIONS = frozenset(("mean", "sum", "amax", "max", "min", "amin"))
_SOFTMAXES = frozenset(("_softmax", "_log_softmax", "softmax", "log_softmax"))


class ReceptiveFields:
    """The fields of all tensors that ``see`` has been shown: ``start`` at the input, then every op in its order.

    An input that is no image [N, C, H, W] has no field, nor has what is computed from it.
    """

    def __init__(self) -> None:
        self._fields = WeakTensorKeyDictionary()

    def start(self, image: Tensor) -> None:
        self._fields[image] = Field((1, 1), (1, 1), tuple(image.shape[2:]), _OF_MAP) if image.dim() == 4 else None

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._fields

    def of(self, tensor: Tensor) -> Field | None:
        """None where it is not known."""
        return self._fields.get(tensor)

    def see(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        sources = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self._fields]
        fields = [self._fields[t] for t in sources]
        for out in pytree.tree_leaves(result):
            if not isinstance(out, Tensor):
                continue
            field = self._after(op._opname, sources, fields, args, out) if fields and None not in fields else None
            if fields or out in self._fields:
                self._fields[out] = field  # None is remembered too: what follows is not known either

    def _after(self, name: str, sources: list[Tensor], fields: list[Field], args: Sequence[Any], out: Tensor) -> Field | None:
        name = name.removesuffix("_")  # in place or not
        if name in _MAPS:
            field = _MAPS[name](fields[0], args, out)
            if field is None:
                return None
            return replace(field, extents=tuple(out.shape[-2:]), labels=_OF_MAP[4 - out.dim() :])
        if name in _MATMULS:
            return self._product(*(args[i] for i in _MATMULS[name]))
        if name in _MOVES:
            return _moved(name, fields[0], args, out)
        if name in _SOFTMAXES:
            dim = args[1] % args[0].dim()
            return fields[0].mixed(fields[0].labels[dim], args[0].shape[dim])
        if name in _REDUCTIONS and out.dim() <= args[0].dim():
            return self._reduced(fields[0], args, out)
        if name.startswith("_scaled_dot_product"):
            key, query = self._fields.get(args[1]), self._fields.get(args[0])
            return None if key is None or query is None else key.mixed(key.labels[-2], args[1].shape[-2])
        return self._joined(sources, fields, out)

    def _product(self, a: Tensor, b: Tensor) -> Field | None:
        """The contracted dimension is a's last and b's last but one."""
        known = [(t, f, d) for t, d in ((a, -1), (b, -2)) if (f := self._fields.get(t)) is not None]
        mixed = [f.mixed(f.labels[d], t.shape[d]) for t, f, d in known]
        if None in mixed or not mixed:
            return None
        of_a = known[0][1].labels if known[0][0] is a else (_NONE,) * a.dim()
        of_b = known[-1][1].labels if known[-1][0] is b else (_NONE,) * b.dim()
        return replace(_largest(mixed), labels=(*of_a[:-1], of_b[-1]))

    @staticmethod
    def _reduced(field: Field, args: Sequence[Any], out: Tensor) -> Field | None:
        x = args[0]
        gone = _dims(args[1] if len(args) > 1 else None, x.dim())
        axes = frozenset().union(*(field.labels[d] for d in gone))
        after = field.mixed(axes, math.prod(x.shape[d] for d in gone if field.labels[d]))
        if after is None or out.dim() == x.dim():
            return after
        return replace(after, labels=tuple(label for i, label in enumerate(field.labels) if i not in gone))

    @staticmethod
    def _joined(sources: list[Tensor], fields: list[Field], out: Tensor) -> Field | None:
        """Element by element, padded, concatenated or normalised: the largest field; labels are aligned at the last dimension."""
        labels = [_NONE] * out.dim()
        for t, field in zip(sources, fields, strict=True):
            if t.dim() > out.dim():
                return None
            for i, label in enumerate(field.labels, start=out.dim() - t.dim()):
                labels[i] |= label
        return replace(_largest(fields), labels=tuple(labels))


def _largest(fields: Sequence[Field]) -> Field:
    sizes = tuple(max(f.sizes[axis] for f in fields) for axis in (0, 1))
    return replace(max(fields, key=lambda f: math.prod(f.extents)), sizes=sizes)
