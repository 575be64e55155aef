"""The layers of known networks as cases, derived from their published architectures, and cases from a user's table of shapes.

Every different call of a network is one case; its name ends in xN for the N times that the network makes it. Sources: K. He et al.,
2015 (ResNet-50); K. Simonyan, A. Zisserman, 2014 (VGG-16); M. Sandler et al., 2018 (MobileNetV2); O. Ronneberger et al., 2015 (U-Net,
with padded convolutions); L.-C. Chen et al., 2017 (DeepLabV3 on ResNet-50 of output stride 8).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from . import conv, loss, neighbors, norm
from ._case import Case, randn

POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "sum_pool2d", "upsample_bed_of_nails")


def _pool(op: str, name: str, input: Sequence[int], *args: Any, **kwargs: Any) -> Case:
    from . import pool

    peer = {"sum_pool2d": pool._sum_pool2d, "upsample_bed_of_nails": pool._bed_of_nails}.get(op)
    return Case(op, name, lambda g: ((randn(g, *input), *args), kwargs), peer=peer, grad=(0,), dtypes=pool.DTYPES)


def _convolution(op: str) -> Callable[..., Case]:
    nd = int(op[-2])

    def build(name: str, input: Sequence[int], out_channels: int, kernel: int, **options: Any) -> Case:
        if len(input) != nd + 2:
            raise ValueError(f"input of {op} needs {nd + 2} sizes, got {len(input)}")
        return replace(conv._case(name, input, out_channels, kernel, transposed="transpose" in op, **options), layouts=_layouts(input))

    return build


def _layouts(input: Sequence[int]) -> tuple[str, ...]:
    return ("contiguous", "channels_last") if len(input) in (4, 5) else ("contiguous",)


def _neighbours(op: str) -> Callable[..., Case]:
    def build(name: str, x: Sequence[int], y: Sequence[int], k: int | None = None, p: float = 2.0) -> Case:
        return neighbors._case(op, name, tuple(x), tuple(y), *([] if k is None else [k]), float(p))

    return build


def _rows(op: str) -> Callable[..., Case]:
    def build(name: str, input: Sequence[int], dim: int = 1, **options: Any) -> Case:
        made = loss._classes(*input, log=op == "nll_loss", **options) if op.endswith(("entropy", "loss")) else loss._scores(*input, dim=dim)
        return Case(op, name, made, grad=(0,), layouts=_layouts(input), dtypes=loss.NARROW)

    return build


# op -> builder(name, **fields of the table)
BUILDERS: dict[str, Callable[..., Case]] = {
    **{op: _convolution(op) for op in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")},
    "conv2d_fused": lambda name, input, out_channels, kernel, residual=False, activation="relu", **more: conv._fused(
        name, tuple(input), out_channels, kernel, residual=residual, activation=activation, **more
    ),
    "batch_norm": lambda name, input, training=True: norm._batch_norm(name, *input, training=training, layouts=_layouts(input)),
    "group_norm": lambda name, input, groups: norm._group_norm(name, *input, groups=groups, layouts=_layouts(input)),
    "layer_norm": lambda name, input, dims=1: norm._layer_norm(name, *input, dims=dims),
    "instance_norm": lambda name, input: norm._instance_norm(name, *input, layouts=_layouts(input)),
    "local_response_norm": lambda name, input, size=5: norm._response(name, *input, size=size, layouts=_layouts(input)),
    **{
        op: lambda name, input, kernel, stride=None, padding=0, op=op: _pool(op, name, input, kernel, stride, padding)
        for op in ("max_pool2d", "avg_pool2d", "sum_pool2d")
    },
    **{
        op: lambda name, input, output_size, op=op: _pool(op, name, input, output_size)
        for op in ("adaptive_avg_pool2d", "adaptive_max_pool2d")
    },
    "upsample_bed_of_nails": lambda name, input, scale_factor=2: _pool("upsample_bed_of_nails", name, input, scale_factor),
    **{op: _rows(op) for op in ("softmax", "log_softmax", "cross_entropy", "nll_loss", "multi_margin_loss")},
    **{op: _neighbours(op) for op in ("cdist", "knn", "nearest")},
}


def case_of(fields: dict[str, Any]) -> Case:
    """One row of a user's table: {"op": ..., "name": ... (optional), and the fields of that op's builder}.

    Raises ValueError, one sentence that names what is wrong.
    """
    if not isinstance(fields, dict) or "op" not in fields:
        raise ValueError(
            f'a row of shapes is an object with "op", such as {{"op": "conv2d", "input": [1, 64, 56, 56], ...}}, got {fields!r}'
        )
    rest = dict(fields)
    op = rest.pop("op")
    if op not in BUILDERS:
        raise ValueError(f"no shapes can be given for op {op!r}; there are {', '.join(sorted(BUILDERS))}")
    name = str(rest.pop("name", "") or "-".join(f"{k}={_brief(v)}" for k, v in rest.items()))
    for key, value in rest.items():
        if key in ("input", "x", "y") and not (isinstance(value, list) and value and all(type(v) is int and v > 0 for v in value)):
            raise ValueError(f"{op} {name}: {key} is a list of positive sizes, got {value!r}")
    try:
        case = BUILDERS[op](name, **rest)
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), case.arguments(torch.float32))
        case.torch_function()(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        text = re.sub(r"^\S*\(\) (got an|missing)", r"\1", str(error).partition("\n")[0])
        raise ValueError(f"{op} {name}: {text}") from None
    return case


def _brief(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


class _Walk:
    """Follows a tensor's shape through a network and keeps the calls on its way."""

    def __init__(self, name: str, *shape: int) -> None:
        self.name, self.shape = name, shape
        self.calls: dict[tuple[Any, ...], list[Any]] = {}

    def _keep(self, op: str, label: str, *arguments: Any, **options: Any) -> None:
        key = (op, label, self.shape, arguments, tuple(options.items()))
        entry = self.calls.setdefault(key, [op, label, self.shape, arguments, options, 0])
        entry[-1] += 1

    def conv(self, out: int, k: int, stride: int = 1, dilation: int = 1, groups: int = 1, bias: bool = False, normed: bool = True) -> _Walk:
        pad = dilation * (k - 1) // 2
        label = f"{out}-k{k}" + (f"-s{stride}" if stride > 1 else "") + (f"-d{dilation}" if dilation > 1 else "")
        label += "-depthwise" if groups == self.shape[1] > 1 else f"-g{groups}" if groups > 1 else ""
        self._keep("conv2d", label, out, k, stride=stride, padding=pad, dilation=dilation, groups=groups, bias=bias)
        n, _, h, w = self.shape
        self.shape = (n, out, *((s + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for s in (h, w)))
        return self.norm() if normed else self

    def norm(self) -> _Walk:
        self._keep("batch_norm", "train")
        return self

    def pool(self, k: int, stride: int, padding: int = 0) -> _Walk:
        self._keep("max_pool2d", f"k{k}-s{stride}", k, stride, padding)
        n, c, h, w = self.shape
        self.shape = (n, c, *((s + 2 * padding - k) // stride + 1 for s in (h, w)))
        return self

    def average(self, size: int) -> _Walk:
        self._keep("adaptive_avg_pool2d", f"to-{size}", size)
        self.shape = (*self.shape[:2], size, size)
        return self

    def up(self, out: int) -> _Walk:
        self._keep("conv_transpose2d", f"{out}-k2-s2", out, 2, stride=2)
        n, _, h, w = self.shape
        self.shape = (n, out, 2 * h, 2 * w)
        return self

    def loss(self, classes: int) -> _Walk:
        n, _, h, w = self.shape
        self.shape = (n, classes) if h == w == 1 else (n, classes, h, w)
        self._keep("cross_entropy", "loss")
        return self

    def at(self, *shape: int) -> _Walk:
        self.shape = shape
        return self

    def cases(self) -> list[Case]:
        made = []
        for op, label, shape, arguments, options, count in self.calls.values():
            size = "x".join(map(str, shape))
            name = f"{self.name}-{size}-{label}" + (f"-x{count}" if count > 1 else "")
            if op in POOLS:
                made.append(_pool(op, name, shape, *arguments, **options))
            elif op.startswith("conv"):
                made.append(conv._case(name, shape, *arguments, transposed="transpose" in op, **options))
            else:
                made.append(BUILDERS[op](name, shape))
        return made


def _bottlenecks(walk: _Walk, width: int, blocks: int, stride: int = 1, dilation: int = 1, first_dilation: int = 1) -> None:
    for block in range(blocks):
        before, s, d = walk.shape, stride if block == 0 else 1, first_dilation if block == 0 else dilation
        walk.conv(width, 1).conv(width, 3, stride=s, dilation=d).conv(4 * width, 1)
        if block == 0:
            after = walk.shape
            walk.at(*before).conv(4 * width, 1, stride=s).at(*after)


def resnet50(batch: int) -> _Walk:
    walk = _Walk("resnet50", batch, 3, 224, 224).conv(64, 7, stride=2).pool(3, 2, 1)
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        _bottlenecks(walk, width, blocks, stride)
    return walk.average(1).loss(1000)


def vgg16(batch: int) -> _Walk:
    walk = _Walk("vgg16", batch, 3, 224, 224)
    for width, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            walk.conv(width, 3, bias=True, normed=False)
        walk.pool(2, 2)
    return walk.average(7).at(batch, 512, 1, 1).loss(1000)


def mobilenet(batch: int) -> _Walk:
    walk = _Walk("mobilenet", batch, 3, 224, 224).conv(32, 3, stride=2)
    for expand, out, blocks, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(blocks):
            if expand > 1:
                walk.conv(expand * walk.shape[1], 1)
            walk.conv(walk.shape[1], 3, stride=stride if block == 0 else 1, groups=walk.shape[1]).conv(out, 1)
    return walk.conv(1280, 1).average(1).loss(1000)


def unet(batch: int) -> _Walk:
    walk = _Walk("unet", batch, 1, 256, 256)
    for width in (64, 128, 256, 512):
        walk.conv(width, 3, bias=True, normed=False).conv(width, 3, bias=True, normed=False).pool(2, 2)
    walk.conv(1024, 3, bias=True, normed=False).conv(1024, 3, bias=True, normed=False)
    for width in (512, 256, 128, 64):
        walk.up(width)
        n, _, h, w = walk.shape
        walk.at(n, 2 * width, h, w).conv(width, 3, bias=True, normed=False).conv(width, 3, bias=True, normed=False)
    return walk.conv(2, 1, bias=True, normed=False).loss(2)


def deeplab(batch: int) -> _Walk:
    walk = _Walk("deeplab", batch, 3, 512, 512).conv(64, 7, stride=2).pool(3, 2, 1)
    _bottlenecks(walk, 64, 3)
    _bottlenecks(walk, 128, 4, stride=2)
    _bottlenecks(walk, 256, 6, dilation=2)
    _bottlenecks(walk, 512, 3, dilation=4, first_dilation=2)
    features = walk.shape
    walk.conv(256, 1)
    for dilation in (12, 24, 36):
        walk.at(*features).conv(256, 3, dilation=dilation)
    walk.at(*features).average(1).conv(256, 1, normed=batch > 1)  # a batch norm cannot train on one value
    walk.at(batch, 5 * 256, *features[2:]).conv(256, 1).conv(256, 3).conv(21, 1, bias=True, normed=False)
    return walk.at(batch, 21, 512, 512).loss(21)


NETWORKS: dict[str, Callable[[int], _Walk]] = {f.__name__: f for f in (resnet50, vgg16, mobilenet, unet, deeplab)}


def network_cases(name: str, batch: int = 1) -> list[Case]:
    """The cases of a network's layers, in the order they first occur. Raises ValueError for an unknown network."""
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name](batch).cases()


def model_cases(name: str, model: nn.Module, *inputs: torch.Tensor) -> list[Case]:
    """The cases of the convolutions, pooling layers and norms that a model calls on these inputs. The model is run once."""
    walk = _Walk(name, 0)

    def keep(module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        given = next((t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)), None)
        if given is None or given.dim() != 4:
            return
        walk.shape = tuple(given.shape)
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
            options = {k: getattr(module, k) for k in ("stride", "padding", "dilation", "groups")}
            label = f"{module.out_channels}-k{'x'.join(map(str, module.kernel_size))}-s{module.stride[0]}"
            label += f"-g{module.groups}" if module.groups > 1 else ""
            walk._keep("conv2d", label, module.out_channels, module.kernel_size, **options, bias=module.bias is not None)
        elif isinstance(module, nn.BatchNorm2d):
            walk._keep("batch_norm", "train")
        elif isinstance(module, nn.MaxPool2d) and not module.ceil_mode and module.dilation == 1:
            walk._keep("max_pool2d", f"k{module.kernel_size}-s{module.stride}", module.kernel_size, module.stride, module.padding)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            walk._keep("adaptive_avg_pool2d", f"to-{module.output_size}", module.output_size)

    handles = [m.register_forward_hook(keep, with_kwargs=True) for m in model.modules() if next(m.children(), None) is None]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return walk.cases()


def flops_of(cases: Sequence[Case]) -> int:
    """Operations of one pass through these layers, each as often as its name says."""
    return sum(
        case.flops * int(math.prod(int(part[1:]) for part in case.name.split("-")[-1:] if part[:1] == "x" and part[1:].isdigit()))
        for case in cases
    )
