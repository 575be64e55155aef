"""fastcv.optimize on models that raise in the middle: the model stays as it was, to the last attribute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimize_models import Block, chains, images, make
from torch import nn

import fastcv
from fastcv.optimizer import forwards, verify


class Stop(Exception):
    pass


class RaisesInForward(nn.Module):
    def forward(self, x):
        raise Stop("forward")


class RaisesLater(nn.Module):
    """Its forward fails on real tensors after so many calls: tracing and the first runs pass."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = [calls]  # a list, so that copies count on their own

    def forward(self, x):
        self.left[0] -= 1
        if self.left[0] < 0:
            raise Stop("later")
        return x


class RefusesAttributes(nn.Conv2d):
    """Not served for its type; a plain convolution that refuses attributes is made by changing its class."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            raise Stop("setattr")
        super().__setattr__(name, value)


class RefusesCopies(nn.Module):
    def __deepcopy__(self, memo: Any) -> Any:
        raise Stop("deepcopy")

    def forward(self, x):
        return x


class RaisesWhenListed(nn.Module):
    def named_children(self):
        raise Stop("children")

    def children(self):
        raise Stop("children")

    def forward(self, x):
        return x


def snapshot(model: nn.Module) -> list[Any]:
    """Every attribute of every module by identity, every tensor by value, version and gradient."""
    state: list[Any] = []
    for name, module in nn.Module.named_modules(model):
        state.append((name, type(module), module.training, {k: id(v) for k, v in vars(module).items()}))
        for registry in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            state.append({k: id(v) for k, v in vars(module)[registry].items()})
        for t in (*module._parameters.values(), *module._buffers.values()):
            if t is not None:
                state.append((t.data_ptr(), t._version, t.grad is None, t.double().sum().item()))
    return state


def around(*inner: nn.Module) -> nn.Module:
    return nn.Sequential(Block(), *inner, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()).eval()


# name -> (model, arguments of optimize, the exception)
FAILURES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[BaseException]]] = {
    "forward_with_example": (lambda: around(RaisesInForward()), {"example": images()}, Stop),
    "forward_strict": (lambda: around(RaisesInForward()), {"strict": True}, RuntimeError),
    "first_run": (lambda: around(RaisesLater(0)), {"example": images()}, Stop),
    "training_example": (lambda: around(RaisesInForward()), {"example": images(), "mode": "training"}, Stop),
    "wrong_example": (lambda: around(), {"example": torch.zeros(2, 3)}, (RuntimeError, ValueError)),
    "example_of_other_dtype": (lambda: around(), {"example": images().long()}, (RuntimeError, ValueError)),
    "children": (lambda: nn.Sequential(Block(), RaisesWhenListed()), {}, Stop),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("optimised_before", [False, True])
@pytest.mark.parametrize("name", FAILURES)
def test_nothing_changes(name: str, inplace: bool, optimised_before: bool) -> None:
    build, arguments, error = FAILURES[name]
    model = build()
    if optimised_before:
        if name == "children":
            pytest.skip("it cannot be optimised at all")
        fastcv.optimize(model, inplace=True)
    before, random = snapshot(model), torch.random.get_rng_state()
    with pytest.raises(error):
        fastcv.optimize(model, inplace=inplace, **arguments)
    assert snapshot(model) == before
    assert torch.equal(torch.random.get_rng_state(), random) and torch.is_grad_enabled()


@pytest.mark.parametrize("inplace", [False, True])
def test_a_forward_that_cannot_be_traced_is_no_error(inplace: bool) -> None:
    model = around(RaisesInForward())
    ours = fastcv.optimize(model, inplace=inplace)
    assert "0.conv1" in chains(ours) and (ours is model) == inplace
    with pytest.raises(Stop):
        ours(images())


def test_a_module_that_refuses_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("block").eval()
    before, count, stop = snapshot(model), 0, 0
    install = forwards.InstanceForward.install

    def failing(self: Any) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise Stop("install")
        install(self)

    monkeypatch.setattr(forwards.InstanceForward, "install", failing)
    while True:
        count, stop = 0, stop + 1
        try:
            fastcv.optimize(model, inplace=True)
        except Stop:
            assert snapshot(model) == before
        else:
            break
    assert stop > 6  # it has failed at each of the forwards that are set


def test_a_failure_while_comparing_brings_the_earlier_optimisation_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fastcv.optimize(make("block").eval(), mode="training")
    before = snapshot(model)

    def failing(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "undo_fusions", failing)
    monkeypatch.setattr(verify, "_measure", lambda *_: verify.Measured(1.0, 0.0, False))
    with pytest.raises(KeyboardInterrupt):
        fastcv.optimize(model, inplace=True, example=images())
    assert snapshot(model) == before


def test_models_that_cannot_be_copied() -> None:
    model = around(RefusesCopies())
    before = snapshot(model)
    with pytest.raises(Stop):
        fastcv.optimize(model)
    assert snapshot(model) == before
    ours = fastcv.optimize(model, inplace=True)  # module by module: the proof of a fusion needs a copy to trace
    assert not chains(ours) and "cannot be copied" in str(ours.fastcv_report)
    fastcv.restore(model)
    assert snapshot(model) == before


def test_attributes_that_raise() -> None:
    conv = nn.Conv2d(8, 8, 3)
    conv.__class__ = RefusesAttributes
    model = nn.Sequential(nn.Conv2d(8, 8, 1), conv).eval()
    ours = fastcv.optimize(model, inplace=True)
    assert "subclass" in ours.fastcv_report.rows[1].reason
    with torch.no_grad():
        ours(images())
    fastcv.restore(model)
    assert not any("forward" in vars(m) for m in model.modules())
