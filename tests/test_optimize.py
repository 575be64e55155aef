"""fastcv.optimize: answers and gradients of the unoptimised model, on models of many kinds and through a model's life."""

import copy
import io
import json
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fastcv
from fastcv.models.resnet_cifar import resnet8
from fastcv.optimizer.kernels import OPS, kernel_class
from fastcv.testing import assert_close


class Block(nn.Module):
    """The residual block of torchvision's ResNet: one ReLU module for both, addition in place, shortcut computed last."""

    def __init__(self, channels: int = 8, stride: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential(nn.Conv2d(channels, channels, 1, stride), nn.BatchNorm2d(channels)) if stride > 1 else None

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class SharedConv(nn.Module):
    """One convolution, two batch norms: folding either would spoil the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))


class TwoNorms(nn.Module):
    """One convolution whose output goes to two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(x)
        return self.bn1(y) + self.bn2(y)


class PreActivation(nn.Module):
    """Batch norm and ReLU before the convolution, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu, self.conv = nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], 1)


class Functional(nn.Module):
    """Activations and the addition as functions and operators, the chain across a module's boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8))
        self.conv = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 6, 3)

    def forward(self, x):
        x = F.relu6(torch.add(x, self.branch(x)))
        return self.last(F.hardswish(self.conv(x))).relu()


class Branching(nn.Module):
    """Control flow on values around a block that can be traced, and a convolution only the untraceable forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.conv, self.bn = Block(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.block(x)
        return F.relu(self.bn(self.conv(x))) if x.sum() > 0 else x


class Options(nn.Module):
    """A convolution whose output is used in ways that tracing with the defaults does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.path = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), ""

    def forward(self, x):
        y = self.conv(x)
        if self.path == "shape":
            assert y.shape[1] == 8 and y.dim() == 4
        z = self.bn(y)
        if self.path == "skip":
            return y
        if self.path == "before":
            return F.relu(z) + y
        if self.path == "after":
            out = F.relu(z)
            return out * 2 + z + y
        if self.path == "add":
            z += x
            return z.relu_() + 1
        if self.path == "alias":
            w = z
            w += 1
            return F.relu(z) + w.mean()
        if self.path == "list":
            return {"out": [y, z]}
        if self.path == "numpy":
            return torch.from_numpy(z.numpy() * 2) + (3 - z) + z[:, :1] + (z > 0).sum() + len(z)
        if self.path == "changed":
            y = self.conv(x)
            x.zero_()
            return F.relu(self.bn(y))
        return F.relu(z)


class Decoder(nn.Module):
    """Grouped transposed convolutions with batch norm, silu, pooling, one dimension and three."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 12, 3, 2, padding=1, output_padding=1, groups=2), nn.BatchNorm2d(12), nn.SiLU(), nn.AvgPool2d(2)
        )
        self.line = nn.Sequential(nn.Conv1d(12, 6, 3), nn.BatchNorm1d(6), nn.ReLU())
        self.volume = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4, affine=False), nn.ReLU6())

    def forward(self, x):
        return self.volume(self.line(self.up(x).flatten(2))[:, None, None]).flatten(1)


class SamePadding(nn.Module):
    """Padding that depends on the input's size, refused sizes, and a convolution class with a constructor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = OwnConstructor(8), nn.BatchNorm2d(8)

    def forward(self, x):
        if x.shape[1] != 8 or not x.dim() == 4:
            raise ValueError("8 channels are expected")
        height, width = int(x.shape[-2]), x.size(-1)
        rows = max(3 - 2, 0) if height % 2 == 0 else max(3 - height % 2, 0)
        columns = 1 if width % 2 == 0 else 2
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.relu6(self.bn(self.conv(x)))


class OwnConstructor(nn.Conv2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, groups=channels, bias=False)


