"""Modules of the pool family: torch.nn's, with the forward pass on fastcv's kernels; and two of our own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import functional as F

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "MaxPool2d", "MaxUnpool2d", "SumPool2d", "UpsampleBedOfNails"]


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` through fastcv.functional.max_pool2d."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)


class AvgPool2d(nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` through fastcv.functional.avg_pool2d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override
        )


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` through fastcv.functional.adaptive_avg_pool2d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d`` through fastcv.functional.adaptive_max_pool2d."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class MaxUnpool2d(nn.MaxUnpool2d):
    """``torch.nn.MaxUnpool2d`` through fastcv.functional.max_unpool2d."""

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return F.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class SumPool2d(nn.Module):
    """The sum of each window: fastcv.functional.sum_pool2d."""

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.ceil_mode = (
            kernel_size,
            kernel_size if stride is None else stride,
            padding,
            ceil_mode,
        )

    def forward(self, input: Tensor) -> Tensor:
        return F.sum_pool2d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class UpsampleBedOfNails(nn.Module):
    """Each value in the top left corner of its cell, zeros elsewhere: fastcv.functional.upsample_bed_of_nails."""

    def __init__(self, scale_factor: int | Sequence[int] = 2) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.upsample_bed_of_nails(input, self.scale_factor)

    def extra_repr(self) -> str:
        return f"scale_factor={self.scale_factor}"
