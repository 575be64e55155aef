"""Weights under fully_shard change within the same tensor, unseen by its version: nothing made of them may be kept between calls.

FSDP gathers the parameters into one tensor each, frees it and fills it again. The changes here leave alone the elements that
watch.py looks at, as a checkpoint with zeros there would.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import outcomes_of
from torch import Tensor, nn

import fastcv
import fastcv.compiler  # makes the backend's name known in a checkout
from fastcv.optimizer.forwards import KernelForward, installed
from fastcv.optimizer.kernels import is_managed

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")

WORLD = 2
CHECKS: dict[str, Callable[[int], None]] = {}


def check(function: Callable[[int], None]) -> Callable[[int], None]:
    CHECKS[function.__name__] = function
    return function


class Net(nn.Module):
    """Folded, fused and plain convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
        self.middle, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.norm(self.fc(self.head(self.relu(self.middle(x))).mean((2, 3))))


def images() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def changed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every floating tensor but for its first, middle and last element."""
    result = {}
    for key, t in state.items():
        result[key] = t.clone()
        if t.is_floating_point() and t.dim():
            flat = result[key].view(-1)
            kept = sorted({0, (t.numel() - 1) // 2, t.numel() - 1})
            before = flat[kept].clone()
            flat.mul_(1.5).add_(0.25)
            flat[kept] = before
    return result


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    inner = getattr(model, "_orig_mod", model)
    inner.reshard()
    own = dict(inner.named_parameters())
    assert all(isinstance(p, DTensor) for p in own.values())
    inner.load_state_dict({k: distribute_tensor(t, own[k].device_mesh, own[k].placements) if k in own else t for k, t in state.items()})


def settled(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [model(images()) for _ in range(3)]


def assert_follows(ours: Tensor, torchs: Tensor) -> None:
    """A weight that is kept from before is wrong by a third: no rounding error comes near."""
    torch.testing.assert_close(ours, torchs.detach(), rtol=1e-3, atol=1e-3)


def follows_a_checkpoint(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    net = Net().eval()
    model = wrap(copy.deepcopy(net))
    for y in settled(model):
        assert_follows(y, net(images()))
    state = changed(net.state_dict())
    load(model, state)
    net.load_state_dict(state)
    for y in settled(model):
        assert_follows(y, net(images()))
    return model


def root(model: nn.Module, **options: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, **options)


@check
def a_checkpoint_under_the_root(rank: int) -> None:
    for options in ({}, {"reshard_after_forward": True}, {"reshard_after_forward": False}):
        model = follows_a_checkpoint(lambda m, options=options: root(fastcv.optimize(m), **options))
        forwards = [installed(m) for m in model.modules()]
        kept = [
            f.chain.packs if hasattr(f, "chain") and hasattr(f.chain, "packs") else f.packs
            for f in forwards
            if isinstance(f, KernelForward)
        ]
        assert not [p for p in kept if p is not None and p.packed is not None]


@check
def a_checkpoint_optimised_after_sharding(rank: int) -> None:
    follows_a_checkpoint(lambda m: fastcv.optimize(root(m), inplace=True))


@check
def packed_before_sharding(rank: int) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        model = fastcv.optimize(model)
        settled(model)
        return root(model)

    follows_a_checkpoint(wrap)


@check
def a_checkpoint_in_a_compiled_model(rank: int) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        return torch.compile(root(model), backend="fastcv")

    follows_a_checkpoint(wrap)


@check
def compiled_before_sharding(rank: int) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        model.compile(backend="fastcv")
        settled(model)
        return root(model)

    follows_a_checkpoint(wrap)


@check
def an_optimizer_that_leaves_elements_alone(rank: int) -> None:
    """Gradients in evaluation mode, zero where one looks; the step is taken on the shards."""
    net = Net().eval()
    model = root(fastcv.optimize(copy.deepcopy(net)))
    settled(model)
    pairs = []
    for m in (model, net):
        if m is model:
            m.reshard()  # the optimizer is to hold the shards
        optimizer = torch.optim.SGD(m.parameters(), lr=0.5)
        m(images()).square().mean().backward()
        for p in m.parameters():
            mask = (changed({"p": torch.ones(p.shape)})["p"] != 1).to(p.dtype)
            if m is model:
                from torch.distributed.tensor import distribute_tensor

                mask = distribute_tensor(mask, p.device_mesh, p.placements)
            p.grad.mul_(mask)
        optimizer.step()
        pairs.append(settled(m))
    for ours, torchs in zip(*pairs, strict=True):
        assert_follows(ours, torchs)


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, str]]:
    return outcomes_of(WORLD, CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_processes(outcomes: list[dict[str, str]], name: str) -> None:
    for rank, outcome in enumerate(outcomes):
        assert not outcome[name], f"process {rank}: {outcome[name]}"


def test_managed_modules_are_known() -> None:
    module = nn.Conv2d(1, 1, 1)
    assert not is_managed(module)
    module._is_fsdp_managed_module = True  # what fully_shard and FullyShardedDataParallel set on every module they look after
    assert is_managed(module)