class Cached(nn.Module):
    """Keeps what it computed from a parameter, within a dict, and with it the parameter's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias = nn.Conv2d(8, 8, 3), nn.Parameter(torch.randn(8))
        self.cache: dict[str, torch.Tensor] = {}

    def forward(self, x):
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias.exp()[:, None, None]
        return F.relu(self.conv(x)) + self.cache["bias"]


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3), nn.SiLU(),
        nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0), nn.Linear(8, 4),
    )  # fmt: skip


# name -> (builder, fused chains in inference, fused chains in training)
ZOO = {
    "plain": (plain, 3, 1),
    "block": (Block, 3, 2),
    "identity_block": (lambda: Block(stride=1), 2, 2),
    "resnet": (lambda: nn.Sequential(nn.Conv2d(8, 3, 1), resnet8()), 9, 7),
    "shared_conv": (SharedConv, 1, 1),
    "two_norms": (TwoNorms, 0, 0),
    "pre_activation": (PreActivation, 1, 1),
    "functional": (Functional, 3, 1),
    "branching": (Branching, 3, 2),
    "options": (Options, 1, 1),
    "decoder": (Decoder, 3, 2),
    "same_padding": (SamePadding, 1, 1),
}


def trained(model: nn.Module) -> nn.Module:
    """With statistics and parameters as after training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
    return model


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return trained(ZOO[name][0]())


def images(*size: int) -> torch.Tensor:
    return torch.randn(size or (4, 8, 12, 10), generator=torch.Generator().manual_seed(1))


def flat(value) -> torch.Tensor:
    return torch.cat([t.flatten() for t in torch.utils._pytree.tree_leaves(value)])


def check(ours: nn.Module, model: nn.Module, x: torch.Tensor | None = None) -> None:
    """ours answers as model does, by the accuracy rule, without gradients and in the mode it is in."""
    x = images() if x is None else x
    exact, single = copy.deepcopy(model).double(), copy.deepcopy(model).float()
    with torch.no_grad():
        mine, torchs, reference = ours(x.clone()), model(x.clone()), exact(x.double())
        rounded = flat(single(x.float())) if x.dtype is torch.float64 else None
    assert_close(flat(mine), flat(reference), flat(torchs), single=rounded)
    if isinstance(mine, torch.Tensor):
        assert type(mine) is torch.Tensor and mine.shape == torchs.shape and mine.stride() == torchs.stride()


def ops_run(model: nn.Module, x: torch.Tensor | None = None) -> list[str]:
    """The raw ops the model's forward runs, in order."""
    with torch.no_grad():
        return [op for op, _, reason in fastcv.why_not(model, images() if x is None else x) if reason == ""]


def chains(model: nn.Module) -> dict[str, list[str]]:
    return {row.name: row.fused for row in model.fastcv_report.rows if row.fused}


def reason(model: nn.Module, name: str) -> str:
    return next(row.reason for row in model.fastcv_report.rows if row.name == name)


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


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Of a fixed weighting of the output: output, all gradients with the input's, the parameters without a gradient."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = flat(model(x))
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).half().to(y.dtype)
    (y * weight).sum().backward()
    absent = [name for name, p in model.named_parameters() if p.grad is None]
    return y.detach(), torch.cat([x.grad.flatten(), *[p.grad.flatten() for p in model.parameters() if p.grad is not None]]), absent


def check_gradients(ours: nn.Module, model: nn.Module) -> None:
    exact = copy.deepcopy(model).double()
    results = [gradients(m, images().to(d)) for m, d in ((ours, torch.float32), (exact, torch.float64), (model, torch.float32))]
    assert results[0][2] == results[2][2]
    for mine, reference, torchs in zip(*(r[:2] for r in results), strict=True):
        error, allowed = (mine - reference).norm(), 2 * (torchs - reference).norm()
        assert error <= allowed + torch.finfo(mine.dtype).eps * reference.norm()


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


# ---- what is left alone --------------------------------------------------------------------------------------------------------


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def hooked() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3)
    conv.register_forward_hook(lambda module, args, output: output + 1)
    return conv


def replaced() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3)
    conv.forward = lambda x: F.conv2d(x, conv.weight)
    return conv


class OtherConv(OwnConstructor):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight * 2, bias)


