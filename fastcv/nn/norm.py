"""Modules of the norm family: torch.nn's own, with fastcv's kernels in ``forward``.

They subclass torch's, so ``isinstance`` checks, ``convert_sync_batchnorm`` and state_dicts see what they know.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..functional import norm as F

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LocalResponseNorm",
]


def _batch_norm(self: torch.nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    """Momentum None is the cumulative average; without buffers the batch's statistics serve in evaluation too."""
    self._check_input_dim(input)
    factor = 0.0 if self.momentum is None else self.momentum
    if self.training and self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            factor = 1.0 / float(self.num_batches_tracked)
    training = self.training or (self.running_mean is None and self.running_var is None)
    tracked = not self.training or self.track_running_stats
    mean, var = (self.running_mean, self.running_var) if tracked else (None, None)
    return F.batch_norm(input, mean, var, self.weight, self.bias, training, factor, self.eps)


class BatchNorm1d(torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` on fastcv's kernels: same arguments, state_dict and answers. [N, C] or [N, C, L]."""

    forward = _batch_norm


class BatchNorm2d(torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` on fastcv's kernels: same arguments, state_dict and answers. [N, C, H, W]."""

    forward = _batch_norm


class BatchNorm3d(torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` on fastcv's kernels: same arguments, state_dict and answers. [N, C, D, H, W]."""

    forward = _batch_norm


def _instance_norm(self: torch.nn.modules.instancenorm._InstanceNorm, input: Tensor) -> Tensor:
    self._check_input_dim(input)
    unbatched = input.dim() == self._get_no_batch_dim()
    dim = 0 if unbatched else 1
    channels = input.size(dim)
    if channels != self.num_features:
        if self.affine:
            raise ValueError(f"expected input's size at dim={dim} to match num_features ({self.num_features}), but got: {channels}.")
        warnings.warn(f"input's size at dim={dim} does not match num_features ({self.num_features}), got {channels}", stacklevel=2)
    output = F.instance_norm(
        input.unsqueeze(0) if unbatched else input,
        self.running_mean,
        self.running_var,
        self.weight,
        self.bias,
        self.training or not self.track_running_stats,
        0.0 if self.momentum is None else self.momentum,
        self.eps,
    )
    return output.squeeze(0) if unbatched else output


class InstanceNorm1d(torch.nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d`` on fastcv's kernels: same arguments, state_dict and answers. [N, C, L] or [C, L]."""

    forward = _instance_norm


class InstanceNorm2d(torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` on fastcv's kernels: same arguments, state_dict and answers. [N, C, H, W] or [C, H, W]."""

    forward = _instance_norm


class InstanceNorm3d(torch.nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` on fastcv's kernels: same arguments, state_dict and answers. [N, C, D, H, W] or [C, D, H, W]."""

    forward = _instance_norm


class GroupNorm(torch.nn.GroupNorm):
    """``torch.nn.GroupNorm`` on fastcv's kernels: same arguments, state_dict and answers."""

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` on fastcv's kernels: same arguments, state_dict and answers."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """``torch.nn.LocalResponseNorm`` on fastcv's kernels: same arguments and answers."""

    def forward(self, input: Tensor) -> Tensor:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)
