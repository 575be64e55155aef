"""Segmentation of photographs by clustering their pixels: k-means, mean-shift, normalised cuts of superpixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import sparse

from .. import functional
from ._common import at_least, nearest_centres, tensor
from .graph_cut import normalized_cut
from .kmeans import KMeans
from .mean_shift import climb, estimate_bandwidth, heaviest

__all__ = ["METHODS", "mean_colors", "pixel_features", "segment", "superpixels"]

METHODS = ("kmeans", "meanshift", "ncut")
_MOST = 200_000  # pixels that k-means learns its centres from
_FLOOR = 1e-3  # affinity of the most unlike neighbours among superpixels
_MOST_SEEDS = 20_000  # of mean-shift: with as many clusters no segment would be seen, and the pairs of seeds take minutes
_SORTED = 256  # clusters, above which sorting the pixels costs nothing beside k-means
_CELLS = 8  # cells per bandwidth to which mean-shift rounds the pixels


def pixel_features(image: Any, color: bool = True, position: float = 0.0) -> np.ndarray:
    """One row per pixel, float32: its colour (or grey level) from 0 to 1, and its row and column times ``position`` / longer side.

    image: (H, W) or (H, W, 3), integers as parts of their dtype's largest value. color: False takes the mean of the channels.
    position: 0 leaves the position out; 1 makes the longer side count as much as black against white.
    """
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "buif" or 0 in pixels.shape:
        raise ValueError(f"an image is an array (H, W) or (H, W, C), got {pixels.dtype} of shape {pixels.shape}")
    scale = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1
    values = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32) / np.float32(scale)
    if not np.isfinite(values).all():
        raise ValueError("the image has pixels that are not finite")
    values = values if color else values.mean(-1, keepdims=True)
    if not 0 <= position < np.inf:
        raise ValueError(f"position must be a number of at least 0, got {position}")
    if position:
        height, width = pixels.shape[:2]
        places = np.stack(np.mgrid[:height, :width], -1).astype(np.float32) * np.float32(position / max(height, width))
        values = np.concatenate([values, places], -1)
    return values.reshape(-1, values.shape[-1])


def _kmeans(features: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    rows = features
    if len(rows) > _MOST:
        rows = rows[np.random.RandomState(seed).choice(len(rows), _MOST, replace=False)]
    if clusters > _SORTED and len(distinct := np.unique(rows, axis=0)) <= clusters:  # each of them is a cluster
        return nearest_centres(tensor(features), tensor(distinct))[1].numpy()
    return KMeans(min(clusters, len(rows)), n_init=3, random_state=seed).fit(rows).predict(features)


def _mean_shift(features: np.ndarray, bandwidth: float | None, seed: int) -> np.ndarray:
    """Clusters of the pixels rounded to an eighth of the bandwidth; one seed per occupied cell of the bandwidth."""
    if bandwidth is None:
        bandwidth = estimate_bandwidth(features, quantile=0.1, n_samples=1000, random_state=seed)
    if bandwidth == 0:  # estimated: a tenth of the pixels have the same features
        return np.unique(features, axis=0, return_inverse=True)[1]
    cell = bandwidth / _CELLS
    keys = np.round(features / cell).astype(np.int64)
    keys -= keys.min(0)
    sides = [int(side) + 1 for side in keys.max(0)]
    if math.prod(sides) > 2**62:
        raise ValueError(f"bandwidth={bandwidth:g} is too small: the features fall into more cells than can be counted")
    code = np.ravel_multi_index(tuple(keys.T), sides)  # one number per cell sorts faster than rows
    _, first, counts = np.unique(code, return_index=True, return_counts=True)
    points = np.round(features[first] / cell) * cell
    seeds = np.unique(np.round(points / bandwidth), axis=0) * bandwidth
    if len(seeds) > _MOST_SEEDS:
        raise ValueError(f"bandwidth={bandwidth:g} is too small: there are {len(seeds):,} cells of that width to start from")
    modes, mass, _ = climb(tensor(points), tensor(counts), tensor(seeds.astype(np.float32)), float(bandwidth), 100)
    return nearest_centres(tensor(features), heaviest(modes, mass, float(bandwidth)))[1].numpy()


def superpixels(image: Any, count: int = 600, compactness: float = 1.0) -> np.ndarray:
    """Labels (H, W) of about ``count`` small regions of one colour: k-means of colour and position, started on a grid.

    compactness: weight of the position; larger makes regions rounder.
    """
    height, width = np.asarray(image).shape[:2]
    count = min(at_least("count", count, 1), height * width)
    features = pixel_features(image, position=compactness)
    step = np.sqrt(height * width / count)
    down, right = (np.unique(np.clip(np.arange(min(step, side) / 2, side, step), 0, side - 1).astype(int)) for side in (height, width))
    start = (down[:, None] * width + right).ravel()
    every = max(1, len(features) // 100_000)
    learned = KMeans(len(start), init=features[start], max_iter=10).fit(
        features[::every] if len(features) // every >= len(start) else features
    )
    return np.unique(learned.predict(features), return_inverse=True)[1].reshape(height, width)


def mean_colors(image: Any, labels: np.ndarray) -> np.ndarray:
    """The image with every segment in its mean colour, in the image's dtype and shape."""
    pixels, flat = np.asarray(image), np.unique(labels.ravel(), return_inverse=True)[1]
    values = pixels.reshape(flat.size, -1)
    counts = np.bincount(flat)
    means = np.stack([np.bincount(flat, channel) / counts for channel in values.T.astype(np.float64)], 1)
    if pixels.dtype.kind in "ui":
        means = np.round(means)
    return means.astype(pixels.dtype)[flat].reshape(pixels.shape)


