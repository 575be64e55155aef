"""fastcv.optimize: batch norm, activation and max pooling become one kernel where the graph shows nothing else, with the same bits."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from optimize_models import chains, trained
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastcv
from fastcv.models import get_model
from fastcv.optimizer import forwards

pytestmark = pytest.mark.skipif(not fastcv.is_built(), reason="needs the compiled module")


class Stem(nn.Module):
    """The first layers of ResNet; ``between`` and ``behind`` are what subclasses do to the values."""

    def __init__(self, relu: nn.Module | None = None, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = relu or nn.ReLU(inplace=True), pool or nn.MaxPool2d(3, 2, 1)
        self.conv2, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 3)

    def between(self, y: Tensor) -> Tensor:
        return y

    def behind(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.relu(self.bn1(self.conv1(x))))
        x = self.behind(self.maxpool(x))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


def images(seed: int = 0, size: int = 13) -> Tensor:
    return torch.randn(4, 3, size, size + 2, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, layout: torch.memory_format = torch.contiguous_format, steps: int = 2) -> list[Tensor]:
    """Outputs, gradients and state of some steps of training, then of an evaluation."""
    found = []
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.train()
    for step in range(steps):
        x = images(step).to(memory_format=layout).requires_grad_()
        y = model(x)
        optimizer.zero_grad()
        y.square().sum().backward()
        found += [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found.append(model(images(9).to(memory_format=layout)))
    return found + [t.clone() for t in model.state_dict().values()]


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call of the fused function by a chain."""
    calls: list[int] = []
    whole = fastcv.functional.batch_norm_max_pool2d

    def counted(*args, **kwargs):
        calls.append(1)
        return whole(*args, **kwargs)

    monkeypatch.setattr(fastcv.functional, "batch_norm_max_pool2d", counted)
    return calls


def check(model: nn.Module, calls: list[int], expected: int, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """The optimised model takes the same steps as its modules one by one on fastcv's kernels, bit by bit."""
    ours = fastcv.optimize(model, mode="training")
    apart = fastcv.optimize(model, mode="training", fuse=False)
    results = run(ours, layout)
    assert len(calls) == expected
    for a, b in zip(results, run(apart, layout), strict=True):
        assert torch.equal(a, b)
    return ours


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("relu", "pool"),
    [
        (nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        (nn.ReLU(), nn.MaxPool2d(2)),
        (nn.ReLU6(), nn.MaxPool2d((2, 3), (2, 1), (1, 0), ceil_mode=True)),
        (nn.LeakyReLU(0.2, inplace=True), nn.MaxPool2d(3, stride=3)),
    ],
)
def test_training_has_the_bits_of_the_modules_one_by_one(
    relu: nn.Module, pool: nn.Module, layout: torch.memory_format, pooled: list[int]
) -> None:
    ours = check(trained(Stem(relu, pool)), pooled, 3, layout)
    assert chains(ours)["bn1"] == ["relu", "maxpool"]


def test_report_names_the_fusion_and_what_it_saves() -> None:
    model = trained(Stem()).train()
    ours = fastcv.optimize(model, mode="training", example=images())
    rows = {row.name: row for row in ours.fastcv_report.rows}
    assert rows["bn1"].op == "batch_norm_max_pool2d" and rows["bn1"].fused == ["relu", "maxpool"] and not rows["bn1"].reason
    assert rows["maxpool"].op == "fused into bn1" and not rows["maxpool"].reason
    assert rows["bn1"].saved_bytes == 4 * 8 * 13 * 15 * 4 == ours.fastcv_report.saved_bytes
    assert rows["bn1"].max_error <= rows["bn1"].allowed
    text = str(ours.fastcv_report)
    assert "batch_norm_max_pool2d" in text and "relu + maxpool" in text and "never written" in text
    assert json.loads(ours.fastcv_report.to_json())["saved_bytes"] == 4 * 8 * 13 * 15 * 4


def test_gradients_are_torchs() -> None:
    model = trained(Stem()).train()
    results = []
    for m, dtype in ((fastcv.optimize(model, mode="training"), torch.float32), (model, torch.float32), (model, torch.float64)):
        m = copy.deepcopy(m).to(dtype)
        m(images().to(dtype)).square().sum().backward()
        results.append([p.grad for p in m.parameters()])
    for ours, theirs, exact in zip(*results, strict=True):
        scale, eps = exact.norm(), torch.finfo(torch.float32).eps
        assert (ours - exact).norm() <= 2 * (theirs - exact).norm() + 8 * eps * scale  # of sums of a hundred products


def test_restore_copies_and_state(pooled: list[int]) -> None:
    model = trained(Stem()).train()
    ours = fastcv.optimize(model, mode="training")
    assert ours.state_dict().keys() == model.state_dict().keys()
    expected = run(copy.deepcopy(ours))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        before = len(pooled)
        assert all(map(torch.equal, run(other), expected))
        assert len(pooled) == before + 3
    restored = fastcv.restore(copy.deepcopy(ours))
    assert all("forward" not in vars(m) for m in restored.modules()) and not hasattr(restored, "fastcv_report")
    assert all(map(torch.equal, run(restored), run(model)))


# ---- what is not fused, and what steps aside ---------------------------------------------------------------------------


class UsedTwice(Stem):
    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.head(torch.relu(self.conv2(self.maxpool(y))).mean((2, 3)) + y.mean((2, 3)))


class ChangedBetween(Stem):
    def between(self, y: Tensor) -> Tensor:
        return y.mul_(2)


class Indices(Stem):
    def behind(self, y: tuple[Tensor, Tensor]) -> Tensor:
        return y[0]


@pytest.mark.parametrize(
    "make",
    [
        UsedTwice,
        lambda: ChangedBetween(nn.LeakyReLU(0.1)),
        lambda: Indices(pool=nn.MaxPool2d(2, return_indices=True)),
        lambda: Stem(pool=nn.MaxPool2d(2, dilation=2)),
        lambda: Stem(pool=nn.AvgPool2d(2)),
        lambda: Stem(relu=nn.SiLU()),
    ],
    ids=["used-twice", "changed", "indices", "dilated", "average", "silu"],
)
def test_not_fused(make: Callable[[], nn.Module], pooled: list[int]) -> None:
    ours = check(trained(make()), pooled, 0)
    assert chains(ours).get("bn1", ["relu"]) == ["relu"]


@pytest.mark.parametrize("ops", [["batch_norm"], ["max_pool2d"]], ids=str)
def test_both_ops_are_asked_for(ops: list[str], pooled: list[int]) -> None:
    ours = fastcv.optimize(trained(Stem()), mode="training", ops=ops)
    run(ours)
    assert not pooled


def test_hooks(pooled: list[int]) -> None:
    """On the pooling before optimize: the rest is fused. Behind it: the chain steps aside while the hook is there."""
    model, seen = trained(Stem()), []
    hook = model.maxpool.register_forward_hook(lambda m, args, y: seen.append(args[0].shape))
    assert chains(fastcv.optimize(model, mode="training"))["bn1"] == ["relu"]
    hook.remove()
    ours = fastcv.optimize(model, mode="training")
    expected = ours(images())
    with_hook = copy.deepcopy(ours)
    hook = with_hook.maxpool.register_forward_hook(lambda m, args, y: seen.append(args[0].shape))
    before = len(pooled)
    assert torch.equal(with_hook(images()), expected) and seen == [torch.Size([4, 8, 13, 15])] and len(pooled) == before
    hook.remove()
    with_hook(images())
    assert len(pooled) == before + 1


class Paths(Stem):
    """What tracing with the defaults does not show."""

    path = ""

    def between(self, y: Tensor) -> Tensor:
        self.seen = y
        match self.path:
            case "shape":
                assert y.shape == (4, 8, 13, 15)
            case "values":
                y = y + 0 * y.mean()
            case "again":
                y = F.relu(y)
            case "keep":
                self.kept = y
        return y

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if self.path == "keep":
            out = out + self.kept.mean()
        if self.path == "other":
            out = out + self.maxpool(x).mean()
        del self.seen
        return out


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True)], ids=["apart", "in-place"])
@pytest.mark.parametrize(("path", "calls"), [("", 3), ("shape", 0), ("values", 0), ("again", 0), ("keep", 3), ("other", 3)])
def test_paths_that_tracing_did_not_show(path: str, calls: int, relu: nn.Module, pooled: list[int]) -> None:
    model = trained(Paths(relu))
    ours = fastcv.optimize(model, mode="training")
    apart = fastcv.optimize(model, mode="training", fuse=False)
    assert chains(ours)["bn1"] == ["relu", "maxpool"]
    ours.path = apart.path = path
    results = run(ours)
    assert len(pooled) == calls
    for a, b in zip(results, run(apart), strict=True):
        if path == "keep":  # two paths' gradients are added before, or behind, the gate
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(a, b)


