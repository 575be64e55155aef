"""Layers: what a choice of a variant is made for. Which ones cases and models call, and a race for each: its arguments, the call
of fastcv's raw op, and the torch function that judges it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _ext, functional
from .._tuned import layer_numbers, layer_words
from ..testing import Case
from ..testing.cases._case import randn
from .roofs import DTYPES
from .values import MODES, Pass, Prepared, first, tensors

PRECISIONS = ("highest", "high", "medium", "ieee")  # csrc/conv/conv.h: enum Precision
KEPT = "kept"  # csrc/conv/conv.h: kWeightsWords


@dataclass(frozen=True)
class Layer:
    """numbers: what csrc/common/layer.h makes of it. batch: images in the call it was seen in. chosen: the variant it took there.
    where: the case or the model it was seen in.
    """

    op: str
    numbers: tuple[int, ...]
    batch: int
    chosen: str
    where: str

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """What makes two calls the same layer."""
        return self.op, self.numbers

    @property
    def words(self) -> dict[str, Any]:
        return layer_words(self.op, self.numbers)

    @property
    def packed(self) -> bool:
        """True if its weights are arranged beforehand, as in a model after ``fastcv.optimize``."""
        return self.words.get("weights") == KEPT

    @property
    def title(self) -> str:
        """In one line: conv 64x56x56 to 128x28x28, 3x3, stride 2, f32 channels_last."""
        w, dims = self.words, self.dims

        def size(values: Sequence[int]) -> str:
            return "x".join(str(values[d]) for d in dims)

        def unusual(name: str, word: str) -> str:
            values = {w[name][d] for d in dims}
            return f"{word} {values.pop() if len(values) == 1 else size(w[name])}" if values != {1} else ""

        parts = [
            f"{self.op} {w['input_channels']}x{size(w['input_size'])} to {w['output_channels']}x{size(w['output_size'])}",
            size(w["kernel_size"]),
            unusual("stride", "stride"),
            unusual("dilation", "dilation"),
            f"groups {w['groups']}" if w["groups"] > 1 else "",
            f"{w['dtype']} {w['layout']}",
            f"precision {w['precision']}" if w["precision"] != "highest" else "",
            "kept weights" if self.packed else "",
        ]
        return ", ".join(p for p in parts if p)

    @property
    def dims(self) -> tuple[int, ...]:
        """The spatial dims that matter: height and width, and depth where it is not a single plane."""
        w = self.words
        flat = w["padding"][0] == 0 and all(w[k][0] == 1 for k in ("input_size", "output_size", "kernel_size", "stride", "dilation"))
        return (1, 2) if flat else (0, 1, 2)


def recorded(call: Callable[[], Any]) -> list[tuple[str, tuple[int, ...], str]]:
    """(op, numbers, variant) of each layer that a call runs."""
    module = _ext.module()
    module.record_choices(True)
    try:
        call()
    finally:
        module.record_choices(False)
        module.take_recorded_choices()
    return [(op, tuple(numbers), variant) for op, numbers, variant in module.take_recorded_layers()]


def of_case(case: Case, dtype: torch.dtype, layout: str, mode: str, packed: bool = False) -> list[Layer]:
    """The layers that the forward pass (mode "fwd") or the backward pass ("bwd") of a case runs."""
    if mode not in MODES[:2]:
        raise ValueError(f"mode {mode!r} is none of {', '.join(MODES[:2])}")
    arguments = case.arguments(dtype, layout)
    call = Pass(case, getattr(functional, case.op), mode).on(arguments)()
    x = arguments[0][0]
    spatial = next((int(c) for c in case.op if c.isdigit()), 2)
    batch = x.shape[0] if x.dim() == spatial + 2 else 1
    found = [Layer(op, numbers, batch, variant, case.id) for op, numbers, variant in recorded(call)]
    return [with_kept_weights(layer) for layer in found] if packed and mode == "fwd" else found


def with_kept_weights(layer: Layer) -> Layer:
    """The layer with weights that are arranged beforehand, if it has weights."""
    words = layer.words
    return replace(layer, numbers=tuple(layer_numbers(layer.op, words | {"weights": KEPT}))) if "weights" in words else layer


def of_model(name: str, model: nn.Module, image: Tensor, modes: Sequence[str]) -> list[Layer]:
    """The layers that a model runs after ``fastcv.optimize``: mode "fwd" in inference, "bwd" in the backward pass of training.

    Raises ValueError if the model does not run on the image.
    """
    import copy

    from .. import optimize

    found: list[Layer] = []
    for mode in modes:
        network = copy.deepcopy(model).train(mode == "bwd")
        network = optimize(network, mode="training" if mode == "bwd" else "inference")
        output: list[Tensor] = []

        def forward(network: nn.Module = network, output: list[Tensor] = output) -> None:
            result = network(image)
            output.append(first(tensors(result)))

        try:
            with torch.set_grad_enabled(mode == "bwd"):
                if mode == "fwd":
                    rows = recorded(forward)
                else:
                    forward()
                    rows = recorded(lambda output=output: output[0].sum().backward())
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"{name} does not run on {'x'.join(map(str, image.shape))}: {str(error).partition(chr(10))[0]}") from None
        found += [Layer(op, numbers, image.shape[0], variant, name) for op, numbers, variant in rows]
    return found


def distinct(layers: Sequence[Layer]) -> list[Layer]:
    """Each layer once, as it was first seen."""
    kept: dict[Any, Layer] = {}
    for layer in layers:
        kept.setdefault(layer.key, layer)
    return list(kept.values())


# ---- a race for a layer ------------------------------------------------------------------------------------------------


class Call(Prepared):
    """fastcv's raw op on a layer; with ``pack`` the weights are arranged before the clock starts."""

    def __init__(self, run: Callable[..., Tensor], pack: Callable[..., Tensor] | None) -> None:
        self._run, self._pack = run, pack

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self._run(a, b)

    def prepare(self, a: Tensor, b: Tensor) -> Callable[[], Tensor]:
        """What is not timed; returns what is."""
        if self._pack is None:
            return lambda: self._run(a, b)
        packed = self._pack(a, b)
        return lambda: self._run(a, b, packed)


