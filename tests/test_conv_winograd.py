"""Winograd convolution: every row on every geometry against float64, its promises, and when it is chosen.

F(2x2) is exact on small integers, as the direct rows are. F(4x2) and F(4x4) have irrational points; their bounds follow
from how much they amplify a rounding error (csrc/conv/conv_winograd_algebra.h: 3.5 and 7 times).

Factors of two bfloat16 parts keep 2^-18 of their size at the worst, and the product of the low parts, 2^-18 of the whole at the
worst, is left out: 3 * 2^-18 = 1.1e-5 of a product, 8e-5 behind F(4x4). With the channels that it is chosen for, these errors
average out to 3e-5 to 4.5e-5 of the largest output; 6e-5 is the most of real layers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import fastcv
import fastcv.functional as ours
from fastcv.testing import cases_of, check_case, max_error, runnable_variants

CONV, DGRAD, CONV_PACK = torch.ops.fastcv.conv, torch.ops.fastcv.conv_dgrad, torch.ops.fastcv.conv_pack
ROWS = [n for n in runnable_variants("conv") if n.startswith("winograd")]
EPS = torch.finfo(torch.float32).eps
BOUNDS = {"winograd2": 6 * EPS, "winograd4x2": 12 * EPS, "winograd4": 24 * EPS}
PARTS = 7 * 3 * 2.0**-18  # of rows of two bfloat16 parts


def precision_of(row: str) -> int:
    return 1 if "_bf16x3_" in row else 0


def bound_of(row: str) -> float:
    return PARTS if "_bf16x3_" in row else BOUNDS[row.split("_")[0]]


PART_ROWS = [n for n in ROWS if precision_of(n) == 1]

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
        assert max_error(y, expected) <= bound_of(row)


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
            y = CONV(x, weight, b, *geometry(name), None, 0, precision_of(row))
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
                assert_right(row, DGRAD(gy, weight, None, size, *geometry(name), precision_of(row)), expected_gx, exact)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("row", ROWS)
def test_epilogue(row: str, channels_last: bool) -> None:
    x, w, b = tensors("odd", channels_last, False)
    residual = torch.randn(2, 33, 9, 7)
    sums = F.conv2d(x.double(), w.double(), b.double(), padding=1) + residual.double()
    for code, function in enumerate((lambda v: v, F.relu, F.relu6, F.silu, F.hardswish, F.gelu)):
        with fastcv.use(conv=row):
            y = CONV(x, w, b, *geometry("odd"), residual, code, precision_of(row))
        assert (y - function(sums)).abs().max() / sums.abs().max() <= bound_of(row)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape,k", [((9, 40, 12, 13), 36), ((3, 16, 60, 61), 16), ((20, 33, 7, 7), 40), ((3, 150, 9, 9), 100)], ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_same_bits_for_any_batch_and_threads(
    row: str, shape: tuple[int, ...], k: int, channels_last: bool, threads: Callable[[int], None]
) -> None:
    # From one image to all of them, and with the threads, blocks of tiles change and both ways of sharing work occur. Weights that
    # are not kept may be multiplied in several chunks (150 channels).
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, w = torch.randn(shape).to(memory_format=layout), torch.randn(k, shape[1], 3, 3)
    layer, precision = ([1, 1], [1, 1], [1, 1], 1), precision_of(row)
    with fastcv.use(conv=row):
        y = CONV(x, w, None, *layer, None, 0, precision)
        packed = CONV_PACK(x, w, *layer, precision)
        for n in (1, 2, 5):
            threads(n)
            one = x[2:3].clone(memory_format=layout)
            for kept in (None, packed):
                assert torch.equal(CONV(x, w, None, *layer, None, 0, precision, kept), y)
                assert torch.equal(CONV(one, w, None, *layer, None, 0, precision, kept), y[2:3])


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["odd", "dilated", "groups", "padding-over-kernel"])
@pytest.mark.parametrize("row", ROWS)
def test_reads_nothing_but_its_tensors(row: str, name: str, channels_last: bool) -> None:
    def fenced(t: torch.Tensor) -> torch.Tensor:  # the same dense tensor with NaN before and behind it
        inside = torch.full((t.numel() + 256,), float("nan")).as_strided(t.shape, t.stride(), 128)
        return inside.copy_(t)

    x, w, b = map(fenced, tensors(name, channels_last, False))
    with fastcv.use(conv=row, conv_dgrad=row):
        y = CONV(x, w, b, *geometry(name), None, 0, precision_of(row))
        assert y.isfinite().all()
        assert DGRAD(fenced(y), w, None, list(x.shape[2:]), *geometry(name), precision_of(row)).isfinite().all()


def test_says_what_it_lacks() -> None:
    x, w, layer = torch.ones(1, 16, 9, 9), torch.ones(16, 16, 3, 3), ([1, 1], [1, 1], [1, 1], 1)
    row = [n for n in ROWS if precision_of(n) == 0][-1]
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


@pytest.mark.parametrize("row", PART_ROWS)
def test_rows_of_parts_say_what_they_lack(row: str) -> None:
    x, w, layer = torch.ones(1, 16, 9, 9), torch.ones(16, 16, 3, 3), ([1, 1], [1, 1], [1, 1], 1)
    deep = torch.ones(1, 2049, 4, 4), torch.ones(1, 2049, 3, 3)
    for text, images, weights, precision in (
        ("needs float32 of precision high", x, w, 0),
        ("needs float32 of precision high", x, w, 3),
        ("needs float32 of precision high", x.half(), w.half(), 0),
        ("needs a 3x3 kernel", x, w[..., :2], 1),
        ("needs at most 2048 channels in a group", *deep, 1),
    ):
        with fastcv.use(conv=row), pytest.raises(ValueError, match=text):
            CONV(images, weights, None, *layer, None, 0, precision)


@pytest.mark.parametrize("value", ["inf", "nan", "nan of ones", "largest"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("row", ROWS)
def test_what_is_not_finite_stays_in_its_tile_and_channel(row: str, channels_last: bool, value: str) -> None:
    bits = {"inf": 0x7F800000, "nan": 0x7FC00000, "nan of ones": -1, "largest": 0x7F7FFFFF}[value]
    number = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    layer, precision = ([1, 1], [1, 1], [1, 1], 1), precision_of(row)
    x, w = torch.randn(1, 40, 13, 14), torch.randn(20, 40, 3, 3)
    with fastcv.use(conv=row):
        clean = CONV(x, w, None, *layer, None, 0, precision)
    bad_x, bad_w = x.clone(), w.clone()
    bad_x[0, 37, 5, 6] = number
    bad_w[3, 37, 1, 1] = number
    if channels_last:
        x, bad_x = (t.to(memory_format=torch.channels_last) for t in (x, bad_x))
    with fastcv.use(conv=row):
        y, z = CONV(bad_x, w, None, *layer, None, 0, precision), CONV(x, bad_w, None, *layer, None, 0, precision)
    if value != "largest":
        assert not y[:, :, 4:7, 5:8].isfinite().any() and not z[:, 3].isfinite().any()
    near = torch.zeros(13, 14, dtype=torch.bool)
    near[1:10, 2:11] = True
    assert torch.equal(y[..., ~near], clean[..., ~near])
    others = [k for k in range(20) if k != 3]
    assert torch.equal(z[:, others], clean[:, others])


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


@pytest.mark.skipif("winograd4_bf16x3_amx" not in ROWS, reason="needs AMX")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_three_products_take_it_where_maps_are_large(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def chosen_for(c: int, k: int, size: int, n: int, dilation: int = 1) -> str:
        x, w = torch.empty(n, c, size, size).to(memory_format=layout), torch.empty(k, c, 3, 3)
        here = ([1, 1], [dilation] * 2, [dilation] * 2, 1)
        return chosen("conv", x, w, None, *here, None, 0, 1)

    for n in (1, 8):
        for c, k, size in ((64, 64, 56), (128, 128, 28), (64, 64, 224), (128, 256, 56), (512, 512, 28), (512, 512, 20)):
            assert chosen_for(c, k, size, n) == "winograd4_bf16x3_amx", (c, k, size)
        for c, k, size in ((256, 256, 14), (512, 512, 14), (512, 512, 7), (3, 64, 224), (64, 8, 56), (32, 32, 28)):
            assert chosen_for(c, k, size, n).startswith("igemm"), (c, k, size)
    assert chosen_for(512, 512, 28, 1, dilation=4) == "winograd4_bf16x3_amx"
    assert chosen_for(64, 64, 50, 1, dilation=12) == "igemm_bf16x3_amx"  # tiles hold few pixels


def test_few_channels_and_other_kernels_do_not() -> None:
    layer = ([1, 1], [1, 1], [1, 1], 1)
    for x, w in (((1, 3, 64, 64), (64, 3, 3, 3)), ((1, 64, 32, 32), (64, 64, 1, 1)), ((1, 64, 32, 32), (4, 64, 3, 3))):
        assert chosen("conv", torch.randn(x), torch.randn(w), None, *layer, None, 0, 0).startswith("igemm")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", [c for c in cases_of("conv2d", bench=True) if "resnet50-3x3-" in c.name], ids=lambda c: c.id)
def test_real_layers_meet_the_accuracy_rule(case, layout: str) -> None:
    check_case(case, ours.conv2d, torch.float32, layout)


@pytest.mark.parametrize("row", PART_ROWS)
@pytest.mark.parametrize("c,k,size", [(64, 64, 56), (128, 128, 28)])
def test_real_layers_of_parts_err_by_less(row: str, c: int, k: int, size: int) -> None:
    x, w = torch.randn(1, c, size, size).to(memory_format=torch.channels_last), torch.randn(k, c, 3, 3)
    with fastcv.use(conv=row):
        y = CONV(x, w, None, [1, 1], [1, 1], [1, 1], 1, None, 0, 1)
    assert max_error(y, F.conv2d(x.double(), w.double(), padding=1)) <= 6e-5


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
