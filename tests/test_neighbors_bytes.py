"""Distances of bytes: exact in every instruction set, also where the bytes come as floats."""

import math

import pytest
import torch
from neighbors_common import INF, exact, first_k

import fastcv
import fastcv.functional as F
from fastcv.testing import runnable_variants


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
