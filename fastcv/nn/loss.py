"""Modules of the loss family: torch.nn's constructors, attributes, state_dict and repr; fastcv's kernels."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional import loss as F

__all__ = ["CrossEntropyLoss", "KLDivLoss", "LinearCrossEntropyLoss", "LogSoftmax", "MultiMarginLoss", "NLLLoss", "SoftIoULoss", "Softmax"]


class Softmax(nn.Softmax):
    """`torch.nn.Softmax` on `fastcv.functional.softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(nn.LogSoftmax):
    """`torch.nn.LogSoftmax` on `fastcv.functional.log_softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` on `fastcv.functional.cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(nn.NLLLoss):
    """`torch.nn.NLLLoss` on `fastcv.functional.nll_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class MultiMarginLoss(nn.MultiMarginLoss):
    """`torch.nn.MultiMarginLoss` on `fastcv.functional.multi_margin_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(input, target, p=self.p, margin=self.margin, weight=self.weight, reduction=self.reduction)


class KLDivLoss(nn.KLDivLoss):
    """`torch.nn.KLDivLoss` on `fastcv.functional.kl_div`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class SoftIoULoss(nn.Module):
    """`fastcv.functional.soft_iou_loss` with its ``reduction`` and ``eps``."""

    def __init__(self, reduction: str = "whole", eps: float = 0.0) -> None:
        super().__init__()
        self.reduction = reduction
        self.eps = eps

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.soft_iou_loss(input, target, self.reduction, self.eps)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, eps={self.eps}"


if hasattr(nn, "LinearCrossEntropyLoss"):

    class LinearCrossEntropyLoss(nn.LinearCrossEntropyLoss):
        """`torch.nn.LinearCrossEntropyLoss` (torch 2.13 and later) on `fastcv.functional.linear_cross_entropy`."""

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            shape = (self.num_classes, *self.out_features)
            bias = self.linear.bias
            return F.linear_cross_entropy(
                input,
                self.linear.weight.reshape(*shape, self.linear.in_features),
                target,
                linear_bias=None if bias is None else bias.reshape(shape),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )

else:
    __all__.remove("LinearCrossEntropyLoss")
