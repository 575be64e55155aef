"""Models of many kinds, and what the tests of fastcv.optimize and of the compile backend ask of them."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import fastcv
from fastcv.models.resnet_cifar import resnet8
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


class Residual(nn.Module):
    """conv + batch norm + addition + activation of any kind of convolution, the activation as a function of one argument."""

    def __init__(self, conv: nn.Module, norm: nn.Module | None, activation) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation

    def forward(self, x):
        y = self.conv(x)
        y = y if self.norm is None else self.norm(y)
        return self.activation(y + x)


# name -> (conv of 8 channels that keeps the shape, its batch norm, an input)
CONVOLUTIONS = {
    "conv1d": (lambda: nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d, (2, 8, 13)),
    "conv2d": (lambda: nn.Conv2d(8, 8, 3, padding="same", groups=2), nn.BatchNorm2d, (2, 8, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(8, 8, 3, padding=1, bias=False), nn.BatchNorm3d, (2, 8, 3, 5, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(8, 8, 5, padding=2, groups=4), nn.BatchNorm1d, (2, 8, 13)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(8, 8, 3, 1, 2, dilation=2), nn.BatchNorm2d, (2, 8, 7, 6)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(8, 8, 3, padding=1, bias=False), nn.BatchNorm3d, (2, 8, 3, 5, 4)),
}


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


def reload(model):
    torch.manual_seed(5)
    model.load_state_dict({k: torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()})
