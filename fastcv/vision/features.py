"""Features of images for linear classifiers and neighbours: colour histograms, HOG, bags of visual words.

Each is a function of a batch of images and a scikit-learn transformer of it. Images are (N, H, W) or (N, H, W, C) arrays or
flat rows (N, H * W * C) with ``shape`` told to the transformer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .. import functional
from ._common import at_least, nearest_centres, tensor
from .kmeans import KMeans, MiniBatchKMeans

__all__ = ["HOG", "BagOfVisualWords", "ColorHistogram", "color_histogram", "hog"]

_IMAGES = 256  # whose patches stand in memory at a time


def _batch(images: Any, name: str) -> np.ndarray:
    """(N, H, W, C)."""
    images = np.asarray(images)
    if images.ndim not in (3, 4) or not np.issubdtype(images.dtype, np.number):
        raise ValueError(f"{name} takes images (N, H, W) or (N, H, W, C), got {images.dtype} of shape {images.shape}")
    return images[..., None] if images.ndim == 3 else images


def color_histogram(images: Any, bins: int = 8, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """The share of the pixels in each of bins^C cells of the colour space: (N, bins ** C), each row summing to one.

    images: (N, H, W) or (N, H, W, C). value_range: black and white; None is (0, 255) for integers, (0, 1) for others. Values
    outside count in the nearest cell; the last cell includes white.
    """
    pixels, bins = _batch(images, "color_histogram"), at_least("bins", bins, 1)
    low, high = value_range or ((0, 255) if np.issubdtype(pixels.dtype, np.integer) else (0, 1))
    if not high > low:
        raise ValueError(f"value_range must ascend, got {value_range!r}")
    n, channels = len(pixels), pixels.shape[-1]
    cells = np.clip(((pixels.astype(np.float64) - low) * (bins / (high - low))).astype(np.int64), 0, bins - 1)
    code = cells.reshape(n, -1, channels) @ (bins ** np.arange(channels)[::-1])
    code += np.arange(n)[:, None] * bins**channels
    return np.bincount(code.ravel(), minlength=n * bins**channels).reshape(n, -1) / max(code.shape[1], 1)


def _gradients(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns): central differences of [N, C, H, W], zero on the border, of the channel where they are largest."""
    n, c, height, width = pixels.shape
    kernel = torch.tensor([-1.0, 0.0, 1.0], dtype=pixels.dtype)
    flat = pixels.reshape(n * c, 1, height, width)
    down, right = (torch.zeros_like(flat) for _ in range(2))
    if height > 2:
        down[:, :, 1:-1] = functional.conv2d(flat, kernel.reshape(1, 1, 3, 1))
    if width > 2:
        right[..., 1:-1] = functional.conv2d(flat, kernel.reshape(1, 1, 1, 3))
    down, right = down.reshape(pixels.shape), right.reshape(pixels.shape)
    if c == 1:
        return down[:, 0], right[:, 0]
    strongest = torch.hypot(down, right).argmax(1, keepdim=True)
    return down.gather(1, strongest)[:, 0], right.gather(1, strongest)[:, 0]


