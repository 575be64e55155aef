"""``--parallel fsdp``: torch's fully_shard over the processes, layer by layer, and states that do not show it.

Between uses every process holds its part of each parameter, of its gradient and of its moments in the optimiser. Checkpoints
hold whole tensors, as those of one process do: ``fastcv evaluate`` and ``predict`` read them, and so does ``--parallel ddp``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

__all__ = ["averaged", "shard", "share_buffers", "spread", "whole"]


def shard(network: nn.Module) -> nn.Module:
    """``network``, in place: each layer that owns a matrix or filters is a unit, gathered when it is called; what is left,
    such as norms, is one more. torch's attention reads the parameters of its output layer without calling it: one unit."""
    attention = [module for module in network.modules() if isinstance(module, nn.MultiheadAttention)]
    within = {inner for module in attention for inner in module.modules() if inner is not module}
    for module in reversed(list(network.modules())):  # inner modules first
        if module is not network and module not in within and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            fully_shard(module, reshard_after_forward=True)
    return fully_shard(network, reshard_after_forward=True)


def averaged(average: Tensor, parameter: Tensor, decay: float) -> Tensor:
    """One step of an exponential moving average; torch's own for many tensors at once does not take sharded ones."""
    if average.is_floating_point():
        return torch.lerp(average, parameter, 1 - decay)
    return average * decay + parameter * (1 - decay)  # counters of batches, as torch does it


def share_buffers(network: nn.Module) -> None:
    """The first process's buffers, such as running statistics, in every process. DistributedDataParallel does it by itself."""
    for buffer in network.buffers():
        dist.broadcast(buffer, 0)


def whole(state: Any) -> Any:
    """A state_dict with its sharded tensors put together. Every process must call it."""
    return tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, state)


def spread(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state_dict of whole tensors, cut as the parameters are that it belongs to."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def cut(index: int, values: dict[str, Any]) -> dict[str, Any]:
        p = parameters[index]
        if not isinstance(p, DTensor):
            return values
        fits = {name for name, value in values.items() if isinstance(value, Tensor) and value.shape == p.shape and value.dim()}
        return {name: distribute_tensor(v, p.device_mesh, p.placements) if name in fits else v for name, v in values.items()}

    return state | {"state": {index: cut(index, values) for index, values in state["state"].items()}}