ALONE = {
    "overridden": (lambda: OtherConv(8), "OtherConv is a subclass of nn.Conv2d"),
    "subclass": (lambda: OwnConv(8, 8, 3), "OwnConv is a subclass of nn.Conv2d"),
    "hooks": (hooked, "hooks"),
    "replaced": (replaced, "already replaced"),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), "parametri"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)), "parametri"),
    "old_spectral_norm": (lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)), "SpectralNorm"),
    "complex": (lambda: nn.Conv2d(8, 8, 3, dtype=torch.complex64), "complex64 has no kernel"),
    "quantised": (lambda: torch.ao.nn.quantized.Conv2d(8, 8, 3), "quantised"),
    "meta": (lambda: nn.Conv2d(8, 8, 3, device="meta"), "meta device"),
    "lazy": (lambda: nn.LazyConv2d(8, 3), "lazy"),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_left_alone_and_named(name: str) -> None:
    build, text = ALONE[name]
    model = nn.Sequential(build(), nn.BatchNorm2d(8), nn.ReLU()).eval()
    ours = fastcv.optimize(model)
    assert text in reason(ours, "0") and text in str(ours.fastcv_report)
    assert "forward" not in vars(ours[0]) or name == "replaced"
    assert list(chains(ours)) == ["1"]
    if name not in ("complex", "quantised", "meta", "lazy"):
        x = images()
        with torch.no_grad():
            torch.testing.assert_close(ours(x), model(x))
    with pytest.raises(RuntimeError, match="not everything"):
        fastcv.optimize(model, strict=True)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_that_keeps_computed_tensors_is_copied() -> None:
    model = Cached()
    model(images())
    ours = fastcv.optimize(model)
    assert model.cache["bias"].requires_grad
    assert not ours.cache["bias"].requires_grad
    torch.testing.assert_close(ours(images()), model(images()))


def test_old_weight_norm_is_left_alone() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8)).eval()
    model(images())  # its weight is now a computed tensor, which copy.deepcopy refuses
    ours = fastcv.optimize(model)
    assert "WeightNorm" in reason(ours, "0")
    torch.testing.assert_close(ours(images()), model(images()))
    with torch.no_grad():
        model[0].weight_g.mul_(2), ours[0].weight_g.mul_(2)
    torch.testing.assert_close(ours(images()), model(images()))


NOT_FUSED = {
    "shared": (SharedConv, "conv", "called 2 times"),
    "two uses": (TwoNorms, "conv", "used 2 times"),
    "padding_mode": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8)), "0", "padding_mode"),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        "0",
        "no running statistics",
    ),
    "hooked batch norm": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3), with_hook(nn.BatchNorm2d(8))), "0", "hooks"),
    "untraceable": (Branching, "conv", "cannot be traced"),
    "two names": (lambda: TwoNames(), "conv", "shared by 2 names"),
}


