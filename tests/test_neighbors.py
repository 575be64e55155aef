"""Distances and nearest neighbours: against float64 and long double, torch, scikit-learn; ties, NaN, gradients, invariance."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastcv
import fastcv.functional as F
from fastcv.testing import assert_close, cases_of, check_case, runnable_variants, serves

INF = math.inf
PS = [0.0, 0.5, 1.0, 1.5, 2.0, 2.7, 3.0, INF]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPS = ["cdist", "cdist_backward", "knn", "knn_backward"]


def exact(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Distances in long double, rounded to float64."""
    a, b = (t.double().numpy().astype(np.longdouble) for t in (x, y))
    difference = np.abs(a[..., :, None, :] - b[..., None, :, :])
    if p == INF:
        result = difference.max(-1, initial=0)
    elif p == 0:
        result = (difference != 0).sum(-1)
    else:
        result = (difference**p).sum(-1) ** (np.longdouble(1) / p)
    return torch.from_numpy(result.astype(np.float64))


def integers(*shape: int, high: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points on a small grid: every distance is exact, and many are equal."""
    return torch.randint(0, high, shape).to(dtype)


def first_k(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row; equal ones by the lowest index, NaN last."""
    values, indices = distances.sort(dim=-1, stable=True)
    return values[..., :k], indices[..., :k]


# ---- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in cases_of("cdist", "knn", "nearest") if not c.bench], ids=lambda c: c.id)
def test_cases(case) -> None:
    check_case(case, getattr(F, case.op), torch.float32)


def test_either_of_two_neighbours_that_tie_within_rounding_is_right() -> None:
    """4 x 1024 queries of 64 coordinates: the 20th and 21st neighbour of one lie 1e-7 apart in float64, less than float32 sees."""
    (case,) = (c for c in cases_of("knn") if c.name == "l2_edgeconv_4x1024x64_k20")
    check_case(case, F.knn, torch.float32)

    def second_best(x: Tensor, y: Tensor, k: int, *rest: Any) -> tuple[Tensor, Tensor]:
        distances, indices = F.knn(x, y, k + 1, *rest)
        return distances[..., 1:], indices[..., 1:]

    def mislabelled(x: Tensor, y: Tensor, k: int, *rest: Any) -> tuple[Tensor, Tensor]:
        distances, indices = F.knn(x, y, k, *rest)
        return distances, indices.flip(-1)

    for wrong in (second_best, mislabelled):
        with pytest.raises(AssertionError, match="error"):
            check_case(cases_of("knn")[0], wrong, torch.float32)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", runnable_variants("cdist"))
def test_every_variant_against_long_double(variant: str, dtype: torch.dtype, p: float) -> None:
    if not serves("cdist", variant, dtype):
        pytest.skip("that instruction set leaves this dtype to another")
    for m, n, d in ((1, 1, 1), (5, 3, 2), (9, 31, 15), (8, 32, 16), (17, 33, 129), (66, 2, 300)):
        x, y = torch.randn(m, d).to(dtype), torch.randn(n, d).to(dtype)
        with fastcv.use(cdist=variant):
            try:
                ours = F.cdist(x, y, p)
            except ValueError as error:
                assert "cannot run this call" in str(error) and variant.startswith(("bytes", "product"))
                continue
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        torchs = torch.cdist(x.to(compute), y.to(compute), p, "donot_use_mm_for_euclid_dist").to(dtype)
        assert_close(ours, exact(x, y, p), torchs, f"{m}x{n}x{d}")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
@pytest.mark.parametrize("variant", runnable_variants("knn"))
def test_every_variant_finds_the_same_neighbours(variant: str, dtype: torch.dtype) -> None:
    if not serves("knn", variant, dtype):
        pytest.skip("that instruction set leaves this dtype to another")
    for p, k, m, n, d in (
        (1.0, 1, 40, 70, 3), (2.0, 1, 3, 300, 9), (2.0, 5, 33, 70, 17), (1.0, 5, 5, 65, 130), (INF, 3, 9, 40, 5), (0.0, 4, 9, 40, 5),
        (2.0, 33, 20, 300, 4), (1.0, 300, 2, 300, 4), (3.0, 2, 4, 30, 3), (2.0, 64, 35, 64, 1), (2.0, 7, 1, 1000, 8),
    ):  # fmt: skip
        x, y = integers(2, m, d, dtype=dtype), integers(2, n, d, dtype=dtype)
        with fastcv.use(knn=variant):
            try:
                distances, indices = F.knn(x, y, k, p)
            except ValueError as error:
                assert "cannot run this call" in str(error) and variant.startswith(("filter", "bytes", "product"))
                continue
        matrix = torch.cdist(x.double(), y.double(), 1.0 if p == 1 else p, "donot_use_mm_for_euclid_dist")
        if p == 2:  # integers below the root compare exactly
            matrix = (x.double()[:, :, None] - y.double()[:, None]).square().sum(-1)
        elif p == 3:
            matrix = (x.double()[:, :, None] - y.double()[:, None]).abs().pow(3).sum(-1)
        values, expected = first_k(matrix, k)
        root = values.sqrt() if p == 2 else values ** (1 / 3) if p == 3 else values
        assert torch.equal(indices, expected)
        torch.testing.assert_close(distances.double(), root.to(distances.dtype).double(), rtol=4 * torch.finfo(distances.dtype).eps, atol=0)


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
def test_gradient_of_few_points_in_partial_sums(squared: bool) -> None:
    """Blocks of queries, padding, batches, wide rows: near the float64 gradient, and the same bits for any number of threads."""
    for m, n, d, k in ((5000, 8, 5, 1), (2049, 3, 64, 2), (4500, 40, 33, 3)):
        x, y = r(2, m, d), r(2, n, d)
        distances, index = F.knn(x, y, k, squared=squared)
        index[0, ::7], grad = -1, r(2, m, k)
        raw = lambda dtype, g=grad, x=x, y=y, t=distances, i=index: torch.ops.fastcv.knn_backward(  # noqa: E731
            *(v.to(dtype) for v in (g, x, y, t)), i, 2.0, squared, True, True
        )
        before, found = torch.get_num_threads(), []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(raw(torch.float32))
        torch.set_num_threads(before)
        with fastcv.use(knn_backward="ref"):
            expected = raw(torch.float64)
        for i in (0, 1):
            assert torch.equal(found[0][i], found[1][i])
            rounding = 1e-5 * expected[i].abs().max().item()  # of sums of some thousand terms
            torch.testing.assert_close(found[0][i].double(), expected[i], rtol=0, atol=rounding)


def test_golden_l1_distance() -> None:
    test = torch.tensor([[56, 32, 10, 18], [90, 23, 128, 133], [24, 26, 178, 200], [2, 0, 255, 220]], dtype=torch.uint8)
    train = torch.tensor([[10, 20, 24, 17], [8, 10, 89, 100], [12, 16, 178, 170], [4, 32, 233, 112]], dtype=torch.uint8)
    for dtype in (torch.uint8, *DTYPES[:2]):
        x, y = test.view(1, 16).to(dtype), train.view(1, 16).to(dtype)
        assert F.cdist(x, y, 1).item() == 456
        distance, index = F.nearest(x, y, 1)
        assert distance.item() == 456 and index.item() == 0


def test_golden_knn_on_images() -> None:
    """k = 1 is always perfect on the training data; majority vote; k chosen by 5-fold cross-validation."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = (torch.from_numpy(a) for a in datasets.load_digits(return_X_y=True))
    images = images.byte()
    for p in (1, 2):
        distance, index = F.nearest(images, images, p)
        assert torch.equal(labels[index], labels) and not distance.any()
    order = torch.randperm(len(images))
    folds = order[: len(order) // 5 * 5].view(5, -1)
    accuracy = {}
    for k in (1, 3, 5, 100):
        hits = []
        for i in range(5):
            train = torch.cat([folds[j] for j in range(5) if j != i])
            votes = labels[train][F.knn(images[folds[i]], images[train], k, 1)[1]]
            hits.append((votes.mode(dim=1).values == labels[folds[i]]).double().mean())
        accuracy[k] = torch.stack(hits).mean().item()
    assert max(accuracy, key=lambda k: accuracy[k]) <= 5 and min(accuracy.values()) == accuracy[100] and accuracy[1] > 0.98


@pytest.mark.parametrize("mode", ["use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"])
def test_near_points_keep_their_distance(mode: str) -> None:
    """pytorch/pytorch#42479: points far from the origin and 109 apart; the matrix-product form cancels to 0."""
    x = torch.full((30, 2), 1.5e9)
    y = x.clone()
    y[:, 0] += 128
    distances = F.cdist(x, y, compute_mode=mode)
    assert torch.equal(distances, torch.full((30, 30), 128.0))
    assert torch.equal(F.knn(x, y, 1, squared=True)[0], torch.full((30, 1), 128.0**2))
    near = torch.randn(40, 64) + 1000
    assert not F.cdist(near, near, compute_mode=mode).diagonal().any()


def test_uint8_is_exact_and_does_not_wrap() -> None:
    x, y = torch.randint(0, 256, (9, 40001), dtype=torch.uint8), torch.randint(0, 256, (35, 40001), dtype=torch.uint8)
    x[0], y[0] = 0, 255
    for p in (1.0, 2.0, INF, 0.0):
        true = exact(x, y, p).float()  # one rounding of an exact number
        assert torch.equal(F.cdist(x, y, p), true)
        assert torch.equal(F.cdist(x[:, :77], y[:, :77], p), exact(x[:, :77], y[:, :77], p).float())
    assert F.cdist(x, y).dtype == torch.float32
    # 2^24 + 1 and 2^24 + 2 are one float32, but not one distance.
    a, b = torch.zeros(1, 70000, dtype=torch.uint8), torch.zeros(2, 70000, dtype=torch.uint8)
    b[:, :65793] = 255
    b[0, 65793], b[1, 65793] = 2, 1
    assert F.nearest(a, b, 1)[1].item() == 1


@pytest.mark.skipif("product_u8_avx512vnni" not in runnable_variants("knn"), reason="needs a CPU with AVX-512 VNNI")
@pytest.mark.parametrize("d", [0, 1, 3, 4, 63, 65, 508, 511, 512, 513, 3072, 33024])
def test_products_of_bytes_are_exact(d: int) -> None:
    """Squared distances as integers, the extremes that wrap around in between among them; tails of rows, lanes and coordinates."""
    for m, n in ((1, 1), (3, 66), (33, 7), (70, 130)) if d < 4000 else ((2, 9),):
        x, y = torch.randint(0, 256, (2, m, d), dtype=torch.uint8), torch.randint(0, 256, (2, n, d), dtype=torch.uint8)
        x[0, 0], y[0, 0], x[1, -1], y[1, -1] = 0, 255, 255, 255
        y[1, n // 2] = y[1, 0]  # ties
        matrix = (x.long()[:, :, None] - y.long()[:, None]).square().sum(-1)
        k = min(n, 5)
        values, indices = first_k(matrix, k)
        with fastcv.use(knn="product_u8_avx512vnni", cdist="product_u8_avx512vnni"):
            assert torch.equal(F.cdist(x, y), matrix.double().sqrt().float())
            squares, found = F.knn(x, y, k, squared=True)
            assert torch.equal(squares, values.float()) and torch.equal(found, indices)
            assert torch.equal(F.nearest(x, y)[1], indices[..., 0])
            assert torch.equal(F.knn(x, y, n)[1], first_k(matrix, n)[1])


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_floats_that_are_bytes_are_compared_as_bytes(isa: str) -> None:
    """The same bits as from the floats, also where one coordinate somewhere is no byte after all."""
    if f"bytes_f32_{isa}" not in runnable_variants("knn"):
        pytest.skip(f"needs a CPU with {isa}")
    for m, n, d in ((8, 8, 32), (9, 33, 101), (40, 700, 64)):
        x, y = (torch.randint(0, 256, (2, rows, d)).float() for rows in (m, n))
        x[0, 0, 0] = -0.0
        for place, value in (
            (None, 0),
            ((0, 0, 3), 0.5),
            ((1, n - 1, d - 1), -1),
            ((1, 5, d - 2), 256),
            ((0, 7, 7), INF),
            ((1, 2, 3), math.nan),
        ):
            other = y.clone()
            if place is not None:
                other[place] = value
            answers = []
            for variant in (f"bytes_f32_{isa}", f"tile_{isa}"):
                with fastcv.use(knn=variant, cdist=variant):
                    answers.append((F.cdist(x, other, 1), *F.knn(x, other, 5, 1), *F.knn(x[0], other, 3, 1)))
            for mine, tiles in zip(*answers, strict=True):
                assert torch.equal(mine.nan_to_num(-1.0), tiles.nan_to_num(-1.0)), (m, n, d, value)


# ---- neighbours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("name", ["load_iris", "load_digits"])
def test_against_scikit_learn(name: str, p: int) -> None:
    datasets, neighbors = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.neighbors")
    points = getattr(datasets, name)(return_X_y=True)[0]
    queries, points = points[::7], points[np.arange(len(points)) % 7 != 0]
    for k in (1, 10, 50):
        theirs = neighbors.NearestNeighbors(n_neighbors=k, metric="minkowski", p=p, algorithm="brute").fit(points).kneighbors(queries)
        distances, indices = F.knn(torch.from_numpy(queries), torch.from_numpy(points), k, p)
        np.testing.assert_allclose(distances.numpy(), theirs[0], rtol=1e-6, atol=1e-6)
        found = np.linalg.norm(queries[:, None] - points[indices.numpy()], ord=p, axis=-1)
        np.testing.assert_allclose(found, theirs[0], rtol=1e-6, atol=1e-6)


def test_equal_distances_go_to_the_lowest_index() -> None:
    y = torch.tensor([[1.0], [0.0], [1.0], [0.0], [-1.0]]).repeat(40, 1)
    x = torch.zeros(50, 1)
    for k in (1, 2, 7, 81, 200):
        distances, indices = F.knn(x, y, k)
        values, expected = first_k((x - y.T).abs(), k)
        assert torch.equal(distances, values) and torch.equal(indices, expected)
    assert F.nearest(x, y)[1].eq(1).all()
    same = torch.ones(33, 5)
    assert torch.equal(F.knn(same, same, 33)[1], torch.arange(33).expand(33, 33))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_comes_last_and_infinity_before_it(dtype: torch.dtype) -> None:
    y = torch.tensor([[math.nan, 0], [INF, 0], [3, 0], [-INF, 0], [0, math.nan], [1, 0], [0, 0]], dtype=dtype)
    x = torch.tensor([[0.0, 0], [math.nan, 1]], dtype=dtype)
    for p in (1.0, 2.0, 1.5):
        distances, indices = F.knn(x, y, 7, p)
        assert indices.tolist() == [[6, 5, 2, 1, 3, 0, 4], [0, 1, 2, 3, 4, 5, 6]]
        assert distances[0, :5].tolist() == [0, 1, 3, INF, INF] and distances[0, 5:].isnan().all() and distances[1].isnan().all()
    distance, index = F.nearest(x, y[[0, 4, 1]])
    assert index.tolist() == [2, 0] and distance[0] == INF and distance[1].isnan()
    # A NaN of any sign and payload counts as the same NaN.
    strange = torch.tensor([[-1], [0x7FFFFFFF], [0x7F800001]], dtype=torch.int32).view(torch.float32)
    assert F.knn(torch.zeros(3, 1), strange, 3)[1].tolist() == [[0, 1, 2]] * 3
    assert F.nearest(torch.zeros(3, 1), strange)[1].tolist() == [0] * 3


def test_more_neighbours_than_points() -> None:
    x, y = torch.randn(4, 3), torch.randn(11, 3)
    with pytest.raises(ValueError, match=r"k=16 but there are 11 points; pass pad=True to fill with \(inf, -1\)"):
        F.knn(x, y, 16)
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    distances, indices = F.knn(a, b, 16, pad=True)
    assert torch.equal(indices[:, :11], F.knn(x, y, 11)[1]) and torch.equal(distances[:, :11], F.knn(x, y, 11)[0])
    assert (indices[:, 11:] == -1).all() and (distances[:, 11:] == INF).all()
    padded = torch.autograd.grad(distances[:, :].masked_fill(indices < 0, 0).sum(), (a, b))
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    plain = torch.autograd.grad(F.knn(a, b, 11)[0].sum(), (a, b))
    assert all(torch.equal(i, j) for i, j in zip(padded, plain, strict=True))
    distances, indices = F.knn(x, y[:0], 2, pad=True)
    assert (indices == -1).all() and (distances == INF).all()
    with pytest.raises(ValueError, match="k=1 but there are 0 points"):
        F.nearest(x, y[:0])


def test_empty_and_flat_inputs() -> None:
    assert F.knn(torch.randn(0, 3), torch.randn(5, 3), 2)[1].shape == (0, 2)
    distances, indices = F.knn(torch.randn(4, 0), torch.randn(5, 0), 3)
    assert not distances.any() and indices.tolist() == [[0, 1, 2]] * 4
    assert F.knn(torch.randn(0, 4, 3), torch.randn(0, 5, 3), 2)[0].shape == (0, 4, 2)
    assert F.cdist(torch.randn(2, 0, 3, 4), torch.randn(1, 0, 5, 4)).shape == (2, 0, 3, 5)


def test_squared_leaves_the_root_away() -> None:
    x, y = integers(9, 5), integers(20, 5)
    squared, indices = F.knn(x, y, 4, squared=True)
    distances, same = F.knn(x, y, 4)
    assert torch.equal(indices, same) and torch.equal(squared.sqrt(), distances) and torch.equal(squared, squared.round())
    with pytest.raises(ValueError, match="p=2 only, got p=1"):
        F.knn(x, y, 4, 1, squared=True)


def test_batches_broadcast() -> None:
    x, y = torch.randn(3, 1, 5, 4), torch.randn(2, 9, 4)
    assert torch.equal(F.cdist(x, y, 1), torch.stack([torch.stack([F.cdist(a[0], b, 1) for b in y]) for a in x]))
    distances, indices = F.knn(x, y, 2)
    assert distances.shape == (3, 2, 5, 2)
    assert torch.equal(indices[2, 1], F.knn(x[2, 0], y[1], 2)[1])
    one = torch.randn(6, 5, 4)
    assert torch.equal(F.knn(one, y[0], 3)[1], torch.stack([F.knn(a, y[0], 3)[1] for a in one]))


@pytest.mark.parametrize(
    "make", [lambda t: t.mT.contiguous().mT, lambda t: t.repeat_interleave(2, -1)[..., ::2], lambda t: t.flip(0).flip(0)]
)
def test_any_strides(make: Callable[[Tensor], Tensor]) -> None:
    x, y = torch.randn(2, 9, 7), torch.randn(2, 12, 7)
    assert torch.equal(F.cdist(make(x), make(y)), F.cdist(x, y))
    assert torch.equal(F.knn(make(x), make(y), 3)[1], F.knn(x, y, 3)[1])
    a, b = make(x).requires_grad_(), x.clone().requires_grad_()
    w = torch.randn(2, 12, 9).mT
    assert torch.equal(*(torch.autograd.grad((F.cdist(t, y) * w).sum(), t)[0] for t in (a, b)))


@pytest.mark.parametrize("variant", [v for v in runnable_variants("knn") if v.startswith("filter")])
@pytest.mark.parametrize("data", ["normal", "offset", "scales", "clusters", "duplicates", "strange", "tiny", "huge"])
def test_the_filter_finds_what_the_tiles_find(data: str, variant: str) -> None:
    """The bounds lose no neighbour: the same bits as the exact tiles, where bounds are tight and where not."""
    for m, n, d, k in ((70, 1300, 64, 10), (130, 300, 131, 32), (64, 700, 300, 1), (33, 900, 65, 2), (41, 70, 19, 5), (300, 9, 3, 2)):
        x, y = torch.randn(2, m, d), torch.randn(2, n, d)
        if data == "offset":
            x, y = x + 1000, y + 1000
        elif data == "scales":
            y = y * torch.logspace(-3, 3, n)[torch.randperm(n), None]
        elif data == "clusters":
            x, y = (t * 1e-3 + torch.randint(0, 3, (*t.shape[:-1], 1)) for t in (x, y))
        elif data == "duplicates":
            y[:, n // 3 :] = y[:, 3:4]
            y[:, n // 2 : n // 2 + 60] = x[:, :1]
        elif data == "strange":
            y[:, 7], y[:, 6, 2], y[0, 5, 0], x[0, 2, 1] = math.nan, INF, -INF, math.nan
        elif data == "tiny":
            x, y = x * 1e-20, y * 1e-20
        elif data == "huge":
            x, y = x * 1e18, y * 1e19
        for dtype in DTYPES:
            if not serves("knn", variant, dtype) or (data == "huge" and dtype == torch.float16):
                continue
            a, b, results = x.to(dtype), y.to(dtype), []
            for name in (variant, "tile_" + variant.split("_")[1].replace("avx512bf16", "avx512")):
                with fastcv.use(knn=name):
                    results.append((*F.knn(a, b, k), *F.knn(a[1, -9:], b[1], k, squared=True)))
            for i, j in zip(*results, strict=True):
                assert torch.equal(i.nan_to_num(-1), j.nan_to_num(-1)) and torch.equal(i.isnan(), j.isnan()), (m, n, d, k, dtype)


# ---- invariance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_bits_for_any_threads_and_batch(dtype: torch.dtype) -> None:
    x, y = torch.randn(70, 300).to(dtype), torch.randn(530, 300).to(dtype)
    for p in (1.0, 2.0, 3.0):
        matrix, (distances, indices) = F.cdist(x, y, p), F.knn(x, y, 40, p)
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(F.cdist(x, y, p), matrix)
                again = F.knn(x, y, 40, p)
                assert torch.equal(again[0], distances) and torch.equal(again[1], indices)
                for i in (0, 37, 69):
                    assert torch.equal(F.cdist(x[i : i + 1], y, p)[0], matrix[i])
                    assert torch.equal(F.cdist(x, y[i : i + 1], p)[:, 0], matrix[:, i])
                    alone = F.knn(x[i : i + 1], y, 40, p)
                    assert torch.equal(alone[0][0], distances[i]) and torch.equal(alone[1][0], indices[i])
                    assert torch.equal(F.nearest(x[i : i + 1], y, p)[1][0], indices[i, 0])
                stacked = F.knn(x.expand(3, 70, 300), torch.stack([y, y + 1, y]), 40, p)
                assert torch.equal(stacked[0][2], distances) and torch.equal(stacked[1][0], indices)
        finally:
            torch.set_num_threads(before)


def test_gradients_have_the_same_bits_for_any_threads() -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        x, y = torch.randn(2, 90, 130, requires_grad=True), torch.randn(2, 300, 130, requires_grad=True)
        return [*torch.autograd.grad(F.cdist(x, y).sum(), (x, y)), *torch.autograd.grad(F.knn(x, y, 5)[0].sum(), (x, y))]

    before, first = torch.get_num_threads(), run()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(before)


# ---- cosine -------------------------------------------------------------------------------------------------------


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


# ---- gradients ----------------------------------------------------------------------------------------------------


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


# ---- errors -------------------------------------------------------------------------------------------------------

r = torch.randn
BAD_CDIST = [
    lambda f: f(r(3), r(4, 3)),
    lambda f: f(r(2, 3), r(3)),
    lambda f: f(r(2, 3), r(4, 2)),
    lambda f: f(r(2, 3), r(4, 3), -1.0),
    lambda f: f(r(2, 3), r(4, 3), math.nan),
    lambda f: f(r(2, 3), r(4, 3), "a"),
    lambda f: f(r(2, 3), r(4, 3), 2.0, "foo"),
    lambda f: f(r(2, 3), r(4, 3), compute_mode=0),
    lambda f: f(r(2, 3), r(4, 3), 1.0, None),
    lambda f: f(r(2, 3), r(4, 3).double()),
    lambda f: f(r(5, 2, 3), r(7, 4, 3)),
    lambda f: f([1], r(4, 3)),
    lambda f: f(torch.ones(2, 3).int(), torch.ones(4, 3).int()),
    lambda f: f(torch.ones(2, 3).cfloat(), torch.ones(4, 3).cfloat()),
    lambda f: f(),
]


@pytest.mark.parametrize("call", BAD_CDIST)
def test_cdist_raises_torchs_error_types(call: Callable[..., Any]) -> None:
    with pytest.raises(Exception) as torchs:
        call(torch.cdist)
    with pytest.raises(torchs.type):
        call(F.cdist)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((r(2, 3), r(4, 3), 0), ValueError, "k=0, but at least one"),
        ((r(2, 3), r(4, 3), 2.0), TypeError, "'k' must be int, not float"),
        ((r(2, 3), r(4, 3), True), TypeError, "'k' must be int, not bool"),
        ((r(2, 3), r(4, 3), 2, "cosine"), TypeError, "'p' must be float, not str"),
        ((r(2, 3), r(4, 3), 2, -2), RuntimeError, "non-negative p values, got p=-2"),
        ((r(2, 3), r(4, 5), 2), RuntimeError, "x: 3 y: 5"),
        ((r(2, 3), r(4, 3).double(), 2), RuntimeError, "same dtype"),
        ((r(3), r(4, 3), 2), RuntimeError, "at least 2D tensors, x got: 1D"),
        (([1.0], r(4, 3), 2), TypeError, "argument 'x'"),
    ],
)
def test_knn_errors_name_the_values(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        F.knn(*arguments)


# ---- torch's machinery --------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    x, y, g = r(2, 3, 4), r(2, 5, 4), r(2, 3, 5)
    ops = torch.ops.fastcv
    torch.library.opcheck(ops.cdist.default, (x, y, 1.0))
    torch.library.opcheck(ops.cdist.default, (x[0], y[0].mT.contiguous().mT, 2.0))
    torch.library.opcheck(ops.cdist.default, (x[0].byte(), y[0].byte(), 2.0))
    torch.library.opcheck(ops.cdist_backward.default, (g, x, y, 2.0, F.cdist(x, y)))
    torch.library.opcheck(ops.knn.default, (x, y, 2, 2.0, True))
    distances, indices = F.knn(x, y, 2)
    for need in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(ops.knn_backward.default, (distances, x, y, distances, indices, 2.0, False, *need))


def test_compile_export_and_vmap() -> None:
    x, y = r(2, 6, 4), r(2, 9, 4)

    def model(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (F.cdist(x, y, 1.0), *F.knn(x, y, 3), *F.nearest(x, y[0]))

    for i, j in zip(model(x, y), torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)(x, y), strict=True):
        assert torch.equal(i, j)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss = lambda t: F.cdist(t, y).sum() + F.knn(t, y, 2)[0].sum()  # noqa: E731
    loss(a).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(b).backward()
    assert torch.equal(a.grad, b.grad)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return model(x, y)

    exported = torch.export.export(Module(), (x, y)).module()(x, y)
    assert all(torch.equal(i, j) for i, j in zip(model(x, y), exported, strict=True))

    assert torch.equal(torch.vmap(F.cdist)(x, y), F.cdist(x, y))
    assert torch.equal(torch.vmap(F.cdist, in_dims=(0, None))(x, y[0]), F.cdist(x, y[0]))
    assert torch.equal(torch.vmap(lambda t: F.knn(t, y, 2)[1])(x.unsqueeze(1)), F.knn(x.unsqueeze(1), y, 2)[1])
    per_sample = torch.vmap(torch.func.grad(lambda a, b: F.cdist(a, b).sum() + F.knn(a, b, 2)[0].sum()))(x, y)
    torch.testing.assert_close(per_sample, a.grad)
    hessian = [
        torch.func.jacrev(torch.func.grad(f))(x[0, :1].double())
        for f in (lambda a: F.cdist(a, y[0].double()).sum(), lambda a: (a - y[0].double()).norm(dim=-1).sum())
    ]
    torch.testing.assert_close(*hessian)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    x, y = r(3, 4).to(dtype), r(5, 4)
    with torch.autocast("cpu", dtype=dtype):
        assert F.cdist(x, y).dtype == torch.float32
        assert F.knn(x, y.to(dtype), 2)[0].dtype == torch.float32
    assert torch.equal(F.cdist(x.float(), y), F.cdist(x.float(), y))


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_weaker_instruction_sets(isa: str) -> None:
    code = (
        "import torch, fastcv.functional as F; torch.manual_seed(0); x, y = torch.randint(0, 9, (2, 70, 33)).float()\n"
        "for f in (torch.Tensor.float, torch.Tensor.double, torch.Tensor.bfloat16, torch.Tensor.half, torch.Tensor.byte):\n"
        "  for p in (1, 2, 3):\n"
        "    print(F.cdist(f(x), f(y), p).double().sum().item(), (F.knn(f(x), f(y), 5, p)[1] * torch.arange(5)).sum().item())"
    )
    run = lambda isa: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code], env={**os.environ, "FASTCV_CPU_ISA": isa}, capture_output=True, text=True, check=True
    ).stdout.split()
    for ours, best in zip(run(isa), run("amx"), strict=True):
        assert float(ours) == pytest.approx(float(best), rel=1e-6)


# ---- anything -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2), st.integers(0, 40), st.integers(1, 150), st.integers(0, 140), st.integers(1, 60),
    st.sampled_from([0.0, 1.0, 2.0, INF]), st.sampled_from([*DTYPES, torch.uint8]), st.integers(0, 2**31),
)  # fmt: skip
def test_any_problem(b: int, m: int, n: int, d: int, k: int, p: float, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda rows: torch.randint(0, 5, (b, rows, d) if b else (rows, d), generator=generator).to(dtype)  # noqa: E731
    x, y = draw(m), draw(n)
    distances, indices = F.knn(x, y, k, p, squared=p == 2, pad=True)
    difference = (x.double().unsqueeze(-2) - y.double().unsqueeze(-3)).abs()
    if p == INF:
        matrix = difference.amax(-1) if d else difference.sum(-1)
    else:
        matrix = (difference != 0).sum(-1).double() if p == 0 else (difference**p).sum(-1)
    values, expected = first_k(matrix, min(k, n))
    assert torch.equal(indices[..., : min(k, n)], expected)
    assert torch.equal(distances[..., : min(k, n)].double(), values.to(distances.dtype).double())
    assert (indices[..., n:] == -1).all() and (distances[..., n:] == INF).all()
    assert (
        torch.equal(F.cdist(x, y, p).double(), (matrix.sqrt() if p == 2 else matrix).to(distances.dtype).double()) or dtype == torch.float64
    )
