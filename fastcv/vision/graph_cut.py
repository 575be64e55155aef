"""Normalised cuts (Shi and Malik 2000; k ways as Yu and Shi 2003): the smallest eigenvectors of the normalised graph Laplacian.

The graph of an image joins pixels (or superpixels) a few steps apart, by the likeness of their features; scipy's sparse
Lanczos solver finds the eigenvectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

from ._common import at_least
from .kmeans import KMeans

__all__ = ["cut_cost", "image_graph", "normalized_cut"]


def image_graph(features: np.ndarray, radius: float = 5, sigma: float = 0.1, sigma_position: float = 4.0) -> sparse.csr_array:
    """Affinities of an image's pixels: exp(-|f - g|^2 / 2 sigma^2 - |p - q|^2 / 2 sigma_position^2) within the radius.

    features: (H, W) or (H, W, C) numbers, f and g of two pixels at p and q (in pixels). Returns a symmetric matrix
    (H W, H W) in CSR form, without a diagonal, about pi radius^2 entries a row.
    """
    values = np.asarray(features, np.float64)
    values = values[..., None] if values.ndim == 2 else values
    height, width = values.shape[:2]
    index, reach = np.arange(height * width).reshape(height, width), int(radius)
    rows, columns, weights = [], [], []
    for dy in range(min(reach, height - 1) + 1):
        for dx in range(-min(reach, width - 1), min(reach, width - 1) + 1):
            squared = dy * dy + dx * dx
            if squared > radius * radius or (dy == 0 and dx <= 0):
                continue  # the other half follows by symmetry
            here = (slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0)))
            there = (slice(dy, height), slice(max(dx, 0), width - max(-dx, 0)))
            apart = np.square(values[here] - values[there]).sum(-1)
            rows.append(index[here].ravel())
            columns.append(index[there].ravel())
            weights.append(np.exp(-apart / (2 * sigma**2) - squared / (2 * sigma_position**2)).ravel())
    if not rows:
        return sparse.csr_array((index.size, index.size))
    half = sparse.coo_array((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(index.size,) * 2).tocsr()
    return half + half.T


def cut_cost(affinity: Any, labels: np.ndarray) -> float:
    """The normalised cut: for each part the weight of its edges to the others, over the weight of all its edges, summed."""
    affinity, labels = sparse.csr_array(affinity), np.unique(labels, return_inverse=True)[1]
    member = sparse.csr_array((np.ones(len(labels)), (np.arange(len(labels)), labels)))
    between = (member.T @ affinity @ member).toarray()
    total = between.sum(1)
    return float(((total - between.diagonal()) / np.where(total > 0, total, 1)).sum())


def spectral_embedding(affinity: Any, count: int, random_state: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` smallest eigenvalues of L v = lambda D v, L = D - W, ascending, and their vectors (n, count).

    Vectors have unit length in D, and the entry of largest size is positive. Nodes without edges get zeros.
    """
    affinity = sparse.csr_array(affinity, dtype=np.float64)
    n = affinity.shape[0]
    degree = np.asarray(affinity.sum(1)).ravel()
    scale = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    similar = sparse.dia_array((scale[None], [0]), shape=(n, n)) @ affinity @ sparse.dia_array((scale[None], [0]), shape=(n, n))
    if count >= n - 1 or n <= 64:
        values, vectors = np.linalg.eigh(similar.toarray())
    else:
        # The largest of I + D^-1/2 W D^-1/2: Lanczos wants the end of the spectrum, positive.
        start = np.random.RandomState(random_state).uniform(-1, 1, n)
        values, vectors = eigsh(similar + sparse.eye_array(n), k=count, which="LA", v0=start, tol=1e-8, maxiter=50 * n)
        values = values - 1
    order = np.argsort(-values, kind="stable")[:count]
    vectors = vectors[:, order] * scale[:, None]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(len(order))]
    return 1 - values[order], vectors * np.where(largest < 0, -1, 1)


def normalized_cut(affinity: Any, n_clusters: int = 2, random_state: int = 0) -> np.ndarray:
    """Labels (n,) that cut the graph in ``n_clusters`` parts of small normalised cut.

    affinity: a symmetric non-negative matrix (n, n), dense or scipy sparse. The rows of the ``n_clusters`` smallest
    eigenvectors, scaled to length one, are clustered by k-means (ten starts); parts are numbered as they first appear.
    Raises ValueError for a matrix that is not square and symmetric, negative entries, or fewer nodes than parts.
    """
    affinity = sparse.csr_array(affinity, dtype=np.float64)
    k, n = at_least("n_clusters", n_clusters, 1), affinity.shape[0]
    if affinity.shape[0] != affinity.shape[1] or abs(affinity - affinity.T).max() > 1e-10 * abs(affinity).max():
        raise ValueError(f"the affinity must be a symmetric matrix, got one of shape {affinity.shape}")
    if affinity.nnz and affinity.min() < 0:
        raise ValueError(f"affinities must not be negative, got {affinity.min():g}")
    if n < k:
        raise ValueError(f"{n} nodes cannot be cut into n_clusters={k} parts")
    _, vectors = spectral_embedding(affinity, k, random_state)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    found = KMeans(k, n_init=10, random_state=random_state).fit(vectors / np.where(length > 0, length, 1)).labels_
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse]
