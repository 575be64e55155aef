"""Neighbours by products on the emulator's tensor cores: the bits of the direct sums, whatever the data lets the bounds exclude."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import fastcv
from fastcv import functional as F

pytestmark = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)

FILTERS = ("filter_sm80", "filter_bf16x3_sm80")
PRODUCTS = (*FILTERS, "minimum_sm80", "product_u8_sm80")
INF = math.inf


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, high: int, seed: int = 0) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def unaligned(t: Tensor) -> Tensor:
    """The same values at an address that is a multiple of the element's size only."""
    moved = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
    return moved.copy_(t)


def assert_same_bits(variant: str, x: Tensor, y: Tensor, k: int, order: int = 1, **options: bool) -> None:
    """Indices and distances are those of the direct sums: the CPU's, or, where it has no fused multiply-add, the CUDA tiles'."""
    from fastcv import _C

    _C.seed_emulator(order)
    with fastcv.use(knn=variant):
        distances, indices = F.knn(x, y, k, **options)
    with fastcv.use(knn="lists_sm80" if fastcv.cpu_isa() == "portable" and x.dtype != torch.uint8 else ""):
        expected, right = F.knn(x, y, k, **options)
    assert torch.equal(indices, right)
    assert torch.equal(distances.isnan(), expected.isnan())  # payloads are nobody's promise
    assert torch.equal(distances.nan_to_num(-1.0, INF), expected.nan_to_num(-1.0, INF))


def test_they_run_only_when_asked_for() -> None:
    """Until a GPU has run them they stand behind a row that takes everything."""
    names = [name for name, _ in fastcv.variants("knn")]
    assert all(names.index(name) > names.index("select_sm80") for name in PRODUCTS)
    with pytest.raises(ValueError, match="needs k = 1"), fastcv.use(knn="minimum_sm80"):
        F.knn(torch.ones(2, 3), torch.ones(4, 3), 2)
    for variant in FILTERS:
        with pytest.raises(ValueError, match=r"needs p = 2 and float32|needs float32, which"), fastcv.use(knn=variant):
            F.knn(torch.ones(2, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64), 2)
        with pytest.raises(ValueError, match="needs p = 2 and float32"), fastcv.use(knn=variant):
            F.knn(torch.ones(2, 3), torch.ones(4, 3), 2, 1.0)
        with pytest.raises(ValueError, match="needs k up to 64"), fastcv.use(knn=variant):
            F.knn(torch.ones(2, 3), torch.ones(70, 3), 65)
    with pytest.raises(ValueError, match="needs p = 2 and uint8"), fastcv.use(knn="product_u8_sm80"):
        F.knn(torch.ones(2, 3), torch.ones(4, 3), 2)
    with pytest.raises(ValueError, match="needs at most 66051 coordinates"), fastcv.use(knn="product_u8_sm80"):
        F.knn(torch.ones(1, 66052, dtype=torch.uint8), torch.ones(2, 66052, dtype=torch.uint8), 1)