def with_hook(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


class TwoNames(nn.Module):
    """A convolution registered twice, called once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.convs = nn.ModuleList([self.conv])

    def forward(self, x):
        return self.bn(self.conv(x))


@pytest.mark.parametrize("name", NOT_FUSED)
def test_not_fused_and_said_why(name: str) -> None:
    build, where, text = NOT_FUSED[name]
    model = trained(build()).eval()
    ours = fastcv.optimize(model)
    assert text in reason(ours, where)
    assert where not in chains(ours)
    check(ours, model)


def test_a_batch_norm_in_training_is_not_folded() -> None:
    model = make("plain").eval()
    model[1].train()
    ours = fastcv.optimize(model)
    assert "training" in reason(ours, "0")
    check(ours, model)
    with pytest.raises(RuntimeError, match="eval"):
        fastcv.optimize(model, strict=True)
    model[1].eval(), ours[1].eval()
    check(ours, model)
    assert len(fastcv.optimize(model, strict=True).fastcv_report.skipped()) == 0


# ---- paths that tracing has not seen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("path", ["shape", "skip", "before", "after", "add", "alias", "list"])
def test_unseen_paths_get_torchs_answer(path: str, mode: str) -> None:
    model = make("options").train(mode == "training")
    ours = fastcv.optimize(model, mode=mode)
    assert len(chains(ours)) == 1
    model.path = ours.path = path
    if mode == "training":
        check_gradients(ours, model)
    else:
        check(ours, model)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], msg=key)
    model.path = ours.path = ""
    check(ours.eval(), model.eval())


def test_unseen_uses_of_a_value_get_a_tensor() -> None:
    model = make("options").eval()
    ours = fastcv.optimize(model)
    model.path = ours.path = "numpy"
    check(ours, model)
    ours.path = "changed"
    with torch.no_grad(), pytest.raises(RuntimeError, match="changed in place"):
        ours(images())


def test_parts_called_by_themselves_compute_what_they_say() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        ours(images())
        for name in ("conv1", "bn1", "conv2", "bn2", "downsample"):
            mine, torchs = (getattr(m, name)(images()) for m in (ours, model))
            assert type(mine) is torch.Tensor
            torch.testing.assert_close(mine, torchs)


def test_hooks_added_later_see_what_torch_shows() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    for where in ("conv1", "bn1", "relu", "bn2", "downsample"):
        seen = []
        for m in (ours, model):
            handle = getattr(m, where).register_forward_hook(lambda module, args, output, seen=seen: seen.append((*args, output.clone())))
            with torch.no_grad():
                m(images())
            handle.remove()
        half = len(seen) // 2
        for mine, torchs in zip(flat(seen[:half]), flat(seen[half:]), strict=True):
            torch.testing.assert_close(mine, torchs)
    with torch.no_grad():
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(output)))
        seen.clear()
        ours(images())
        handle.remove()
    assert set(seen) == {torch.Tensor}


# ---- a model's life ------------------------------------------------------------------------------------------------------------


def test_state_dict_is_untouched() -> None:
    model = make("resnet").eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ours = fastcv.optimize(model)
    with torch.no_grad():
        ours(images())
    for state in (model.state_dict(), ours.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[k], before[k]) for k in before)
    assert repr(ours) == repr(model) and [n for n, _ in ours.named_modules()] == [n for n, _ in model.named_modules()]
    assert not any("forward" in vars(m) for m in model.modules())


def reload(model):
    torch.manual_seed(5)
    model.load_state_dict({k: torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()})


def assign(model):
    torch.manual_seed(5)
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def through_data(model):
    for p in model.parameters():
        p.data.mul_(0.5)


def statistics(model):
    model.bn1.running_var.mul_(3)


def new_parameter(model):
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach() * 2)


def new_eps(model):
    model.bn1.eps = 0.5


def train_a_step(model):
    model.train()
    model(images()).square().mean().backward()
    with torch.no_grad():
        for p in model.parameters():
            p.data.sub_(p.grad)
    model.eval()


def without_affine(model):
    model.bn1.weight = model.bn1.bias = None


CHANGES = [reload, assign, through_data, statistics, new_parameter, new_eps, train_a_step, without_affine]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_folds_again_after_a_change(change) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    check(ours, model)
    change(ours)
    check(ours, fastcv.restore(copy.deepcopy(ours)))
    assert ops_run(ours) == ["conv", "conv", "conv"]


def test_train_and_eval_flips() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    for train in (True, False, True, True, False):
        model.train(train), ours.train(train)
        check_gradients(ours, model)
        check(ours, model)
    torch.testing.assert_close(ours.state_dict(), model.state_dict())
    assert ops_run(ours) == ["conv", "conv", "conv"]


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model).module


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved, averaged])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_copies_are_optimised_and_independent(duplicate, mode: str) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model, mode=mode)
    check(ours, model)
    clone = duplicate(ours)
    assert chains(clone) == chains(ours)
    run = ops_run(ours)
    reload(ours)
    check(clone, model)
    assert ops_run(clone) == run
    own = {id(m) for m in clone.modules()}
    assert all(id(m.forward.module) in own for m in clone.modules() if "forward" in vars(m))
    reload(model)
    check(ours, model)


def test_moving_averages() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    averages = [torch.optim.swa_utils.AveragedModel(m, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)) for m in (model, ours)]
    for _ in range(2):
        check(averages[1], averages[0])
        for m, average in zip((model, ours), averages, strict=True):
            reload(m)
            average.update_parameters(m)
    check(averages[1], averages[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_moving_to_another_dtype_and_layout(dtype: torch.dtype) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    check(ours, model)
    for m in (model, ours):
        m.to(dtype=dtype, memory_format=torch.channels_last)
    x = images().to(dtype=dtype, memory_format=torch.channels_last)
    check(ours, model, x)
    assert ops_run(ours, x) == ["conv", "conv", "conv"]
    with pytest.raises(RuntimeError), torch.no_grad():
        ours(images() if dtype is not torch.float32 else images().double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        reference = copy.deepcopy(model).double()(images().double())
        with torch.autocast("cpu", dtype=dtype):
            mine, torchs = ours(images()), model(images())
    assert_close(mine, reference, torchs)


def test_inference_mode_and_no_grad_give_the_same_bits() -> None:
    ours = fastcv.optimize(make("block").eval())
    with torch.no_grad():
        first = ours(images())
    with torch.inference_mode():
        assert torch.equal(ours(images()), first)
    with torch.no_grad():
        assert torch.equal(ours(images()), first)


def test_empty_batches_and_wrong_inputs_are_torchs() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        assert ours(images()[:0]).shape == model(images()[:0]).shape
        for wrong in (images(2, 7, 8, 8), images(2, 8, 8), images().double(), images().long()):
            errors = []
            for m in (model, ours):
                with pytest.raises((RuntimeError, ValueError)) as caught:
                    m(wrong)
                errors.append(caught.type)
            assert errors[0] is errors[1]


def test_functional_call_and_tracing() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    check(ours, model)
    other = {k: v * 2 for k, v in model.named_parameters()}
    with torch.no_grad():
        expected = torch.func.functional_call(model, other, images())
        torch.testing.assert_close(torch.func.functional_call(ours, other, images()), expected)
        check(ours, model)
        expected = model(images())
        torch.testing.assert_close(torch.fx.symbolic_trace(ours)(images()), expected)
        torch.testing.assert_close(torch.vmap(ours)(images()[:, None])[:, 0], expected)
        torch.testing.assert_close(torch.jit.trace(ours, images())(images()), expected)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_compile_and_export(mode: str) -> None:
    model = make("block").train(mode == "training")
    ours = fastcv.optimize(model, mode=mode)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    expected = model(images())
    torch.testing.assert_close(compiled(images()), expected)
    if mode == "inference":
        with torch.no_grad():
            torch.testing.assert_close(compiled(images()), expected)
            program = torch.export.export(ours, (images(),))
        torch.testing.assert_close(program.module()(images()), expected)
        assert any("fastcv" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), Block()

        def body(self, x):
            return F.relu(self.block.bn1(self.block.conv1(x))) + self.block.bn2(self.block.conv2(x))[:, :, ::2, ::2]

        def forward(self, x):
            return self.block(checkpoint(self.body, self.stem(x), use_reentrant=reentrant).repeat(1, 1, 2, 2))

    model = trained(Checkpointed()).train()
    ours = fastcv.optimize(model, mode="training")
    for _ in range(2):
        results = []
        for m in (ours, model):
            m.zero_grad()
            m(images()).square().sum().backward()
            results.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def test_threads_do_not_see_each_other() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        expected = ours(images())
    results: list[torch.Tensor] = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(5):
                results.append(ours(images()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20 and all(torch.equal(r, expected) for r in results)


# ---- the call itself -----------------------------------------------------------------------------------------------------------


def test_restore_and_again() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    again = fastcv.optimize(ours)
    assert chains(again) == chains(ours)
    check(again, model)
    assert fastcv.restore(ours) is ours
    assert not hasattr(ours, "fastcv_report") and not any("forward" in vars(m) for m in ours.modules())
    with torch.no_grad():
        assert torch.equal(ours(images()), model(images()))
    check(again, model)
    assert fastcv.restore(model) is model


def test_inplace_and_exceptions_leave_the_model_as_it_was() -> None:
    model = make("options").eval()
    assert fastcv.optimize(model, inplace=True) is model
    report = model.fastcv_report
    forwards = {name: vars(m).get("forward") for name, m in model.named_modules()}
    with pytest.raises((TypeError, RuntimeError)):
        fastcv.optimize(model, inplace=True, mode="training", example=torch.zeros(1, 5))
    assert model.fastcv_report is report
    assert {name: vars(m).get("forward") for name, m in model.named_modules()} == forwards
    fresh = Branching()
    with pytest.raises(RuntimeError, match="cannot be traced"):
        fastcv.optimize(fresh, inplace=True, strict=True)
    assert not hasattr(fresh, "fastcv_report") and not any("forward" in vars(m) for m in fresh.modules())


def test_tracing_leaves_nothing_behind() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls, self.last = nn.Conv2d(8, 8, 3), 0, None
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.steps += 1
            self.last = self.conv(x)
            return self.last.relu() + torch.rand(())

    model = Remembers()
    state = torch.random.get_rng_state()
    ours = fastcv.optimize(model, inplace=True)
    assert (ours.calls, ours.last, ours.steps.item()) == (0, None, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_wrong_arguments() -> None:
    for error, arguments in (
        (TypeError, (torch.zeros(1),)),
        (ValueError, (nn.ReLU(), "fast")),
        (ValueError, (nn.ReLU(), "training", ["conv9"])),
    ):
        with pytest.raises(error, match=r"fastcv\.optimize"):
            fastcv.optimize(*arguments)
    with pytest.raises(TypeError, match="must be a torch"):
        fastcv.restore(3)


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", ["plain", "block", "functional", "decoder"])
def test_example_measures_every_module(name: str, mode: str) -> None:
    model = make(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ours = fastcv.optimize(model.eval(), mode=mode, example=(images(),))
    report = ours.fastcv_report
    assert not report.skipped(), report
    assert set(report.errors) == ({"output"} if mode == "inference" else {"output", "gradient"})
    for row in report.rows:
        assert (row.max_error is None) == row.op.startswith("folded into")
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items()) and not ours.training
    check(ours, model)


def test_example_undoes_what_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcv.optimizer import fold_cache

    exact = fold_cache.folded_parameters
    monkeypatch.setattr(
        fold_cache, "folded_parameters", lambda conv, bn: (exact(conv, bn)[0] * (1 + 1e-4 * (conv.groups > 1)), exact(conv, bn)[1])
    )
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU())
    trained(model).eval()
    ours = fastcv.optimize(model, example=images())
    assert list(chains(ours)) == ["0"] and "undone" in reason(ours, "3")
    assert ops_run(ours) == ["conv", "conv", "batch_norm"]
    check(ours, model)
    with pytest.raises(RuntimeError, match="undone"):
        fastcv.optimize(model, example=images(), strict=True)


def test_report() -> None:
    ours = fastcv.optimize(make("plain").eval(), example=images())
    report = ours.fastcv_report
    data = json.loads(report.to_json())
    assert data["mode"] == "inference" and data["left_to_torch"]["Linear"] == 1
    first = data["rows"][0]
    assert (first["name"], first["type"], first["op"], first["fused"]) == ("0", "Conv2d", "conv2d_fused", ["1", "2"])
    assert first["max_error"] <= first["allowed"]
    text = str(report)
    assert "conv2d_fused" in text and "folded into 0" in text and "3 fused chains" in text and "Linear x1" in text


@pytest.mark.parametrize("package", ["torchvision", "transformers"])
def test_models_of_others(package: str) -> None:
    library = pytest.importorskip(package)
    if package == "torchvision":
        models = [library.models.resnet18(), library.models.mobilenet_v2(), library.models.densenet121()]
        x = images(2, 3, 64, 64)
    else:
        models = [library.ResNetForImageClassification(library.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1]))]
        x = images(2, 3, 64, 64)
    for model in models:
        trained(model).eval()
        ours = fastcv.optimize(model, example=x)
        assert len(chains(ours)) > 3
        error, allowed = ours.fastcv_report.errors["output"]
        assert error <= allowed
