"""Convolution modules: torch.nn's classes with forward on fastcv's kernels (csrc/conv)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import conv as functional

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


def _conv(module: torch.nn.modules.conv._ConvNd, function: Callable[..., Tensor], input: Tensor) -> Tensor:
    padding = module.padding
    if module.padding_mode != "zeros":
        input, padding = F.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    return function(input, module.weight, module.bias, module.stride, padding, module.dilation, module.groups)


def _transposed(
    module: torch.nn.modules.conv._ConvTransposeNd, function: Callable[..., Tensor], nd: int, input: Tensor, output_size: list[int] | None
) -> Tensor:
    if module.padding_mode != "zeros":
        raise ValueError(f"Only `zeros` padding mode is supported for {type(module).__name__}, got {module.padding_mode!r}")
    extra = module.output_padding
    if output_size is not None:
        extra = module._output_padding(input, output_size, module.stride, module.padding, module.kernel_size, nd, module.dilation)
    return function(input, module.weight, module.bias, module.stride, module.padding, extra, module.groups, module.dilation)


class Conv1d(torch.nn.Conv1d):
    """torch.nn.Conv1d; every padding_mode. Shapes, dtypes and errors: fastcv.functional.conv1d."""

    def forward(self, input: Tensor) -> Tensor:
        return _conv(self, functional.conv1d, input)


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d; every padding_mode. Shapes, dtypes and errors: fastcv.functional.conv2d."""

    def forward(self, input: Tensor) -> Tensor:
        return _conv(self, functional.conv2d, input)


class Conv3d(torch.nn.Conv3d):
    """torch.nn.Conv3d; every padding_mode. Shapes, dtypes and errors: fastcv.functional.conv3d."""

    def forward(self, input: Tensor) -> Tensor:
        return _conv(self, functional.conv3d, input)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d; output_size chooses the output padding. Errors: fastcv.functional.conv_transpose1d."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _transposed(self, functional.conv_transpose1d, 1, input, output_size)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d; output_size chooses the output padding. Errors: fastcv.functional.conv_transpose2d."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _transposed(self, functional.conv_transpose2d, 2, input, output_size)


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d; output_size chooses the output padding. Errors: fastcv.functional.conv_transpose3d."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _transposed(self, functional.conv_transpose3d, 3, input, output_size)
