"""More than one process: SyncBatchNorm, DistributedDataParallel and fully_shard over gloo against one process with the whole batch.

The processes of a world start once and run every check of it; a test asks whether its check raised in any of them.
"""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import outcomes_of
from torch import Tensor, nn

import fastcv
from fastcv.functional._sync_batch_norm import sync_batch_norm
from fastcv.testing import assert_close, serves

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")

CHECKS: dict[int, dict[str, Callable[[int], None]]] = {2: {}, 3: {}}
PARTS = {2: [(0, 4), (4, 6)], 3: [(0, 5), (5, 7), (7, 7)]}  # images of each process: uneven, and none


def check(world: int) -> Callable[[Callable[[int], None]], Callable[[int], None]]:
    def register(function: Callable[[int], None]) -> Callable[[int], None]:
        CHECKS[world][function.__name__] = function
        return function

    return register


@pytest.fixture(scope="module")
def outcomes() -> Callable[[int], list[dict[str, str]]]:
    return functools.cache(lambda world: outcomes_of(world, CHECKS[world]))


def own(t: Tensor, rank: int) -> Tensor:
    first, last = PARTS[dist.get_world_size()][rank]
    return t[first:last].contiguous(memory_format=layout_of(t))


def layout_of(t: Tensor) -> torch.memory_format:
    channels_last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def everyones(t: Tensor) -> Tensor:
    """The parts of all processes, in the order of the ranks."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, t.detach())
    return torch.cat(parts)


# SyncBatchNorm -------------------------------------------------------------------------------------------------------------------


def run(bn: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = bn(leaf)
    y.backward(grad)
    return y.detach(), leaf.grad


def reference_input(x: Tensor) -> Tensor:
    """In float64, where torch's error shows between its two layouts: images channels_last."""
    return x.double().to(memory_format=torch.channels_last) if x.dim() == 4 else x.double()


def compare_with_one_process(rank: int, x: Tensor, **options: Any) -> None:
    """Outputs, input gradients, parameter gradients and statistics after two steps, by the accuracy rule."""
    grad = torch.randn(x.shape).to(x)
    whole = nn.BatchNorm2d(x.shape[1], dtype=torch.float32 if x.element_size() == 2 else x.dtype, **options)
    whole._check_input_dim = lambda input: None
    if whole.affine:
        with torch.no_grad():
            whole.weight.uniform_(0.5, 1.5)
            whole.bias.uniform_(-1, 1)
    exact, single = copy.deepcopy(whole).double(), copy.deepcopy(whole).float()
    part = fastcv.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(whole))
    assert type(part) is fastcv.nn.SyncBatchNorm
    for _ in range(2):
        ours = run(part, own(x, rank), own(grad, rank))
        assert ours[0].stride() == own(x, rank).stride() or ours[0].numel() == 0
        torchs, reference, singles = (
            run(whole, x, grad),
            run(exact, reference_input(x), grad.double()),
            run(single, x.float(), grad.float()),
        )
        for name, o, r, t, s in zip(("output", "input gradient"), ours, reference, torchs, singles, strict=True):
            assert_close(everyones(o), r, t, name, s)
    for name, p in part.named_parameters():
        dist.all_reduce(p.grad)
        reference, torchs, singles = (dict(m.named_parameters())[name].grad for m in (exact, whole, single))
        assert_close(p.grad, reference, torchs, f"gradient of {name}", singles)
    for name, b in part.named_buffers():
        assert_close(b, exact.state_dict()[name], whole.state_dict()[name], name, single.state_dict()[name])
        assert all(torch.equal(b, other) for other in everyones(b[None])), f"{name} differs between processes"


@check(3)
def dimensions_and_layouts(rank: int) -> None:
    for shape in ((7, 4), (7, 4, 9), (7, 4, 5, 6), (7, 4, 3, 4, 5)):
        compare_with_one_process(rank, torch.randn(shape) * 3 + 5)
    compare_with_one_process(rank, torch.randn(7, 4, 5, 6).to(memory_format=torch.channels_last))


@check(3)
def dtypes(rank: int) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        compare_with_one_process(rank, (torch.randn(7, 4, 9, 10) + 2).to(dtype))


@check(3)
def options(rank: int) -> None:
    x = torch.randn(7, 4, 5, 6) + 2
    compare_with_one_process(rank, x, momentum=None)
    compare_with_one_process(rank, x, affine=False, eps=0.1)
    compare_with_one_process(rank, x, track_running_stats=False)


@check(3)
def evaluation_does_not_synchronise(rank: int) -> None:
    bn = fastcv.nn.SyncBatchNorm(4).eval()
    if rank == 0:  # alone: a collective call would wait for the others
        x = torch.randn(2, 4, 3, 3)
        torch.testing.assert_close(bn(x), nn.BatchNorm2d(4).eval()(x))
    dist.barrier()


