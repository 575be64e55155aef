"""The CUDA kernels behind convolution and its gradients, on the emulator: equal to the plain loops, bit for bit.

Small integers make every sum exact in any order and in every number format, so that one wrong address shows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastcv
from fastcv.testing import max_error

pytestmark = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)

OPS = torch.ops.fastcv
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
HIGH = 1  # csrc/conv/conv.h: enum Precision

# input, output channels, kernel, stride, padding, dilation, groups
LAYERS = {
    "pointwise": ((2, 17, 5, 3), 33, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "3x3": ((2, 16, 7, 6), 24, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "many channels": ((1, 40, 3, 4), 70, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stem": ((2, 3, 13, 11), 16, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    "stride over kernel": ((1, 8, 9, 11), 8, (2, 3), (5, 4), (0, 0), (1, 1), 1),
    "dilated": ((1, 8, 9, 10), 12, (3, 2), (1, 1), (4, 2), (3, 2), 1),
    "stride and dilation share a factor": ((1, 4, 13, 12), 5, (3, 3), (4, 6), (2, 3), (6, 4), 1),
    "uneven": ((2, 5, 10, 7), 7, (4, 2), (3, 1), (2, 0), (1, 2), 1),
    "padding over kernel": ((1, 4, 3, 2), 6, (3, 3), (1, 1), (6, 5), (1, 1), 1),
    "groups": ((1, 24, 6, 5), 48, (3, 3), (2, 1), (1, 1), (1, 1), 3),
    "small groups": ((1, 12, 6, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    "depthwise": ((2, 19, 6, 9), 19, (3, 3), (1, 1), (1, 1), (1, 1), 19),
    "depthwise in packs": ((1, 16, 7, 6), 16, (5, 3), (2, 2), (2, 1), (1, 1), 16),
    "depthwise of 12 taps": ((1, 8, 9, 7), 8, (3, 4), (1, 3), (4, 3), (4, 1), 8),
    "two outputs per input": ((1, 5, 6, 4), 10, (3, 3), (1, 1), (1, 1), (1, 1), 5),
    "long rows": ((2, 3, 150), 4, (5,), (2,), (2,), (1,), 1),
    "volume": ((1, 4, 4, 3, 5), 9, (3, 2, 3), (2, 1, 2), (1, 0, 1), (1, 2, 1), 1),
    "volume depthwise": ((1, 8, 3, 4, 5), 8, (3, 3, 3), (1, 2, 1), (1, 1, 1), (1, 1, 1), 8),
}  # fmt: skip
# What a kernel is tried in: dtype, precision. Each has an order of threads of its own.
NUMBERS = {"f32": (F32, 0), "f64": (F64, 0), "bf16": (BF16, 0), "f16": (F16, 0), "tf32": (F32, HIGH)}


def rows(op: str) -> list[str]:
    return [name for name, needs in fastcv.variants(op) if needs.startswith("sm")] if fastcv.is_built() else []


# Rungs of one ladder, which differ in how they wait and in their tiles (test_conv_sm90.py).
LADDER = [f"igemm{rung}_sm90a" for rung in ("_serial", "_specialised", "", "_multicast", "_pingpong", "_planned", "_tf32", "_tf32x3")]


def numbers_of(variant: str, otherwise: torch.dtype) -> tuple[torch.dtype, int]:
    """Dtype and precision that a row of conv takes; most take any dtype."""
    if "tf32" in variant:
        return F32, HIGH
    return (BF16 if otherwise is F32 and variant.startswith("igemm") else otherwise), 0


def general_rows() -> list[str]:
    """Without those that have tests of their own: test_conv_halo.py, and the last ones below."""
    special = ("halo_3x3_sm90a", "igemm_phases_sm90a", "igemm_splitk_sm80", "igemm_pairs_sm80")
    return [name for name in rows("conv") if name not in special]


def integers(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, seed: int) -> torch.Tensor:
    t = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return t.to(memory_format=FORMATS[t.dim()]) if channels_last and t.dim() in FORMATS else t


def run(op: str, variant: str, *args: object) -> torch.Tensor:
    with fastcv.use(**{op: variant}):
        return getattr(OPS, op)(*args)


def check(op: str, variant: str, *args: object) -> bool:
    """Whether the variant serves these arguments; asserts that it then gives what the plain loops give."""
    try:
        y = run(op, variant, *args)
    except ValueError as refusal:
        assert "cannot run this call" in str(refusal)
        return False
    expected = run(op, "ref", *args)
    assert torch.equal(y, expected), f"{op} {variant}: {(y != expected).sum()} of {y.numel()} differ"
    assert y.stride() == expected.stride()
    return True


@pytest.fixture(autouse=True)
def poisoned_outputs() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_plain_loops(name: str, numbers: str) -> None:
    from fastcv import _C

    input, outputs, kernel, stride, padding, dilation, groups = LAYERS[name]
    dtype, precision = NUMBERS[numbers]
    _C.seed_emulator(list(NUMBERS).index(numbers))
    geometry = [list(stride), list(padding), list(dilation), groups]
    for last in (False, True) if len(kernel) > 1 else (False,):
        x = integers(input, dtype, last, 0)
        w = integers((outputs, input[1] // groups, *kernel), dtype, last, 1)
        bias = integers((outputs,), dtype, False, 2)
        y = run("conv", "ref", x, w, bias, *geometry, None, 0, precision)
        residual, back = integers(tuple(y.shape), dtype, last, 3), integers((input[1],), dtype, False, 4)
        ran = {"conv": [], "conv_dgrad": [], "conv_wgrad": []}
        names_of = {op: rows(op) for op in ran}
        for op, names in ran.items():
            for variant in names_of[op]:
                if precision and not variant.startswith("igemm"):
                    continue  # nothing else knows of it
                if variant in LADDER and op != "conv_wgrad" and (names_of[op].index(variant) + list(LAYERS).index(name) + last) % 3:
                    continue  # each takes a third of the layers
                args = {
                    "conv": (x, w, bias, *geometry, residual, 1, precision),
                    "conv_dgrad": (residual, w, back, list(input[2:]), *geometry, precision),
                    "conv_wgrad": (x, residual, list(kernel), *geometry, precision),
                }[op]
                if check(op, variant, *args):
                    names.append(variant)
        if not precision:
            assert {"direct_sm80", "tiled_sm80"} <= {*ran["conv"]} and "tiled_sm80" in ran["conv_wgrad"]
        if not precision and groups == input[1]:
            assert "depthwise_sm80" in ran["conv"] and "depthwise_sm80" in ran["conv_wgrad"]


@pytest.mark.parametrize("activation", range(7))
@pytest.mark.parametrize("variant", general_rows())
def test_ends_of_the_fused_form(variant: str, activation: int) -> None:
    """Bias, residual and activation on numbers that cross every bend."""
    depthwise = "depthwise" in variant
    dtype, precision = numbers_of(variant, F32)
    for last in (False, True):
        x = integers((1, 8, 5, 4), dtype, last, 0)
        w = integers((8, 1 if depthwise else 8, 3, 3), dtype, last, 1)
        args = (
            x,
            w,
            integers((8,), dtype, False, 2),
            [1, 1],
            [1, 1],
            [1, 1],
            8 if depthwise else 1,
            integers((1, 8, 5, 4), dtype, last, 3),
        )
        y, exact = run("conv", variant, *args, activation, precision), run("conv", "ref", *args, activation, precision)
        assert max_error(y, exact.double()) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("numbers", NUMBERS)
def test_output_sizes_beyond_the_taps(numbers: str) -> None:
    """An input gradient may be larger than its taps reach: the rest is bias. Strides may be larger than the output."""
    dtype, precision = NUMBERS[numbers]
    grad, w = integers((1, 8, 2, 3), dtype, True, 0), integers((8, 16, 2, 2), dtype, True, 1)
    bias = integers((16,), dtype, False, 2)
    for variant in rows("conv_dgrad"):
        for size, stride in (([7, 9], [3, 4]), ([2, 1], [5, 6]), ([1, 11], [1, 1])):
            check("conv_dgrad", variant, grad, w, bias, size, stride, [0, 1], [1, 2], 1, precision)


@pytest.mark.parametrize("variant", general_rows())
def test_what_is_not_finite_reaches_only_who_reads_it(variant: str) -> None:
    groups = 6 if "depthwise" in variant else 1
    dtype, precision = numbers_of(variant, F32 if groups > 1 else BF16)
    for last in (False, True):
        x = integers((2, 6, 7, 6), dtype, last, 0)
        x[0, 1, 0, 5], x[1, 2, 3, 3] = float("inf"), float("nan")
        args = (x, integers((6, 6 // groups, 3, 3), dtype, last, 1) + 3, None, [2, 1], [1, 1], [1, 1], groups, None, 0, precision)
        y, expected = run("conv", variant, *args), run("conv", "ref", *args)
        finite = expected.isfinite()
        assert torch.equal(y.isfinite(), finite) and torch.equal(y[finite], expected[finite])


@pytest.mark.parametrize("variant", general_rows())
def test_misaligned_tensors(variant: str) -> None:
    """Tensors that start anywhere in memory."""
    groups = 16 if "depthwise" in variant else 1
    dtype, precision = numbers_of(variant, F16)

    def shifted(shape: tuple[int, ...], seed: int) -> torch.Tensor:
        t = integers(shape, dtype, True, seed)
        memory = torch.empty(t.numel() + 1, dtype=dtype)[1:]
        return memory.as_strided(t.shape, t.stride()).copy_(t)

    weight, residual = shifted((16, 16 // groups, 3, 3), 1), shifted((1, 16, 4, 5), 3)
    assert check("conv", variant, shifted((1, 16, 4, 5), 0), weight, None, [1, 1], [1, 1], [1, 1], groups, residual, 0, precision)


def test_long_sums_are_cut_into_the_same_segments_everywhere() -> None:
    """Bias and weight gradients over more pixels than a segment holds, in three orders of threads: the same bits."""
    from fastcv import _C

    for last in (False, True):
        x, grad = (torch.randn(2, c, 30, 31, generator=torch.Generator().manual_seed(c)) for c in (2, 3))
        deep = torch.randn(2, 2, 30, 31, generator=torch.Generator().manual_seed(5))
        if last:
            x, grad, deep = (t.to(memory_format=torch.channels_last) for t in (x, grad, deep))
        calls = {
            ("conv_bias_grad", "sum_sm80"): (grad,),
            ("conv_wgrad", "tiled_sm80"): (x, grad, [2, 1], [1, 1], [1, 0, 0, 0], [1, 1], 1, 0),
            ("conv_wgrad", "depthwise_sm80"): (x, deep, [2, 1], [1, 1], [1, 0, 0, 0], [1, 1], 2, 0),
        }
        for (op, variant), args in calls.items():
            results = []
            for seed in range(3):
                _C.seed_emulator(seed)
                results.append(run(op, variant, *args))
            assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
            exact = run(op, "ref", *(a.double() if isinstance(a, torch.Tensor) else a for a in args))
            assert max_error(results[0], exact) < 1e-6  # a float's eps is 1.2e-7, and parts are added in double


# input, output channels, kernel, stride, padding, dilation: several tiles of rows and columns, several segments of pixels
SM90_WGRADS = {
    "taps cut in the middle of a tile": ((1, 72, 9, 10), 40, (3, 3), (1, 1), (1, 1), (1, 1)),
    "two tiles of rows, the second half empty": ((1, 16, 5, 4), 136, (1, 2), (1, 1), (0, 1), (1, 1)),
    "stride 2 over odd sizes": ((3, 24, 11, 13), 70, (3, 3), (2, 2), (1, 1), (1, 1)),
    "dilation and uneven strides": ((2, 8, 12, 9), 8, (2, 3), (3, 1), (2, 2), (3, 2)),
    "five by five": ((1, 8, 9, 9), 20, (5, 5), (1, 1), (2, 2), (1, 1)),
    "pointwise, stride 2": ((2, 130, 7, 6), 66, (1, 1), (2, 2), (0, 0), (1, 1)),
    "segments": ((2, 8, 40, 41), 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    "more tiles than multiprocessors": ((1, 8600, 2, 3), 130, (1, 1), (1, 1), (0, 0), (1, 1)),
}
SM90_WGRAD_ROWS = ("igemm_sm90a", "igemm_multicast_sm90a")


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("variant", SM90_WGRAD_ROWS)
@pytest.mark.parametrize("name", SM90_WGRADS)
def test_weight_gradients_of_hopper(name: str, variant: str, dtype: torch.dtype) -> None:
    from fastcv import _C

    input, outputs, kernel, stride, padding, dilation = SM90_WGRADS[name]
    geometry = [list(stride), list(padding), list(dilation), 1]
    last = dtype == BF16
    x = integers(input, dtype, last, 0)
    shape = run("conv", "ref", x, integers((outputs, input[1], *kernel), dtype, last, 1), None, *geometry, None, 0, 0).shape
    grad = integers(tuple(shape), dtype, last or name == "segments", 2)
    for seed in range(2 if x.numel() < 20_000 else 1):
        _C.seed_emulator(seed)
        assert check("conv_wgrad", variant, x, grad, list(kernel), *geometry, 0)


@pytest.mark.parametrize("variant", SM90_WGRAD_ROWS)
def test_weight_gradients_of_hopper_have_the_same_bits_in_any_order(variant: str) -> None:
    from fastcv import _C

    x, grad = (torch.randn(2, c, 40, 41, generator=torch.Generator().manual_seed(c)).bfloat16() for c in (16, 8))
    results = []
    for seed in range(3):
        _C.seed_emulator(seed)
        results.append(run("conv_wgrad", variant, x, grad, [1, 1], [1, 1], [0, 0], [1, 1], 1, 0))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    exact = run("conv_wgrad", "ref", x.double(), grad.double(), [1, 1], [1, 1], [0, 0], [1, 1], 1, 0)
    assert max_error(results[0], exact) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("variant", SM90_WGRAD_ROWS)
@pytest.mark.parametrize("sizes", [(0, 5), (2, 0)], ids=["no images", "images of nothing but padding"])
def test_weight_gradients_of_hopper_without_pixels_are_zero(sizes: tuple[int, int], variant: str) -> None:
    n, w = sizes
    x, grad = integers((n, 8, 5, w), BF16, True, 0), integers((n, 8, 7, w + 2), BF16, True, 1)
    assert check("conv_wgrad", variant, x, grad, [1, 1], [1, 1], [1, 1], [1, 1], 1, 0)


def test_what_the_weight_gradient_of_hopper_refuses() -> None:
    def refusal(dtype: torch.dtype = BF16, groups: int = 1, stride: int = 1, padding: int = 0, depth: int = 0) -> str:
        spatial = [5] * (3 if depth else 2)
        x, grad = torch.zeros(1, 32, *spatial, dtype=dtype), torch.zeros(1, 32, *spatial, dtype=dtype)
        ones = [1] * len(spatial)
        with pytest.raises(ValueError, match="cannot run this call") as error:
            run("conv_wgrad", "igemm_sm90a", x, grad, ones, [stride] * len(ones), [padding] * len(ones), ones, groups, 0)
        return str(error.value)

    assert "needs bfloat16 or float16" in refusal(F32)
    assert "needs a convolution without groups" in refusal(groups=2)
    assert "needs strides and padding that TMA takes" in refusal(stride=9)
    assert "needs strides and padding that TMA takes" in refusal(padding=129)
    assert "needs one plane of depth" in refusal(depth=1)


# input, output channels, kernel, stride, padding, dilation, groups: sums of two segments or more
LONG_SUMS = {
    "3x3": ((2, 72, 4, 5), 70, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "pointwise": ((3, 520, 3, 3), 24, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "stride 2": ((1, 256, 5, 6), 20, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "groups": ((1, 160, 4, 3), 64, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "whole map": ((2, 40, 5, 4), 12, (5, 4), (1, 1), (0, 0), (1, 1), 1),
}


@pytest.mark.parametrize("numbers", ["bf16", "f16", "tf32"])
@pytest.mark.parametrize("name", LONG_SUMS)
def test_sums_in_segments(name: str, numbers: str) -> None:
    from fastcv import _C

    input, outputs, kernel, stride, padding, dilation, groups = LONG_SUMS[name]
    dtype, precision = NUMBERS[numbers]
    _C.seed_emulator(list(NUMBERS).index(numbers))
    geometry, last = [list(stride), list(padding), list(dilation), groups], numbers != "f16"
    x = integers(input, dtype, last, 0)
    w = integers((outputs, input[1] // groups, *kernel), dtype, last, 1)
    y = run("conv", "ref", x, w, None, *geometry, None, 0, precision)
    residual = integers(tuple(y.shape), dtype, last, 3)
    assert check("conv", "igemm_splitk_sm80", x, w, integers((outputs,), dtype, False, 2), *geometry, residual, 1, precision)


def test_input_gradients_in_segments() -> None:
    """Phases of four, two and one tap: the last have fewer segments than the first."""
    for size, kernel, stride, dilation in (
        ([9, 8], (3, 3), [2, 2], [1, 1]),
        ([4, 4], (3, 3), [1, 1], [1, 1]),
        ([7, 5], (1, 1), [2, 1], [1, 1]),
    ):
        channels = 1040 if kernel == (1, 1) else 136
        out = [(s + 2 * (k // 2) - k) // t + 1 for s, k, t in zip(size, kernel, stride, strict=True)]
        grad = integers((1, channels, *out), BF16, True, 0)
        w = integers((channels, 16, *kernel), BF16, True, 1)
        pad = [k // 2 for k in kernel]
        assert check("conv_dgrad", "igemm_splitk_sm80", grad, w, integers((16,), BF16, False, 2), size, stride, pad, dilation, 1, 0)


@pytest.mark.parametrize("images", [105, 210])
def test_segments_give_an_image_the_same_bits_in_any_batch(images: int) -> None:
    """The segments of few tiles are made by a block each, those of 132 tiles (of 64 pixels, then of 128) by one after the other."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(images, 512, 9, 9, generator=g).bfloat16(), torch.randn(8, 512, 1, 1, generator=g).bfloat16()
    x = x.to(memory_format=torch.channels_last)
    call = (w, None, [1, 1], [0, 0], [1, 1], 1, None, 0, 0)
    many = run("conv", "igemm_splitk_sm80", x, *call)
    for i in (0, 104, images - 1):
        assert torch.equal(run("conv", "igemm_splitk_sm80", x[i : i + 1], *call), many[i : i + 1])
    exact = run("conv", "ref", x[:1].double(), w.double(), *call[1:])
    assert max_error(many[:1], exact) <= torch.finfo(torch.bfloat16).eps


