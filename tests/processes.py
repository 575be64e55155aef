"""Checks that the processes of one world run together, over gloo: each once, all in the same order."""

import datetime
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank: int, world: int, folder: str, checks: dict[str, Callable[[int], None]]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=300))
    outcome = dict.fromkeys(checks, "not run: an earlier check failed, and the processes are out of step")
    for name, check in checks.items():
        torch.manual_seed(0)
        try:
            check(rank)
            dist.barrier()
            outcome[name] = ""
        except Exception:
            outcome[name] = traceback.format_exc()
            break
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(outcome))
    dist.destroy_process_group()
    # fully_shard keeps gloo's threads alive behind the group's end. One that still holds the last barrier lets go of it under
    # Python's lock, and ends the process by SIGABRT where the interpreter is being taken down: so it is not.
    os._exit(0)


def outcomes_of(world: int, checks: dict[str, Callable[[int], None]]) -> list[dict[str, str]]:
    """For each of ``world`` processes, what every check(rank) raised in it; '' for nothing."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (world, folder, checks), nprocs=world)
        return [pickle.loads(Path(folder, f"{rank}.pickle").read_bytes()) for rank in range(world)]
