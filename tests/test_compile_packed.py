"""torch.compile(backend="fastcv"): packed and folded weights are kept for each weight, and no longer than they are right."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from optimize_models import make, trained
from torch import Tensor, fx, nn

import fastcv
from fastcv.compiler import calls
from fastcv.compiler import fastcv as backend
from fastcv.optimizer.packed_weights import PackedWeights
from fastcv.optimizer.watch import watch_of


class Net(nn.Module):
    """A folded convolution, a folded transposed one, and two with nothing to fold, one of them with an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.up, self.bn2 = nn.ConvTranspose2d(24, 20, 2, stride=2), nn.BatchNorm2d(20)
        self.middle, self.head = nn.Conv2d(20, 16, 3, padding=1), nn.Conv2d(16, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.up(self.bn(self.conv(x)).relu()))
        return self.head(F.relu(self.middle(x)))


X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """The backend, with the graphs that it has rewritten."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: list) -> object:
        self.graphs.append(gm)
        return backend(gm, example_inputs)

    def convs(self) -> list[calls.PackedConv]:
        return [m for gm in self.graphs for m in gm.modules() if isinstance(m, calls.PackedConv)]

    def packs(self) -> list[PackedWeights]:
        return [kept.packs for conv in self.convs() for kept in conv._kept.values()]

    def made(self) -> int:
        return sum(p.packed is not None for p in self.packs())


def net() -> nn.Module:
    torch.manual_seed(0)
    return trained(Net()).eval()


@pytest.fixture
def compiled() -> tuple[nn.Module, Graphs, nn.Module]:
    model, graphs = net(), Graphs()
    return model, graphs, torch.compile(model, backend=graphs, fullgraph=True)


def settled(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return [model(x) for _ in range(3)][-1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_packed_at_the_second_call_and_kept(compiled: tuple[nn.Module, Graphs, nn.Module], mode: type) -> None:
    model, graphs, ours = compiled
    with mode():
        first = ours(X)
        assert graphs.made() == 0 and len(graphs.packs()) == 4
        second = ours(X)
        assert graphs.made() == 4
        kept = [p.packed.data_ptr() for p in graphs.packs()]
        third = ours(X)
    assert torch.equal(first, second) and torch.equal(second, third)
    assert kept == [p.packed.data_ptr() for p in graphs.packs()]
    assert torch.equal(third, settled(fastcv.optimize(model)))


def test_a_bias_that_goes_away() -> None:
    conv = nn.Conv2d(3, 8, 3)
    watch = watch_of((conv.weight, conv.bias, None))
    assert watch.holds((conv.weight, conv.bias, None))
    conv.bias = None
    gc.collect()
    assert not watch.holds((conv.weight, None, None)) and not watch.holds((conv.weight, conv.weight, None))
    assert not watch_of((conv.weight, None)).holds((conv.weight, conv.weight))


@pytest.mark.parametrize("how", ["in place", "data", "through data", "load", "new", "optimizer"])
def test_changed_weights_are_packed_again(compiled: tuple[nn.Module, Graphs, nn.Module], how: str) -> None:
    model, graphs, ours = compiled
    before = settled(ours)
    with torch.no_grad():
        if how == "in place":
            model.head.weight.mul_(2)
            model.conv.weight.mul_(2)
        elif how == "data":
            model.head.weight.data = model.head.weight.data * 2
        elif how == "through data":
            model.up.weight.data.mul_(3)
        elif how == "load":
            model.load_state_dict({k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()})
        elif how == "new":
            model.middle.weight = nn.Parameter(model.middle.weight * 2)
            model.conv.weight = nn.Parameter(model.conv.weight * 2)
    if how == "optimizer":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(X).square().mean().backward()
        optimizer.step()
    expected = settled(fastcv.optimize(model))
    with torch.no_grad():
        got = ours(X)
    assert torch.equal(got, expected) and not torch.equal(got, before)
    assert torch.equal(settled(ours), expected)
    assert len(graphs.graphs) == 1 and graphs.made() == 4  # and what was made of replaced weights is gone


def test_models_that_share_a_graph_do_not_share_weights() -> None:
    graphs, models = Graphs(), [net(), trained(net())]
    ours = [torch.compile(m, backend=graphs) for m in models]
    expected = [settled(fastcv.optimize(m)) for m in models]
    with torch.no_grad():
        for _ in range(3):
            for mine, answer in zip(ours, expected, strict=True):
                assert torch.equal(mine(X), answer)
    if len(graphs.graphs) == 1:
        assert graphs.made() == 8  # taking turns does not make them anew
    gone = weakref.ref(models[1].head.weight)
    del ours, mine, models
    gc.collect()
    assert gone() is None  # the graph keeps no model alive


def test_no_recompilation_with_dynamic_sizes() -> None:
    model, graphs = net(), Graphs()
    ours = torch.compile(model, backend=graphs, dynamic=True, fullgraph=True)
    reference = fastcv.optimize(model)
    count = []
    with torch.no_grad():
        for size in ((4, 3, 12, 10), (4, 3, 12, 10), (5, 3, 12, 10), (3, 3, 14, 18), (3, 3, 14, 18)):
            x = torch.randn(size)
            torch.testing.assert_close(ours(x), reference(x), rtol=0, atol=0)
            count.append(len(graphs.graphs))
    assert count[1:] == count[:1] * 4
    assert graphs.made() == 4


def test_weights_that_are_no_parameters_are_not_kept() -> None:
    graphs = Graphs()
    function = torch.compile(lambda x, w: F.conv2d(x, w) + F.conv2d(x, w * 2), backend=graphs)
    w = torch.randn(4, 3, 3, 3)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(function(X, w), F.conv2d(X, w * 3), rtol=1e-4, atol=1e-4)
    assert graphs.graphs and not graphs.convs()


def test_training_graphs_keep_nothing() -> None:
    graphs = Graphs()
    model = net()
    ours = torch.compile(model, backend=graphs)
    for _ in range(3):
        ours(X).sum().backward()
    assert graphs.graphs and not graphs.convs()


def test_sizes_that_the_forward_computes() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.bn(F.conv2d(x, self.conv.weight, self.conv.bias, 1, x.shape[2] // 5, 1 + x.shape[3] // 100)))

    model = trained(Computed()).eval()
    ours = torch.compile(model, backend="fastcv", dynamic=True)
    with torch.no_grad():
        for size in (10, 10, 16, 23):
            x = torch.randn(2, 3, size, size)
            torch.testing.assert_close(ours(x), model(x), rtol=1e-4, atol=1e-5)


def test_copies_within_autocast_and_inference_mode() -> None:
    model = make("block").eval()
    ours = torch.compile(copy.deepcopy(model), backend="fastcv")
    x = torch.randn(2, 8, 9, 9)
    for _ in range(3):
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), model(x), rtol=1e-4, atol=1e-4)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(ours(x).float(), model(x).float(), rtol=0.1, atol=0.1)