@check(3)
def process_group_of_two(rank: int) -> None:
    group = dist.new_group([0, 1])
    x = torch.randn(5, 4, 3, 3)
    if rank < 2:
        whole, part = nn.BatchNorm2d(4), fastcv.nn.SyncBatchNorm(4, process_group=group)
        torch.testing.assert_close(part(x[rank * 2 : 2 + rank * 3]), whole(x)[rank * 2 : 2 + rank * 3])
        torch.testing.assert_close(part.running_var, whole.running_var)


@check(3)
def few_values(rank: int) -> None:
    """One value in each of two processes is enough; one in all raises in all; none at all changes nothing."""
    bn, x = fastcv.nn.SyncBatchNorm(4), torch.randn(2, 4)
    whole = nn.BatchNorm1d(4)
    torch.testing.assert_close(bn(x[rank : rank + 1]), whole(x)[rank : rank + 1])
    torch.testing.assert_close(bn.running_var, whole.running_var)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        bn(x[:1] if rank == 0 else x[:0])
    before = bn.running_var.clone()
    assert bn(x[:0]).shape == (0, 4)
    assert torch.equal(bn.running_var, before)


@check(3)
def an_empty_process_takes_part_in_the_backward(rank: int) -> None:
    bn = fastcv.nn.SyncBatchNorm(4)
    x = torch.randn(0 if rank == 1 else 3, 4, 2, 2, requires_grad=True)
    bn(x).square().sum().backward()
    assert x.grad.shape == x.shape
    assert rank != 1 or not bn.weight.grad.any()


# Whole models --------------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


def train(model: nn.Module, x: Tensor, target: Tensor, scale: float) -> dict[str, Tensor]:
    """The state after three steps on the sum of the losses times ``scale``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), target, reduction="sum") * scale).backward()
        optimizer.step()
    state = {key.removeprefix("module."): value for key, value in model.state_dict().items()}
    return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in state.items()}


def ours(model: nn.Module) -> nn.Module:
    return fastcv.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def torchs(model: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def optimised(model: nn.Module, inplace: bool = False) -> nn.Module:
    return fastcv.optimize(model, mode="training", inplace=inplace)


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.conv2)
    return fully_shard(model)


def trains_as_one_process(rank: int, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Gradients are averaged over the two processes, so each of them scales its sum by 2 over the images of both."""
    net, x, target = Net().double(), torch.randn(6, 3, 9, 8).double(), torch.arange(6) % 5
    whole = train(copy.deepcopy(net), x, target, 1 / 6)
    model = wrap(net)
    state = train(model, own(x, rank), own(target, rank), 2 / 6)
    assert state.keys() == whole.keys()
    for key, value in state.items():
        torch.testing.assert_close(value, whole[key], msg=lambda m, key=key: f"{key}: {m}")
    return model


@check(2)
def ddp_with_our_batch_norm(rank: int) -> None:
    trains_as_one_process(rank, lambda m: ddp(ours(m)))


@check(2)
def ddp_of_an_optimised_model(rank: int) -> None:
    model = trains_as_one_process(rank, lambda m: ddp(optimised(ours(m))))
    assert [row.op for row in model.module.fastcv_report.rows] == ["conv2d", "batch_norm", "conv2d", "batch_norm", ""]


@check(2)
def an_optimised_ddp_model(rank: int) -> None:
    trains_as_one_process(rank, lambda m: optimised(ddp(ours(m))))
    trains_as_one_process(rank, lambda m: optimised(ddp(ours(m)), inplace=True))


@check(2)
def conversion_of_an_optimised_model(rank: int) -> None:
    model = trains_as_one_process(rank, lambda m: ddp(ours(optimised(m))))
    assert isinstance(model.module.bn1, fastcv.nn.SyncBatchNorm)


@check(2)
def ddp_without_synchronised_statistics_is_torchs(rank: int) -> None:
    """Plain batch norms: each process normalises its own part, as torch does it."""
    net, x, target = Net().double(), torch.randn(6, 3, 9, 8).double(), torch.arange(6) % 5
    states = [train(ddp(m), own(x, rank), own(target, rank), 1 / 3) for m in (optimised(net), copy.deepcopy(net))]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key])


@check(2)
def fsdp_with_our_batch_norm(rank: int) -> None:
    trains_as_one_process(rank, lambda m: sharded(ours(m)))


@check(2)
def fsdp_of_an_optimised_model(rank: int) -> None:
    """torch's own SyncBatchNorm too: optimize gives it a forward that serves CPU tensors."""
    trains_as_one_process(rank, lambda m: sharded(optimised(torchs(m))))
    trains_as_one_process(rank, lambda m: sharded(optimised(ours(m))))


@check(2)
def an_optimised_fsdp_model(rank: int) -> None:
    model = trains_as_one_process(rank, lambda m: optimised(sharded(torchs(m)), inplace=True))
    served = {row.name: row.op for row in model.fastcv_report.rows}
    assert served == {"conv1": "conv2d", "bn1": "batch_norm", "conv2": "", "bn2": "batch_norm", "fc": ""}
    with pytest.raises(RuntimeError, match="inplace=True"):
        optimised(model)


