"""The statistics of a convolution's output, and convolution with batch norm in training that uses them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastcv
from fastcv import functional as F
from fastcv.functional._conv_statistics import convolve_measured
from fastcv.testing import max_error

pytestmark = pytest.mark.skipif(not fastcv.is_built(), reason="needs the compiled module")
emulated = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)

OPS = torch.ops.fastcv
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
HIGH = 1  # csrc/conv/conv.h: enum Precision

# input; weight; stride, padding, dilation, groups
LAYERS = {
    "3x3": ((2, 16, 9, 7), (24, 16, 3, 3), [1, 1], [1, 1], [1, 1], 1),
    "tails": ((1, 3, 5, 13), (5, 3, 3, 2), [1, 2], [0, 1], [1, 1], 1),
    "more channels than a tile": ((2, 8, 9, 8), (70, 8, 1, 1), [1, 1], [0, 0], [1, 1], 1),
    "groups": ((1, 32, 6, 5), (64, 16, 3, 3), [2, 1], [1, 1], [1, 1], 2),
    "rows": ((2, 8, 150), (16, 8, 5), [2], [2], [1], 1),
    "volume": ((1, 4, 4, 3, 5), (9, 4, 3, 2, 3), [2, 1, 2], [1, 0, 1], [1, 1, 1], 1),
}  # fmt: skip
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def operands(name: str, dtype: torch.dtype, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Input and weight, and a bias that is large against the deviations of the output."""
    input, weight, *_ = LAYERS[name]
    g = torch.Generator().manual_seed(sum(input))
    x, w, b = (torch.randn(*sizes, generator=g).to(dtype) for sizes in (input, weight, weight[:1]))
    if last and x.dim() in FORMATS:
        x, w = (t.to(memory_format=FORMATS[x.dim()]) for t in (x, w))
    return x, w, b + 40


def exact_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    rows = y.double().transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, correction=0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_on_the_cpu_they_are_those_of_batch_norm(name: str, dtype: torch.dtype, last: bool) -> None:
    x, w, b = operands(name, dtype, last)
    for bias in (None, b):
        y, mean, var = OPS.conv_statistics(x, w, bias, *LAYERS[name][2:], 0)
        plain = OPS.conv(x, w, bias, *LAYERS[name][2:], None, 0, 0)
        assert torch.equal(y, plain) and y.stride() == plain.stride()
        for ours, expected in zip((mean, var), OPS.batch_norm_statistics(plain), strict=True):
            assert ours.dtype is F64 and torch.equal(ours, expected)


@emulated
@pytest.mark.parametrize("numbers", [(BF16, 0), (F16, 0), (F32, HIGH)], ids=["bf16", "f16", "tf32"])
@pytest.mark.parametrize("name", LAYERS)
def test_tensor_core_kernels_take_them_from_their_sums(name: str, numbers: tuple[torch.dtype, int]) -> None:
    """Of the stored values, in double, the same bits in any order of threads; the output is untouched by it."""
    from fastcv import _C

    dtype, precision = numbers
    for last in (False, True):
        x, w, b = operands(name, dtype, last)
        for variant in ("igemm_sm80", "igemm_tf32x3_sm80") if dtype is F32 else ("igemm_sm80",):
            with fastcv.use(conv=variant):
                results = []
                for seed in range(2):
                    _C.seed_emulator(seed)
                    results.append(OPS.conv_statistics(x, w, b, *LAYERS[name][2:], precision))
                plain = OPS.conv(x, w, b, *LAYERS[name][2:], None, 0, precision)
            y, mean, var = results[0]
            assert torch.equal(y, plain)
            assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
            for ours, exact in zip((mean, var), exact_statistics(y), strict=True):
                assert ((ours - exact).abs() <= 1e-12 * exact).all()


HOPPER = {
    (BF16, 0): (
        "igemm_sm90a",
        "igemm_planned_sm90a",
        "igemm_multicast_sm90a",
        "igemm_pingpong_sm90a",
        "igemm_specialised_sm90a",
        "igemm_serial_sm90a",
    ),
    (F16, 0): ("igemm_sm90a", "igemm_planned_sm90a"),
    (F32, HIGH): ("igemm_tf32_sm90a", "igemm_tf32x3_sm90a"),
}


