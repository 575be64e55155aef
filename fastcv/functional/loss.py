"""The loss family; same stem as csrc/loss."""

from ._cross_entropy import cross_entropy, nll_loss
from ._linear_cross_entropy import linear_cross_entropy
from ._losses import kl_div, multi_margin_loss, soft_iou_loss
from ._softmax import log_softmax, softmax

__all__ = [
    "cross_entropy",
    "kl_div",
    "linear_cross_entropy",
    "log_softmax",
    "multi_margin_loss",
    "nll_loss",
    "soft_iou_loss",
    "softmax",
]
