"""The CUDA kernels of distances and neighbours on the emulator: several tiles, parts and digits, ties, NaN and padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastcv
from fastcv import functional as F
from fastcv.testing.compare import assert_close

pytestmark = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)

KNN = ("lists_sm80", "select_sm80")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def integers(*shape: int, high: int = 4, seed: int = 0) -> Tensor:
    """Few values: many equal distances, and sums that every dtype holds exactly."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def exact_neighbours(x: Tensor, y: Tensor, k: int, p: float) -> tuple[Tensor, Tensor]:
    distances, indices = torch.cdist(x.double(), y.double(), p).sort(dim=-1, stable=True)
    return distances[..., :k], indices[..., :k]


@pytest.mark.parametrize("variant", KNN)
@pytest.mark.parametrize("k", [1, 5, 33, 70])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_ties_go_to_the_lowest_index(variant: str, k: int, p: float) -> None:
    x, y = integers(67, 3, seed=1).float(), integers(130, 3, seed=2).float()
    with fastcv.use(knn=variant):
        distances, indices = F.knn(x, y, k, p)
    exact, expected = exact_neighbours(x, y, k, p)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(distances.double(), exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("variant", KNN)
def test_parts_of_many_points_are_merged(variant: str) -> None:
    x, y = integers(2, 3, 2, high=30, seed=1).float(), integers(2, 1500, 2, high=30, seed=2).float()
    with fastcv.use(knn=variant):
        distances, indices = F.knn(x, y, 40)
    exact, expected = exact_neighbours(x, y, 40, 2)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(distances.double(), exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("variant", KNN)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8])
def test_every_dtype(variant: str, dtype: torch.dtype) -> None:
    x, y = integers(5, 37, high=256, seed=1).to(dtype), integers(70, 37, high=256, seed=2).to(dtype)
    exact, expected = exact_neighbours(x, y, 6, 1)
    with fastcv.use(knn=variant):
        distances, indices = F.knn(x, y, 6, 1.0)
    assert torch.equal(indices, expected)
    assert torch.equal(distances, exact.to(distances.dtype))


@pytest.mark.parametrize("variant", KNN)
def test_nan_comes_last_and_padding_after_it(variant: str) -> None:
    x, y = torch.zeros(2, 2), torch.tensor([[torch.nan, 0], [3, 4], [torch.inf, 0], [0, 1], [0, torch.nan]])
    with fastcv.use(knn=variant):
        distances, indices = F.knn(x, y, 7, pad=True)
        none = F.knn(x, y[:0], 2, pad=True)
    assert indices.tolist() == [[3, 1, 2, 0, 4, -1, -1]] * 2
    inf = torch.inf
    assert torch.equal(distances.nan_to_num(-1.0, inf), torch.tensor([[1.0, 5, inf, -1, -1, inf, inf]] * 2))
    assert distances[:, 3:5].isnan().all()
    assert none[0].tolist() == [[inf, inf]] * 2 and none[1].tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize("variant", KNN)
def test_squared_and_other_powers(variant: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 5, generator=g), torch.randn(9, 5, generator=g)
    with fastcv.use(knn=variant):
        for p, squared in ((2.0, True), (0.0, False), (1.5, False), (torch.inf, False), (2.7, False)):
            distances, indices = F.knn(x, y, 3, p, squared=squared)
            exact, expected = exact_neighbours(x, y, 3, p)
            if p != 0:
                assert torch.equal(indices, expected), p
            torch.testing.assert_close(distances.double(), exact**2 if squared else exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8])
@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.0, torch.inf])
@pytest.mark.parametrize("depth", [21, 24])
def test_cdist_in_every_dtype(dtype: torch.dtype, p: float, depth: int) -> None:
    x, y = integers(70, depth, high=16, seed=1).to(dtype), integers(66, depth, high=16, seed=2).to(dtype)
    exact = torch.cdist(x.double(), y.double(), p, "donot_use_mm_for_euclid_dist")
    with fastcv.use(cdist="tile_sm80"):
        ours = F.cdist(x, y, p)
    assert ours.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    if p != 3:
        assert torch.equal(ours, exact.to(ours.dtype))  # exact sums, one rounding
    else:
        torch.testing.assert_close(ours.double(), exact, rtol=torch.finfo(ours.dtype).eps, atol=0)


def test_cdist_of_a_shared_side() -> None:
    x, y = torch.randn(3, 4, 6), torch.randn(5, 6)
    with fastcv.use(cdist="tile_sm80"):
        ours = F.cdist(x, y, 1.0)
        for b in range(3):
            assert torch.equal(ours[b], F.cdist(x[b], y, 1.0))  # the same bits in any batch
        assert torch.equal(F.cdist(y, x[0], 1.0), ours[0].T)  # and in either role


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 2.7, torch.inf])
def test_cdist_backward(p: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(66, 3, generator=g), torch.randn(140, 3, generator=g)
    y[:5] = x[:5]  # distances of zero
    weight = torch.randn(66, 140, generator=g)
    gradients = []
    for function, dtype in ((F.cdist, torch.float32), (torch.cdist, torch.float32), (torch.cdist, torch.float64)):
        a, b = x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()
        with fastcv.use(cdist="tile_sm80", cdist_backward="tile_sm80"):
            gradients.append(torch.autograd.grad(function(a, b, p), (a, b), weight.to(dtype)))
    for ours, torchs, exact in zip(*gradients, strict=True):
        finite = exact.isfinite() & ours.isfinite()
        assert finite.float().mean() > 0.9
        assert_close(ours[finite], exact[finite], torchs[finite], f"p = {p}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knn_backward_sorts_many_pairs(dtype: torch.dtype) -> None:
    """Two chunks of pairs and two digits of points; one point is chosen by all."""
    from fastcv import _C

    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 450, 2, generator=g).to(dtype)
    y = torch.cat([torch.zeros(2, 1, 2), torch.randn(2, 200, 2, generator=g)], 1).to(dtype)
    index = torch.cat([torch.zeros(2, 450, 1), torch.randint(-1, 201, (2, 450, 2), generator=g)], 2).long()
    grad, distance = torch.randn(2, 450, 3, generator=g).to(dtype), torch.rand(2, 450, 3, generator=g).to(dtype) + 0.5
    args = (grad, x, y, distance, index, 1.0, False, True, True)
    with fastcv.use(knn_backward="ref"):
        expected = torch.ops.fastcv.knn_backward(*args)
    results = []
    with fastcv.use(knn_backward="gather_sm80"):
        for seed in range(2):
            _C.seed_emulator(seed)
            results.append(torch.ops.fastcv.knn_backward(*args))
    for ours, again, right in zip(*results, expected, strict=True):
        assert torch.equal(ours, again)
        # 450 terms in float, 32 at a time: far fewer than 450 roundings of the largest sum.
        bound = 64 * torch.finfo(dtype).eps * right.abs().max().item()
        torch.testing.assert_close(ours, right, rtol=0, atol=bound)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, torch.inf])
def test_knn_gradients(p: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=g), torch.randn(9, 3, generator=g)
    for squared in (False, True) if p == 2 else (False,):
        gradients = []
        for variants in ({"knn": "lists_sm80", "knn_backward": "gather_sm80"}, {"knn": "ref", "knn_backward": "ref"}):
            a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
            with fastcv.use(**variants):
                distances, _ = F.knn(a, b, 4, p, squared=squared)
                gradients.append(torch.autograd.grad(distances.square().sum(), (a, b)))
        for ours, right in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, right)
