"""Row-major copies of channels_last images: every variant, element size and edge of a square; and the ops that read them so."""

import pytest
import torch

import fastcv
from fastcv.functional._layout import row_major
from fastcv.testing.every_variant import runnable_variants

SHAPES = [(2, 3, 4, 5), (1, 16, 16, 16), (2, 21, 9, 15), (3, 40, 1, 7), (1, 33, 3, 50), (2, 5, 2, 3, 4), (1, 130, 12, 12), (1, 2, 33, 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("variant", runnable_variants("transpose"))
def test_every_variant_copies(variant: str, dtype: torch.dtype) -> None:
    with fastcv.use(transpose=variant):
        for shape in SHAPES:
            layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
            x = (100 * torch.randn(shape)).to(dtype).to(memory_format=layout)
            y = row_major(x)
            assert y.is_contiguous() and torch.equal(y, x), shape


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.bool], ids=str)
def test_integers_keep_their_bits(dtype: torch.dtype) -> None:
    """All patterns of 16 bits: a kernel that took them for floats would change those of signalling NaNs."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).to(dtype).view(1, 16, 64, 64).to(memory_format=torch.channels_last)
    assert torch.equal(row_major(x), x)


def test_gradients_and_torch() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(row_major, (x,)) and torch.autograd.gradgradcheck(row_major, (x,))
    torch.library.opcheck(torch.ops.fastcv.row_major.default, (x.detach(),))


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_softmax_of_channels_last(op: str, dtype: torch.dtype) -> None:
    for shape in [(2, 12, 3, 70), (2, 21, 5, 17), (1, 40, 4, 5), (2, 21, 9, 15), (1, 5, 20, 20)]:
        x = torch.randn(shape).to(dtype)
        last = x.to(memory_format=torch.channels_last)
        for dim in range(4):
            for variant in runnable_variants(op, dtype):
                with fastcv.use(**{op: variant}):
                    y, want = getattr(fastcv.functional, op)(last, dim), getattr(fastcv.functional, op)(x, dim)
                assert y.is_contiguous()
                torch.testing.assert_close(y, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(14, 14), (34, 40), (6, 62), (8, 16)])
def test_windows_of_two_by_two(dtype: torch.dtype, size: tuple[int, int]) -> None:
    """Their kernels against the reference: averages, maxima and both maps, gradients."""
    x = torch.randn(3, 5, *size).to(dtype)
    x[0, 0, :2, :4] = torch.tensor([[float("nan"), 1, -float("inf"), -float("inf")], [2, float("nan"), -float("inf"), -float("inf")]])

    def results() -> list[torch.Tensor]:
        a = x.clone().requires_grad_()
        average = fastcv.functional.avg_pool2d(a, 2, 2)
        best, index = fastcv.functional.max_pool2d(a, 2, 2, return_indices=True)
        plain = fastcv.functional.max_pool2d(a, 2, 2)
        g = torch.linspace(-1, 1, average.numel()).to(dtype).view_as(average)
        return [average, best, index, plain, *(torch.autograd.grad(t, a, g)[0] for t in (average, best, plain))]

    ops = ["avg_pool2d", "max_pool2d", "avg_pool2d_backward", "max_pool2d_backward"]
    with fastcv.use(**dict.fromkeys(ops, "ref")):
        want = results()
    for prefix in ("avx512", "avx2", "portable"):
        chosen = {op: name for op in ops for name in runnable_variants(op, dtype) if name.endswith(f"nchw_{prefix}")}
        with fastcv.use(**chosen):
            for mine, theirs in zip(results(), want, strict=True):
                torch.testing.assert_close(mine, theirs, equal_nan=True)
