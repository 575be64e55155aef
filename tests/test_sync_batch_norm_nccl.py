"""fastcv.nn.SyncBatchNorm on CUDA: what it hands to torch's forward, and two processes over nccl against one with the whole batch."""

import copy
import datetime
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import fastcv
from fastcv.nn import sync_batch_norm

WORLD = 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(0, 4, 3, 3), (2, 4, 3, 3)])
def test_every_process_gathers_as_many_bytes(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """torch's statistics of 16-bit values are float32, but those of an empty part have the part's dtype."""
    seen: list[torch.dtype] = []

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x.clone()

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    monkeypatch.setattr(sync_batch_norm, "_group", lambda module: "group")
    x = torch.empty(size, dtype=dtype, device="meta", requires_grad=True)  # any device but the CPU
    y = fastcv.nn.SyncBatchNorm(4)(x)
    assert y.dtype is dtype and y.shape == x.shape and y.requires_grad
    assert seen == [torch.float32 if size[0] == 0 else dtype]


def train(bn: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = bn(leaf)
    y.backward(grad)
    return y.detach(), leaf.grad


def process(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", WORLD)
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=WORLD, timeout=datetime.timedelta(seconds=120))
    for dtype in (torch.float32, torch.bfloat16):
        for parts in ([(0, 4), (4, 6)], [(0, 6), (6, 6)]):  # uneven, and a process without images
            torch.manual_seed(0)
            x, grad = torch.randn(6, 5, 7, 6).to(dtype), torch.randn(6, 5, 7, 6).to(dtype)
            whole = nn.BatchNorm2d(5).cuda()
            ours = fastcv.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(whole))
            first, last = parts[rank]
            mine = train(ours, x[first:last].cuda(), grad[first:last].cuda())
            expected = train(whole, x.cuda(), grad.cuda())
            for a, b in zip(mine, expected, strict=True):
                torch.testing.assert_close(a, b[first:last])
            torch.testing.assert_close(ours.running_mean, whole.running_mean)
            torch.testing.assert_close(ours.running_var, whole.running_var)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_nccl_available(), reason="torch has no nccl")
@pytest.mark.skipif(torch.cuda.device_count() < WORLD, reason="nccl wants a GPU for each process")
def test_two_processes_over_nccl() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (folder,), nprocs=WORLD)
