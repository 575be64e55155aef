"""The losses as the course writes them, on the kernels of ``fastcv.functional``.

Scores are [N, C], targets are classes [N] (int64); means over the batch unless ``reduction`` is "sum" or "none". All are
differentiable. At random initialisation the scores are about equal, so cross-entropy begins at about ln C and the
hinge loss at about (C - 1) * margin: the first check of any training run.
"""

from __future__ import annotations

import math

from torch import Tensor

from .. import functional
from ..functional import soft_iou_loss

__all__ = ["hinge_loss", "kl_divergence", "label_smoothing_loss", "soft_iou_loss", "softmax"]


def hinge_loss(scores: Tensor, target: Tensor, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """The multiclass SVM's loss (Weston and Watkins): sum over the wrong classes of max(0, s_wrong - s_right + margin).

    torch's ``multi_margin_loss`` is this divided by the number of classes.
    """
    return functional.multi_margin_loss(scores, target, margin=margin, reduction=reduction) * scores.shape[-1]


def softmax(scores: Tensor, beta: float = 1.0, dim: int = -1) -> Tensor:
    """exp(beta * s_i) / sum_j exp(beta * s_j). beta is the inverse temperature: 0 gives equal shares, infinity the argmax.

    At beta = inf, scores that share the maximum share the probability. Raises ValueError for beta < 0.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    if math.isinf(beta):
        largest = (scores == scores.amax(dim, keepdim=True)).to(scores.dtype)
        return largest / largest.sum(dim, keepdim=True)
    return functional.softmax(scores * beta, dim=dim)


def kl_divergence(p: Tensor, q: Tensor, reduction: str = "mean") -> Tensor:
    """KL(P, Q) = sum_i p_i ln(p_i / q_i) = H(P, Q) - H(P) of distributions in the last dimension; infinite where q = 0 < p."""
    each = functional.kl_div(q.log(), p, reduction="none").sum(-1)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return each if reduction == "none" else getattr(each, reduction)()


def label_smoothing_loss(scores: Tensor, target: Tensor, smoothing: float = 0.1, reduction: str = "mean") -> Tensor:
    """Cross-entropy against (1 - smoothing) * onehot + smoothing / C."""
    return functional.cross_entropy(scores, target, label_smoothing=smoothing, reduction=reduction)
