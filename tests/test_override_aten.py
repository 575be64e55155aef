"""fastcv.override_aten: torch's answers and gradients from fastcv's kernels, within the block, in its thread, and nowhere else."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode

import fastcv
from fastcv.override import _NAMES
from fastcv.testing import cases_of

PEERS = sorted(name for name in fastcv.functional.__all__ if hasattr(F, name) or name == "cdist")


def served(call) -> dict[str, int]:
    with fastcv.override_aten() as on:
        call()
    return dict(on.calls)


@pytest.mark.parametrize("name", PEERS)
def test_every_function_of_torch(name: str) -> None:
    peer = getattr(F, name, None) or getattr(torch, name)
    case = next(case for case in cases_of(name) if not case.bench)
    args, kwargs = case.arguments(torch.float32)
    expected = peer(*args, **kwargs)
    with fastcv.override_aten(name) as on:
        mine = peer(*args, **kwargs)
        ops = [op for op, _, reason in fastcv.why_not(lambda: peer(*args, **kwargs)) if not reason]
    assert on.calls[name] == 2 and ops
    torch.testing.assert_close(mine, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_other_spellings() -> None:
    x, w = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3)
    calls = {
        "softmax": [lambda: x.softmax(1), lambda: torch.softmax(x, 1, torch.float64), lambda: x.softmax(dim=-1, dtype=torch.float64)],
        "log_softmax": [lambda: x.log_softmax(1), lambda: torch.log_softmax(x, dim=1)],
        "max_pool2d": [lambda: F.max_pool2d(x, 2, return_indices=True), lambda: torch.max_pool2d(x, 2, 1, padding=1)],
        "adaptive_max_pool2d": [lambda: F.adaptive_max_pool2d(x, 3, return_indices=True)],
        "convolution": [
            lambda: torch.ops.aten.convolution(x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
            lambda: torch.ops.aten.convolution.default(x, w, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
        ],
        "cdist": [lambda: torch.cdist(x[0, 0], x[0, 1])],
    }
    for name, spellings in calls.items():
        for call in spellings:
            expected = call()
            assert served(call) == {name: 1}
            with fastcv.override_aten([name]):
                torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4)


def test_modules_and_gradients_are_torchs() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 5))

    x, target = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    results = []
    for override in (False, True):
        network = model()
        if override:
            with fastcv.override_aten() as on:
                loss = F.cross_entropy(network(x), target)
            assert on.calls == {"conv2d": 1, "batch_norm": 1, "max_pool2d": 1, "cross_entropy": 1}
        else:
            loss = F.cross_entropy(network(x), target)
        loss.backward()
        results.append([loss.detach(), network[1].running_var, *[p.grad for p in network.parameters()]])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_only_what_was_asked_for_and_only_inside() -> None:
    x = torch.randn(1, 2, 8, 8)
    with fastcv.override_aten(["avg_pool2d"]) as on:
        F.max_pool2d(x, 2), F.avg_pool2d(x, 2)
    F.avg_pool2d(x, 2)
    assert on.calls == {"avg_pool2d": 1}
    with on:
        F.avg_pool2d(x, 2)
    assert on.calls == {"avg_pool2d": 2}


def test_nesting_and_exceptions() -> None:
    x = torch.randn(1, 2, 8, 8)
    with fastcv.override_aten(["avg_pool2d", "softmax"]) as outer:
        with pytest.raises(RuntimeError), fastcv.override_aten(["avg_pool2d"]) as inner:
            F.avg_pool2d(x, 2)
            x.softmax(1)
            F.avg_pool2d(x, 20)
        F.avg_pool2d(x, 2)
    assert inner.calls == {"avg_pool2d": 2} and outer.calls == {"softmax": 1, "avg_pool2d": 1}
    with pytest.raises(KeyError), fastcv.override_aten():
        raise KeyError("in the block")
    assert _get_current_function_mode() is None


def test_errors_are_torchs() -> None:
    for call in (lambda: F.conv2d(torch.ones(1, 3, 5, 5), torch.ones(2, 4, 3, 3)), lambda: F.batch_norm(torch.ones(1, 2), None, None)):
        types = []
        for on in (False, True):
            with pytest.raises(Exception) as caught:
                served(call) if on else call()
            types.append(caught.type)
        assert types[0] is types[1]


def test_other_threads_do_not_see_it() -> None:
    x = torch.randn(1, 2, 8, 8)
    with fastcv.override_aten() as on:
        thread = threading.Thread(target=lambda: F.avg_pool2d(x, 2))
        thread.start()
        thread.join()
    assert not on.calls


def test_what_has_no_kernel_is_torchs() -> None:
    class Sub(torch.Tensor):
        pass

    x = torch.arange(16).reshape(1, 1, 4, 4)
    assert served(lambda: F.max_pool2d(x, 2)) == {}
    assert served(lambda: F.max_pool2d(x.float().as_subclass(Sub), 2)) == {}
    assert served(lambda: F.conv2d(torch.ones(1, 1, 4, 4, device="meta"), torch.ones(1, 1, 3, 3, device="meta"))) == {}
    assert served(lambda: F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3).as_subclass(Sub))) == {}


def test_compile_and_transforms() -> None:
    x = torch.randn(3, 2, 8, 8)
    pool = torch.compile(lambda t: F.avg_pool2d(t, 2), backend="eager")
    with fastcv.override_aten():
        torch.testing.assert_close(pool(x), F.avg_pool2d(x, 2))
        torch.testing.assert_close(torch.vmap(lambda t: F.avg_pool2d(t[None], 2)[0])(x), F.avg_pool2d(x, 2))


def test_unknown_names() -> None:
    for wrong in ("conv9d", ["conv2d", "relu"], [3]):
        with pytest.raises(ValueError, match=r"fastcv\.override_aten: cannot override .*'conv2d'"):
            fastcv.override_aten(wrong)
    assert set(PEERS) <= _NAMES
