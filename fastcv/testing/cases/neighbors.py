"""Cases of the neighbors family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._case import Arguments, Case, randn


def torch_cdist(x1: Tensor, x2: Tensor, p: float = 2.0) -> Tensor:
    """torch.cdist, which refuses uint8."""
    return torch.cdist(x1.float(), x2.float(), p) if x1.dtype == torch.uint8 else torch.cdist(x1, x2, p)


def torch_knn(x: Tensor, y: Tensor, k: int, p: float = 2.0, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """What one writes with torch: the full matrix, then topk."""
    distances, indices = torch_cdist(x, y, p).topk(k, largest=False)
    return (distances**2 if squared else distances), indices


def torch_nearest(x: Tensor, y: Tensor, p: float = 2.0) -> tuple[Tensor, Tensor]:
    distance, index = torch_cdist(x, y, p).min(-1)
    return distance, index


def chosen(outputs: tuple[Tensor, Tensor], x: Tensor, y: Tensor, *rest: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The distances of x to those rows of y that a call of knn or nearest chose."""
    index = outputs[1].reshape(*x.shape[:-1], -1)
    wide = torch.float64 if x.dtype == torch.uint8 else x.dtype
    rows = index.flatten(-2).unsqueeze(-1).expand(*index.shape[:-2], -1, x.shape[-1])
    difference = x.to(wide).unsqueeze(-2) - y.to(wide).gather(-2, rows).unflatten(-2, index.shape[-2:])
    p = next((float(value) for value in rest[-1:] if isinstance(value, float)), 2.0)
    distances = torch.linalg.vector_norm(difference, p, -1).reshape(outputs[1].shape)
    return (distances**2 if kwargs.get("squared") else distances), outputs[1]


def _case(op: str, name: str, x: tuple[int, ...], y: tuple[int, ...], *rest: Any, u8: bool = False, bench: bool = False) -> Case:
    def build(generator: torch.Generator) -> Arguments:
        if u8:
            points = [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in (x, y)]
        else:
            points = [randn(generator, *shape) for shape in (x, y)]
        return (*points, *rest), {}

    p = rest[-1] if op == "cdist" and rest else rest[1] if op == "knn" and len(rest) > 1 else rest[0] if op == "nearest" and rest else 2
    pairs = x[-2] * y[-2] * x[-1] * (x[0] if len(x) == 3 else 1)
    return Case(
        op,
        name,
        build,
        peer={"cdist": torch_cdist, "knn": torch_knn, "nearest": torch_nearest}[op],
        flops=pairs * (2 if p in (1, 2) else 0) + (pairs if p in (1, 2) else 0),
        bench=bench,
        grad=() if u8 else (0, 1),
        choice=None if op == "cdist" else chosen,
        layouts=("contiguous",),
        dtypes=(torch.float32,),
    )


INF = float("inf")

CASES: list[Case] = [
    *(
        _case("cdist", f"p{p:g}_{m}x{n}x{d}", (m, d), (n, d), p)
        for p in (0.0, 0.5, 1.0, 1.5, 2.0, 2.7, 3.0, INF)
        for m, n, d in ((5, 3, 7), (17, 33, 130))
    ),
    _case("cdist", "batched", (2, 9, 5), (2, 4, 5), 2.0),
    _case("cdist", "broadcast", (3, 1, 6, 5), (2, 4, 5), 1.0),
    _case("cdist", "one_coordinate", (6, 1), (7, 1), 2.0),
    _case("cdist", "no_coordinates", (2, 0), (3, 0), 2.0),
    _case("cdist", "no_rows", (0, 4), (3, 4), 1.0),
    _case("cdist", "empty_batch", (0, 2, 4), (0, 3, 4), 2.0),
    _case("cdist", "tall", (70, 19), (3, 19), 2.0),
    _case("cdist", "u8_l1", (20, 101), (33, 101), 1.0, u8=True),
    _case("cdist", "u8_l2", (20, 101), (23, 101), 2.0, u8=True),
    _case("knn", "k3", (9, 7), (20, 7), 3),
    _case("knn", "k3_l1", (9, 7), (20, 7), 3, 1.0),
    _case("knn", "k_all", (6, 130), (13, 130), 13),
    _case("knn", "k40_batched", (2, 5, 6), (2, 60, 6), 40),
    _case("knn", "p3", (5, 4), (11, 4), 2, 3.0),
    _case("nearest", "l2", (37, 5), (21, 5)),
    _case("nearest", "l1", (3, 9), (40, 9), 1.0),
    # Image classification by nearest neighbours (CIFAR-10 rows), features, clustering.
    _case("cdist", "l1_images_20x5000x3072", (20, 3072), (5000, 3072), 1.0, bench=True),
    _case("cdist", "l2_images_200x5000x3072", (200, 3072), (5000, 3072), 2.0, bench=True),
    _case("cdist", "l2_features_1000x2000x128", (1000, 128), (2000, 128), 2.0, bench=True),
    _case("cdist", "l1_features_500x1000x128", (500, 128), (1000, 128), 1.0, bench=True),
    _case("cdist", "l2_pointcloud_4x1024x3", (4, 1024, 3), (4, 1024, 3), 2.0, bench=True),
    _case("cdist", "l1_u8_images_20x5000x3072", (20, 3072), (5000, 3072), 1.0, u8=True, bench=True),
    _case("knn", "l1_images_20x5000x3072_k10", (20, 3072), (5000, 3072), 10, 1.0, bench=True),
    _case("knn", "l2_images_200x5000x3072_k10", (200, 3072), (5000, 3072), 10, bench=True),
    _case("knn", "l2_features_500x20000x128_k10", (500, 128), (20000, 128), 10, bench=True),
    _case("knn", "l1_u8_images_20x5000x3072_k10", (20, 3072), (5000, 3072), 10, 1.0, u8=True, bench=True),
    _case("knn", "l2_u8_images_100x5000x3072_k10", (100, 3072), (5000, 3072), 10, u8=True, bench=True),
    _case("knn", "l2_pointcloud_4x2048x3_k16", (4, 2048, 3), (4, 2048, 3), 16, bench=True),
    _case("knn", "l2_edgeconv_4x1024x64_k20", (4, 1024, 64), (4, 1024, 64), 20, bench=True),
    _case("nearest", "l2_clusters_20000x256x64", (20000, 64), (256, 64), bench=True),
    _case("nearest", "l1_clusters_4000x256x64", (4000, 64), (256, 64), 1.0, bench=True),
]