def _cut(image: np.ndarray, color: bool, clusters: int, sigma: float | None, seed: int) -> np.ndarray:
    """Normalised cut of superpixels: each is joined to those within three spacings, by colour and distance."""
    regions = superpixels(image)
    n, flat = int(regions.max()) + 1, regions.ravel()
    counts = np.bincount(flat, minlength=n)
    rows = pixel_features(image, color)
    height, width = regions.shape
    places = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    colors, centres = (np.stack([np.bincount(flat, c, n) / counts for c in a.T.astype(np.float64)], 1) for a in (rows, places))
    spacing = np.sqrt(height * width / n)
    distance, likeness = (functional.cdist(tensor(a), tensor(a)).numpy() for a in (centres, colors))
    near = (distance < 3 * spacing) & (distance > 0)
    if sigma is None:
        sigma = max(0.5 * float(likeness[near].mean()) if near.any() else 0.0, 1e-3)
    # The floor keeps a region of mixed colours from being a part of its own, cut off for nothing.
    weights = (np.exp(-np.square(likeness / sigma) / 2) + _FLOOR) * np.exp(-np.square(distance / spacing) / 8) * near
    # Areas count: a cut of superpixels of n_i and n_j pixels is one of n_i * n_j pairs.
    return normalized_cut(sparse.csr_array(weights * np.outer(counts, counts) / counts.mean() ** 2), min(clusters, n), seed)[regions]


def segment(
    image: Any,
    method: str = "kmeans",
    *,
    clusters: int = 6,
    color: bool = True,
    position: float = 0.0,
    bandwidth: float | None = None,
    sigma: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Labels (H, W) of an image's segments, numbered by size, the largest 0.

    image: (H, W) or (H, W, 3). method: "kmeans" (``clusters`` clusters of `pixel_features`), "meanshift" (``bandwidth`` in
    the same units; None: from the data; finds the number itself) or "ncut" (a graph of superpixels cut in ``clusters`` parts;
    sigma: the colour distance that counts as unlike, None: half the mean of neighbours). color, position: see `pixel_features`
    ("ncut" has positions in its graph). Memory is a few copies of the features; pixels are float32.
    Raises ValueError with the name of what is wrong.
    """
    pixels = np.asarray(image)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    for name, value in (("bandwidth", bandwidth), ("sigma", sigma)):
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"{name} must be a positive number or None, got {value}")
    clusters, features = at_least("clusters", clusters, 1), pixel_features(pixels, color, position)
    if method == "kmeans":
        labels = _kmeans(features, clusters, seed)
    elif method == "meanshift":
        labels = _mean_shift(features, bandwidth, seed)
    else:
        labels = _cut(pixels, color, clusters, sigma, seed)
    _, inverse, counts = np.unique(labels.ravel(), return_inverse=True, return_counts=True)
    return (-counts).argsort(kind="stable").argsort()[inverse].reshape(pixels.shape[:2])
