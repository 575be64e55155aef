"""Folding a batch norm into a convolution: against float64, for every kind of convolution, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fastcv.models.resnet_cifar import ResNetCifar, resnet20
from fastcv.nn.fold import fold_batch_norm

CONVS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _used(bn: nn.Module) -> nn.Module:
    """With statistics and parameters as after training, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in bn.state_dict().items():
        if name == "running_var":
            tensor.uniform_(0.1, 4, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(generator=generator)
    return bn.eval()


@pytest.mark.parametrize("conv_type", CONVS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@torch.no_grad()
def test_folded_is_conv_then_batch_norm(conv_type: type[nn.Module], groups: int, bias: bool, affine: bool) -> None:
    conv = conv_type(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias)
    dim = len(conv.kernel_size)
    bn = _used(NORMS[dim](6, affine=affine))
    before = [v.clone() for m in (conv, bn) for v in m.state_dict().values()]
    folded = fold_batch_norm(conv, bn)
    assert type(folded) is conv_type and not folded.training
    assert all(torch.equal(a, b) for a, b in zip((v for m in (conv, bn) for v in m.state_dict().values()), before, strict=True))
    exact_conv, exact_bn = copy.deepcopy(conv).double(), copy.deepcopy(bn).double()
    exact = fold_batch_norm(exact_conv, exact_bn)
    x = torch.randn(2, 4, *[7] * dim, dtype=torch.float64)
    torch.testing.assert_close(exact(x), exact_bn(exact_conv(x)))
    assert torch.equal(folded.weight, exact.weight.float()) and torch.equal(folded.bias, exact.bias.float())  # rounded once


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_linear_layer_folds(bias: bool) -> None:
    linear, bn = nn.Linear(7, 5, bias=bias).double(), _used(nn.BatchNorm1d(5)).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    folded = fold_batch_norm(linear, bn)
    assert type(folded) is nn.Linear
    torch.testing.assert_close(folded(x), bn(linear(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_padding_mode_are_kept(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect").to(dtype)
    folded = fold_batch_norm(conv, _used(nn.BatchNorm2d(5).to(dtype)))
    assert folded.weight.dtype == folded.bias.dtype == dtype and folded.padding_mode == "reflect"
    assert folded.weight.requires_grad and list(folded.state_dict()) == ["weight", "bias"]


def test_refuses_what_cannot_be_folded() -> None:
    conv, bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5).eval()
    with pytest.raises(ValueError, match="training mode"):
        fold_batch_norm(conv, nn.BatchNorm2d(5))
    with pytest.raises(ValueError, match="no running statistics"):
        fold_batch_norm(conv, nn.BatchNorm2d(5, track_running_stats=False).eval())
    with pytest.raises(ValueError, match="has 3 channels, the convolution 5 outputs"):
        fold_batch_norm(conv, nn.BatchNorm2d(3).eval())
    with pytest.raises(ValueError, match="parametrised"):
        fold_batch_norm(weight_norm(nn.Conv2d(3, 5, 3)), bn)
    with pytest.raises(ValueError, match="lazy"):
        fold_batch_norm(nn.LazyConv2d(5, 3), bn)
    with pytest.raises(ValueError, match="has 5 channels, the linear layer 4 outputs"):
        fold_batch_norm(nn.Linear(3, 4), bn)
    with pytest.raises(TypeError, match="conv must be a convolution or linear module, got Bilinear"):
        fold_batch_norm(nn.Bilinear(3, 3, 5), bn)
    with pytest.raises(TypeError, match="bn must be a batch norm module, got LayerNorm"):
        fold_batch_norm(conv, nn.LayerNorm(5).eval())


@torch.no_grad()
def test_a_whole_network_folds() -> None:
    network = resnet20(in_chans=2, num_classes=7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.1)
    network.eval()
    folded = network.folded()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(3, 2, 17, 13)
    torch.testing.assert_close(folded.double()(x.double()), copy.deepcopy(network).double()(x.double()), atol=1e-4, rtol=1e-4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 21


def test_network_size_and_arguments() -> None:
    assert sum(p.numel() for p in resnet20().parameters()) == 272_474  # as published for CIFAR-10 with projections
    with pytest.raises(ValueError, match="three stages"):
        ResNetCifar((1, 1))
