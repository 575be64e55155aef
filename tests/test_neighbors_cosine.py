"""Cosine distances: scikit-learn's, small angles, any length, gradients, errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from neighbors_common import DTYPES
from torch import Tensor

import fastcv.functional as F


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """One minus the cosine in float64; 1 where a row is zero."""
    a, b = (t.double() / t.double().norm(dim=-1, keepdim=True).clamp_min(1e-300) for t in (x, y))
    return 1 - a @ b.mT


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
def test_cosine_distances_are_scikit_learns(dtype: torch.dtype) -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = (torch.randn(n, 33) if dtype != torch.uint8 else torch.randint(0, 256, (n, 33)) for n in (20, 50))
    x[3], y[7] = 0, 0
    x, y = x.to(dtype), y.to(dtype)
    theirs = torch.from_numpy(pairwise.cosine_distances(x.double().numpy(), y.double().numpy()))
    ours, eps = F.cdist(x, y, metric="cosine"), torch.finfo(torch.float32 if dtype == torch.uint8 else dtype).eps
    torch.testing.assert_close(ours.double(), theirs, rtol=2 * eps, atol=4 * eps)
    distances, indices = F.knn(x, y, 5, metric="cosine")
    assert distances.dtype == ours.dtype
    torch.testing.assert_close(distances.double(), theirs.gather(-1, indices), rtol=2 * eps, atol=4 * eps)
    torch.testing.assert_close(distances.double(), theirs.sort(-1)[0][:, :5], rtol=2 * eps, atol=4 * eps)
    assert torch.equal(F.nearest(x, y, metric="cosine")[1], indices[:, 0])


def test_cosine_keeps_small_angles_and_any_length() -> None:
    x = torch.randn(40, 64)
    y = x + 1e-3 * torch.randn(40, 64)
    true = cosine(x, y).diagonal()
    ours = F.cdist(x, y, metric="cosine").diagonal().double()
    assert ((ours - true) / true).abs().max() < 1e-3  # 1 - cos in float32 is off by a tenth here
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(F.cdist(x * scale, y, metric="cosine"), F.cdist(x, y, metric="cosine"), rtol=1e-5, atol=1e-9)


def test_cosine_gradients_of_any_order() -> None:
    x, y = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    for function in (lambda a, b: F.cdist(a, b, metric="cosine"), lambda a, b: F.knn(a, b, 2, metric="cosine")[0]):
        assert torch.autograd.gradcheck(function, (x, y)) and torch.autograd.gradgradcheck(function, (x, y))
    ours = torch.autograd.grad(F.cdist(x, y, metric="cosine").sum(), x)
    torch.testing.assert_close(ours, torch.autograd.grad(cosine(x, y).sum(), x))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: F.cdist(torch.ones(2, 3), torch.ones(2, 3), metric="angular"), "metric must be 'minkowski' or 'cosine', got 'angular'"),
        (lambda: F.knn(torch.ones(2, 3), torch.ones(2, 3), 1, 1, metric="cosine"), "metric='cosine' takes no p, got p=1"),
        (lambda: F.nearest(torch.ones(2, 3), torch.ones(2, 3), squared=True, metric="cosine"), "has no squared distances"),
    ],
)
def test_cosine_errors(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
