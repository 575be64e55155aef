"""Convolution layers of known networks: torch's own table (cuDNN) with fastcv's kernels beside it, in three passes and two precisions.

A task is a layer in a precision and a pass. Its rows: torch in both layouts with cudnn.benchmark, torch.compile (forward only: a gradient
alone would be the same call), a replayed graph of the faster layout's call, and every fastcv kernel that can run it, on channels_last
tensors; interleaved, on data that changes from call to call and together does not fit into the second-level cache. The error is that of
the timed call against float64 by the Frobenius norm; more than twice torch's own is wrong. The floor is what the ceilings allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

import fastcv
from fastcv import _ext

from . import device as dev
from .results import Key, Row

COLUMNS = ("layer", "dtype", "pass", "contender", "us", "tflops", "floor_us", "of_roof", "error", "wrong")
KEY, LIMIT, JOBS = ("layer", "dtype", "pass"), 90.0, 1
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32}
PASSES = ("forward", "input gradient", "weight gradient")
RAW = {"forward": "conv", "input gradient": "conv_dgrad", "weight gradient": "conv_wgrad"}


@dataclass(frozen=True)
class Layer:
    n: int
    c: int
    size: int
    k: int
    kernel: int
    stride: int = 1
    pad: int = 0
    groups: int = 1
    transposed: bool = False

    @property
    def out(self) -> int:
        if self.transposed:
            return (self.size - 1) * self.stride - 2 * self.pad + self.kernel
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def flops(self) -> int:
        pixels = self.size if self.transposed else self.out
        return 2 * self.n * pixels**2 * self.kernel**2 * self.c * self.k // self.groups

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of input, weight and output."""
        weight = (self.c, self.k // self.groups) if self.transposed else (self.k, self.c // self.groups)
        return (self.n, self.c, self.size, self.size), (*weight, self.kernel, self.kernel), (self.n, self.k, self.out, self.out)


# ResNet-50, VGG-16, U-Net (unpadded), MobileNet V1 and V2, ConvNeXt, ResNeXt: batches that fill a large GPU, and one image that does not.
LAYERS = {
    "resnet50 stem 7x7 s2 3-64 @224": Layer(64, 3, 224, 64, 7, 2, 3),
    "resnet50 1x1 256-64 @56": Layer(64, 256, 56, 64, 1),
    "resnet50 3x3 64 @56": Layer(64, 64, 56, 64, 3, 1, 1),
    "resnet50 3x3 256 @14": Layer(64, 256, 14, 256, 3, 1, 1),
    "resnet50 3x3 s2 128 @56": Layer(64, 128, 56, 128, 3, 2, 1),
    "resnet50 3x3 512 @7, one image": Layer(1, 512, 7, 512, 3, 1, 1),
    "vgg16 3x3 64 @224": Layer(64, 64, 224, 64, 3, 1, 1),
    "vgg16 3x3 256 @56": Layer(64, 256, 56, 256, 3, 1, 1),
    "unet 3x3 64 @568": Layer(4, 64, 568, 64, 3),
    "unet 3x3 1024-512 @56": Layer(4, 1024, 56, 512, 3, 1, 1),
    "unet up 2x2 s2 1024-512 @28": Layer(4, 1024, 28, 512, 2, 2, transposed=True),
    "mobilenet depthwise 3x3 512 @14": Layer(256, 512, 14, 512, 3, 1, 1, 512),
    "mobilenet depthwise 3x3 144 @56": Layer(256, 144, 56, 144, 3, 1, 1, 144),
    "convnext depthwise 7x7 384 @14": Layer(256, 384, 14, 384, 7, 1, 3, 384),
    "resnext 3x3 256 groups 32 @28": Layer(256, 256, 28, 256, 3, 1, 1, 32),
}


def plan(options: dict[str, Any]) -> list[Key]:
    return [{"layer": name, "dtype": dtype, "pass": p} for p in PASSES for dtype in DTYPES for name in LAYERS]


def small(layer: Layer) -> Layer:
    """For the emulator: the same kind of layer, tiny."""
    groups = 1 if layer.groups == 1 else 16 if layer.groups == layer.c else 2
    return replace(layer, n=1, c=min(layer.c, 16), k=min(layer.k, 16), size=9, groups=groups)


Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # input, weight, gradient of the output


def torchs(layer: Layer, which: str) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    geometry = ([layer.stride] * 2, [layer.pad] * 2, [1, 1], layer.transposed, [0, 0], layer.groups)
    if which == "forward":
        return lambda x, w, g: torch.ops.aten.convolution(x, w, None, *geometry)
    mask = [which == "input gradient", which == "weight gradient", False]
    i = mask.index(True)
    return lambda x, w, g: torch.ops.aten.convolution_backward(g, x, w, None, *geometry, mask)[i]


def ours(layer: Layer, which: str, precision: int) -> tuple[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]:
    """(the raw op, its call): of a transposed convolution, forward and input gradient change places."""
    geometry = ([layer.stride] * 2, [layer.pad] * 2, [1, 1], layer.groups)
    raw = {"conv": "conv_dgrad", "conv_dgrad": "conv"}.get(RAW[which], RAW[which]) if layer.transposed else RAW[which]
    op, to = _ext.op(raw), layer.out if which == "forward" else layer.size
    if raw == "conv":
        return raw, lambda x, w, g: op(x if which == "forward" else g, w, None, *geometry, None, 0, precision)
    if raw == "conv_dgrad":
        return raw, lambda x, w, g: op(x if which == "forward" else g, w, None, [to, to], *geometry, precision)
    kernel = [layer.kernel] * 2
    return raw, lambda x, w, g: op(g, x, kernel, *geometry, precision) if layer.transposed else op(x, g, kernel, *geometry, precision)


def run(key: Key, options: dict[str, Any]) -> list[Row]:
    device, which, layer = dev.name_of(options), key["pass"], LAYERS[key["layer"]]
    on_gpu, dtype = device == "cuda", DTYPES[key["dtype"]]
    layer = layer if on_gpu else small(layer)
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.conv.fp32_precision = "tf32"
    shapes = layer.shapes()
    held = sum(torch.Size(s).numel() for s in shapes) * dtype.itemsize
    sets: list[Tensors] = []
    for _ in range(max(2, min(6, 3 * dev.L2_BYTES // 4 // held + 1)) if on_gpu else 1):
        x, w, g = (torch.randn(s, device=device) for s in shapes)
        made = (x, w * (layer.c // layer.groups * layer.kernel**2) ** -0.5, g)
        sets.append(tuple(t.to(dtype).to(memory_format=torch.channels_last) for t in made))
    row_major = [tuple(t.contiguous() for t in s) for s in sets[:2]]
    theirs = torchs(layer, which)
    raw, mine = ours(layer, which, 1 if key["dtype"] == "tf32" else 0)

    def bound(function: Callable[..., Any], data: Any) -> list[Callable[[], Any]]:
        return [lambda s=s: function(*s) for s in data]

    def forced(row: str) -> Callable[..., Any]:
        def call(*tensors: torch.Tensor) -> torch.Tensor:
            with fastcv.use(**{raw: row}):
                return mine(*tensors)

        return call

    calls = {"torch NCHW": bound(theirs, row_major), "torch channels_last": bound(theirs, sets)}
    unable: dict[str, str] = {}
    if on_gpu and which == "forward":
        calls["torch.compile"] = bound(torch.compile(theirs, dynamic=False), sets)
    for row, needs in fastcv.variants(raw):
        if not needs.startswith("sm") or row.startswith("direct"):
            continue
        try:
            forced(row)(*sets[0])
            dev.wait(device)
            calls[f"fastcv {row}"] = bound(forced(row), sets)
        except (RuntimeError, ValueError) as error:
            if "cannot run this call" not in str(error):
                unable[f"fastcv {row}"] = dev.one_line(error)
            dev.wait(device)  # raises where the GPU is lost
    if on_gpu:
        for name in ("torch channels_last", next((n for n in calls if n.startswith("fastcv")), "")):
            try:
                calls[f"{name} graph"] = [dev.captured(call)[0] for call in calls[name]]
            except Exception as error:  # without a graph
                unable[f"{name} graph"] = dev.one_line(error)
    reference, errors = theirs(*(t.double() for t in sets[0])), {}
    for name, contender in calls.items():
        if not name.endswith("graph"):
            difference = contender[0]().double() - reference
            errors[name] = float(difference.norm() / reference.norm())
    del reference
    times, failed = dev.race(calls, device, options["seconds"])
    ceilings = options["ceilings"]
    rate, copy = ceilings.get(f"matmul {key['dtype']}", 0.0) * 1e12, ceilings.get("copy", 0.0) * 1e9
    floor = max(layer.flops / rate, held / copy) if rate and copy else 0.0
    allowed = 2 * errors.get("torch channels_last", 0.0) + torch.finfo(dtype).eps * (2**13 if key["dtype"] == "tf32" else 1)
    rows: list[Row] = []
    for name in [*calls, *unable]:
        row: Row = {
            "contender": name,
            "floor_us": round(floor * 1e6, 2) if floor else "",
            "failed": failed.get(name) or unable.get(name, ""),
        }
        if name in times:
            row |= {"us": round(times[name] * 1e6, 2), "tflops": f"{layer.flops / times[name] / 1e12:.4g}"}
            row["of_roof"] = f"{floor / times[name]:.3g}" if floor else ""
        if name in errors:
            row["error"] = f"{errors[name]:.3g}"
            if name.startswith("fastcv") and not errors[name] <= allowed:
                row["wrong"] = f"error {errors[name]:.3g}, allowed {allowed:.3g}"
        rows.append(row)
    return rows
