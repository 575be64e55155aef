"""The weight gradient by Winograd: every row on every geometry against float64, its promises, and when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_conv_winograd import BOUNDS, LAYERS, geometry

import fastcv
import fastcv.functional as ours
from fastcv.testing import Case, cases_of, check_case, max_error, runnable_variants

WGRAD = torch.ops.fastcv.conv_wgrad
ROWS = [n for n in runnable_variants("conv_wgrad") if n.startswith("winograd")]
LAST = [(False, False), (True, True), (True, False), (False, True)]


def tensors(name: str, x_last: bool, dy_last: bool, exact: bool) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """Input, output gradient and the other arguments of the raw op. exact: of small integers, whose sums round nowhere."""
    shape, k, *_ = LAYERS[name]
    stride, padding, dilation, groups = geometry(name)
    generator = torch.Generator().manual_seed(len(name))
    x = torch.randn(shape, generator=generator)
    y = torch.ops.fastcv.conv(x, torch.zeros(k, shape[1] // groups, 3, 3), None, stride, padding, dilation, groups, None, 0, 0)
    dy = torch.randn(y.shape, generator=generator)
    if exact:
        x, dy = x.round().clamp(-2, 2), dy.round().clamp(-2, 2)
    x, dy = (t.to(memory_format=torch.channels_last) if last else t for t, last in ((x, x_last), (dy, dy_last)))
    return x, dy, [[3, 3], stride, padding, dilation, groups, 0]


@pytest.mark.parametrize("last", LAST, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("row", ROWS)
def test_equals_reference(row: str, name: str, last: tuple[bool, bool]) -> None:
    exact = row.startswith("winograd2")
    x, dy, rest = tensors(name, *last, exact)
    with fastcv.use(conv_wgrad="ref"):
        expected = WGRAD(x.double(), dy.double(), *rest)
    with fastcv.use(conv_wgrad=row):
        dw = WGRAD(x, dy, *rest)
    assert dw.stride() == expected.stride()
    if exact:
        assert torch.equal(dw, expected.float())
    else:
        assert max_error(dw, expected) <= BOUNDS[row.split("_")[0]]


@pytest.mark.parametrize("last", LAST, ids=str)
@pytest.mark.parametrize("shape,k", [((9, 40, 12, 13), 150), ((3, 16, 60, 61), 16), ((2, 270, 7, 7), 20)], ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_same_bits_for_any_threads(
    row: str, shape: tuple[int, ...], k: int, last: tuple[bool, bool], threads: Callable[[int], None]
) -> None:
    x, dy = torch.randn(shape), torch.randn(shape[0], k, *shape[2:])
    x, dy = (t.to(memory_format=torch.channels_last) if e else t for t, e in zip((x, dy), last, strict=True))
    with fastcv.use(conv_wgrad=row):
        first, *others = [threads(n) or WGRAD(x, dy, [3, 3], [1, 1], [1, 1], [1, 1], 1, 0) for n in (1, 2, 5)]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("last", LAST, ids=str)
@pytest.mark.parametrize("name", ["odd", "dilated", "groups", "padding-over-kernel"])
@pytest.mark.parametrize("row", ROWS)
def test_reads_nothing_but_its_tensors(row: str, name: str, last: tuple[bool, bool]) -> None:
    def fenced(t: torch.Tensor) -> torch.Tensor:  # the same dense tensor with NaN before and behind it
        inside = torch.full((t.numel() + 256,), float("nan")).as_strided(t.shape, t.stride(), 128)
        return inside.copy_(t)

    x, dy, rest = tensors(name, *last, False)
    with fastcv.use(conv_wgrad=row):
        assert WGRAD(fenced(x), fenced(dy), *rest).isfinite().all()


def test_says_what_it_lacks() -> None:
    x, layer = torch.ones(1, 16, 9, 9), ([3, 3], [1, 1], [1, 1], [1, 1], 1)
    for text, args in {
        "needs float32": (x.double(), x.double(), *layer, 0),
        "the precision 'ieee' asks for a direct sum": (x, x, *layer, 3),
        "needs a 3x3 kernel": (x, x, [1, 1], [1, 1], [0, 0], [1, 1], 1, 0),
        "needs stride 1": (x, x[:, :, :5, :5].clone(), [3, 3], [2, 2], [1, 1], [1, 1], 1, 0),
        "needs a dilation within the image": (x, x, [3, 3], [1, 1], [20, 20], [20, 20], 1, 0),
        "needs one plane of depth": (x[:, :, None].expand(-1, -1, 2, -1, -1).clone(),) * 2
        + ([1, 3, 3], [1, 1, 1], [0, 1, 1], [1, 1, 1], 1, 0),
    }.items():
        with fastcv.use(conv_wgrad=ROWS[-1]), pytest.raises(ValueError, match=text):
            WGRAD(*args)


def chosen(x: torch.Tensor, k: int, precision: int = 0) -> str:
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    dy = torch.randn(x.shape[0], k, *x.shape[2:]).contiguous(memory_format=layout)
    args = x, dy, [3, 3], [1, 1], [1, 1], [1, 1], 1, precision
    found = next(name for op, name, reason in fastcv.why_not(WGRAD, *args) if op == "conv_wgrad" and not reason)
    return found.split("_")[0]


def test_is_chosen_where_it_is_as_exact_as_torch_and_costs_less() -> None:
    last = {"memory_format": torch.channels_last}
    x = torch.randn(2, 64, 56, 56)
    assert chosen(x, 64) == "winograd4"
    assert chosen(x.to(**last), 64) == "winograd2"
    assert chosen(torch.randn(8, 64, 56, 56).to(**last), 64) == "winograd4x2"
    assert chosen(torch.randn(1, 64, 8, 8).to(**last), 64) == chosen(torch.randn(8, 8, 32, 32), 64) == chosen(x, 64, precision=3) == "gemm"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", [c for c in cases_of("conv2d", bench=True) if "-3x3" in c.name], ids=lambda c: c.id)
def test_real_layers_meet_the_accuracy_rule(case: Case, layout: str) -> None:
    check_case(case, ours.conv2d, torch.float32, layout)
