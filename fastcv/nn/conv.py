"""Convolution modules: torch.nn's classes with forward on fastcv's kernels (csrc/conv)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import conv as functional

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]

_NAMES = (("conv1d", "conv2d", "conv3d"), ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))


def forward(module: torch.nn.modules.conv._ConvNd, input: Tensor, output_size: list[int] | None = None, packs: Any = None) -> Tensor:
    """The forward of every class here; packs: see functional.conv."""
    nd, padding = len(module.kernel_size), module.padding
    name = _NAMES[module.transposed][nd - 1]
    if module.transposed:
        if module.padding_mode != "zeros":
            raise ValueError(f"Only `zeros` padding mode is supported for {type(module).__name__}, got {module.padding_mode!r}")
        extra = module.output_padding
        if output_size is not None:
            extra = module._output_padding(input, output_size, module.stride, padding, module.kernel_size, nd, module.dilation)
        geometry = (module.stride, padding, extra, module.groups, module.dilation)
        return functional.transposed(nd, name, input, module.weight, module.bias, *geometry, packs)
    if module.padding_mode != "zeros":
        input, padding = F.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    geometry = (module.stride, padding, module.dilation, module.groups)
    return functional.convolve(nd, name, input, module.weight, module.bias, *geometry, packs)


class Conv1d(torch.nn.Conv1d):
    """torch.nn.Conv1d; every padding_mode. Shapes, dtypes and errors: fastcv.functional.conv1d."""

    def forward(self, input: Tensor) -> Tensor:
        return forward(self, input)


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d; every padding_mode. Shapes, dtypes and errors: fastcv.functional.conv2d."""

    def forward(self, input: Tensor) -> Tensor:
        return forward(self, input)


class Conv3d(torch.nn.Conv3d):
    """torch.nn.Conv3d; every padding_mode. Shapes, dtypes and errors: fastcv.functional.conv3d."""

    def forward(self, input: Tensor) -> Tensor:
        return forward(self, input)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d; output_size chooses the output padding. Errors: fastcv.functional.conv_transpose1d."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return forward(self, input, output_size)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d; output_size chooses the output padding. Errors: fastcv.functional.conv_transpose2d."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return forward(self, input, output_size)


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d; output_size chooses the output padding. Errors: fastcv.functional.conv_transpose3d."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return forward(self, input, output_size)
