"""torch.compile(model, backend="fastcv"): the answers, gradients and statistics of eager torch, and no needless recompilation."""

import copy
import logging
import shutil

import pytest
import torch
import torch.nn.functional as F
from optimize_models import CONVOLUTIONS, ZOO, Residual, check_gradients, flat, images, make, trained
from torch import nn

import fastcv
from fastcv.compiler import fastcv as backend
from fastcv.testing import assert_close

NAMES = [name for name in ZOO if name not in ("branching", "options")]  # these break the graph, as their control flow asks


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counted:
    """The backend, counting the graphs that it is given and what became of them."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "fastcv.compiler")
        self.caplog = caplog

    @property
    def graphs(self) -> list[str]:
        return [record.getMessage() for record in self.caplog.records if record.name == "fastcv.compiler"]


@pytest.fixture
def counted(caplog: pytest.LogCaptureFixture) -> Counted:
    return Counted(caplog)


def check(ours, model: nn.Module, x: torch.Tensor) -> None:
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        mine, torchs, reference = ours(x.clone()), model(x.clone()), exact(x.double())
    assert_close(flat(mine), flat(reference), flat(torchs))
    assert mine.shape == torchs.shape and mine.stride() == torchs.stride()


def torchs_steps(model, x: torch.Tensor) -> set[str]:
    """The additions and activations that torch runs, once the model is compiled."""
    model(x)
    with torch.profiler.profile() as profile:
        model(x)
    return {event.key for event in profile.key_averages()} & {
        f"aten::{op}" for op in ("add", "silu", "leaky_relu", "hardtanh", "hardswish")
    }


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NAMES)
def test_inference(name: str, layout: torch.memory_format, counted: Counted) -> None:
    model = make(name).eval()
    for p in model.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=layout)
    x = images().to(memory_format=layout)
    check(torch.compile(model, backend="fastcv", fullgraph=True), model, x)
    assert len(counted.graphs) == 1 and counted.graphs[0].startswith("inference: ")


def test_what_is_fused(counted: Counted) -> None:
    block = make("block").eval()
    compiled = torch.compile(block, backend="fastcv", fullgraph=True)
    with torch.no_grad():
        ops = [op for op, _, reason in fastcv.why_not(compiled, images()) if reason == ""]
    assert ops == ["conv", "conv", "conv"] and counted.graphs == ["inference: folded x3"]
    torch.compile(make("block").train(), backend="fastcv", fullgraph=True)(images())
    assert counted.graphs[1] == "training: batch_norm x1, batch_norm_act x2, conv2d x3"
    with torch.no_grad():
        torch.compile(make("shared_conv").eval(), backend="fastcv", fullgraph=True)(images())
    assert counted.graphs[2] == "inference: folded x2"  # two calls are two nodes, each with its own folded weights
    with torch.no_grad():
        torch.compile(make("two_norms").eval(), backend="fastcv", fullgraph=True)(images())
    assert counted.graphs[3] == "inference: batch_norm x2, conv2d x1"


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_statistics(name: str, train: bool, counted: Counted) -> None:
    model = make(name).train(train)
    ours = copy.deepcopy(model)
    compiled = torch.compile(ours, backend="fastcv", fullgraph=True)
    check_gradients(compiled, model)
    assert all(text.startswith("training: ") for text in counted.graphs)
    for (key, mine), torchs in zip(ours.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, torchs, msg=key)


@pytest.mark.parametrize("gradients", [False, True])
def test_dynamic_sizes_compile_once(gradients: bool) -> None:
    model = nn.Sequential(make("block"), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(2))
    trained(model).train(gradients)
    compiled = torch.compile(copy.deepcopy(model), backend="fastcv", fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    compiles = 0
    for size in ((4, 8, 24, 20), (3, 8, 28, 32), (7, 8, 33, 21)):
        x = torch.randn(size)
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
            if gradients:
                compiled(x).sum().backward()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] in (1, 2)  # 2: torch starts over to make numbers constants
        compiles = compiles or torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiles


@pytest.mark.parametrize("change", ["load", "data", "in_place", "eps"])
def test_folds_again_after_a_change(change: str) -> None:
    model = make("plain").eval()
    compiled = torch.compile(model, backend="fastcv")
    check(compiled, model, images())
    with torch.no_grad():
        if change == "load":
            model.load_state_dict(trained(copy.deepcopy(model)).state_dict())
        elif change == "data":
            model[0].weight.data = model[0].weight.data * 2
        elif change == "in_place":
            model[1].running_mean.add_(1)
        else:
            model[1].eps = 0.5
    check(compiled, model, images())


def test_batch_norms_fold_into_transposed_convolutions_and_linear_layers(counted: Counted) -> None:
    up = nn.ConvTranspose2d(4, 12, 3, 2, padding=1, output_padding=1, groups=2)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU())
    model = trained(nn.Sequential(up, nn.BatchNorm2d(12), *head)).eval()
    compiled = torch.compile(model, backend="fastcv", fullgraph=True)
    check(compiled, model, torch.randn(3, 4, 6, 5))
    assert counted.graphs == ["inference: adaptive_avg_pool2d x1, folded x2"]
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[4].weight.mul_(3)
    check(compiled, model, torch.randn(3, 4, 6, 5))
    sequences = trained(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))).eval()  # [N, L, C]: the batch norm is of L
    check(torch.compile(sequences, backend="fastcv", fullgraph=True), sequences, torch.randn(2, 8, 5))
    assert len(counted.graphs) == 2 and "folded" not in counted.graphs[1]


def test_inference_tensors_are_folded_at_each_call() -> None:
    with torch.inference_mode():
        model = make("plain").eval()
        compiled = torch.compile(model, backend="fastcv")
        for _ in range(2):
            torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-4)
            model[0].weight.mul_(2)


@pytest.mark.parametrize("gradients", [False, True])
def test_autocast(gradients: bool) -> None:
    model = make("block").train(gradients)
    compiled = torch.compile(copy.deepcopy(model), backend="fastcv")
    exact = copy.deepcopy(model).double()
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=torch.bfloat16):
        mine, torchs = compiled(images()), model(images())
    assert_close(mine.detach(), exact(images().double()).detach(), torchs.detach())
    if gradients:
        mine.float().square().sum().backward()


def test_changes_in_place_between_the_steps_stop_a_chain(counted: Counted) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x):
            x = x * 2
            y = self.conv(x)
            x.mul_(3)
            y = self.bn(y)
            x += 1
            return F.relu(y + x)

    model = trained(Between()).eval()
    check(torch.compile(model, backend="fastcv", fullgraph=True), model, images())
    assert counted.graphs == ["inference: batch_norm x1, conv2d x1"]


def test_activation_modules(counted: Counted) -> None:
    for kind in (nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU):
        model = trained(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), kind())).eval()
        with torch.no_grad():
            assert not torchs_steps(torch.compile(model, backend="fastcv", fullgraph=True), images())
        check(torch.compile(model, backend="fastcv", fullgraph=True), model, images())
        assert counted.graphs[-1] == "inference: folded x1"
        compiled = torch.compile(copy.deepcopy(model).train(), backend="fastcv", fullgraph=True)
        check_gradients(compiled, model.train())
        assert counted.graphs[-1] == f"training: batch_norm{'_act' if kind in (nn.ReLU6, nn.LeakyReLU) else ''} x1, conv2d x1"


@pytest.mark.parametrize("rest", ["eager", "inductor"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_with_addition_and_activation(name: str, rest: str, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    if rest == "inductor":  # what the backend hands on to it, run as it is
        monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda gm, _: gm.forward)
    conv, norm, size = CONVOLUTIONS[name]
    torch.manual_seed(0)
    model = trained(Residual(conv(), norm(8) if rest == "eager" else None, lambda y: F.leaky_relu(y, 0.3))).eval()
    x = images(*size)
    compiled = torch.compile(model, backend="fastcv", fullgraph=True, options={"rest": rest})
    for _ in range(3):
        check(compiled, model, x)
    assert counted.graphs == ["inference: folded x1" if rest == "eager" else f"inference: {name}_fused x1"]
    with torch.no_grad():
        assert torchs_steps(compiled, x) == set()


def test_functions_of_every_kind(counted: Counted) -> None:
    def forward(x, target):
        y = F.leaky_relu(F.batch_norm(x, None, None, None, None, True), 0.2)
        y = F.group_norm(y, 2) + F.layer_norm(y, y.shape[1:]) + F.instance_norm(y)
        y = F.avg_pool2d(F.max_pool2d(y, 2), 2).flatten(1)
        z = torch.softmax(y, 1, torch.float64) + y.softmax(1) + torch.batch_norm(y, None, None, None, None, True, 0.1, 1e-5, False)
        return F.cross_entropy(y, target) + F.kl_div(y.log_softmax(1), z.softmax(1).float(), reduction="batchmean")

    x, target = images().requires_grad_(), torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(torch.compile(forward, backend="fastcv", fullgraph=True)(x, target), forward(x, target))
    done = counted.graphs[0]
    for op in ("avg_pool2d", "batch_norm_act", "cross_entropy", "group_norm", "instance_norm", "kl_div", "layer_norm", "max_pool2d"):
        assert f"{op} x1" in done
    assert "softmax x2" in done and "log_softmax x1" in done


def test_graph_breaks_and_other_devices_are_torchs() -> None:
    model = make("branching").eval()
    check(torch.compile(model, backend="fastcv"), model, images())
    integers = torch.compile(lambda x: F.max_pool2d(x, 2), backend="fastcv")
    x = torch.arange(64).reshape(1, 1, 8, 8)
    assert torch.equal(integers(x), F.max_pool2d(x, 2))
    meta = torch.compile(nn.Conv2d(8, 8, 3, device="meta"), backend="fastcv")
    assert meta(torch.zeros(1, 8, 9, 9, device="meta")).shape == (1, 8, 7, 7)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("gradients", [False, True])
def test_rest_on_inductor(gradients: bool) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GELU())
    trained(model).train(gradients)
    compiled = torch.compile(copy.deepcopy(model), backend="fastcv", options={"rest": "inductor"})
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-4)
    if gradients:
        compiled(images()).sum().backward()


def test_wrong_options() -> None:
    for kwargs in ({"options": {"rest": "faster"}}, {"options": {"all": 1}}, {"mode": "max-autotune"}):
        with pytest.raises((ValueError, torch._dynamo.exc.BackendCompilerFailed), match="backend 'fastcv' takes"):
            torch.compile(nn.ReLU(), backend=backend, **kwargs)(torch.zeros(1))


def test_the_name_is_known() -> None:
    assert "fastcv" in torch._dynamo.list_backends()
