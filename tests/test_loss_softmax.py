"""softmax and log_softmax: accuracy of the exponential, dimensions and dtypes, gradients, golden numbers, CUDA."""

from typing import Any

import pytest
import torch
import torch.nn.functional as T
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_common import DTYPES, double, outcome, same

import fastcv
import fastcv.functional as F
from fastcv.testing import assert_close, runnable_variants

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides", "ignore:__array__")

L = torch.tensor


def test_exponential_within_two_ulp() -> None:
    """softmax over (x, top) with top = 0 large enough to dominate: numerator exp(x), denominator 1 + exp(x), known in float64."""
    x = torch.linspace(-87, 0, 200_001)
    for name in runnable_variants("softmax"):
        with fastcv.use(softmax=name):
            ours = F.softmax(torch.stack([x, torch.zeros_like(x)]), 0)[0].double()
        exact = x.double().exp() / (1 + x.double().exp())
        ulp = torch.finfo(torch.float32).eps * torch.exp2(exact.log2().floor())
        # One ulp each for the reciprocal and the product come on top of the exponential's two, half an ulp for the sum.
        assert ((ours - exact).abs() / ulp).max() <= 4
    # Positive arguments never occur in a softmax; kl_div with logarithmic targets has them: exp(t) (t - x) with t - x = 1.
    t = torch.linspace(-87, 88, 200_001)
    x = t - 1
    exact = t.double().exp() * (t.double() - x.double())
    for name in runnable_variants("kl_div"):
        with fastcv.use(kl_div=name):
            ours = F.kl_div(x, t, reduction="none", log_target=True).double()
        ulp = torch.finfo(torch.float32).eps * torch.exp2(exact.abs().log2().floor())
        assert ((ours - exact).abs() / ulp).max() <= 3  # two of the exponential, one of the product


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_implicit_dim_and_dtype(op: str) -> None:
    ours, torchs = getattr(F, op), getattr(T, op)
    for x in (torch.randn(()), torch.randn(3), torch.randn(3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4, 5)):
        with pytest.warns(UserWarning, match="Implicit dimension choice") as seen:
            y = ours(x)
        assert seen[0].filename == __file__
        with pytest.warns(UserWarning):
            same(y, torchs(x), op)
    x = torch.randn(3, 4)
    for source, wanted in (
        (x.half(), torch.float32),
        (x, torch.float16),
        (x, torch.float64),
        (x.long(), torch.float32),
        (x > 0, torch.float32),
    ):
        y = ours(source, 1, dtype=wanted)
        assert y.dtype == wanted
        same(y, torchs(source, 1, dtype=wanted), op)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_fuzz_softmax_against_torch(data: Any) -> None:
    draw = data.draw
    shape = [draw(st.integers(0, 20)) for _ in range(draw(st.integers(0, 4)))]
    dim = draw(st.integers(-5, 4))
    x = torch.randn(shape)
    for _ in range(draw(st.integers(0, 1)) if len(shape) > 1 else 0):
        x = x.transpose(0, -1)
    for op in ("softmax", "log_softmax"):
        same(outcome(getattr(F, op), x, dim), outcome(getattr(T, op), x, dim), f"{op} {list(x.shape)} {dim}")


def test_golden_2_softmax() -> None:
    scores = L([3.2, 5.1, -1.7])
    torch.testing.assert_close(F.softmax(scores, 0), L([0.13, 0.87, 0.00]), atol=0.005, rtol=0)
    assert F.cross_entropy(scores, L(0)).item() == pytest.approx(2.04, abs=0.005)
    torch.testing.assert_close(F.log_softmax(scores, 0).exp() * scores.exp().sum(), L([24.5, 164.0, 0.18]), atol=0.05, rtol=0)


def test_golden_3_temperature() -> None:
    z = torch.linspace(-5, 5, 11)
    pairs = torch.stack([z, torch.zeros_like(z)], 1)
    torch.testing.assert_close(F.softmax(pairs, 1)[:, 0], torch.sigmoid(z))
    scores = L([1.0, 3.0, 2.0])
    assert torch.equal(F.softmax(1e4 * scores, 0), L([0.0, 1.0, 0.0]))


def test_softmax_gradients_of_any_order() -> None:
    for op in (F.softmax, F.log_softmax):
        for shape, dim in (((3, 5), 1), ((2, 3, 4), 1), ((4,), 0)):
            function = lambda x, op=op, dim=dim: op(x, dim)  # noqa: E731
            assert torch.autograd.gradcheck(function, double(*shape)) and torch.autograd.gradgradcheck(function, double(*shape))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, dim", [((8, 1000), 1), ((3, 5), 1), ((2, 21, 7, 9), 1), ((7,), 0), ((0, 4), 1), ((2, 50257), -1)], ids=str)
def test_cuda_softmax(dtype: torch.dtype, shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape, device="cuda").to(dtype)
    for op in ("softmax", "log_softmax"):
        results = []
        for function, scores in ((F, x), (T, x.double()), (T, x)):
            leaf = scores.detach().requires_grad_()
            y = getattr(function, op)(leaf, dim)
            results.append((y, torch.autograd.grad(y, leaf, torch.ones_like(y).cumsum(dim))[0]))
        for ours, exact, torchs in zip(*results, strict=True):
            assert_close(ours.cpu(), exact.cpu(), torchs.cpu(), op)
