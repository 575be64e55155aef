"""Batch norm over several processes: torch.nn.SyncBatchNorm, also on the CPU, with fastcv's kernels.

The class derives from what torch's derives from, not from torch's: DistributedDataParallel refuses a torch.nn.SyncBatchNorm
in a model on the CPU by its type.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..functional._sync_batch_norm import sync_batch_norm
from .norm import _batch_norm

__all__ = ["SyncBatchNorm"]


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``torch.nn.SyncBatchNorm``: same arguments, state_dict and answers; torch's refuses CPU tensors, this one takes them.

    [N, C, ...], float32, float64, bfloat16 or float16. In training every process of ``process_group`` (by default the whole
    world) normalises with the statistics of all of them; a process may have another N than the others, or none. In evaluation,
    and in a single process, it is batch norm. Differentiable once. Raises ValueError for fewer than two dimensions, no channels,
    or one value per channel in all processes. Source: csrc/norm/batch_norm.h.

    What the processes exchange is the same for every N: forward, one gather of the vector (mean, variance, count); backward, one
    sum of two vectors of channels. No process sends more or fewer bytes than another, and every process takes part in both.
    CPU tensors: any backend that gathers and reduces those (gloo). CUDA tensors take torch's own forward, with its exchange on the
    device (nccl); torch leaves empty processes out by a mask, for which the host waits once per forward, except while a CUDA
    graph is captured. An empty part of 16 bits goes there as float32: torch's would be vectors of 16 bits among others' of 32.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **bias: bool,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **bias)
        self.process_group = process_group

    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        group = _group(self)
        if group is not None and input.device.type != "cpu":
            alike = input.float() if input.numel() == 0 and input.element_size() == 2 else input
            return nn.SyncBatchNorm.forward(self, alike).to(input.dtype)
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        if group is None:
            return _batch_norm(self, input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        mean, var = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        return sync_batch_norm(input, mean, var, self.weight, self.bias, momentum, self.eps, group)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """``module`` with every batch norm in it replaced by a SyncBatchNorm of fastcv with the same parameters and buffers.

        torch.nn.SyncBatchNorm is replaced too, in its own process group unless one is given. A batch norm itself is returned
        as a new module.
        """
        return _convert(module, process_group, {})


def _group(module: nn.Module) -> Any:
    """The processes to synchronise with in this call; None if it is this one alone."""
    if not (module.training and dist.is_available() and dist.is_initialized()):
        return None
    group = module.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _convert(module: nn.Module, process_group: Any, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    converted = module
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        converted = SyncBatchNorm(
            module.num_features, module.eps, module.momentum, False, False, process_group or getattr(module, "process_group", None)
        )
        converted.affine, converted.track_running_stats = module.affine, module.track_running_stats
        converted.training = module.training
        converted._parameters.update(module._parameters)
        converted._buffers.update(module._buffers)
        if hasattr(module, "qconfig"):
            converted.qconfig = module.qconfig
    done[module] = converted
    for name, child in module._modules.items():
        if child is not None:
            converted._modules[name] = _convert(child, process_group, done)
    return converted
