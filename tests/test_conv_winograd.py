"""Winograd convolution: every row on every geometry against float64, its promises, and when it is chosen.

F(2x2) is exact on small integers, as the direct rows are. F(4x2) and F(4x4) have irrational points; their bounds follow
from how much they amplify a rounding error (csrc/conv/conv_winograd_algebra.h: 3.5 and 7 times).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import fastcv
import fastcv.functional as ours
from fastcv.testing import cases_of, check_case, max_error, runnable_variants

CONV, DGRAD = torch.ops.fastcv.conv, torch.ops.fastcv.conv_dgrad
ROWS = [n for n in runnable_variants("conv") if n.startswith("winograd")]
EPS = torch.finfo(torch.float32).eps
BOUNDS = {"winograd2": 6 * EPS, "winograd4x2": 12 * EPS, "winograd4": 24 * EPS}

# input, outputs, padding, dilation, groups
LAYERS = {
    "whole-tiles": ((2, 16, 8, 8), 16, [1, 1], [1, 1], 1),
    "odd": ((2, 17, 9, 7), 33, [1, 1], [1, 1], 1),
    "vectors-over": ((1, 65, 13, 30), 49, [1, 1], [1, 1], 1),
    "no-padding": ((3, 20, 14, 13), 40, [0, 0], [1, 1], 1),
    "padding-over-kernel": ((1, 18, 5, 6), 20, [6, 5], [1, 1], 1),
    "asymmetric-padding": ((1, 6, 7, 8), 5, [1, 0, 2, 1], [1, 1], 1),
    "one-row": ((2, 24, 1, 67), 17, [1, 1], [1, 1], 1),
    "one-pixel": ((3, 19, 1, 1), 21, [1, 1], [1, 1], 1),
    "one-channel": ((1, 1, 11, 10), 3, [1, 1], [1, 1], 1),
    "dilated": ((2, 16, 23, 29), 16, [2, 3], [2, 3], 1),
    "dilation-12": ((1, 33, 28, 28), 18, [12, 12], [12, 12], 1),
    "groups": ((2, 32, 20, 23), 48, [3, 3], [1, 1], 2),
    "deep": ((1, 150, 7, 7), 70, [1, 1], [1, 1], 1),
    "many-tiles": ((1, 16, 60, 61), 20, [1, 1], [1, 1], 1),
}


def tensors(name: str, channels_last: bool, exact: bool) -> tuple[torch.Tensor, ...]:
    shape, k, *_, groups = LAYERS[name]
    generator = torch.Generator().manual_seed(len(name))

    def make(*sizes: int) -> torch.Tensor:
        return torch.randint(-2, 3, sizes, generator=generator).float() if exact else torch.randn(sizes, generator=generator)

    x, w, b = make(*shape), make(k, shape[1] // groups, 3, 3), make(k)
    return x.to(memory_format=torch.channels_last) if channels_last else x, w, b


def geometry(name: str) -> tuple[list[int], list[int], list[int], int]:
    _, _, padding, dilation, groups = LAYERS[name]
    return [1, 1], padding, dilation, groups


def assert_right(row: str, y: torch.Tensor, expected: torch.Tensor, exact: bool) -> None:
    if exact:
        assert torch.equal(y, expected)
    else:
        assert max_error(y, expected) <= BOUNDS[row.split("_")[0]]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("row", ROWS)
def test_equals_reference(row: str, name: str, channels_last: bool) -> None:
    exact = row.startswith("winograd2")
    x, w, b = tensors(name, channels_last, exact)
    with fastcv.use(conv="ref"):
        expected = CONV(x.double() if not exact else x, w.to(torch.float32 if exact else torch.float64), None, *geometry(name), None, 0, 0)
    for weight in (w, w.to(memory_format=torch.channels_last)):
        with fastcv.use(conv=row):
            y = CONV(x, weight, b, *geometry(name), None, 0, 0)
        assert_right(row, y, expected + b.view(-1, 1, 1), exact)
    gy = torch.empty_like(expected, dtype=torch.float32).copy_(
        torch.randint(-2, 3, expected.shape) if exact else torch.randn(expected.shape)
    )
    for extra in (0, 1):
        size = [s + extra for s in x.shape[2:]]
        with fastcv.use(conv_dgrad="ref"):
            expected_gx = DGRAD(gy if exact else gy.double(), w if exact else w.double(), None, size, *geometry(name), 0)
        for weight in (w, w.to(memory_format=torch.channels_last)):
            if max(geometry(name)[2]) > min(size):
                continue
            with fastcv.use(conv_dgrad=row):
                assert_right(row, DGRAD(gy, weight, None, size, *geometry(name), 0), expected_gx, exact)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("row", ROWS)
def test_epilogue(row: str, channels_last: bool) -> None:
    x, w, b = tensors("odd", channels_last, False)
    residual = torch.randn(2, 33, 9, 7)
    sums = F.conv2d(x.double(), w.double(), b.double(), padding=1) + residual.double()
    for code, function in enumerate((lambda v: v, F.relu, F.relu6, F.silu, F.hardswish, F.gelu)):
        with fastcv.use(conv=row):
            y = CONV(x, w, b, *geometry("odd"), residual, code, 0)
        assert (y - function(sums)).abs().max() / sums.abs().max() <= BOUNDS[row.split("_")[0]]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape,k", [((9, 40, 12, 13), 36), ((3, 16, 60, 61), 16), ((20, 33, 7, 7), 40)], ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_same_bits_for_any_batch_and_threads(
    row: str, shape: tuple[int, ...], k: int, channels_last: bool, threads: Callable[[int], None]
) -> None:
    # From one image to all of them, and with the threads, blocks of tiles change and both ways of sharing work occur.
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, w = torch.randn(shape).to(memory_format=layout), torch.randn(k, shape[1], 3, 3)
    layer = ([1, 1], [1, 1], [1, 1], 1)
    with fastcv.use(conv=row):
        y = CONV(x, w, None, *layer, None, 0, 0)
        for n in (1, 2, 5):
            threads(n)
            assert torch.equal(CONV(x, w, None, *layer, None, 0, 0), y)
            assert torch.equal(CONV(x[2:3].clone(memory_format=layout), w, None, *layer, None, 0, 0), y[2:3])


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["odd", "dilated", "groups", "padding-over-kernel"])
@pytest.mark.parametrize("row", ROWS)
def test_reads_nothing_but_its_tensors(row: str, name: str, channels_last: bool) -> None:
    def fenced(t: torch.Tensor) -> torch.Tensor:  # the same dense tensor with NaN before and behind it
        inside = torch.full((t.numel() + 256,), float("nan")).as_strided(t.shape, t.stride(), 128)
        return inside.copy_(t)

    x, w, b = map(fenced, tensors(name, channels_last, False))
    with fastcv.use(conv=row, conv_dgrad=row):
        y = CONV(x, w, b, *geometry(name), None, 0, 0)
        assert y.isfinite().all()
        assert DGRAD(fenced(y), w, None, list(x.shape[2:]), *geometry(name), 0).isfinite().all()


def test_says_what_it_lacks() -> None:
    x, w, layer = torch.ones(1, 16, 9, 9), torch.ones(16, 16, 3, 3), ([1, 1], [1, 1], [1, 1], 1)
    row = ROWS[-1]
    for text, args in {
        "needs float32": (x.double(), w.double(), None, *layer, None, 0, 0),
        "needs a 3x3 kernel": (x, w[..., :2], None, *layer, None, 0, 0),
        "needs stride 1": (x, w, None, [1, 2], *layer[1:], None, 0, 0),
        "needs one plane of depth": (x[:, :, None], w[:, :, None], None, [1] * 3, [1] * 3, [1] * 3, 1, None, 0, 0),
        "needs a dilation within the image": (x, w, None, [1, 1], [12, 12], [12, 12], 1, None, 0, 0),
        "the precision 'ieee' asks for a direct sum": (x, w, None, *layer, None, 0, 3),
    }.items():
        if "dilation" in text:
            args = (x[..., :3], *args[1:])
        with fastcv.use(conv=row), pytest.raises(ValueError, match=text):
            CONV(*args)


# ---- the choice ------------------------------------------------------------------------------------------------------------


def chosen(op: str, *args) -> str:
    function = {"conv": CONV, "conv_dgrad": DGRAD}[op]
    return next(name for o, name, reason in fastcv.why_not(function, *args) if o == op and reason == "")


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_deep_3x3_layers_take_it_whatever_the_batch(channels_last: bool) -> None:
    for c, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        w, layer = torch.randn(c, c, 3, 3), ([1, 1], [1, 1], [1, 1], 1)
        names = set()
        for n in (1, 3):
            x = torch.randn(n, c, size, size)
            x = x.to(memory_format=torch.channels_last) if channels_last else x
            names |= {chosen("conv", x, w, None, *layer, None, 0, 0), chosen("conv_dgrad", x, w, None, [size, size], *layer, 0)}
        assert len(names) == 1 and names.pop().startswith("winograd4"), (c, size)


def test_few_channels_and_other_kernels_do_not() -> None:
    layer = ([1, 1], [1, 1], [1, 1], 1)
    for x, w in (((1, 3, 64, 64), (64, 3, 3, 3)), ((1, 64, 32, 32), (64, 64, 1, 1)), ((1, 64, 32, 32), (4, 64, 3, 3))):
        assert chosen("conv", torch.randn(x), torch.randn(w), None, *layer, None, 0, 0).startswith("igemm")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", [c for c in cases_of("conv2d", bench=True) if "resnet50-3x3-" in c.name], ids=lambda c: c.id)
def test_real_layers_meet_the_accuracy_rule(case, layout: str) -> None:
    check_case(case, ours.conv2d, torch.float32, layout)


def test_ieee_keeps_nan_and_infinity_to_the_outputs_that_read_them() -> None:
    x, w = torch.randn(1, 64, 30, 30), torch.randn(64, 64, 3, 3)
    x[0, 5, 11, 13], x[0, 7, 20, 2] = float("nan"), float("inf")
    before = torch.backends.mkldnn.conv.fp32_precision
    try:
        torch.backends.mkldnn.conv.fp32_precision = "ieee"
        strict = ours.conv2d(x, w, padding=1)
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before
    read = torch.zeros(30, 30, dtype=torch.bool)
    read[10:13, 12:15] = read[19:22, 1:4] = True
    assert torch.equal(~strict[0].isfinite().all(0), read)
    # By default they may spread through a tile, no farther.
    near = F.max_pool2d(read[None].float(), 7, 1, 3)[0] > 0
    assert ours.conv2d(x, w, padding=1)[0][:, ~near].isfinite().all()