def race_of(layer: Layer) -> tuple[Case, Call]:
    """The case of a layer (two tensors in the layer's layouts, judged by a torch function) and fastcv's call on it."""
    w, nd = layer.words, len(layer.dims)
    part = {k: [w[k][d] for d in layer.dims] for k in ("input_size", "output_size", "kernel_size", "stride", "dilation", "padding")}
    inputs, outputs, kernel, stride, dilation, before = part.values()
    groups, precision = w["groups"], PRECISIONS.index(w["precision"])
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    ops = torch.ops.fastcv

    if layer.op == "conv_dgrad":
        # y is the input of a convolution whose output is x: torch's transposed convolution, cut or filled to the size.
        shapes = ([layer.batch, w["input_channels"], *inputs], [w["input_channels"], w["output_channels"] // groups, *kernel])
        full = [(i - 1) * s + r for i, s, r in zip(inputs, stride, reach, strict=True)]
        cut = [(-b, o + b - f) for b, o, f in zip(before, outputs, full, strict=True)]

        def judge(x: Tensor, weight: Tensor) -> Tensor:
            transposed = getattr(F, f"conv_transpose{nd}d")
            return F.pad(transposed(x, weight, None, stride, 0, 0, groups, dilation), [v for pair in reversed(cut) for v in pair])

        geometry = (stride, before, dilation, groups, precision)
        call = Call(
            lambda x, weight, packed=None: ops.conv_dgrad(x, weight, None, outputs, *geometry, packed),
            (lambda x, weight: ops.conv_dgrad_pack(x, weight, outputs, *geometry)) if layer.packed else None,
        )
        products = math.prod(inputs)
    else:
        after = [max(0, (o - 1) * s + r - i - b) for o, s, r, i, b in zip(outputs, stride, reach, inputs, before, strict=True)]
        borders = [v for pair in reversed(list(zip(before, after, strict=True))) for v in pair]
        weight_shape = [w["output_channels"], w["input_channels"] // groups, *kernel]
        image = [layer.batch, w["input_channels"], *inputs]

        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            y = getattr(F, f"conv{nd}d")(F.pad(x, borders), weight, None, stride, 0, dilation, groups)
            return y[(..., *(slice(o) for o in outputs))]

        if layer.op == "conv":
            shapes = (image, weight_shape)
            geometry = (stride, [*before, *after], dilation, groups)
            judge = convolve
            call = Call(
                lambda x, weight, packed=None: ops.conv(x, weight, None, *geometry, None, 0, precision, packed),
                (lambda x, weight: ops.conv_pack(x, weight, *geometry, precision)) if layer.packed else None,
            )
        else:
            shapes = (image, [layer.batch, w["output_channels"], *outputs])

            def judge(x: Tensor, grad: Tensor) -> Tensor:
                with torch.enable_grad():
                    weight = torch.zeros(weight_shape, dtype=x.dtype, requires_grad=True)
                    return torch.autograd.grad(convolve(x.detach(), weight), weight, grad)[0]

            call = Call(lambda x, grad: ops.conv_wgrad(x, grad, kernel, stride, before, dilation, groups, precision), None)
        products = math.prod(outputs)

    layouts = (w["layout"], w["gradient_layout"] if layer.op == "conv_wgrad" else w["weight_layout"])
    scale = 1.0 if layer.op == "conv_wgrad" else max(1, shapes[1][1] * math.prod(kernel)) ** -0.5

    def build(generator: torch.Generator) -> Any:
        made = [randn(generator, *shapes[0]), (randn(generator, *shapes[1]) * scale).half().double()]
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return tuple(t.to(memory_format=formats[t.dim()]) if v == "channels_last" else t for t, v in zip(made, layouts, strict=True)), {}

    flops = 2 * layer.batch * products * math.prod(kernel) * w["input_channels"] * w["output_channels"] // groups
    dtype = DTYPES[w["dtype"]]
    return Case(f"conv{nd}d", layer.title, build, peer=judge, flops=flops, layouts=("contiguous",), dtypes=(dtype,)), call