@emulated
@pytest.mark.parametrize("numbers", HOPPER, ids=["bf16", "f16", "tf32"])
@pytest.mark.parametrize("name", ["3x3", "tails", "more channels than a tile", "rows"])
def test_every_kernel_of_hoppers_ladder_takes_them_from_its_sums(name: str, numbers: tuple[torch.dtype, int]) -> None:
    """As above; and, of 16-bit operands, whose sums are the same in every kernel, the same bits in all of them."""
    from fastcv import _C

    dtype, precision = numbers
    for last in (False, True):
        x, w, b = operands(name, dtype, last)
        found = []
        for variant in HOPPER[numbers]:
            with fastcv.use(conv=variant):
                for seed in range(2 if variant == HOPPER[numbers][0] else 1):
                    _C.seed_emulator(seed)
                    found.append(OPS.conv_statistics(x, w, b, *LAYERS[name][2:], precision))
                assert torch.equal(found[-1][0], OPS.conv(x, w, b, *LAYERS[name][2:], None, 0, precision)), variant
        for y, mean, var in found:
            for ours, exact in zip((mean, var), exact_statistics(y), strict=True):
                assert ((ours - exact).abs() <= 1e-12 * exact).all()
        for other in found[1:] if dtype is not F32 else found[1:2]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@emulated
@pytest.mark.parametrize("variant", ["igemm_sm80", "igemm_tf32_sm90a"])
def test_a_mean_a_million_deviations_away_costs_no_digits(variant: str) -> None:
    """The mean of the squares less the square of the mean would keep four: the one is 1e12 times the variance."""
    g = torch.Generator().manual_seed(3)
    x = torch.randint(-4, 5, (3, 8, 9, 10), generator=g) * 2.0**-10  # products and sums are exact in tf32 and float32
    w = torch.randint(-1, 2, (16, 8, 1, 1), generator=g).float()
    b = torch.full((16,), 2.0**13)
    with fastcv.use(conv=variant):
        y, mean, var = OPS.conv_statistics(x, w, b, [1, 1], [0, 0], [1, 1], 1, HIGH)
    exact_mean, exact_var = exact_statistics(y - b[:, None, None])
    assert (y.mean((0, 2, 3), dtype=F64) > 1e5 * exact_var.sqrt()).all()
    assert ((mean - 2.0**13 - exact_mean).abs() <= 1e-15 * 2**13).all() and ((var - exact_var).abs() <= 1e-9 * exact_var).all()
    assert (var > 0).any() and torch.equal(var == 0, exact_var == 0)


@emulated
def test_they_are_the_separate_pass_of_batch_norms_kernel() -> None:
    """The other way to the same numbers on a GPU: a pass over the stored output. Both sum in double, in other orders."""
    x, w, b = operands("3x3", BF16, True)
    with fastcv.use(conv="igemm_sm90a"):
        y, *fused = OPS.conv_statistics(x, w, b, *LAYERS["3x3"][2:], 0)
    with fastcv.use(batch_norm="two_pass_sm80"):
        for ours, theirs in zip(fused, OPS.batch_norm_statistics(y), strict=True):
            assert ((ours - theirs).abs() <= 1e-12 * theirs).all()


@emulated
def test_many_tiles_of_either_size() -> None:
    x, w = torch.randn(4, 8, 66, 66).bfloat16(), torch.randn(72, 8, 1, 1).bfloat16()
    for outputs in (8, 72):  # tiles of 64 x 64, and 137 of 128 x 128
        with fastcv.use(conv="igemm_sm80"):
            y, mean, var = OPS.conv_statistics(x, w[:outputs].contiguous(), None, [1, 1], [0, 0], [1, 1], 1, 0)
        exact_mean, exact_var = exact_statistics(y)
        assert ((mean - exact_mean).abs() <= 1e-12 * exact_var.sqrt()).all() and ((var - exact_var).abs() <= 1e-11 * exact_var).all()


@emulated
def test_a_kernel_that_makes_none_leaves_them_to_batch_norm() -> None:
    x, w, b = operands("3x3", BF16, True)
    for variant in ("tiled_sm80", "direct_sm80"):
        with fastcv.use(conv=variant):
            y, mean, var = OPS.conv_statistics(x, w, b, *LAYERS["3x3"][2:], 0)
        assert all(torch.equal(a, e) for a, e in zip((mean, var), OPS.batch_norm_statistics(y), strict=True))


@emulated
def test_what_is_not_finite_shows_in_its_channels_alone() -> None:
    x, w, b = operands("3x3", F16, True)
    b[3], b[5] = float("inf"), float("nan")
    with fastcv.use(conv="igemm_sm80"):
        _, mean, var = OPS.conv_statistics(x, w, b, *LAYERS["3x3"][2:], 0)
    bad = torch.tensor([k in (3, 5) for k in range(24)])
    assert torch.equal(var.isnan(), bad) and torch.equal(~mean.isfinite(), bad)


