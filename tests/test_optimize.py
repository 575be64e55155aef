"""fastcv.optimize: answers, gradients and statistics of the unoptimised model, on models of many kinds."""

import copy

import pytest
import torch
import torch.nn.functional as F
from optimize_models import (
    ZOO,
    chains,
    check,
    check_gradients,
    images,
    make,
    ops_run,
    trained,
)
from torch import nn

import fastcv
from fastcv.optimizer.kernels import OPS, kernel_class


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ZOO)
def test_inference(name: str, layout: torch.memory_format) -> None:
    model = make(name).eval()
    for p in model.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=layout)
    ours = fastcv.optimize(model)
    assert len(chains(ours)) == ZOO[name][1], ours.fastcv_report
    x = images().to(memory_format=layout)
    check(ours, model, x)
    fused = ops_run(ours, x)
    apart = fastcv.optimize(model, fuse=False)
    assert not chains(apart)
    check(apart, model, x)
    assert len(fused) < len(ops_run(apart, x)) or not chains(ours) or name in ("functional", "pre_activation", "shared_conv")


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_gradients_and_statistics(name: str, train: bool, mode: str) -> None:
    model = make(name).train(train)
    ours = fastcv.optimize(model, mode=mode)
    assert len(chains(ours)) == ZOO[name][1 if mode == "inference" else 2], ours.fastcv_report
    check_gradients(ours, model)
    for (key, mine), torchs in zip(ours.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, torchs, msg=key)


def test_training_steps_are_torchs() -> None:
    model = make("resnet").train()
    ours = fastcv.optimize(model, mode="training")
    for network in (model, ours):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(network(images()), torch.tensor([0, 1, 2, 3])).backward()
            optimizer.step()
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], msg=key, atol=1e-4, rtol=1e-3)  # three steps amplify rounding
    check(ours.eval(), ours_restored := fastcv.restore(copy.deepcopy(ours)))
    assert "forward" not in vars(ours_restored)


def test_kernels_and_labels() -> None:
    ours = fastcv.optimize(make("block").eval())
    assert chains(ours) == {"conv1": ["bn1", "relu"], "conv2": ["bn2", "add", "relu"], "downsample.0": ["downsample.1"]}
    assert ops_run(ours) == ["conv", "conv", "conv"]
    training = fastcv.optimize(make("block"), mode="training")
    assert chains(training) == {"bn1": ["relu"], "bn2": ["add", "relu"]}
    only = fastcv.optimize(make("block").eval(), ops=["batch_norm"])
    assert {row.op for row in only.fastcv_report.rows} == {"batch_norm", "batch_norm_act"}
    functional = fastcv.optimize(make("functional").eval())
    assert chains(functional) == {"branch.0": ["branch.1", "add", "relu6"], "conv": ["hardswish"], "last": ["relu"]}


@pytest.mark.parametrize("kind", OPS)
def test_every_served_module_has_a_forward_of_its_own(kind: type[nn.Module]) -> None:
    assert "forward" in vars(kernel_class(kind.__new__(kind))), f"fastcv.nn.{kind.__name__} leaves forward to torch"


def test_models_of_fastcv_modules_are_fused_too() -> None:
    model = trained(nn.Sequential(fastcv.nn.Conv2d(8, 4, 3), fastcv.nn.BatchNorm2d(4), nn.ReLU())).eval()
    ours = fastcv.optimize(model, example=images())
    assert chains(ours) == {"0": ["1", "2"]} and ops_run(ours) == ["conv"]
    check(ours, model)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("kind", [nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Hardtanh])
def test_activation_modules(kind: type[nn.Module], mode: str, inplace: bool) -> None:
    """Each is one of the steps of a chain where its kernel has it, also as torch's module calls it (ReLU6 calls hardtanh)."""
    model = trained(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), kind(inplace=inplace), nn.Conv2d(8, 4, 1))).train(
        mode == "training"
    )
    ours = fastcv.optimize(model, mode=mode)
    of_conv, of_norm = (nn.ReLU6, nn.SiLU, nn.Hardswish), (nn.ReLU6, nn.LeakyReLU)
    fused = {"0": ["1", "2"] if kind in of_conv else ["1"]} if mode == "inference" else ({"1": ["2"]} if kind in of_norm else {})
    assert chains(ours) == fused
    check_gradients(ours, model)
    check(ours.eval(), model.eval())
    with torch.no_grad(), torch.profiler.profile() as profile:
        fastcv.optimize(model.eval())(images())
    torchs = {event.key for event in profile.key_averages()} & {
        f"aten::{n}" for n in ("hardtanh", "hardtanh_", "silu", "silu_", "hardswish")
    }
    assert bool(torchs) == (kind is nn.Hardtanh)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("functional", [False, True], ids=["module", "function"])
def test_gelu_is_fused_where_it_is_exact(approximate: str, functional: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gelu, self.last = nn.Conv2d(8, 8, 3), nn.GELU(approximate), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.last(F.gelu(x, approximate=approximate) if functional else self.gelu(x))

    model = trained(Net()).eval()
    ours = fastcv.optimize(model)
    assert chains(ours) == ({"conv": ["gelu"]} if approximate == "none" else {})
    check(ours, model)
    with torch.no_grad(), torch.profiler.profile() as profile:
        ours(images())
    assert ("aten::gelu" in {event.key for event in profile.key_averages()}) == (approximate == "tanh")
    check_gradients(ours, model)


def test_leaky_relu_with_its_slope() -> None:
    class Slopes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(3)])

        def forward(self, x):
            x = F.leaky_relu(self.norms[0](x), 0.3)
            x = F.leaky_relu(self.norms[1](x) + x, negative_slope=0.2, inplace=True)
            return F.leaky_relu(self.norms[2](x), -0.5)

    model = trained(Slopes())
    for train in (True, False):
        ours = fastcv.optimize(model.train(train), mode="training", example=images())
        assert len(chains(ours)) == 3
        check_gradients(ours, model)
        check(ours, model)