@check(2)
def inference_after_sharding(rank: int) -> None:
    """Folded weights follow the sharded parameters through a training step."""
    net, x = Net(), torch.randn(3, 3, 9, 8)
    model = sharded(fastcv.optimize(copy.deepcopy(net).eval()))
    with torch.no_grad():
        torch.testing.assert_close(model(x), net.eval()(x))
        for a, b in zip(model.parameters(), net.parameters(), strict=True):
            a.mul_(1.5)
            b.mul_(1.5)
        torch.testing.assert_close(model(x), net(x))


@check(2)
def synchronised_batch_norms_are_folded_and_verified(rank: int) -> None:
    net, x = Net(), torch.randn(3, 3, 9, 8)
    net(x)
    for convert in (ours, torchs):
        model = fastcv.optimize(convert(copy.deepcopy(net)).eval(), example=x)
        assert [row.fused for row in model.fastcv_report.rows if row.fused] == [["bn1", "relu"], ["bn2", "add", "relu"]]
        with torch.no_grad():
            torch.testing.assert_close(model(x), net.eval()(x))
        model = fastcv.optimize(convert(copy.deepcopy(net)), mode="training", example=x)
        assert all(error <= allowed for error, allowed in model.fastcv_report.errors.values())


@pytest.mark.parametrize(("world", "name"), [(world, name) for world, checks in CHECKS.items() for name in checks])
def test_processes(outcomes: Callable[[int], list[dict[str, str]]], world: int, name: str) -> None:
    for rank, outcome in enumerate(outcomes(world)):
        assert not outcome[name], f"process {rank} of {world}: {outcome[name]}"


# One process ---------------------------------------------------------------------------------------------------------------------


def test_alone_it_is_batch_norm() -> None:
    whole = nn.BatchNorm2d(4)
    part = fastcv.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(whole))
    x = torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(part(x), whole(x))
    torch.testing.assert_close(part.state_dict(), whole.state_dict())
    torch.testing.assert_close(part.eval()(x), whole.eval()(x))
    assert repr(part) == repr(nn.SyncBatchNorm.convert_sync_batchnorm(whole))
    assert torch.equal(pickle.loads(pickle.dumps(part))(x), part(x))


@pytest.mark.parametrize("variant", ["chan_avx512", "chan_avx2", "chan_portable", "ref"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels(variant: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    backward = variant.replace("chan", "two_pass")
    if variant not in dict(fastcv.variants("batch_norm")):
        pytest.skip(f"this build has no {variant}")
    if not serves("batch_norm", variant, dtype):
        pytest.skip("that instruction set leaves this dtype to another")
    try:
        with fastcv.use(batch_norm=variant, batch_norm_backward=backward):
            pass
    except ValueError as error:
        pytest.skip(str(error))
    bn = nn.BatchNorm2d(5, dtype=dtype)
    x, grad = (torch.randn(3, 5, 33, 37).to(dtype).to(memory_format=layout) for _ in range(2))

    def synchronised(t: Tensor) -> Tensor:
        return sync_batch_norm(t, None, None, bn.weight, bn.bias, 0.1, bn.eps)

    with fastcv.use(batch_norm=variant, batch_norm_backward=backward):
        ours = run(synchronised, x, grad)
    exact = run(copy.deepcopy(bn).double(), reference_input(x), grad.double())
    single = run(copy.deepcopy(bn).float(), x.float(), grad.float())
    other = run(copy.deepcopy(bn), x.contiguous(), grad)
    for o, r, t, s in zip(ours, exact, other, single, strict=True):
        assert_close(o, r, t, variant, s)
        assert o.stride() == x.stride()


def test_conversion() -> None:
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.SyncBatchNorm(3, process_group="its own")), fastcv.nn.BatchNorm1d(2).eval())
    keys = list(model.state_dict())
    converted = fastcv.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    assert list(model.state_dict()) == keys
    assert model[0] is model[1][0]
    assert model[0].weight is shared.weight
    assert model[0].running_var is shared.running_var
    assert model[1][1].process_group == "its own"
    assert not model[2].training
    assert all(type(m) is fastcv.nn.SyncBatchNorm for m in (model[0], model[1][1], model[2]))
    bare = fastcv.nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(4, affine=False, track_running_stats=False), "group")
    assert bare.weight is None
    assert bare.running_mean is None
    assert bare.process_group == "group"


def test_errors() -> None:
    bn = fastcv.nn.SyncBatchNorm(4)
    with pytest.raises(ValueError, match="at least 2D"):
        bn(torch.randn(4))
    with pytest.raises(ValueError, match="non-zero"):
        bn(torch.randn(2, 0, 3))
    x = torch.randn(2, 4, 3, requires_grad=True)
    (g,) = torch.autograd.grad(sync_batch_norm(x, None, None, None, None, 0.1, 1e-5).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
