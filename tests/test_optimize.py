"""fastcv.optimize: answers, gradients and statistics of the unoptimised model, on models of many kinds."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from optimize_models import (
    CONVOLUTIONS,
    ZOO,
    Residual,
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
    of_conv, of_norm = (nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU), (nn.ReLU6, nn.LeakyReLU)
    fused = {"0": ["1", "2"] if kind in of_conv else ["1"]} if mode == "inference" else ({"1": ["2"]} if kind in of_norm else {})
    assert chains(ours) == fused
    check_gradients(ours, model)
    check(ours.eval(), model.eval())
    with torch.no_grad(), torch.profiler.profile() as profile:
        fastcv.optimize(model.eval())(images())
    torchs = {event.key for event in profile.key_averages()} & {
        f"aten::{n}" for n in ("hardtanh", "hardtanh_", "silu", "silu_", "hardswish", "leaky_relu", "leaky_relu_")
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


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.LeakyReLU(0.2), nn.SiLU(), partial(F.leaky_relu, negative_slope=0.3)],
    ids=["relu", "leaky", "silu", "function"],
)
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_with_addition_and_activation(name: str, normalised: bool, activation) -> None:
    conv, norm, size = CONVOLUTIONS[name]
    torch.manual_seed(0)
    model = trained(Residual(conv(), norm(8) if normalised else None, activation)).eval()
    x = images(*size)
    ours = fastcv.optimize(model, example=x, strict=True)
    (row,) = (row for row in ours.fastcv_report.rows if row.fused)
    assert row.op == f"{name}_fused" and len(row.fused) == 2 + normalised and row.max_error <= row.allowed
    assert ops_run(ours, x) == ["conv_dgrad" if "transpose" in name else "conv"]
    for layout in (torch.contiguous_format, torch.channels_last):
        for _ in range(3):  # with packed weights from the second call on
            check(ours, model, x.to(memory_format=layout) if len(size) == 4 else x)
    with torch.no_grad():
        torch.testing.assert_close(ours(x[:1].expand_as(x)), model(x[:1].expand_as(x)))
        assert ours(x[:0]).shape == model(x[:0]).shape
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(ours(leaf).sum(), leaf), torch.autograd.grad(model(leaf).sum(), leaf))


def test_upsampling_chains() -> None:
    """A transposed convolution's size follows from its output padding; what is added may be another branch, or of another size."""

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.side = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1), nn.BatchNorm2d(6), nn.Conv2d(8, 6, 1)

        def forward(self, x, wide: bool = False):
            side = self.side(x)
            y = self.norm(self.up(x))
            return F.leaky_relu(y + (side[:, :, :1, :1] if wide else F.interpolate(side, scale_factor=2.0)), 0.1)

    model = trained(Up()).eval()
    ours = fastcv.optimize(model)
    assert chains(ours) == {"up": ["norm", "add", "leaky_relu"]}
    check(ours, model)
    with torch.no_grad():
        torch.testing.assert_close(ours(images(), wide=True), model(images(), wide=True))


@pytest.mark.parametrize("slope", [0, 1.5, -0.5, float("inf"), torch.tensor(0.3)], ids=str)
def test_slopes_of_every_kind(slope) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(8, 8, 3), nn.Linear(640, 128)

        def forward(self, x):
            return F.leaky_relu(self.linear(F.leaky_relu(self.conv(x), slope).flatten(1)), negative_slope=slope)

    model = trained(Net()).eval()
    ours = fastcv.optimize(model)
    assert chains(ours) == {"conv": ["leaky_relu"], "linear": ["leaky_relu"]}
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), model(images()), equal_nan=True, rtol=1e-4, atol=1e-4)
    if slope != float("inf"):
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
