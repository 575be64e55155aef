"""Every instruction wrapper against the rule that its model on the emulator follows: equal in every element, or the row says which is not.

tma_tile: a tile by the tensor memory accelerator as it lies in shared memory, for corners, strides, dilations, tails of channels,
pixels and images, with and without the correction of small tensors' descriptors. tile_product: integers through ldmatrix, mma.sync and
wgmma descriptors; and random numbers, whose error shows how a tensor core adds up. step_chain, cache_read: what the ceilings are read off.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

import fastcv
from fastcv import _ext
from fastcv.bench import probes

from . import device as dev
from .results import Key, Row

COLUMNS, KEY, LIMIT, JOBS = ("op", "row", "call", "elements", "differ", "first", "error", "wrong"), ("op", "row", "call"), 60.0, 1

# Name: image [n, h, w, c], kernel (height, width), stride, padding (top, bottom, left, right), dilation; then the output
# pixel that a tile begins with, its tap (row, column), first channel and pixels.
IM2COL = {
    "3x3": ((2, 9, 8, 64), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 0, (0, 0), 0, 64),
    "3x3 last tap": ((2, 9, 8, 64), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 5, (2, 2), 0, 64),
    "padded above": ((1, 10, 12, 64), (3, 3), (1, 1), (2, 0, 0, 0), (1, 1), 0, (0, 1), 0, 32),
    "padded left": ((1, 10, 12, 64), (3, 3), (1, 1), (0, 0, 2, 0), (1, 1), 0, (1, 0), 0, 32),
    "padded below": ((1, 10, 12, 64), (3, 3), (1, 1), (0, 2, 0, 0), (1, 1), 60, (2, 1), 0, 64),
    "padded right": ((1, 10, 12, 64), (3, 3), (1, 1), (0, 0, 0, 2), (1, 1), 4, (1, 2), 0, 64),
    "stride 2": ((3, 11, 13, 64), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 7, (2, 1), 0, 128),
    "stride 3 x 1": ((2, 13, 9, 64), (3, 2), (3, 1), (1, 1, 0, 0), (1, 1), 3, (1, 1), 0, 64),
    "dilation 3 x 2": ((1, 15, 14, 64), (3, 3), (1, 1), (3, 3, 2, 2), (3, 2), 20, (2, 2), 0, 64),
    "5x5": ((1, 9, 9, 64), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 33, (4, 0), 0, 64),
    "tail of channels": ((2, 7, 7, 72), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 10, (1, 1), 64, 64),
    "8 channels": ((2, 7, 7, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 10, (0, 2), 0, 64),
    "beyond the last image": ((1, 6, 6, 64), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 30, (1, 1), 0, 128),
    "256 pixels": ((4, 12, 12, 64), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 100, (0, 0), 0, 256),
    "over 128 KiB": ((4, 32, 32, 64), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1020, (2, 0), 0, 128),
    "1x1 stride 2": ((2, 14, 14, 64), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 40, (0, 0), 0, 64),
}
# Tensor [n, h, w, c] as [n * h][w][c]: at (channel, column, row), pixels.
BOXES = {
    "weights 3x3": ((128, 1, 9, 64), (0, 4, 0), 128),
    "tail of channels": ((128, 1, 9, 72), (64, 8, 0), 128),
    "tail of rows": ((70, 1, 4, 64), (0, 1, 16), 64),
    "over 128 KiB": ((256, 1, 9, 64), (0, 3, 120), 128),
}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def plan(options: dict[str, Any]) -> list[Key]:
    products = itertools.product(_rows("tile_product"), ("bf16", "f16", "f32"), ("integers", "random"))
    keys = [("tile_product", row, f"{dtype} {data}") for row, dtype, data in products if row.startswith("tf32") == (dtype == "f32")]
    keys += [("step_chain", row, "two blocks") for row in _rows("step_chain")] + [
        ("cache_read", row, "small") for row in _rows("cache_read")
    ]
    for row in _rows("tma_tile"):
        for corrected in ("corrected", "as encoded"):
            keys += [("tma_tile", row, f"im2col {name} {dtype} {corrected}") for name in IM2COL for dtype in DTYPES]
            keys += [("tma_tile", row, f"box {name} bf16 {corrected}") for name in BOXES]
    return [{"op": op, "row": row, "call": call} for op, row, call in keys]


def _rows(op: str) -> list[str]:
    return [name for name, needs in fastcv.variants(op) if needs.startswith("sm")]


def im2col_arguments(name: str) -> tuple[Any, ...]:
    """The arguments of tma_tile, after the image, for an entry of IM2COL: as csrc/conv/conv_igemm_sm90.cu makes them."""
    (_, h, w, _), (kh, kw), (sh, sw), (top, bottom, left, right), (dh, dw), first, (r, s), c, pixels = IM2COL[name]
    out_h, out_w = (h + top + bottom - dh * (kh - 1) - 1) // sh + 1, (w + left + right - dw * (kw - 1) - 1) // sw + 1
    upper = [(out_w - 1) * sw + 1 - w - left, (out_h - 1) * sh + 1 - h - top]
    column, row, image = first % out_w, first // out_w % out_h, first // out_w // out_h
    return [c, column * sw - left, row * sh - top, image], [s * dw, r * dh], [-left, -top], upper, [sw, sh], pixels, True


def arguments(op: str, call: str) -> list[Any]:
    """Of a raw op, on the CPU."""
    g = torch.Generator().manual_seed(0)
    if op == "step_chain":
        return [torch.randint(-100, 100, (2 * probes.CHAIN_TILE,), generator=g).float(), 8]
    if op == "cache_read":
        return [torch.randint(-3, 4, (6 * probes.READ_STEP,), generator=g).float(), 5, 2]
    if op == "tile_product":
        dtype, data = call.split()
        shapes = ((64, 64), (128, 64))
        made = [torch.randint(-8, 9, s, generator=g).double() if data == "integers" else torch.randn(s, generator=g) for s in shapes]
        return [m.to(dev.DTYPES[dtype]) for m in made]
    kind, rest = call.split(" ", 1)
    corrected = rest.endswith(" corrected")
    name, dtype = rest.removesuffix(" corrected").removesuffix(" as encoded").rsplit(" ", 1)
    if kind == "im2col":
        shape, values = IM2COL[name][0], list(im2col_arguments(name))
    else:
        shape, (c, column, row), pixels = BOXES[name]
        values = [[c, column, row, 0], [0, 0], [0, 0], [0, 0], [1, 1], pixels, False]
    image = torch.randint(1, 128, shape, generator=g).to(DTYPES[dtype])  # never 0, which is what lies outside
    return [image, *values, corrected]


def run(key: Key, options: dict[str, Any]) -> list[Row]:
    device, op = dev.name_of(options), _ext.op(key["op"])
    args = arguments(key["op"], key["call"])
    with fastcv.use(**{key["op"]: "ref"}):
        expected = op(*args)
    with dev.poisoned_outputs(), fastcv.use(**{key["op"]: key["row"]}):
        got = op(*(dev.there(a, device) for a in args)).cpu()
    differ = (got.double() != expected.double()).flatten()
    row: Row = {"elements": differ.numel(), "differ": int(differ.sum())}
    if "random" in key["call"]:  # rounding is the hardware's own; tf32 has 11 bits of operands, 16-bit products are exact in float
        row["error"] = f"{float((got.double() - expected.double()).norm() / expected.double().norm()):.3g}"
        allowed = 1e-3 if "f32" in key["call"] else 1e-5
        return [row | {"wrong": "" if float(row["error"]) <= allowed else f"error {row['error']}, allowed {allowed}"}]
    if not row["differ"]:
        return [row]
    at = int(differ.nonzero()[0])
    row["first"] = f"[{at // got.shape[-1]}, {at % got.shape[-1]}]: {got.flatten()[at].item()}, expected {expected.flatten()[at].item()}"
    wrong = "" if "as encoded" in key["call"] else f"{row['differ']} of {row['elements']} elements differ, first {row['first']}"
    return [row | {"wrong": wrong}]