def test_called_apart_checkpointed_and_compiled(pooled: list[int]) -> None:
    model = trained(Stem()).train()
    ours = fastcv.optimize(model, mode="training")
    y = ours.bn1(ours.conv1(images()))
    assert type(y) is Tensor and type(ours.maxpool(ours.relu(y))) is Tensor and not pooled
    plain, through = copy.deepcopy(ours), copy.deepcopy(ours)
    plain(images()).square().sum().backward()
    checkpoint(through, images(), use_reentrant=False).square().sum().backward()
    for a, b in zip(plain.parameters(), through.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(copy.deepcopy(ours).eval(), (images(),)).module()
    torch.testing.assert_close(exported(images()), ours.eval()(images()), rtol=1e-4, atol=1e-5)


class CheckpointedPart(Stem):
    """Ends between the activation and the pooling."""

    through = False

    def part(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(checkpoint(self.part, x, use_reentrant=True) if self.through else self.part(x))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


def test_a_checkpoint_that_ends_within_the_chain() -> None:
    model = trained(CheckpointedPart(relu=nn.ReLU())).train()
    ours, x, grads = fastcv.optimize(model, mode="training"), images().requires_grad_(), []
    assert chains(ours)["bn1"] == ["relu", "maxpool"]
    for m in (ours, fastcv.optimize(model, mode="training", fuse=False)):
        m.through = True
        m(x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in m.parameters())])
        x.grad = None
    assert all(map(torch.equal, *grads))


def test_statistics_of_the_convolution_are_taken(monkeypatch: pytest.MonkeyPatch, pooled: list[int]) -> None:
    """As on a GPU, where the convolution's kernel leaves them with its output."""
    monkeypatch.setattr(forwards, "statistics_pay", lambda x: True)
    check(trained(Stem()), pooled, 3)


def test_models_with_such_a_stem() -> None:
    for name, head, pool in (("resnet18", "bn1", "maxpool"), ("vgg11_bn", "features.1", "features.3")):
        report = fastcv.optimize(get_model(name, num_classes=5).train(), mode="training").fastcv_report
        rows = {row.name: row for row in report.rows}
        assert rows[head].op == "batch_norm_max_pool2d" and rows[head].fused[-1] == pool, str(report)