def strange(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    y[7], y[6, 2], y[5, 0], y[9, 1], y[130, 3] = math.nan, INF, -INF, 3e38, math.nan
    x[2, 1], x[3, 0], x[4, 2] = math.nan, INF, 1e30
    return x, y


DATA = {
    "normal": lambda x, y: (x, y),
    "offset": lambda x, y: (x + 1000, y + 1000),
    "clusters": lambda x, y: (x * 1e-3 + integers(len(x), 1, high=3), y * 1e-3 + integers(len(y), 1, high=3, seed=9)),
    "duplicates": lambda x, y: (x, torch.cat([y[: len(y) // 3], y[3:4].expand(len(y) - len(y) // 3 - 40, -1), x[:1].expand(40, -1)])),
    "all equal": lambda x, y: (torch.full_like(x, 0.3), torch.full_like(y, 0.3)),
    "scales": lambda x, y: (x, y * torch.logspace(-3, 3, len(y))[:, None]),
    "outlier": lambda x, y: (x, torch.cat([y[:50], y[50:51] * 1e12, y[51:]])),
    "far outlier": lambda x, y: (x, torch.cat([y[:1] * 1e30, y[1:]])),
    "denormal": lambda x, y: (x * 1e-39, y * 1e-39),
    "tiny": lambda x, y: (x * 1e-20, y * 1e-20),
    "huge": lambda x, y: (x * 1e18, y * 1e19),
    "strange": strange,
}


@pytest.mark.parametrize("variant", [*FILTERS, "minimum_sm80"])
@pytest.mark.parametrize("data", DATA)
def test_bounds_lose_no_neighbour(data: str, variant: str) -> None:
    x, y = DATA[data](normal(37, 41, seed=1), normal(300, 41, seed=2))
    assert_same_bits(variant, x.contiguous(), y.contiguous(), 1 if variant == "minimum_sm80" else 7, order=len(data))


@pytest.mark.parametrize("variant", ["filter_sm80", "minimum_sm80"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("data", ["normal", "duplicates", "outlier", "denormal", "strange"])
def test_halves_need_no_rounding(data: str, dtype: torch.dtype, variant: str) -> None:
    x, y = DATA[data](normal(20, 21, seed=1), normal(200, 21, seed=2))
    if dtype == torch.float16 and data == "denormal":
        x, y = normal(20, 21, seed=1) * 1e-6, normal(200, 21, seed=2) * 1e-6
    assert_same_bits(variant, x.to(dtype), y.to(dtype), 1 if variant == "minimum_sm80" else 5, order=3)


@pytest.mark.parametrize("k", [1, 2, 16, 17, 33, 64])
def test_ties_go_to_the_lowest_index(k: int) -> None:
    """Coordinates of three values: many equal distances, at the k-th place too."""
    x, y = integers(70, 3, high=3, seed=1), integers(200, 3, high=3, seed=2)
    expected = torch.cdist(x.double(), y.double()).sort(dim=-1, stable=True)
    for variant, dtype in (("filter_sm80", torch.float32), ("product_u8_sm80", torch.uint8)):
        with fastcv.use(knn=variant):
            distances, indices = F.knn(x.to(dtype), y.to(dtype), k, squared=True)
        assert torch.equal(indices, expected.indices[:, :k]), variant
        assert torch.equal(distances, expected.values[:, :k].square().round().float()), variant


@pytest.mark.parametrize("depth", [1, 2, 7, 8, 16, 31, 32, 33, 64, 65, 127, 128, 129, 200, 260])
def test_tails_of_coordinates(depth: int) -> None:
    x, y = normal(5, depth, seed=depth), normal(140, depth, seed=1000 + depth)
    for variant in FILTERS:
        assert_same_bits(variant, x, y, 3)
    assert_same_bits("filter_sm80", unaligned(x), unaligned(y), 3)
    assert_same_bits("minimum_sm80", x.half(), unaligned(y.half()), 1)
    bytes_x, bytes_y = integers(5, depth, high=256, seed=1).byte(), integers(140, depth, high=256, seed=2).byte()
    assert_same_bits("product_u8_sm80", bytes_x, unaligned(bytes_y), 3)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (63, 2), (64, 127), (65, 128), (127, 129), (129, 255), (200, 385)])
def test_tails_of_points(m: int, n: int) -> None:
    x, y = normal(m, 9, seed=m), normal(n, 9, seed=n)
    for k in {1, min(n, 20), min(n, 64)}:
        assert_same_bits("filter_sm80", x, y, k, order=k)
        assert_same_bits("product_u8_sm80", (x * 9).abs().byte(), (y * 9).abs().byte(), k, order=k)
    assert_same_bits("minimum_sm80", x, y, 1)


def test_all_points_are_asked_for() -> None:
    x, y = normal(10, 6, seed=1), normal(60, 6, seed=2)
    y[5], y[9] = y[8], math.nan
    assert_same_bits("filter_sm80", x, y, 60)
    assert_same_bits("filter_sm80", x, y, 60, squared=True)
    for variant in PRODUCTS:
        dtype, k = torch.uint8 if "u8" in variant else torch.float32, 1 if variant == "minimum_sm80" else 3
        few = torch.ones(2, 4, dtype=dtype)
        with fastcv.use(knn=variant):
            distances, indices = F.knn(few, few[:0], k, pad=True)
            assert distances.tolist() == [[INF] * k] * 2 and indices.tolist() == [[-1] * k] * 2
            assert F.knn(few[:0], few, 1)[0].shape == (0, 1)
            nothing = F.knn(few[:, :0], few[:, :0], 1)
            assert nothing[0].tolist() == [[0.0]] * 2 and nothing[1].tolist() == [[0]] * 2


@pytest.mark.parametrize("variant", PRODUCTS)
def test_parts_of_many_points_are_merged(variant: str) -> None:
    x, y = integers(3, 4, high=40, seed=1), integers(2600, 4, high=40, seed=2)
    dtype = torch.uint8 if "u8" in variant else torch.float32
    for k in (1,) if variant == "minimum_sm80" else (5, 40):
        assert_same_bits(variant, x.to(dtype), y.to(dtype), k, order=k)


@pytest.mark.parametrize("variant", PRODUCTS)
def test_batches(variant: str) -> None:
    """Items of a batch have points of their own, or share one side; each item's result is that of the item alone."""
    x, y = normal(3, 20, 5, seed=1) + torch.arange(3)[:, None, None] * 50, normal(3, 150, 5, seed=2) + 40
    if "u8" in variant:
        x, y = x.abs().byte(), y.abs().byte()
    k = 1 if variant == "minimum_sm80" else 4
    assert_same_bits(variant, x, y, k)
    assert_same_bits(variant, x[:1].expand(3, -1, -1), y, k)
    assert_same_bits(variant, x, y[0].expand(3, -1, -1), k)
    with fastcv.use(knn=variant):
        whole, alone = F.knn(x, y, k), F.knn(x[1], y[1], k)
    assert torch.equal(whole[0][1], alone[0]) and torch.equal(whole[1][1], alone[1])


def test_an_order_changes_nothing() -> None:
    x, y = normal(130, 12, seed=1), normal(300, 12, seed=2)
    for order in range(4):
        assert_same_bits("filter_sm80", x, y, 9, order=order)
        assert_same_bits("minimum_sm80", x, y, 1, order=order)


def test_sums_of_bytes_up_to_the_last_bit() -> None:
    """The largest distance that 32 bits hold; |a|^2 + |b|^2 and 2 a.b wrap around on the way."""
    depth = 66051
    y = torch.stack([torch.zeros(depth), torch.full((depth,), 255), torch.full((depth,), 254)]).byte()
    with fastcv.use(knn="product_u8_sm80"):
        distances, indices = F.knn(y[:2], y, 3, squared=True)
    assert indices.tolist() == [[0, 2, 1], [1, 2, 0]]
    largest = float(torch.tensor(float(depth * 255**2), dtype=torch.float32))
    assert distances.tolist() == [[0.0, float(torch.tensor(float(depth * 254**2))), largest], [0.0, float(depth), largest]]


def test_cosine_runs_on_it() -> None:
    x, y = normal(9, 20, seed=1), normal(140, 20, seed=2)
    expected = F.knn(x, y, 4, metric="cosine")
    with fastcv.use(knn="filter_sm80"):
        ours = F.knn(x, y, 4, metric="cosine")
    assert torch.equal(ours[1], expected[1]) and (fastcv.cpu_isa() == "portable" or torch.equal(ours[0], expected[0]))


# ---- tensor cores at the bound -------------------------------------------------------------------------------------

ASSUMED = 20 * 2.0**-23  # of a step's largest addend: what csrc/neighbors/knn_filter.cu allows for


@pytest.fixture
def product_loss() -> Iterator[Callable[[float], None]]:
    from fastcv import _C

    yield _C.set_emulator_product_loss
    _C.set_emulator_product_loss(0.0)


def close_neighbours(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows near each other and far from zero: what long sums lose is not small beside the differences of distances."""
    base = normal(1, 320, seed=5)
    return (base + 0.1 * normal(20, 320, seed=6)).to(dtype), (base + 0.1 * normal(256, 320, seed=7)).to(dtype)


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        ("filter_sm80", torch.float32),
        ("filter_sm80", torch.float16),
        ("filter_sm80", torch.bfloat16),
        ("filter_bf16x3_sm80", torch.float32),
        ("minimum_sm80", torch.float32),
        ("minimum_sm80", torch.float16),
    ],
    ids=str,
)
def test_tensor_cores_that_round_as_badly_as_the_bound_allows(
    variant: str, dtype: torch.dtype, product_loss: Callable[[float], None]
) -> None:
    product_loss(ASSUMED)
    k = 1 if variant == "minimum_sm80" else 5
    assert_same_bits(variant, *close_neighbours(dtype), k)
    assert_same_bits(variant, normal(40, 200, seed=1).to(dtype), normal(256, 200, seed=2).to(dtype), k)


def test_what_is_beyond_the_bound_shows(product_loss: Callable[[float], None]) -> None:
    """The test above can fail."""
    product_loss(1000 * ASSUMED)
    with pytest.raises(AssertionError):
        assert_same_bits("filter_sm80", *close_neighbours(torch.float16), 5)
