"""The matrix-tile kernels of csrc/conv and the software model of the tiles that they are tested on.

The kernels' own source runs on the model as the variants *_amxmodel_avx512, on the hardware as *_amx; every test of
variants (test_conv_kernels.py) runs both where the CPU can.
"""

from __future__ import annotations

import copy
import ctypes
import os
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastcv
from fastcv.testing import assert_close, max_error, runnable_variants

CONV, DGRAD = torch.ops.fastcv.conv, torch.ops.fastcv.conv_dgrad
CSRC = Path(__file__).parents[1] / "csrc"
# test_conv_winograd.py and test_conv_subpixel.py have the rows that do not sum directly.
ROWS = [name for name in runnable_variants("conv") if "_amx" in name and name.startswith("igemm_")]
GEOMETRY = ([1, 1], [1, 1], [1, 1], 1)

# ---- the model ------------------------------------------------------------------------------------------------------

HARNESS = """
#define FASTCV_ISA model
#define FASTCV_TILE_MODEL
#include "common/amx.h"
using namespace fastcv::model;
static thread_local char message[200];
template <class F> static const char* guarded(F f) {
  try { f(); } catch (const std::logic_error& e) { std::strncpy(message, e.what(), 199); return message; }
  return "";
}
extern "C" {
const char* configure(const TileConfig* c) { return guarded([&] { Tiles::configure(*c); }); }
const char* product(const void* a, const void* b, void* c) {
  return guarded([&] {
    Tiles::load<0>(c, 64); Tiles::load<1>(a, 64); Tiles::load<2>(b, 64);
    Tiles::multiply_add_bf16<0, 1, 2>();
    Tiles::store<0>(c, 64);
  });
}
const char* unconfigured() { return guarded([] { Tiles::release(); Tiles::zero<3>(); }); }
}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None or not CSRC.exists():
        pytest.skip("needs a C++ compiler and the sources")
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.cpp").write_text(HARNESS)
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{CSRC}", "model.cpp", "-o", "model.so"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "model.so"))
    for name in ("configure", "product", "unconfigured"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def config(rows: list[int], row_bytes: list[int], palette: int = 1, start_row: int = 0, reserved: int = 0) -> bytes:
    rows, row_bytes = rows + [0] * (16 - len(rows)), row_bytes + [0] * (16 - len(row_bytes))
    return struct.pack("<BB14s16H16B", palette, start_row, bytes([reserved]) * 14, *row_bytes, *rows)


def float32(x: Fraction) -> Fraction:
    """x rounded to the nearest float32, numbers below the normal range to zero."""
    if x == 0:
        return x
    exponent = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - 23)
    rounded = round(x / unit) * unit  # round() takes ties to even
    return rounded if abs(rounded) >= Fraction(2) ** -126 else Fraction(0)


def documented(a: torch.Tensor, b: torch.Tensor, c: float) -> float:
    """One element: the even and the odd products in chains of their own, then their sum, then c."""
    chains = [Fraction(0), Fraction(0)]
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        x, y = (float32(Fraction(v)) for v in (x, y))
        chains[i % 2] = float32(x * y + chains[i % 2])
    return float(float32(Fraction(c) + float32(chains[0] + chains[1])))


@pytest.mark.parametrize("scale", [1.0, 2.0**-62, 2.0**-125])
def test_the_model_rounds_as_documented(model: ctypes.CDLL, scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(shape, generator=g) for shape in ((16, 32), (16, 32), (16, 16)))
    a, b, c = (a * scale).bfloat16(), b.bfloat16(), (c * scale).contiguous()
    assert model.configure(config([16] * 8, [64] * 8)) == b""
    y = c.clone()
    assert model.product(*(ctypes.c_void_p(t.data_ptr()) for t in (a, b, y))) == b""
    right = b.view(16, 16, 2).permute(1, 0, 2).reshape(16, 32)  # [n][2 * k + i]
    for m, n in [(0, 0), (3, 7), (15, 15), (8, 1), (0, 15)]:
        assert y[m, n].item() == documented(a[m].double(), right[n].double(), c[m, n].item()), (m, n)
    if scale == 1:
        assert max_error(y, c.double() + a.double() @ right.double().T) < 1e-6


def test_the_model_computes_what_its_config_says(model: ctypes.CDLL) -> None:
    assert model.configure(config([5, 5, 3], [28, 12, 28])) == b""
    a, b, c = torch.ones(16, 32).bfloat16(), torch.ones(16, 32).bfloat16(), torch.zeros(16, 16)
    assert model.product(*(ctypes.c_void_p(t.data_ptr()) for t in (a, b, c))) == b""
    expected = torch.zeros(16, 16)
    expected[:5, :7] = 6  # three pairs
    assert torch.equal(c, expected)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (config([16] * 8, [64] * 8, palette=2), b"palette"),
        (config([16] * 8, [64] * 8, start_row=1), b"row 0"),
        (config([16] * 8, [64] * 8, reserved=1), b"reserved"),
        (config([17], [64]), b"at most 16 rows"),
        (config([16], [65]), b"at most 64 bytes"),
        (config([16] * 9, [64] * 9), b"eight tiles"),
        (config([16], [0]), b"rows and columns or none"),
    ],
)
def test_the_model_refuses_bad_configs(model: ctypes.CDLL, bad: bytes, why: bytes) -> None:
    assert why in model.configure(bad)


@pytest.mark.parametrize(
    ("rows", "row_bytes", "why"),
    [
        ([16, 15, 16], [64, 64, 64], b"different numbers of rows"),
        ([16, 16, 16], [32, 64, 64], b"different widths"),
        ([16, 16, 15], [64, 64, 64], b"a pair for each row"),
        ([16, 16, 16], [62, 64, 62], b"four bytes"),
        ([16, 16], [64, 64], b"not configured"),
    ],
)
def test_the_model_refuses_bad_shapes(model: ctypes.CDLL, rows: list[int], row_bytes: list[int], why: bytes) -> None:
    assert model.configure(config(rows, row_bytes)) == b""
    tile = ctypes.create_string_buffer(1024)
    assert why in model.product(tile, tile, tile)
    assert b"not configured" in model.unconfigured()


# ---- the kernels ----------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def conv(variant: str, x: torch.Tensor, w: torch.Tensor, precision: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    with fastcv.use(conv=variant):
        return CONV(x, w, bias, *GEOMETRY, None, 0, precision)


@pytest.mark.parametrize("variant", ROWS)
def test_they_are_chosen_for_what_they_are_for(variant: str) -> None:
    x, w = normal(1, 32, 5, 5), normal(16, 32, 3, 3, seed=1)
    wanted = {"bf16": [(torch.bfloat16, 0), (torch.float32, 2)], "bf16x3": [(torch.float16, 0), (torch.float32, 1), (torch.float32, 2)]}
    wanted["bf16x6"] = [(torch.float32, precision) for precision in range(3)]
    takes = wanted[variant.split("_")[1]]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for precision in range(3) if dtype == torch.float32 else [0]:
            if (dtype, precision) in takes:
                conv(variant, x.to(dtype), w.to(dtype), precision)
            else:
                with pytest.raises(ValueError, match="cannot run this call: needs"):
                    conv(variant, x.to(dtype), w.to(dtype), precision)
    if "model" in variant or "bf16x6" in variant:
        x, w = x.bfloat16() if "_bf16_" in variant else x, w.bfloat16() if "_bf16_" in variant else w
        reasons = {name: reason for _, name, reason in fastcv.why_not(lambda: CONV(x, w, None, *GEOMETRY, None, 0, 2))}
        assert reasons[variant].startswith("packs weights too slowly" if "bf16x6" in variant else "comes after")


@pytest.mark.skipif("igemm_bf16x6_amx" not in ROWS, reason="needs AMX")
def test_six_products_take_over_where_they_are_faster() -> None:
    def chosen(kernel: int, stride: int, size: int, precision: int, channels: int = 64, dilation: int = 1, outputs: int = 64) -> bool:
        x, w = normal(1, channels, size, size), normal(outputs, channels, kernel, kernel)
        x = x.contiguous(memory_format=torch.channels_last)
        geometry = ([stride] * 2, [kernel // 2 * dilation] * 2, [dilation] * 2, 1)
        return ("conv", "igemm_bf16x6_amx", "") in fastcv.why_not(lambda: CONV(x, w, None, *geometry, None, 0, precision))

    assert chosen(1, 1, 14, 0) and chosen(3, 2, 28, 0) and chosen(5, 1, 14, 0)
    assert not chosen(1, 1, 14, 3) and not chosen(1, 1, 7, 0) and not chosen(5, 1, 14, 0, channels=257)
    assert chosen(1, 2, 14, 0, channels=1024, outputs=512) and not chosen(1, 2, 14, 0, channels=512, outputs=512)
    assert chosen(5, 1, 28, 0, dilation=2) and not chosen(5, 1, 28, 0, dilation=7)
    assert chosen(1, 1, 16, 0, channels=2048) and not chosen(1, 1, 14, 0, channels=2048)
    assert not chosen(1, 1, 16, 0, channels=4096, outputs=1024)
    x, w = normal(1, 256, 8, 8), normal(256, 64, 4, 4)  # sums of 1024 products of the kernel's 4096
    assert ("conv_dgrad", "igemm_bf16x6_amx", "") in fastcv.why_not("conv_transpose2d", x, w, stride=2, padding=1)


@pytest.mark.skipif("igemm_bf16x6_amx" not in ROWS, reason="needs AMX")
@torch.no_grad()
def test_kept_weights_are_multiplied_on_tiles_for_small_images_too() -> None:
    x = normal(3, 512, 7, 7).to(memory_format=torch.channels_last)
    model = fastcv.optimize(torch.nn.Sequential(torch.nn.Conv2d(512, 80, 1), torch.nn.ReLU()).eval().to(memory_format=torch.channels_last))
    for _ in range(3):  # the first call arranges its weights itself
        assert ("conv", "igemm_bf16x6_amx", "") in fastcv.why_not(model, x)
    again = copy.deepcopy(model)
    first = again(x)
    assert all(torch.equal(again(x), first) for _ in range(2)) and torch.equal(model(x[1:2]), first[1:2])
    small = normal(1, 512, 5, 6).to(memory_format=torch.channels_last)
    assert ("conv", "igemm_avx512", "") in fastcv.why_not(model, small)


@pytest.mark.parametrize("variant", [name for name in ROWS if "bf16x6" in name])
@pytest.mark.parametrize("exponent", [-100, -112, -122])
def test_tiny_numbers_err_by_what_flushing_costs(variant: str, exponent: int) -> None:
    x, w = normal(1, 32, 6, 6) * 2.0**exponent, normal(16, 32, 1, 1, seed=1)
    exact = F.conv2d(x.double(), w.double(), padding=1)
    allowed = 2.0**-126 * (2 * w.double().abs().sum(1).max() + 32 * 6) + 1e-6 * exact.abs().max()
    assert (conv(variant, x, w, 0).double() - exact).abs().max() <= allowed


@pytest.mark.skipif(not ROWS, reason="the model needs AVX-512")
@pytest.mark.parametrize("name", ["1x1", "3x3", "stem", "deep"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_errors_are_as_stated(name: str, layout: torch.memory_format) -> None:
    shapes = {"1x1": ((2, 200, 9, 9), (40, 200, 1, 1)), "3x3": ((1, 70, 11, 10), (33, 70, 3, 3))}
    shapes |= {"stem": ((1, 3, 20, 23), (20, 3, 7, 7)), "deep": ((1, 512, 7, 7), (32, 512, 3, 3))}
    x, w = (normal(*shape, seed=i).to(memory_format=layout) for i, shape in enumerate(shapes[name]))
    exact, single = F.conv2d(x.double(), w.double(), padding=1), F.conv2d(x, w, padding=1)
    for variant in ROWS:
        if "_bf16x6_" in variant:
            assert_close(conv(variant, x, w, 0), exact, single, variant)
        elif "_bf16x3_" in variant:
            assert max_error(conv(variant, x, w, 1), exact) < 1e-5
            x16, w16 = x.half(), w.half()
            exact16, half = F.conv2d(x16.double(), w16.double(), padding=1), F.conv2d(x16, w16, padding=1)
            assert_close(conv(variant, x16, w16, 0), exact16, half, variant)
        else:
            assert max_error(conv(variant, x, w, 2), exact) < 6e-3


@pytest.mark.parametrize("variant", [name for name in ROWS if "_bf16_" not in name])
@pytest.mark.parametrize("where", ["x", "w", "both"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [3, 40])
def test_infinities_and_nan_survive_the_split(variant: str, where: str, layout: torch.memory_format, channels: int) -> None:
    inf = float("inf")
    nan = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # full of ones, which rounding carries over
    # Weights of few bits: parts of theirs are zeros, which an infinity must not meet.
    x, w = normal(1, channels, 9, 9).to(memory_format=layout), normal(20, channels, 3, 3, seed=1).bfloat16().float()
    if where != "w":
        x[0, 0, 1, 1], x[0, 1, 7, 2], x[0, 2, 4, 8] = inf, -inf, nan
    if where != "x":
        w[3, 0, 1, 1], w[5, 1, 0, 0], w[7, 2, 2, 2] = inf, -inf, nan
    precision = 0 if "_bf16x6_" in variant else 1
    y = conv(variant, x, w, precision)
    with fastcv.use(conv="igemm_portable"):
        plain = CONV(x, w, None, *GEOMETRY, None, 0, 0)
    if where != "x":  # at the border such a weight meets padding, which one row skips and the other multiplies
        y, plain = y[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1]
    assert torch.equal(y.isnan(), plain.isnan())
    assert torch.equal(y[plain.isinf()], plain[plain.isinf()]) and torch.equal(y.isinf(), plain.isinf())
    kept = plain.isfinite()
    assert kept.any() and (y[kept] - plain[kept]).abs().max() <= 1e-4 * plain[kept].abs().max()
    # What is finite has the bits that it has without the others.
    if where == "x":
        clean = conv(variant, x.nan_to_num(0, 0, 0), w, precision)
        assert torch.equal(clean[kept], y[kept])


# Of one strip of pixels and of several, narrow and ragged channels; weights that stay in the second-level cache, and
# weights that pass blocks of strips of which the last is shorter.
POINTWISE = {
    "strips": ((2, 40, 13, 9), 70),
    "narrow": ((1, 33, 10, 20), 9),
    "pixel": ((1, 64, 1, 1), 33),
    "tiles": ((3, 32, 2, 5), 100),
    "blocks": ((2, 2048, 5, 13), 160),
    "pieces": ((1, 800, 9, 8), 40),
}


@pytest.mark.parametrize("variant", [name for name in ROWS if "_bf16_" not in name])
@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("stride", [1, 2])
def test_one_tap_is_multiplied_strip_by_strip(variant: str, name: str, stride: int) -> None:
    shape, k = POINTWISE[name]
    x, w, bias = normal(*shape).to(memory_format=torch.channels_last), normal(k, shape[1], 1, 1, seed=1), normal(k, seed=2)
    exact, single = (F.conv2d(*(t.to(dtype) for t in (x, w, bias)), stride=stride) for dtype in (torch.float64, torch.float32))
    residual = normal(*exact.shape, seed=3).to(memory_format=torch.channels_last)
    precision = 0 if "_bf16x6_" in variant else 1

    def fused(x: torch.Tensor, residual: torch.Tensor, activation: int) -> torch.Tensor:
        with fastcv.use(conv=variant):
            return CONV(x, w, bias, [stride] * 2, [0, 0], [1, 1], 1, residual, activation, precision)

    for activation in (0, 1, 4):  # none, relu, hardswish
        y = fused(x, residual, activation)
        end = [lambda t: t, F.relu, None, None, F.hardswish][activation]
        if precision == 0:
            assert_close(y, end(exact + residual), end(single + residual), variant)
        else:
            assert max_error(y, end(exact + residual)) < 1e-5
        threads = torch.get_num_threads()
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(fused(x, residual, activation), y), n
        torch.set_num_threads(threads)
        assert torch.equal(fused(x[-1:], residual[-1:], activation), y[-1:])


@pytest.mark.parametrize("variant", [name for name in ROWS if "_bf16_" not in name])
@pytest.mark.parametrize("channels", [64, 100])
def test_phases_without_taps(variant: str, channels: int) -> None:
    """Input gradients of strides wider than the kernel: three of four phases have no tap, for several panels of one chunk."""
    g, w = normal(8, 64, 5, 5).to(memory_format=torch.channels_last), normal(64, channels, 1, 1, seed=1)
    exact, single = (F.conv_transpose2d(g.to(dtype), w.to(dtype), stride=2) for dtype in (torch.float64, torch.float32))
    precision, threads = 0 if "_bf16x6_" in variant else 1, torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        with fastcv.use(conv_dgrad=variant):
            y = DGRAD(g, w, None, [9, 9], [2, 2], [0, 0], [1, 1], 1, precision)
        torch.set_num_threads(threads)
        if precision == 0:
            assert_close(y, exact, single, variant)
        else:
            assert max_error(y, exact) < 1e-5
        assert torch.equal(y[:, :, 1::2], torch.zeros_like(y[:, :, 1::2]))


@pytest.mark.parametrize("variant", [name for name in ROWS if "_bf16_" not in name])
@pytest.mark.parametrize("where", ["x", "w"])
@pytest.mark.parametrize("name", ["strips", "narrow", "blocks", "pieces"])
def test_infinities_and_nan_stay_in_their_pixels(variant: str, where: str, name: str) -> None:
    shape, k = POINTWISE[name]
    x, w = normal(*shape).to(memory_format=torch.channels_last), normal(k, shape[1], 1, 1, seed=1)
    precision, geometry = 0 if "_bf16x6_" in variant else 1, ([1, 1], [0, 0], [1, 1], 1)
    with fastcv.use(conv=variant):
        clean = CONV(x, w, None, *geometry, None, 0, precision)
        if where == "x":
            x[0, 3, 0, 2], x[-1, 5, -1, -2] = float("inf"), float("nan")
            x[-1, shape[1] - 1, 2, 3] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
        else:
            w[3, 5], w[k - 1, 7] = float("inf"), float("nan")
        y = CONV(x, w, None, *geometry, None, 0, precision)
    plain = F.conv2d(x.double(), w.double())
    assert torch.equal(y.isnan(), plain.isnan()) and torch.equal(y.isinf(), plain.isinf())
    assert torch.equal(y[plain.isinf()].double(), plain[plain.isinf()])
    assert torch.equal(y[plain.isfinite()], clean[plain.isfinite()])


@pytest.mark.parametrize("variant", [name for name in ROWS if "_bf16_" not in name])
def test_the_largest_numbers_stay_finite(variant: str) -> None:
    # Two parts have 16 bits; rounded to these the very largest float32 is 2^128.
    largest = torch.finfo(torch.float32).max * (1 - 2**-16)
    x, w = torch.zeros(1, 32, 3, 3), torch.zeros(16, 32, 3, 3)
    x[0, 0, 1, 1], w[:, 0, 1, 1] = largest, 1.0
    y = conv(variant, x, w, 0 if "_bf16x6_" in variant else 1)
    assert y.isfinite().all() and y[0, 0, 1, 1].item() == pytest.approx(largest, rel=2**-15)


@pytest.mark.parametrize("variant", ROWS)
def test_they_say_what_they_lack(variant: str) -> None:
    dtype = torch.bfloat16 if "_bf16_" in variant else torch.float32
    x, w = normal(1, 32, 20, 20, dtype=dtype), normal(16, 32, 2, 2, seed=1, dtype=dtype)
    for geometry, why in (
        (([9, 9], [0, 0], [1, 1], 1), "needs strides up to 8"),
        (([1, 1], [1025, 0], [1025, 1], 1), "reaches over at most 1024 pixels"),
        (([1, 1], [0, 0], [1, 1], 16), "small groups fill no tiles"),
    ):
        weight = w[:, : 32 // geometry[3]]
        with fastcv.use(conv=variant), pytest.raises(ValueError, match=why):
            CONV(x, weight, None, *geometry, None, 0, 1)