# size and channels of the gradient, channels of the result, its size, kernel, stride, padding, dilation
PHASES = {
    "3x3 stride 2": ((2, 72, 5, 4), 40, [10, 7], (3, 3), [2, 2], [1, 1], [1, 1]),
    "pointwise stride 2": ((2, 16, 4, 5), 24, [8, 9], (1, 1), [2, 2], [0, 0], [1, 1]),
    "up-convolution": ((1, 24, 5, 3), 130, [10, 6], (2, 2), [2, 2], [0, 0], [1, 1]),
    "stem": ((1, 8, 6, 5), 3, [13, 11], (7, 7), [2, 2], [3, 3], [1, 1]),
    "stride over kernel": ((1, 8, 2, 3), 8, [9, 11], (2, 3), [5, 4], [0, 0], [1, 1]),
    "stride and dilation share a factor": ((1, 9, 3, 3), 5, [13, 12], (3, 3), [4, 6], [2, 3], [6, 4]),
    "one stride": ((1, 8, 6, 4), 8, [6, 9], (3, 3), [1, 2], [1, 1], [1, 1]),
    "larger than the taps reach": ((1, 8, 2, 3), 16, [7, 9], (2, 2), [3, 4], [0, 1], [1, 2]),
    "strides over the size": ((1, 8, 1, 1), 8, [2, 1], (3, 3), [5, 6], [1, 1], [1, 1]),
    "more tiles than multiprocessors": ((1, 8, 16, 17), 1540, [32, 34], (3, 3), [2, 2], [1, 1], [1, 1]),
}


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("name", PHASES)
def test_input_gradients_by_phases(name: str, dtype: torch.dtype) -> None:
    from fastcv import _C

    shape, outputs, size, kernel, stride, padding, dilation = PHASES[name]
    for last in (True, False) if outputs < 1000 else (dtype == BF16,):
        _C.seed_emulator(int(last))
        grad, w = integers(shape, dtype, last, 0), integers((shape[1], outputs, *kernel), dtype, last, 1)
        bias = integers((outputs,), dtype, False, 2)
        assert check("conv_dgrad", "igemm_phases_sm90a", grad, w, bias, size, stride, padding, dilation, 1, 0)


