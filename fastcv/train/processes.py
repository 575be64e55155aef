"""One process or several, as torchrun starts them: who am I, and what do all of us know together."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["World", "joined"]


@dataclass(frozen=True)
class World:
    """rank of size processes; local_rank is the place on this machine, by which a GPU is chosen."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of every process's values, in each of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, value: int, device: torch.device) -> int:
        """The largest of the processes' values: what one of them knows, all do, at the same step."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that torchrun's environment describes, or this process alone; left at the end of the block.

    Whoever holds a network that DistributedDataParallel has wrapped must be gone by then, so keep it in a function called in the block:
    if the wrapper is what outlives the group, its destructor waits, with Python's lock, for a thread of gloo that may wait for that lock.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    if device.startswith("cuda"):
        torch.cuda.set_device(world.local_rank)
    # Workers that torchrun starts again find the addresses of those before them in the same store: each attempt has its own keys.
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield world
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # an error holds what the functions that it left held
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()
