"""The kernels behind fastcv::conv and fastcv::conv_dgrad: every variant against the plain loops, in every layout and dtype.

Small integers make every sum exact in any order, so most tests compare bit for bit. Real numbers follow the accuracy rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

import fastcv
from fastcv.testing import assert_close, runnable_variants

CONV, DGRAD = torch.ops.fastcv.conv, torch.ops.fastcv.conv_dgrad
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# test_conv_winograd.py has the rows that do not sum directly.
USABLE = [n for n in runnable_variants("conv") if n != "ref" and "winograd" not in n]


@dataclass(frozen=True)
class Layer:
    input: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int = 1

    @property
    def geometry(self) -> list[list[int] | int]:
        nd = len(self.kernel)
        return [list(self.stride or (1,) * nd), list(self.padding or (0,) * nd), list(self.dilation or (1,) * nd), self.groups]

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.out_channels, self.input[1] // self.groups, *self.kernel)


LAYERS = {
    "1x1": Layer((2, 17, 9, 7), 33, (1, 1)),
    "1x1-wide": Layer((2, 5, 2, 100), 3, (1, 1)),
    "3x3": Layer((2, 16, 11, 13), 64, (3, 3), padding=(1, 1)),
    "3x3-wide-panels": Layer((1, 9, 6, 5), 131, (3, 3), padding=(1, 1)),
    "3x3-stride2": Layer((2, 10, 12, 9), 20, (3, 3), stride=(2, 2), padding=(1, 1)),
    "stem": Layer((2, 3, 23, 19), 16, (7, 7), stride=(2, 2), padding=(3, 3)),
    "stem-stride-over-kernel": Layer((1, 3, 17, 17), 8, (2, 3), stride=(5, 4)),
    "dilated": Layer((1, 8, 15, 14), 12, (3, 2), padding=(4, 2), dilation=(3, 2)),
    "uneven-everything": Layer((2, 5, 13, 8), 7, (4, 2), stride=(3, 1), padding=(2, 0), dilation=(1, 2)),
    "padding-over-kernel": Layer((1, 4, 5, 6), 6, (3, 3), padding=(6, 5)),
    "asymmetric-padding": Layer((1, 6, 7, 8), 5, (4, 2), padding=(1, 0, 2, 1)),
    "groups": Layer((2, 51, 8, 8), 57, (3, 3), padding=(1, 1), groups=3),
    "groups-of-4": Layer((1, 40, 9, 9), 40, (3, 3), padding=(1, 1), groups=10),
    "groups-of-2-stride": Layer((2, 34, 9, 9), 34, (3, 3), stride=(2, 2), padding=(1, 1), groups=17),
    "groups-1-to-2": Layer((1, 11, 7, 9), 22, (3, 3), padding=(1, 1), groups=11),
    "groups-2-to-1": Layer((1, 22, 7, 9), 11, (3, 3), padding=(1, 1), groups=11),
    "depthwise": Layer((2, 33, 12, 37), 33, (3, 3), padding=(1, 1), groups=33),
    "depthwise-stride": Layer((1, 16, 21, 70), 16, (5, 3), stride=(2, 2), padding=(2, 1), groups=16),
    "depthwise-dilated": Layer((1, 5, 20, 18), 5, (3, 3), stride=(1, 3), padding=(4, 5), dilation=(4, 5), groups=5),
    "1d": Layer((2, 7, 1200), 9, (5,), stride=(2,), padding=(2,)),
    "1d-one-channel": Layer((1, 1, 700), 17, (9,), padding=(4,)),
    "1d-depthwise-long": Layer((1, 2, 5000), 2, (7,), padding=(3,), groups=2),
    "3d": Layer((1, 6, 5, 6, 7), 18, (3, 3, 3), padding=(1, 1, 1)),
    "3d-stride": Layer((2, 3, 6, 7, 8), 10, (3, 2, 3), stride=(2, 1, 2), padding=(1, 0, 1), dilation=(1, 2, 1)),
    "3d-depthwise": Layer((1, 8, 5, 6, 9), 8, (3, 3, 3), stride=(1, 2, 1), padding=(1, 1, 1), groups=8),
    "upsample-8": Layer((1, 5, 24, 32), 5, (16, 16), stride=(8, 8), padding=(4, 4)),
}


def integers(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False, seed: int = 0) -> torch.Tensor:
    t = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return t.to(memory_format=FORMATS[t.dim()]) if channels_last and t.dim() in FORMATS else t


def normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = False, seed: int = 0) -> torch.Tensor:
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return t.to(memory_format=FORMATS[t.dim()]) if channels_last and t.dim() in FORMATS else t


def run(op: str, variant: str, *args):
    """The op with a variant; skips the test where the variant says why it cannot."""
    with fastcv.use(**{op: variant}):
        try:
            return getattr(torch.ops.fastcv, op)(*args)
        except ValueError as refusal:
            if "cannot run this call" in str(refusal):
                pytest.skip(str(refusal))
            raise


def dtype_for(variant: str) -> torch.dtype:
    return torch.bfloat16 if "_bf16_" in variant else torch.float32


def precision_for(variant: str) -> int:
    return 1 if "_bf16x3_" in variant else 0


def serves(variant: str, name: str, channels_last: bool, dtype: torch.dtype) -> bool:
    if "bf16" in variant and ("groups-" in name or "depthwise" in name):
        return False
    if "bf16" in variant and dtype != dtype_for(variant) and not ("_bf16x3_" in variant and dtype == torch.float16):
        return False
    return "depthwise" not in variant or ("depthwise" in name and not (channels_last and len(LAYERS[name].kernel) > 1))


GRID = [
    pytest.param(variant, name, last, dtype, id=f"{variant}-{name}-{'channels_last' if last else 'contiguous'}-{str(dtype)[6:]}")
    for variant in USABLE
    for name, layer in LAYERS.items()
    for last in ([False, True] if len(layer.kernel) > 1 else [False])
    for dtype in DTYPES
    if serves(variant, name, last, dtype)
]


@pytest.mark.parametrize("variant,name,channels_last,dtype", GRID)
def test_equals_reference(variant: str, name: str, channels_last: bool, dtype: torch.dtype) -> None:
    layer = LAYERS[name]
    x = integers(layer.input, dtype, channels_last)
    w = integers(layer.weight, dtype, channels_last and len(name) % 2 == 0, seed=1)
    b = integers((layer.out_channels,), dtype, seed=2)
    args = (x, w, b, *layer.geometry)
    precision = precision_for(variant)
    y = run("conv", variant, *args, None, 0, precision)
    with fastcv.use(conv="ref"):
        expected = CONV(*args, None, 0, 0)
    assert torch.equal(y, expected) and y.stride() == expected.stride()
    gy = integers(tuple(y.shape), dtype, channels_last, seed=3)
    for size, bias in ((layer.input[2:], None), ([s + 1 for s in layer.input[2:]], integers((layer.input[1],), dtype, seed=4))):
        args = (gy, w, bias, list(size), *layer.geometry, precision)
        gx = run("conv_dgrad", variant, *args)
        with fastcv.use(conv_dgrad="ref"):
            expected = DGRAD(*args)
        assert torch.equal(gx, expected) and gx.stride() == expected.stride()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", USABLE)
def test_sizes_around_the_vector(variant: str, channels_last: bool) -> None:
    dtype, precision = dtype_for(variant), precision_for(variant)
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65):
        for c, k, w, groups in ((n, 5, 6, 1), (3, n, 6, 1), (9, 5, n, 1), (n, n, 6, n), (4, 4, n, 4)):
            if "depthwise" in variant and groups == 1:
                continue
            x = integers((1, c, 4, w), dtype, channels_last)
            weight = integers((k, c // groups, 3, 3), dtype, seed=1)
            args = (x, weight, None, [1, 1], [1, 1], [1, 1], groups)
            try:
                with fastcv.use(conv=variant):
                    y = CONV(*args, None, 0, precision)
            except ValueError:
                continue
            with fastcv.use(conv="ref"):
                assert torch.equal(y, CONV(*args, None, 0, 0)), (c, k, w, groups)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 24])
@pytest.mark.parametrize("variant", USABLE)
def test_epilogue(variant: str, groups: int, channels_last: bool) -> None:
    dtype, precision = dtype_for(variant), precision_for(variant)
    x, w = integers((2, 24, 9, 10), dtype, channels_last), integers((24, 24 // groups, 3, 3), dtype, seed=1)
    b, geometry = integers((24,), dtype, seed=2), ([1, 1], [1, 1], [1, 1], groups)
    residual = integers((2, 24, 9, 10), dtype, not channels_last, seed=3)
    stays = "subpixel" not in variant  # else test_conv_subpixel.py
    x[0, :, 2, 3] = float("nan") if stays else 1
    with fastcv.use(conv="ref"):
        sums = CONV(x.double(), w.double(), b.double(), *geometry, residual.double(), 0, 0)
    with fastcv.use(conv_dgrad="ref"):
        sums_back = DGRAD(x.double(), w.double(), b.double(), [9, 10], *geometry, 0, None, residual.double())
    names = [lambda v: v, F.relu, F.relu6, F.silu, F.hardswish, F.gelu, lambda v: F.leaky_relu(v, 0.3), lambda v: F.leaky_relu(v, -2.0)]
    for code, function in enumerate(names):
        activation, slope = min(code, 6), -2.0 if code == 7 else 0.3
        y = run("conv", variant, x, w, b, *geometry, residual, activation, precision, None, slope)
        back = run("conv_dgrad", variant, x, w, b, [9, 10], *geometry, precision, None, residual, activation, slope)
        for mine, expected in ((y, function(sums)), (back, function(sums_back))):
            assert_close(mine, expected, expected.to(dtype), f"activation {code}")
            assert mine.isnan().any() == stays and torch.equal(mine.isnan(), expected.isnan())


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", USABLE)
@pytest.mark.parametrize("name", ["3x3", "3x3-stride2", "stem", "groups-of-4", "depthwise", "3d"])
def test_same_bits_for_any_batch_and_threads(name: str, variant: str, channels_last: bool, threads: Callable[[int], None]) -> None:
    layer, dtype, precision = LAYERS[name], dtype_for(variant), precision_for(variant)
    x = normal((5, *layer.input[1:]), dtype, channels_last)
    w = normal(layer.weight, dtype, seed=1)
    y = run("conv", variant, x, w, None, *layer.geometry, None, 0, precision)
    gy = normal(tuple(y.shape), dtype, channels_last, seed=2)
    gx = run("conv_dgrad", variant, gy, w, None, list(layer.input[2:]), *layer.geometry, precision)
    for n in (1, 3, 7):
        threads(n)
        assert torch.equal(run("conv", variant, x, w, None, *layer.geometry, None, 0, precision), y)
        one, one_gy = x[2:3].clone(memory_format=torch.preserve_format), gy[2:3].clone(memory_format=torch.preserve_format)
        assert torch.equal(run("conv", variant, one, w, None, *layer.geometry, None, 0, precision), y[2:3])
        assert torch.equal(run("conv_dgrad", variant, one_gy, w, None, list(layer.input[2:]), *layer.geometry, precision), gx[2:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["1x1", "3x3-stride2", "stem", "groups-of-4", "depthwise-dilated", "1d", "3d"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", USABLE)
def test_reads_nothing_but_its_tensors(variant: str, channels_last: bool, name: str, dtype: torch.dtype) -> None:
    layer = LAYERS[name]

    def fenced(t: torch.Tensor) -> torch.Tensor:  # the same dense tensor with NaN before and behind it
        buffer = torch.full((t.numel() + 256,), float("nan"), dtype=t.dtype)
        inside = buffer.as_strided(t.shape, t.stride(), 128)
        inside.copy_(t)
        return inside

    x, w = fenced(normal(layer.input, dtype, channels_last)), fenced(normal(layer.weight, dtype, seed=1))
    b = fenced(normal((layer.out_channels,), dtype, seed=2))
    precision = precision_for(variant)
    y = run("conv", variant, x, w, b, *layer.geometry, None, 0, precision)
    assert y.isfinite().all()
    gx = run("conv_dgrad", variant, fenced(y), w, None, list(layer.input[2:]), *layer.geometry, precision)
    assert gx.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES[:1] + DTYPES[2:], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", USABLE)
def test_accuracy(variant: str, channels_last: bool, dtype: torch.dtype) -> None:
    for layer in (Layer((1, 64, 12, 12), 48, (3, 3), padding=(1, 1)), Layer((2, 48, 14, 14), 48, (3, 3), padding=(1, 1), groups=48)):
        x, w = normal(layer.input, dtype, channels_last), normal(layer.weight, dtype, seed=1)
        stride, padding, dilation, groups = layer.geometry
        theirs, exact = (F.conv2d(a, b, None, stride, padding, dilation, groups) for a, b in ((x, w), (x.double(), w.double())))
        try:
            with fastcv.use(conv=variant):
                y = CONV(x, w, None, *layer.geometry, None, 0, 0)
        except ValueError:
            continue
        assert_close(y, exact, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("w_last", [False, True])
@pytest.mark.parametrize(
    "shape,weight", [((2, 4, 6, 6), (8, 4, 3, 3)), ((2, 4, 5, 6, 7), (8, 4, 2, 3, 3)), ((2, 1, 6, 6), (4, 1, 3, 3))], ids=str
)
def test_output_layout_is_torchs(shape, weight, w_last: bool, x_last: bool, dtype: torch.dtype) -> None:
    if len(shape) == 5 and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("torch's own layout depends on what the CPU offers to 16-bit types")
    x, w, nd = normal(shape, dtype, x_last), normal(weight, dtype, w_last), len(shape) - 2
    function = getattr(F, f"conv{nd}d")
    geometry = ([1] * nd, [0] * nd, [1] * nd, 1)
    assert CONV(x, w, None, *geometry, None, 0, 0).stride() == function(x, w).stride()
    grad = normal((2, weight[0], *shape[2:]), dtype, x_last)
    transposed = getattr(F, f"conv_transpose{nd}d")(grad, w)
    ours = DGRAD(grad, w, None, list(transposed.shape[2:]), *geometry, 0)
    assert ours.stride() == transposed.stride()


def test_any_strides() -> None:
    x, w = integers((2, 12, 9, 20), torch.float32)[:, ::2, :, ::2], integers((3, 3, 6, 8), torch.float32, seed=1).permute(3, 2, 1, 0)
    y = CONV(x, w, None, [1, 1], [1, 1], [1, 1], 1, None, 0, 0)
    assert torch.equal(y, F.conv2d(x, w, None, 1, 1))


def test_empty() -> None:
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    empty = CONV(torch.ones(0, 3, 5, 5), torch.ones(4, 3, 3, 3), None, *geometry, None, 0, 0)
    assert empty.shape == (0, 4, 5, 5)
    none = CONV(torch.ones(2, 0, 5, 5), torch.ones(4, 0, 3, 3), None, *geometry, None, 0, 0)
    assert none.shape == F.conv2d(torch.ones(2, 0, 5, 5), torch.ones(4, 0, 3, 3), None, 1, 1).shape
    only_bias = DGRAD(torch.ones(1, 4, 0, 5), torch.ones(4, 3, 3, 3), torch.arange(3.0), [2, 7], *geometry, 0)
    assert torch.equal(only_bias, torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 2, 7))


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.ones(3, 4, 4)},
        {"x": torch.ones(1, 2, 4, 4)},
        {"x": torch.ones(1, 3, 4, 4, dtype=torch.int32)},
        {"x": torch.ones(1, 3, 1, 4)},
        {"w": torch.ones(4, 3, 3, 3, dtype=torch.float64)},
        {"w": torch.ones(0, 3, 3, 3)},
        {"w": torch.ones(4, 3, 0, 3)},
        {"bias": torch.ones(3)},
        {"bias": torch.ones(4, 1)},
        {"stride": [1]},
        {"stride": [0, 1]},
        {"padding": [-1, 0]},
        {"padding": [0, 0, 0]},
        {"dilation": [1, 0]},
        {"dilation": [1 << 62, 1]},
        {"groups": 0},
        {"groups": 3},
        {"residual": torch.ones(1, 4, 2, 3)},
        {"activation": 9},
        {"precision": -1},
    ],
    ids=lambda c: next(iter(c)),
)
def test_refuses_bad_calls(change) -> None:
    call = {"x": torch.ones(1, 3, 4, 4), "w": torch.ones(4, 3, 3, 3), "bias": None, "stride": [1, 1], "padding": [0, 0]}
    call |= {"dilation": [1, 1], "groups": 1, "residual": None, "activation": 0, "precision": 0}
    CONV(*call.values())
    with pytest.raises(RuntimeError, match="fastcv conv"):
        CONV(*(call | change).values())


def test_refuses_bad_gradient_calls() -> None:
    g, w = torch.ones(1, 4, 2, 2), torch.ones(4, 3, 3, 3)
    with pytest.raises(RuntimeError, match="2 values of input_size"):
        DGRAD(g, w, None, [4], [1, 1], [0, 0], [1, 1], 1, 0)
    with pytest.raises(RuntimeError, match="input_size must not be negative"):
        DGRAD(g, w, None, [4, -1], [1, 1], [0, 0], [1, 1], 1, 0)
    with pytest.raises(RuntimeError, match="has 4 channels"):
        DGRAD(g, w.transpose(0, 1), None, [4, 4], [1, 1], [0, 0], [1, 1], 1, 0)


def test_variants_say_what_they_lack() -> None:
    x, w = torch.ones(1, 4, 5, 5), torch.ones(4, 4, 3, 3)
    with fastcv.use(conv="depthwise_nchw_portable"), pytest.raises(ValueError, match="needs groups == input channels"):
        CONV(x, w, None, [1, 1], [0, 0], [1, 1], 1, None, 0, 0)
    with fastcv.use(conv="depthwise_nchw_portable"), pytest.raises(ValueError, match="needs a row-major input"):
        CONV(x.to(memory_format=torch.channels_last), w[:, :1], None, [1, 1], [0, 0], [1, 1], 4, None, 0, 0)


def test_huge_geometry_costs_nothing() -> None:
    x, w = torch.ones(1, 2, 3, 3), torch.ones(2, 2, 3, 3)
    far = 1 << 20
    y = CONV(x, w, None, [far, far], [far, far], [far, far], 1, None, 0, 0)
    assert y.shape == (1, 2, 1, 1) and y.flatten().tolist() == [2.0, 2.0]
    gx = DGRAD(torch.ones(1, 2, 1, 1), w, None, [3, 3], [far, far], [far, far], [far, far], 1, 0)
    assert gx.sum().item() == 4.0
    depthwise = CONV(x, w[:, :1], None, [far, far], [far, far], [far, far], 2, None, 0, 0)
    assert depthwise.flatten().tolist() == [1.0, 1.0]
