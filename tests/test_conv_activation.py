"""fastcv::conv_activation: the fused activations and their derivatives, every variant against the formulas and torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastcv
from fastcv.testing import assert_close, runnable_variants, serves

ACTIVATION = torch.ops.fastcv.conv_activation
SLOPE = 0.3
FUNCTIONS = [lambda x: x * 1, F.relu, F.relu6, F.silu, F.hardswish, F.gelu, lambda x: F.leaky_relu(x, SLOPE)]
ROWS = runnable_variants("conv_activation")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def points(dtype: torch.dtype) -> torch.Tensor:
    bends = torch.tensor([-30.0, -3.5, -3.0, -2.5, -0.5, -0.0, 0.0, 0.5, 2.5, 3.0, 3.5, 5.5, 6.0, 6.5, 30.0])
    return torch.cat([bends, torch.randn(3 * 5 * 7 - len(bends), generator=torch.Generator().manual_seed(0))]).view(1, 3, 5, 7).to(dtype)


def derivative(function, x: torch.Tensor, order: int) -> torch.Tensor:
    """By torch, order times."""
    x = x.clone().requires_grad_()
    y = function(x)
    for _ in range(order):
        if not y.requires_grad:
            return torch.zeros_like(x)
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)
        if y is None:
            return torch.zeros_like(x)
    return y.detach()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", range(7), ids=["none", "relu", "relu6", "silu", "hardswish", "gelu", "leaky_relu"])
@pytest.mark.parametrize("row", ROWS)
def test_derivatives_are_torchs(row: str, activation: int, dtype: torch.dtype) -> None:
    if not serves("conv_activation", row, dtype):
        pytest.skip("that instruction set leaves this dtype to another")
    x = points(dtype)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    # The reference is torch in float64, whose own derivatives of silu cancel in 1 - sigmoid(x) and are off by some eps.
    for order in range(3 if activation != 3 else 1 if dtype == torch.float64 else 4):
        exact, single = (derivative(FUNCTIONS[activation], x.to(d), order) for d in (torch.float64, torch.float32))
        single_scaled = single * grad.float()
        for channels_last in (False, True):
            given = x.to(memory_format=torch.channels_last) if channels_last else x
            with fastcv.use(conv_activation=row):
                y, scaled = (ACTIVATION(given, g, activation, order, SLOPE) for g in (None, grad))
            assert y.stride() == given.stride()
            assert_close(y, exact, derivative(FUNCTIONS[activation], x, order), f"order {order}", single)
            assert_close(scaled, exact * grad.double(), derivative(FUNCTIONS[activation], x, order) * grad, f"order {order}", single_scaled)


@pytest.mark.parametrize("row", [r for r in ROWS if r != "ref"])
def test_nan_and_infinity(row: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0]).view(1, 1, 2, 2)
    for activation in (1, 2, 4, 6):
        with fastcv.use(conv_activation="ref"):
            expected = [ACTIVATION(x, None, activation, order) for order in range(3)]
        with fastcv.use(conv_activation=row):
            for order in range(3):
                torch.testing.assert_close(ACTIVATION(x, None, activation, order), expected[order], equal_nan=True)
    grad = torch.full((1, 1, 1, 2), float("inf"))
    with fastcv.use(conv_activation=row):
        assert ACTIVATION(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2), grad, 1, 1).flatten().tolist() == [0.0, float("inf")]


def test_refuses_bad_calls() -> None:
    x = torch.ones(1, 2, 3, 3)
    for args in (
        (x[0, 0], None, 1, 0),
        (x, x[:, :1], 1, 0),
        (x, x.double(), 1, 0),
        (x, None, 7, 0),
        (x, None, 1, 9),
        (x.int(), None, 1, 0),
    ):
        with pytest.raises(RuntimeError, match="fastcv conv_activation"):
            ACTIVATION(*args)
    assert ACTIVATION(x[:0], None, 1, 1).shape == (0, 2, 3, 3)


def test_opcheck() -> None:
    for x in (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)):
        torch.library.opcheck(ACTIVATION, (x, torch.randn(2, 3, 4, 5), 3, 1))
        torch.library.opcheck(ACTIVATION, (x, None, 4, 0))
        torch.library.opcheck(ACTIVATION, (x, None, 6, 1, 0.2))