def hog(images: Any, orientations: int = 9, pixels_per_cell: int = 8, cells_per_block: int = 3) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs 2005): (N, blocks down * blocks right * cells^2 * orientations).

    images: (N, H, W) or (N, H, W, C), of which the channel of the largest gradient counts.
    Unsigned orientations, each pixel in one bin, square cells, L2-Hys normalisation of overlapping blocks, as
    ``skimage.feature.hog``. Raises ValueError for images smaller than one block.
    """
    pixels = _batch(images, "hog")
    bins, cell, block = (
        at_least(*pair, 1)
        for pair in (("orientations", orientations), ("pixels_per_cell", pixels_per_cell), ("cells_per_block", cells_per_block))
    )
    x = tensor(pixels.transpose(0, 3, 1, 2).astype(np.float64))
    cells_down, cells_right = x.shape[2] // cell, x.shape[3] // cell
    if min(cells_down, cells_right) < block:
        raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} hold no block of {block}x{block} cells of {cell} pixels")
    down, right = (g[:, : cells_down * cell, : cells_right * cell] for g in _gradients(x))
    angle = torch.rad2deg(torch.atan2(down, right)) % 180
    index = (angle / (180 / bins)).long().clamp_max(bins - 1)
    planes = torch.zeros(len(x), bins, *down.shape[1:], dtype=x.dtype).scatter_(1, index[:, None], torch.hypot(down, right)[:, None])
    cells = functional.avg_pool2d(planes, cell)  # [N, bins, cells down, cells right]
    blocks = cells.unfold(2, block, 1).unfold(3, block, 1).permute(0, 2, 3, 4, 5, 1).flatten(3)
    for limit in (0.2, None):  # L2-Hys: normalise, cut off at 0.2, normalise again
        blocks = blocks / (blocks.square().sum(-1, keepdim=True) + 1e-10).sqrt()
        blocks = blocks if limit is None else blocks.clamp_max(limit)
    return blocks.flatten(1).numpy()


class _ImageTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A function of images as a scikit-learn transformer; flat rows are folded into ``shape``."""

    def _images(self, X: Any) -> np.ndarray:
        X = np.asarray(X)
        if self.shape is not None:
            if X.ndim < 2 or X[0].size != np.prod(self.shape):
                raise ValueError(f"rows of shape {X.shape[1:]} do not fold into images of shape {tuple(self.shape)}")
            X = X.reshape(len(X), *self.shape)
        return _batch(X, type(self).__name__)

    def fit(self, X: Any, y: Any = None) -> Any:
        """Notes the number of features."""
        self._n_features_out = self._features(self._images(X)[:1]).shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features (n_samples, n_features_out) of the images."""
        check_is_fitted(self, "_n_features_out")
        return self._features(self._images(X))


class ColorHistogram(_ImageTransformer):
    """`color_histogram` as a transformer. shape: (H, W[, C]) of the images where rows are flat."""

    def __init__(self, bins: int = 8, *, value_range: tuple[float, float] | None = None, shape: tuple[int, ...] | None = None) -> None:
        self.bins = bins
        self.value_range = value_range
        self.shape = shape

    def _features(self, images: np.ndarray) -> np.ndarray:
        return color_histogram(images, self.bins, self.value_range)


class HOG(_ImageTransformer):
    """`hog` as a transformer. shape: (H, W[, C]) of the images where rows are flat."""

    def __init__(
        self, orientations: int = 9, pixels_per_cell: int = 8, cells_per_block: int = 3, *, shape: tuple[int, ...] | None = None
    ) -> None:
        self.orientations = orientations
        self.pixels_per_cell = pixels_per_cell
        self.cells_per_block = cells_per_block
        self.shape = shape

    def _features(self, images: np.ndarray) -> np.ndarray:
        return hog(images, self.orientations, self.pixels_per_cell, self.cells_per_block)


class BagOfVisualWords(_ImageTransformer):
    """Histograms of visual words: patches of all images are clustered to a codebook; an image is the shares of its patches' words.

    n_words: size of the codebook. patch, stride: side and spacing of the square patches in pixels. normalise: subtract each
    patch's mean and divide by its standard deviation. sample: patches drawn for the codebook at most. random_state: for the
    draw and for k-means. shape: (H, W[, C]) of the images where rows are flat. After fit: ``codebook_`` (n_words, patch * patch * C).
    """

    def __init__(
        self,
        n_words: int = 64,
        *,
        patch: int = 5,
        stride: int = 1,
        normalise: bool = True,
        sample: int = 100_000,
        random_state: Any = 0,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.n_words = n_words
        self.patch = patch
        self.stride = stride
        self.normalise = normalise
        self.sample = sample
        self.random_state = random_state
        self.shape = shape

    def _patches(self, images: np.ndarray) -> Tensor:
        """Patches [N, places, patch * patch * C] of the images."""
        size = at_least("patch", self.patch, 1)
        if min(images.shape[1:3]) < size:
            raise ValueError(f"images of {images.shape[1]}x{images.shape[2]} hold no patch of {size}x{size}")
        x = tensor(images.astype(np.float32)).unfold(1, size, at_least("stride", self.stride, 1)).unfold(2, size, self.stride)
        x = x.flatten(3).flatten(1, 2)
        if self.normalise:
            x = x - x.mean(2, keepdim=True)
            x = x / x.square().mean(2, keepdim=True).sqrt().clamp_min(1e-6)
        return x

    def fit(self, X: Any, y: Any = None) -> BagOfVisualWords:
        """Learns the codebook from the images."""
        images, k = self._images(X), at_least("n_words", self.n_words, 1)
        rows = self._sampled(images, at_least("sample", self.sample, 1))
        estimator = KMeans if len(rows) <= 200_000 else MiniBatchKMeans
        self.codebook_ = estimator(k, random_state=self.random_state, max_iter=50).fit(rows.numpy()).cluster_centers_
        self._n_features_out = k
        return self

    def _parts(self, images: np.ndarray) -> Iterator[Tensor]:
        """The patches of some images at a time: those of all would need a hundred times their memory."""
        for start in range(0, len(images), _IMAGES):
            yield self._patches(images[start : start + _IMAGES])

    def _sampled(self, images: np.ndarray, most: int) -> Tensor:
        """All patches [M, patch * patch * C], or ``most`` of them, drawn at random."""
        places, depth = self._patches(images[:1]).shape[1:]
        count = len(images) * places
        if count <= most:
            return torch.cat([part.flatten(0, 1) for part in self._parts(images)])
        seed = self.random_state if isinstance(self.random_state, int) else 0
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
        rows, first = torch.empty(most, depth), 0
        for part in self._parts(images):
            part = part.flatten(0, 1)
            here = ((drawn >= first) & (drawn < first + len(part))).nonzero().flatten()
            rows[here] = part[drawn[here] - first]
            first += len(part)
        return rows

    def _features(self, images: np.ndarray) -> np.ndarray:
        k, codebook, shares = len(self.codebook_), tensor(self.codebook_), []
        for patches in self._parts(images):
            n, places = patches.shape[:2]
            words = nearest_centres(patches.flatten(0, 1), codebook)[1].reshape(n, places)
            cells = words + k * torch.arange(n)[:, None]
            shares.append(torch.bincount(cells.flatten(), minlength=n * k).reshape(n, k).double() / places)
        return torch.cat(shares).numpy()
