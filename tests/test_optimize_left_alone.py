"""fastcv.optimize: modules that keep torch's forward, chains that are not fused, and the reasons in the report."""

import pytest
import torch
import torch.nn.functional as F
from optimize_models import Branching, OwnConstructor, SharedConv, TwoNorms, chains, check, images, make, reason, trained
from torch import nn
from torch.nn.utils import parametrizations

import fastcv


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
