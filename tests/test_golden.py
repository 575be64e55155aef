"""Golden numbers that span several ops; those of one family stand in its own test file. The numbers are docs/golden_numbers.md's."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastcv.functional as F
import fastcv.nn as nn

VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


def test_8_regularisation() -> None:
    """w1 = (1,0,0,0) and w2 = (.25,...) score x = (1,1,1,1) alike; the L2 penalty prefers w2, the L1 penalty ties."""
    w = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4])
    x = torch.ones(1, 4)
    scores = F.conv1d(x[:, :, None], w[:, :, None]).flatten()
    assert scores.tolist() == [1, 1]
    origin = torch.zeros(1, 4)
    assert (F.cdist(w, origin, p=2).flatten() ** 2).tolist() == [1, 0.25]
    assert F.cdist(w, origin, p=1).flatten().tolist() == [1, 1]


def test_9_numerical_gradient() -> None:
    """(1.25322 - 1.25347) / 1e-4 = -2.5; and the same quotient agrees with fastcv's analytic gradient."""
    assert pytest.approx((1.25322 - 1.25347) / 1e-4) == -2.5
    scores = torch.tensor([[3.2, 5.1, -1.7]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0])
    loss = F.cross_entropy(scores, target)
    (analytic,) = torch.autograd.grad(loss, scores)
    h = 1e-6
    for i in range(3):
        step = torch.zeros_like(scores)
        step[0, i] = h
        numeric = (F.cross_entropy(scores + step, target) - F.cross_entropy(scores - step, target)) / (2 * h)
        assert numeric.item() == pytest.approx(analytic[0, i].item(), rel=1e-6, abs=1e-9)


def test_15_receptive_field() -> None:
    """Three 3x3 convolutions see 7x7 inputs, with 27 C^2 weights against 49 C^2."""
    x = torch.zeros(1, 1, 15, 15, requires_grad=True)
    y = x
    for _ in range(3):
        y = F.conv2d(y, torch.ones(1, 1, 3, 3), padding=1)
    y[0, 0, 7, 7].backward()
    seen = x.grad[0, 0].nonzero()
    assert (seen.amin(0).tolist(), seen.amax(0).tolist(), len(seen)) == ([4, 4], [10, 10], 49)
    channels = 5
    weights = sum(nn.Conv2d(channels, channels, 3, bias=False).weight.numel() for _ in range(3))
    assert weights == 27 * channels**2 < nn.Conv2d(channels, channels, 7, bias=False).weight.numel() == 49 * channels**2


def test_16_vgg16() -> None:
    """Parameters per layer (no biases) and the true sum of one image's activations, by fastcv's own shape functions."""
    expected = [1728, 36864, 73728, 147456, 294912, 589824, 589824, 1179648, 2359296, 2359296, 2359296, 2359296, 2359296]
    layers, channels = [], 3
    for item in VGG16:
        layers.append(nn.MaxPool2d(2) if item == "M" else nn.Conv2d(channels, item, 3, padding=1, bias=False, device="meta"))
        channels = channels if item == "M" else item
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [conv.weight.numel() for conv in convs] == expected
    fc = [512 * 7 * 7 * 4096, 4096 * 4096, 4096 * 1000]
    assert fc == [102760448, 16777216, 4096000]
    assert round((sum(expected) + sum(fc)) / 1e6) == 138
    with FakeTensorMode():
        x = torch.empty(1, 3, 224, 224)
        activations = x.numel()
        for layer in layers:
            x = F.conv2d(x, torch.empty(layer.weight.shape), padding=1) if isinstance(layer, nn.Conv2d) else layer(x)
            activations += x.numel()
    assert x.shape == (1, 512, 7, 7)
    activations += 4096 + 4096 + 1000
    # The slide says 24M floats, 96 MB; the true sum, counting the input and one tensor per convolution and pooling, is 15.2M, 61 MB.
    assert activations == 15237608


@pytest.mark.parametrize(
    ("act", "std", "lowest", "highest"),
    [
        ("tanh", 0.01, 0.0, 0.1),  # vanish
        ("tanh", 0.05, 0.8, 1.0),  # saturate
        ("tanh", 1 / math.sqrt(4096), 0.2, 0.5),  # well scaled
        ("relu", 1 / math.sqrt(4096), 0.0, 0.2),  # collapse
        ("relu", math.sqrt(2 / 4096), 0.5, 1.2),  # well scaled
    ],
)
def test_19_initialisation(act: str, std: float, lowest: float, highest: float) -> None:
    """Six layers of width 4096 on a batch of 16: the standard deviation of the last layer's activations."""
    x = torch.randn(16, 4096, 1)
    for _ in range(6):
        x = getattr(torch, act)(F.conv1d(x, torch.randn(4096, 4096, 1) * std))
    assert lowest <= x.std().item() <= highest


def test_21_depthwise_separable_cost() -> None:
    """Multiplications of a 3x3 convolution: standard 9 C^2 HW, depthwise separable 9 C HW + C^2 HW; the modules have those weights."""
    c, h, w = 32, 8, 8
    standard = nn.Conv2d(c, c, 3, padding=1, bias=False)
    depthwise, pointwise = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False), nn.Conv2d(c, c, 1, bias=False)
    x = torch.randn(1, c, h, w)
    pixels = standard(x).shape[-2:].numel()
    assert pointwise(depthwise(x)).shape == standard(x).shape
    assert standard.weight.numel() * pixels == 9 * c * c * h * w
    assert (depthwise.weight.numel() + pointwise.weight.numel()) * pixels == 9 * c * h * w + c * c * h * w
