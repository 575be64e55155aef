"""Gradients of distances: every variant, any order, at distance zero, in half precision, the same bits for any threads."""

from collections.abc import Callable

import pytest
import torch
from neighbors_common import INF, PS
from torch import Tensor

import fastcv
import fastcv.functional as F
from fastcv.testing import assert_close, runnable_variants


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", ["cdist_backward", "knn_backward"])
def test_every_gradient_variant(op: str, dtype: torch.dtype) -> None:
    for variant in runnable_variants(op, dtype):
        generator = torch.Generator().manual_seed(0)  # one data set for all: what is exact by chance in torch's sums is so for each
        for p in [2.0] if variant.startswith("partials") else PS:
            for m, n, d in ((3, 5, 1), (7, 9, 5), (35, 130, 33)):
                x, y = (torch.randn(s, d, dtype=dtype, generator=generator) for s in (m, n))
                y[0] = x[0]

                def gradients(function: Callable[..., Tensor], x: Tensor = x, y: Tensor = y, dtype: torch.dtype = dtype) -> list[Tensor]:
                    a, b = x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()
                    distances = function(a, b)
                    return torch.autograd.grad((distances * torch.arange(distances.numel()).view_as(distances)).sum(), (a, b))

                k = min(4, n)
                if op == "cdist_backward":
                    ours, peer = (
                        (lambda a, b, p=p: F.cdist(a, b, p)),
                        (lambda a, b, p=p: torch.cdist(a, b, p, "donot_use_mm_for_euclid_dist")),
                    )
                else:
                    index = F.knn(x, y, k, p)[1]
                    ours = lambda a, b, p=p, k=k: F.knn(a, b, k, p)[0]  # noqa: E731
                    peer = lambda a, b, p=p, i=index: torch.cdist(a, b, p, "donot_use_mm_for_euclid_dist").gather(-1, i)  # noqa: E731
                with fastcv.use(**{op: variant}):
                    mine = gradients(ours)
                for a, t, r in zip(mine, gradients(peer), gradients(peer, dtype=torch.float64), strict=True):
                    if dtype == torch.float32:
                        assert_close(a, r, t, f"{variant} p={p}")
                    else:  # torch's float64 is the reference itself: sums of n terms in another order
                        torch.testing.assert_close(a, r, rtol=1e-12, atol=1e-12 * r.abs().max().item())


@pytest.mark.parametrize("squared", [False, True])
def test_gradient_of_few_points_in_partial_sums(squared: bool, threads: Callable[[int], None]) -> None:
    """Blocks of queries, padding, batches, wide rows: near the float64 gradient, and the same bits for any number of threads."""
    for m, n, d, k in ((5000, 8, 5, 1), (2049, 3, 64, 2), (4500, 40, 33, 3)):
        x, y = torch.randn(2, m, d), torch.randn(2, n, d)
        distances, index = F.knn(x, y, k, squared=squared)
        index[0, ::7], grad = -1, torch.randn(2, m, k)
        raw = lambda dtype, g=grad, x=x, y=y, t=distances, i=index: torch.ops.fastcv.knn_backward(  # noqa: E731
            *(v.to(dtype) for v in (g, x, y, t)), i, 2.0, squared, True, True
        )
        found = [threads(count) or raw(torch.float32) for count in (1, 2)]
        with fastcv.use(knn_backward="ref"):
            expected = raw(torch.float64)
        for i in (0, 1):
            assert torch.equal(found[0][i], found[1][i])
            rounding = 1e-5 * expected[i].abs().max().item()  # of sums of some thousand terms
            torch.testing.assert_close(found[0][i].double(), expected[i], rtol=0, atol=rounding)


def test_gradients_have_the_same_bits_for_any_threads(threads: Callable[[int], None]) -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        x, y = torch.randn(2, 90, 130, requires_grad=True), torch.randn(2, 300, 130, requires_grad=True)
        return [*torch.autograd.grad(F.cdist(x, y).sum(), (x, y)), *torch.autograd.grad(F.knn(x, y, 5)[0].sum(), (x, y))]

    first = run()
    for n in (1, 2, 3):
        threads(n)
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("p", [0.0, 1.0, 1.5, 2.0, 3.0, INF])
def test_gradients_of_any_order(p: float) -> None:
    x, y = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    for function in (lambda a, b: F.cdist(a, b, p), lambda a, b: F.knn(a, b, 2, p)[0], lambda a, b: F.nearest(a, b, p)[0]):
        assert torch.autograd.gradcheck(function, (x, y)) and torch.autograd.gradgradcheck(function, (x, y))
    if p == 2:
        squared = lambda a, b: F.knn(a, b, 2, squared=True)[0]  # noqa: E731
        assert torch.autograd.gradcheck(squared, (x, y)) and torch.autograd.gradgradcheck(squared, (x, y))


@pytest.mark.parametrize("p", PS)
def test_subgradients_at_zero_distance_are_torchs(p: float) -> None:
    x, y = torch.tensor([[0.0, 0, 0], [1, 2, -2]]), torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 2, -2]])
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    results = []
    for function in (F.cdist, torch.cdist):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        results.append(torch.autograd.grad((function(a, b, p) * weight).sum(), (a, b)))
    for ours, torchs in zip(*results, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, torchs)


def test_only_the_needed_gradient_is_computed() -> None:
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    calls = []
    with fastcv.use(cdist_backward=runnable_variants("cdist_backward")[0]):
        F.cdist(x, y).sum().backward()
    assert x.grad is not None and y.grad is None
    calls = fastcv.why_not(lambda: F.cdist(y, x).sum().backward())
    assert sum(op == "cdist_backward" and reason == "" for op, _, reason in calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_gradients_come_from_float32(dtype: torch.dtype) -> None:
    x, y = torch.randn(4, 6).to(dtype).requires_grad_(), torch.randn(9, 6).to(dtype)
    distances = F.cdist(x, y, 3)
    assert distances.dtype == dtype
    (ours,) = torch.autograd.grad(distances.float().sum(), x)
    a = x.detach().double().requires_grad_()
    (true,) = torch.autograd.grad(torch.cdist(a, y.double(), 3.0).sum(), a)
    torch.testing.assert_close(ours.double(), true, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    assert F.knn(x, y, 2)[0].dtype == dtype