def test_what_the_phases_refuse() -> None:
    def refusal(op: str, *args: object) -> str:
        with pytest.raises(ValueError, match="cannot run this call") as error:
            run(op, "igemm_phases_sm90a", *args)
        return str(error.value)

    grad, w = torch.zeros(1, 16, 3, 3, dtype=BF16), torch.zeros(16, 16, 3, 3, dtype=BF16)
    plain = refusal("conv", grad, w, None, [1, 1], [1, 1], [1, 1], 1, None, 0, 0)
    assert "needs an input gradient or a transposed convolution" in plain
    wide = refusal("conv_dgrad", grad, w, None, [25, 25], [9, 9], [0, 0], [1, 1], 1, 0)
    assert "needs strides of at most 8" in wide
    float32 = refusal("conv_dgrad", grad.float(), w.float(), None, [5, 5], [2, 2], [1, 1], [1, 1], 1, 0)
    assert "needs bfloat16 or float16" in float32


# input, output channels, kernel, stride, padding, dilation
STEMS = {
    "7x7": ((2, 3, 13, 12), 70, (7, 7), (2, 2), (3, 3), (1, 1)),
    "3x3": ((1, 3, 8, 9), 16, (3, 3), (2, 2), (1, 1), (1, 1)),
    "even kernel": ((1, 4, 9, 10), 8, (4, 4), (2, 2), (1, 1), (1, 1)),
    "even padding": ((2, 1, 6, 7), 5, (5, 5), (1, 2), (2, 2), (2, 1)),
    "no padding": ((1, 2, 5, 8), 9, (2, 3), (3, 2), (0, 0), (1, 1)),
    "padding over kernel": ((1, 3, 3, 2), 6, (3, 3), (1, 2), (6, 5), (1, 1)),
}


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("name", STEMS)
def test_pixels_in_pairs(name: str, dtype: torch.dtype) -> None:
    from fastcv import _C

    input, outputs, kernel, stride, padding, dilation = STEMS[name]
    geometry = [list(stride), list(padding), list(dilation), 1]
    for last in (True, False):
        _C.seed_emulator(int(last))
        x, w = integers(input, dtype, last, 0), integers((outputs, input[1], *kernel), dtype, last, 1)
        shape = run("conv", "ref", x, w, None, *geometry, None, 0, 0).shape
        residual, bias = integers(tuple(shape), dtype, last, 2), integers((outputs,), dtype, False, 3)
        assert check("conv", "igemm_pairs_sm80", x, w, bias, *geometry, residual, 1, 0)


def test_pairs_keep_what_is_not_finite_in_its_window() -> None:
    """The pixel beside a window shares a pair with its last one."""
    x = integers((1, 3, 9, 14), BF16, True, 0)
    x[0, 1, 4, 7], x[0, 0, 2, 4] = float("nan"), float("inf")
    for kernel in (3, 4, 5):
        args = (x, integers((8, 3, kernel, kernel), BF16, True, 1) + 3, None, [2, 2], [1, 1], [1, 1], 1, None, 0, 0)
        y, expected = run("conv", "igemm_pairs_sm80", *args), run("conv", "ref", *args)
        finite = expected.isfinite()
        assert not finite.all() and torch.equal(y.isfinite(), finite) and torch.equal(y[finite], expected[finite])
