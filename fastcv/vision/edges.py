"""Canny's edges (1986): smoothing and gradients by the convolution op, thin ridges, two thresholds; as ``skimage.feature.canny``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .. import functional
from ._common import tensor

__all__ = ["canny"]


def _gaussian(sigma: float, dtype: torch.dtype) -> Tensor:
    """Weights of a Gaussian out to four sigma, summing to one."""
    reach = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / max(sigma, 1e-12)) ** 2)
    return (weights / weights.sum()).to(dtype)


def _blurred(image: Tensor, weights: Tensor) -> Tensor:
    """[H, W] convolved along both axes; zeros outside."""
    reach = len(weights) // 2
    x = functional.conv2d(image[None, None], weights.reshape(1, 1, -1, 1), padding=(reach, 0))
    return functional.conv2d(x, weights.reshape(1, 1, 1, -1), padding=(0, reach))[0, 0]


def _sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel derivatives (rows, columns), edge pixels repeated outside.

    Differences first, then the two at the sides added before twice the middle, as in ``scipy.ndimage.sobel``: magnitudes that tie
    there must tie here, or thin ridges differ.
    """
    padded = torch.nn.functional.pad(image[None, None], (1, 1, 1, 1), mode="replicate")
    slope, sides = torch.tensor([-1.0, 0.0, 1.0], dtype=image.dtype), torch.tensor([1.0, 0.0, 1.0], dtype=image.dtype)
    down, right = (functional.conv2d(padded, slope.reshape(1, 1, *shape)) for shape in ((3, 1), (1, 3)))
    down = functional.conv2d(down, sides.reshape(1, 1, 1, 3)) + 2 * down[..., 1:-1]
    right = functional.conv2d(right, sides.reshape(1, 1, 3, 1)) + 2 * right[..., 1:-1, :]
    return down[0, 0], right[0, 0]


def _ridges(down: Tensor, right: Tensor, magnitude: Tensor, low: float) -> Tensor:
    """Pixels of at least ``low`` whose magnitude none of the two interpolated neighbours along the gradient exceeds.

    The neighbour at distance one along the gradient lies between a straight and a diagonal pixel; border pixels are no ridges.
    """
    steep = down.abs() > right.abs()
    same = down * right >= 0
    longer, shorter = torch.maximum(down.abs(), right.abs()), torch.minimum(down.abs(), right.abs())
    share = torch.where(longer > 0, shorter / torch.where(longer > 0, longer, 1), 0)[1:-1, 1:-1]
    height, width = magnitude.shape

    def at(dy: int, dx: int) -> Tensor:
        return magnitude[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]

    centre, inner = at(0, 0), (slice(1, -1), slice(1, -1))
    ridge = (centre >= low) & (longer[inner] > 0)
    for sign in (1, -1):
        straight = torch.where(steep[inner], at(sign, 0), at(0, sign))
        # With both derivatives of one sign the gradient points to the pixel one down and one right (or its opposite), else one
        # down and one left.
        other = torch.where(steep[inner], at(sign, -sign), at(-sign, sign))
        diagonal = torch.where(same[inner], at(sign, sign), other)
        ridge &= centre >= straight * (1 - share) + diagonal * share
    found = torch.zeros(magnitude.shape, dtype=torch.bool)
    found[inner] = ridge
    return found


def canny(image: Any, sigma: float = 1.0, low: float = 0.1, high: float = 0.2) -> np.ndarray:
    """Edges of a grey image (H, W) as a boolean array.

    sigma: of the Gaussian that smooths first, in pixels. low, high: thresholds of the Sobel magnitude, for integers as parts of their
    dtype's largest value; an edge holds pixels above ``low`` and one above ``high`` at least.
    Raises ValueError for another shape, sigma < 0 and high < low.
    """
    grey = np.asarray(image)
    if grey.ndim != 2 or grey.dtype.kind not in "buif":
        raise ValueError(f"canny takes a grey image (H, W), got {grey.dtype} of shape {grey.shape}")
    if not sigma >= 0 or not math.isfinite(sigma):
        raise ValueError(f"sigma must be a number of at least 0, got {sigma}")
    if not high >= low:
        raise ValueError(f"low={low} must not be above high={high}")
    scale = np.iinfo(grey.dtype).max if grey.dtype.kind in "ui" else 1
    x = tensor(grey.astype(np.float64) * (1 / scale))
    if min(x.shape) < 3:
        return np.zeros(x.shape, bool)
    weights = _gaussian(sigma, x.dtype)
    smooth = _blurred(x, weights) / (_blurred(torch.ones_like(x), weights) + torch.finfo(x.dtype).eps)  # zeros outside do not count
    down, right = _sobel(smooth)
    magnitude = (down.square() + right.square()).sqrt()
    thin = _ridges(down, right, magnitude, low)
    labels, _ = ndimage.label(thin.numpy(), np.ones((3, 3)))
    strong = np.unique(labels[thin.numpy() & (magnitude.numpy() >= high)])
    return np.isin(labels, strong) & (labels > 0)
