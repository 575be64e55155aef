"""The nearest neighbours: scikit-learn's, ties, NaN, padding, batches, and the filter, which must lose none."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from neighbors_common import DTYPES, INF, first_k, integers
from torch import Tensor

import fastcv
import fastcv.functional as F
from fastcv.testing import cases_of, check_case, runnable_variants, serves


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


def test_squared_leaves_the_root_away() -> None:
    x, y = integers(9, 5), integers(20, 5)
    squared, indices = F.knn(x, y, 4, squared=True)
    distances, same = F.knn(x, y, 4)
    assert torch.equal(indices, same) and torch.equal(squared.sqrt(), distances) and torch.equal(squared, squared.round())
    with pytest.raises(ValueError, match="p=2 only, got p=1"):
        F.knn(x, y, 4, 1, squared=True)


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
            needs = dict(fastcv.variants("knn"))[variant]
            for name in (variant, "tile_" + {"avx512bf16": "avx512", "amx": "avx512"}.get(needs, needs)):
                with fastcv.use(knn=name):
                    results.append((*F.knn(a, b, k), *F.knn(a[1, -9:], b[1], k, squared=True)))
            for i, j in zip(*results, strict=True):
                assert torch.equal(i.nan_to_num(-1), j.nan_to_num(-1)) and torch.equal(i.isnan(), j.isnan()), (m, n, d, k, dtype)
