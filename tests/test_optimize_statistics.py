"""optimize(mode="training"): convolutions that take the statistics of the batch norm behind them, as they do on a GPU.

Here the choice is made for the CPU too, whose kernels give the same bits either way: every difference is an error.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import fastcv
from fastcv.functional import _batch_norm, _conv_statistics
from fastcv.optimizer import forwards

pytestmark = pytest.mark.skipif(not fastcv.is_built(), reason="needs the compiled module")


class Block(nn.Module):
    """A residual block of ResNet, behind a stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=None)
        self.last = nn.Conv2d(8, 4, 1)

    def between(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm0(self.stem(x)))
        y = torch.relu(self.norm1(self.between(self.conv1(x))))
        return self.last(torch.relu(self.norm2(self.conv2(y)) + x)).mean((2, 3))


class ChangedInPlace(Block):
    def between(self, y: Tensor) -> Tensor:
        return y.mul_(2)


class ChangedInData(Block):
    def between(self, y: Tensor) -> Tensor:
        y.data = y.data * 3
        return y


class Twice(Block):
    def between(self, y: Tensor) -> Tensor:
        return y + self.norm1(y)


def trained(model: nn.Module, steps: int = 3) -> list[Tensor]:
    """Outputs, gradients and state after some steps, frozen statistics in between and evaluation in the end."""
    g = torch.Generator().manual_seed(3)
    optimizer, results = torch.optim.SGD(model.parameters(), 0.1), []
    for step in range(steps):
        model.train()
        if step == 1:
            next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
        y = model(torch.randn(4, 3, 7, 6, generator=g))
        optimizer.zero_grad()
        y.square().sum().backward()
        results += [y.detach(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        results.append(model(torch.randn(2, 3, 7, 6, generator=g)))
    return results + [t.clone() for t in model.state_dict().values()]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Convolutions take statistics on the CPU too; the list has an entry for every batch norm that used them."""
    uses: list[int] = []
    whole = _batch_norm.statistics_left

    def counted(t: Tensor) -> tuple[Tensor, Tensor] | None:
        found = whole(t)
        uses.extend([1] * (found is not None))
        return found

    monkeypatch.setattr(_batch_norm, "statistics_left", counted)
    monkeypatch.setattr(forwards, "statistics_pay", lambda x: True)
    return uses


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("kind", "uses"), [(Block, 8), (ChangedInPlace, 5), (ChangedInData, 5), (Twice, 8)])
def test_training_comes_out_the_same(
    kind: type[Block], uses: int, recompute: bool, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = kind()
    ours = fastcv.optimize(model, mode="training", recompute=recompute)
    others = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    results = trained(ours)
    assert len(taken) == uses  # three batch norms in three steps, but for the frozen one
    assert ours.state_dict().keys() == model.state_dict().keys()
    with monkeypatch.context() as plain:
        plain.setattr(forwards, "statistics_pay", lambda x: False)
        expected = trained(fastcv.optimize(model, mode="training", recompute=recompute))
    for again in (results, *map(trained, others)):
        assert all(torch.equal(a, e) for a, e in zip(again, expected, strict=True))


def test_a_batch_norm_in_evaluation_costs_no_statistics(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = fastcv.optimize(Block(), mode="training").eval()
    monkeypatch.setattr(_conv_statistics, "_raw", None)  # would raise
    ours(torch.randn(2, 3, 7, 6))
    assert not taken


def test_hooks_and_checkpoints_between_the_two(taken: list[int]) -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = Block()
    ours = fastcv.optimize(model, mode="training")
    handles = [m.conv1.register_forward_hook(lambda module, args, y: y * 2) for m in (model, ours)]
    x = torch.randn(4, 3, 7, 6)
    results = []
    for m, through in ((fastcv.optimize(model, mode="training", fuse=False), False), (ours, False), (ours, True)):
        m = copy.deepcopy(m)
        y = checkpoint(m, x, use_reentrant=False) if through else m(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in m.parameters())])
    for handle in handles:
        handle.remove()
    for result in results[1:]:
        for a, e in zip(result, results[0], strict=True):  # fused and not: the rounding of float32
            assert torch.allclose(a, e, rtol=1e-4, atol=1e-5)
    assert taken
