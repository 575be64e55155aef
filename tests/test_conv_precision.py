"""Which bits convolutions give: for any threads and batch, by torch's precision switches, below the normal range."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastcv.functional as ours
from fastcv.functional import _conv_arguments as arguments

LAYERS = [
    {"x": (3, 16, 21, 19), "w": (24, 16, 3, 3), "stride": 1, "padding": 1, "groups": 1},
    {"x": (3, 3, 33, 30), "w": (16, 3, 7, 7), "stride": 2, "padding": 3, "groups": 1},
    {"x": (3, 40, 14, 15), "w": (72, 40, 1, 1), "stride": 1, "padding": 0, "groups": 1},
    {"x": (3, 48, 20, 20), "w": (48, 1, 3, 3), "stride": 1, "padding": 1, "groups": 48},
    {"x": (3, 32, 15, 15), "w": (32, 4, 3, 3), "stride": 2, "padding": 1, "groups": 8},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["row_major", "channels_last"])
@pytest.mark.parametrize("shapes", LAYERS, ids=lambda s: f"{s['w']}")
def test_bits_depend_neither_on_threads_nor_on_the_batch(shapes, memory_format, dtype, threads) -> None:
    x, w = (torch.randn(shapes[k]).to(dtype).to(memory_format=memory_format) for k in "xw")
    kwargs = {k: shapes[k] for k in ("stride", "padding", "groups")}
    x.requires_grad_()
    w.requires_grad_()

    def everything(x: torch.Tensor) -> list[torch.Tensor]:
        b = torch.zeros(w.shape[0], dtype=dtype, requires_grad=True)
        y = ours.conv2d(x, w, b, **kwargs)
        grads = torch.autograd.grad(y, (x, w, b), torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype))
        z = ours.conv_transpose2d(y.detach(), w.detach(), **kwargs)
        return [y.detach(), z, *grads]

    results = []
    for n in (1, 2, 5):
        threads(n)
        results.append(everything(x))
    for other in (*results[1:], everything(x)):
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    y, z, dx = results[0][:3]
    g = torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype)
    for i in range(len(x)):
        alone = ours.conv2d(x[i : i + 1], w, torch.zeros(w.shape[0], dtype=dtype), **kwargs)
        assert torch.equal(alone, y[i : i + 1])
        assert torch.equal(ours.conv_transpose2d(alone.detach(), w.detach(), **kwargs), z[i : i + 1])
        assert torch.equal(torch.autograd.grad(alone, x, g[i : i + 1])[0][i], dx[i])


def test_precision_follows_torchs_switches() -> None:
    x = torch.randn(1)
    before = torch.get_float32_matmul_precision(), torch.backends.mkldnn.conv.fp32_precision
    try:
        for setting, level in (("highest", 0), ("high", 1), ("medium", 2)):
            torch.set_float32_matmul_precision(setting)
            assert arguments.precision_of(x) == level
            assert arguments.precision_of(x.double()) == arguments.precision_of(x.half()) == 0
        for setting, level in (("ieee", 3), ("tf32", 1), ("bf16", 2)):
            torch.backends.mkldnn.conv.fp32_precision = setting
            assert arguments.precision_of(x) == level
            assert arguments.precision_of(x.double()) == (3 if setting == "ieee" else 0)
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before[1]
        torch.set_float32_matmul_precision(before[0])


@pytest.fixture
def ieee():
    """Sets the convolution's switch to "ieee"; restores it."""
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.mkldnn.conv.fp32_precision = before


def denormal_results(dtype: torch.dtype) -> list[Tensor]:
    """Forward, both gradients and a transposed convolution, whose every number lies below the normal range."""
    tiny = math.sqrt(torch.finfo(dtype).tiny) / 64
    x, w = (torch.full(size, tiny, dtype=dtype, requires_grad=True) for size in ((2, 16, 9, 9), (16, 16, 3, 3)))
    y = ours.conv2d(x, w)
    return [y.detach(), ours.conv_transpose2d(x, w).detach(), *torch.autograd.grad(y, (x, w), torch.full_like(y, tiny))]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_denormals_are_zeros_inside_the_kernels_only(dtype: torch.dtype, count: int, threads: Callable[[int], None]) -> None:
    threads(count)
    assert not any(t.any() for t in denormal_results(dtype))
    # What the threads compute for others afterwards is what it was before.
    left = torch.full((1 << 20,), torch.finfo(dtype).tiny, dtype=dtype)
    assert (left * 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ieee_keeps_denormals(dtype: torch.dtype, ieee: None, threads: Callable[[int], None]) -> None:
    for count in (1, 3):
        threads(count)
        for t in denormal_results(dtype):
            assert ((t > 0) & (t < torch.finfo(dtype).tiny)).all()