def test_no_images_and_no_channels() -> None:
    w = torch.randn(4, 3, 3, 3)
    y, mean, var = OPS.conv_statistics(torch.empty(0, 3, 5, 5), w, None, [1, 1], [0, 0], [1, 1], 1, 0)
    assert y.shape == (0, 4, 3, 3) and torch.equal(mean, torch.zeros(4, dtype=F64)) and torch.equal(var, mean)
    y, mean, var = OPS.conv_statistics(torch.empty(2, 0, 5, 5), torch.empty(4, 0, 3, 3), None, [1, 1], [0, 0], [1, 1], 1, 0)
    assert y.shape == (2, 0, 3, 3) and mean.numel() == var.numel() == 0


# Convolution, then batch norm --------------------------------------------------------------------------------------------------


def both(
    x: Tensor, w: Tensor, b: Tensor | None, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: str | None
) -> list[list[Tensor]]:
    """With statistics that the convolution left and with batch norm's own: the output, the running statistics, all gradients."""
    results = []
    for left in (True, False):
        leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, w, b, scale, shift, residual)]
        x1, w1, b1, scale1, shift1, residual1 = leaves
        mean, var = torch.full_like(scale, 0.5), torch.full_like(scale, 2.0)
        y = convolve_measured(x1, w1, b1, ([1, 1], [1, 1], [1, 1], 1)) if left else F.conv2d(x1, w1, b1, padding=1)
        z = F.batch_norm_act(y, mean, var, scale1, shift1, True, 0.1, 1e-5, residual=residual1, activation=activation)
        toward = torch.linspace(-1, 2, z.numel(), dtype=F64).to(z.dtype).reshape(z.shape)
        grads = torch.autograd.grad(z, [t for t in leaves if t is not None], toward)
        results.append([z, mean, var, *grads])
    return results


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_equals_the_two_functions_bit_for_bit(dtype: torch.dtype, activation: str | None) -> None:
    g = torch.Generator().manual_seed(1)
    for last in (torch.contiguous_format, torch.channels_last):
        x, w, r = (torch.randn(*s, generator=g).to(dtype).to(memory_format=last) for s in ((3, 5, 6, 7), (8, 5, 3, 3), (3, 8, 6, 7)))
        b, scale, shift = (
            torch.randn(8, generator=g).to(t) for t in (dtype, F32 if dtype is BF16 else dtype, F32 if dtype is BF16 else dtype)
        )
        for bias, residual in ((b, r), (None, None)):
            ours, expected = both(x, w, bias, scale, shift, residual, activation)
            assert all(torch.equal(a, e) for a, e in zip(ours, expected, strict=True))


@emulated
def test_with_statistics_from_the_kernel_it_is_as_close() -> None:
    g = torch.Generator().manual_seed(2)
    x, w, r = (
        torch.randn(*s, generator=g).bfloat16().to(memory_format=torch.channels_last)
        for s in ((2, 16, 9, 8), (24, 16, 3, 3), (2, 24, 9, 8))
    )
    scale, shift = (torch.randn(24, generator=g) for _ in range(2))
    with fastcv.use(conv="igemm_sm80"):
        ours, expected = both(x, w, None, scale, shift, r, "relu")
    for a, e in zip(ours, expected, strict=True):
        # The kernel sums in double, batch norm's on the CPU blocks of rows in float: a few roundings of float32, one of bfloat16.
        assert max_error(a, e.double()) <= (1 if a.dtype is BF16 else 4) * torch.finfo(a.dtype).eps


def test_gradients_of_gradients() -> None:
    x, w, b, scale, shift = (torch.randn(*s, dtype=F64, requires_grad=True) for s in ((2, 2, 4, 3), (3, 2, 3, 3), (3,), (3,), (3,)))

    def step(x: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.batch_norm_act(convolve_measured(x, w, b, ([1, 1], [1, 1], [1, 1], 1)), None, None, scale, shift, True, 0.1, 1e-3)

    assert torch.autograd.gradcheck(step, (x, w, b, scale, shift))
    assert torch.autograd.gradgradcheck(step, (x, w, b, scale, shift))


def test_mapped_calls_have_statistics_of_their_own() -> None:
    x, w = torch.randn(3, 2, 4, 6, 5), torch.randn(3, 8, 4, 3, 3)

    def step(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return OPS.conv_statistics(x, w, None, [1, 1], [1, 1], [1, 1], 1, 0)

    for dims in ((0, 0), (0, None), (None, 0)):
        one_by_one = [step(x[i] if dims[0] == 0 else x[0], w[i] if dims[1] == 0 else w[0]) for i in range(3)]
        mapped = torch.vmap(step, in_dims=dims)(x if dims[0] == 0 else x[0], w if dims[1] == 0 else w[0])
        for ours, expected in zip(mapped, zip(*one_by_one, strict=True), strict=True):
            assert max_error(ours, torch.stack(expected).double()) <= 1e-5  # of other kernels, in float32
