"""fastcv.optimize: calls like the one before are not looked at from Python again (prepared.py); calls unlike it are."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.func import vmap

import fastcv
from fastcv.optimizer.prepared import Prepared
from fastcv.testing import assert_close


class Net(nn.Module):
    """A chain of each kind, a shared activation, and a convolution by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6()
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        return self.last(self.relu6(self.conv3(self.relu(y))) * 2)


CONVOLUTIONS = 4


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(3)
    model = Net().eval()
    for bn in (model.bn1, model.bn2):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        bn.running_mean.uniform_(-1, 1)
        bn.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call that was not looked at again."""
    calls: list[int] = []
    run = Prepared.__call__

    def counted(self, *args):
        calls.append(1)
        return run(self, *args)

    monkeypatch.setattr(Prepared, "__call__", counted)
    return calls


def images(n: int = 2, size: int = 9) -> torch.Tensor:
    torch.manual_seed(n)
    return torch.randn(n, 8, size, size)


def warm(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        for _ in range(3):
            model(x)


def agrees(y: torch.Tensor, theirs: nn.Module, x: torch.Tensor) -> None:
    single = copy.deepcopy(theirs).float()(x.float()) if x.dtype is torch.float64 else None
    assert_close(y, copy.deepcopy(theirs).double()(x.double()), theirs(x), single=single)


def check(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        agrees(ours(x), theirs, x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_same_bits(net: nn.Module, used: list[int], mode: type, layout: torch.memory_format) -> None:
    ours, x = fastcv.optimize(net), images().to(memory_format=layout)
    with mode():
        results = [ours(x) for _ in range(4)]
    assert len(used) == 2 * CONVOLUTIONS  # the first call, then the one that arranges the weights
    assert all(torch.equal(y, results[0]) and y.stride() == results[0].stride() for y in results)
    check(ours, net, x)


def test_any_batch_and_no_other_size(net: nn.Module, used: list[int]) -> None:
    ours = fastcv.optimize(net)
    warm(ours, images())
    for n in (1, 5):
        used.clear()
        check(ours, net, images(n))
        assert len(used) == CONVOLUTIONS
    for x in (images(size=10), images().to(memory_format=torch.channels_last), images()[:, :, ::2], torch.randn(2, 8, 9, 18)[..., ::2]):
        used.clear()
        check(ours, net, x)
        assert not used
    with torch.no_grad():
        assert ours(images()[:0]).shape == (0, 4, 9, 9)
        with pytest.raises(RuntimeError, match="channels"):
            ours(torch.randn(2, 7, 9, 9))
        with pytest.raises(RuntimeError):
            ours(images().double())


def new_weight(model: nn.Module) -> None:
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach() * 2)


def new_bias(model: nn.Module) -> None:
    model.conv1.bias = nn.Parameter(torch.ones(16))


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.bn2.running_var.mul_(3)


def through_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.mul_(0.5)


def other_memory(model: nn.Module) -> None:
    model.last.weight.data = model.last.weight.data * 2


def loaded(model: nn.Module) -> None:
    model.load_state_dict({k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def stride(model: nn.Module) -> None:
    model.conv3.stride = (2, 2)


def eps(model: nn.Module) -> None:
    model.bn1.eps = 0.5


def in_double(model: nn.Module) -> None:
    model.double()


CHANGES = [new_weight, new_bias, in_place, through_data, other_memory, loaded, stride, eps, in_double]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(net: nn.Module, change) -> None:
    ours, x = fastcv.optimize(net), images()
    warm(ours, x)
    for model in (ours, net):
        change(model)
    x = x.to(net.conv1.weight.dtype)
    for _ in range(4):
        check(ours, net, x)


def test_training_and_gradients(net: nn.Module, used: list[int]) -> None:
    ours, x = fastcv.optimize(net), images()
    warm(ours, x)
    used.clear()
    y = ours(x)
    assert y.requires_grad and not used
    assert torch.autograd.grad(y.sum(), ours.conv1.weight)[0].abs().sum() > 0
    warm(ours, x)
    used.clear()
    with torch.no_grad():
        for model in (ours, net):
            model.train()
        y = ours(x)
        assert_close(y, copy.deepcopy(net).double()(x.double()), net(x))
        for model in (ours, net):
            model.eval()
    assert not used
    check(ours, net, x)


def test_hooks(net: nn.Module, used: list[int]) -> None:
    ours, x, seen = fastcv.optimize(net), images(), []
    for name in ("bn1", "relu", "last"):
        warm(ours, x)
        used.clear()
        handle = ours.get_submodule(name).register_forward_hook(lambda module, args, y: seen.append(type(y)))
        with torch.no_grad():
            ours(x)
        handle.remove()
        assert len(used) < CONVOLUTIONS and set(seen) == {torch.Tensor}, name
        seen.clear()
    warm(ours, x)
    used.clear()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: seen.append(type(y)))
    with torch.no_grad():
        ours(x)
    handle.remove()
    assert not used and set(seen) == {torch.Tensor}


def test_modes_of_torch(net: nn.Module, used: list[int]) -> None:
    ours, x = fastcv.optimize(net), images()
    warm(ours, x)
    used.clear()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(x).dtype is torch.bfloat16
        agrees(vmap(ours)(x.unsqueeze(1)).squeeze(1), net, x)
        for setting in ("high", "highest"):
            torch.set_float32_matmul_precision(setting)
            used.clear()
            ours(x)
            assert not used, setting
        with fastcv.use(conv="ref"):
            used.clear()
            ours(x)
            assert not used
        traced = torch.jit.trace(ours, x, check_trace=False)
        agrees(traced(images(5)), net, images(5))
    with torch.autograd.forward_ad.dual_level():
        used.clear()
        with torch.no_grad():
            ours(x)
        assert not used


def test_within_compile(net: nn.Module) -> None:
    ours, x = fastcv.optimize(net), images()
    warm(ours, x)
    with torch.no_grad():
        agrees(torch.compile(ours, backend="eager", fullgraph=True)(x), net, x)
        agrees(torch.export.export(ours, (x,)).module()(x), net, x)


def test_copies_and_pickles_look_again(net: nn.Module, used: list[int]) -> None:
    ours, x = fastcv.optimize(net), images()
    warm(ours, x)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        with torch.no_grad():
            twin.conv2.weight.zero_()
            used.clear()
            y = twin(x)
        assert not used
        reference = copy.deepcopy(net)
        nn.init.zeros_(reference.conv2.weight)
        with torch.no_grad():
            agrees(y, reference, x)


def test_an_activation_outside_its_chains(net: nn.Module) -> None:
    ours, x = fastcv.optimize(net), torch.tensor([-1.0, 2.0, 7.0])
    assert torch.equal(ours.relu6(x), torch.tensor([0.0, 2.0, 6.0])) and x[0] == -1
    assert ours.relu(x) is x and x[0] == 0
    with pytest.raises(TypeError):
        ours.relu()
    fastcv.restore(ours)
    assert not any("forward" in vars(module) for module in ours.modules())


def test_inputs_are_freed_with_the_call(net: nn.Module) -> None:
    ours = fastcv.optimize(net)
    warm(ours, images())
    gc.disable()
    try:
        x = images()
        alive = weakref.ref(x)
        with torch.no_grad():
            ours(x)
        del x
        assert alive() is None
    finally:
        gc.enable()


def test_a_model_that_goes_leaves_nothing(net: nn.Module) -> None:
    ours = fastcv.optimize(net)
    warm(ours, images())
    alive = [weakref.ref(t) for t in (ours, ours.conv1.weight, ours.last.weight, ours.bn1.running_mean)]
    del ours
    gc.collect()
    assert not any(t() is not None for t in alive)


def test_convolutions_of_no_channels() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        layer = nn.Conv2d(0, 4, 1)
    ours, x = fastcv.optimize(nn.Sequential(layer).eval()), torch.ones(2, 0, 3, 3)
    with torch.no_grad():
        for _ in range(4):
            assert torch.equal(ours(x), layer(x))


def test_threads(net: nn.Module) -> None:
    ours, inputs = fastcv.optimize(net), [images(n) for n in (1, 2, 3, 4)]
    warm(ours, inputs[0])
    with torch.no_grad():
        expected = [ours(x) for x in inputs]
    wrong = []

    def run(x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.no_grad():
            wrong.extend(1 for _ in range(50) if not torch.equal(ours(x), y))

    threads = [threading.Thread(target=run, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
