"""Batch and instance norm's statistics, and batch norm fused with a residual and an activation."""

import copy
import math

import pytest
import torch
import torch.nn.functional as T

import fastcv.functional as F
import fastcv.nn as nn
from fastcv.testing import assert_close, max_error

CL = torch.channels_last


def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*sizes, dtype=dtype)


# Statistics ----------------------------------------------------------------------------------------------------------------------


def test_float64_against_exact_arithmetic() -> None:
    """Sums without rounding (math.fsum) as the reference: torch's rounding does not count."""
    for layout in (torch.contiguous_format, CL):
        x = (randn(3, 2, 40, 50, dtype=torch.float64) + 7).to(memory_format=layout)
        y = F.batch_norm(x, None, None, training=True, eps=1e-3)
        for c in range(2):
            values = x[:, c].flatten().tolist()
            mean = math.fsum(values) / len(values)
            std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values) + 1e-3)
            exact = torch.tensor([(v - mean) / std for v in values], dtype=torch.float64)
            assert max_error(y[:, c].flatten(), exact) < 4 * torch.finfo(torch.float64).eps


def test_one_outlier_does_not_spoil_the_others() -> None:
    x = randn(8, 3, 50, 50)
    x[0, :, 0, 0] = 1e4
    for layout in (torch.contiguous_format, CL):
        y = F.batch_norm(x.to(memory_format=layout), None, None, training=True)
        assert_close(y, T.batch_norm(x.double(), None, None, training=True), T.batch_norm(x, None, None, training=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
def test_statistics_after_three_steps(layout: torch.memory_format) -> None:
    ours, theirs = nn.BatchNorm2d(6), torch.nn.BatchNorm2d(6)
    cumulative, torchs = nn.BatchNorm2d(6, momentum=None), torch.nn.BatchNorm2d(6, momentum=None)
    for step in range(3):
        x = (randn(4, 6, 5, 7) * (step + 1) + step).to(memory_format=layout)
        for module in (ours, theirs, cumulative, torchs):
            module(x)
    for a, b in ((ours, theirs), (cumulative, torchs)):
        assert a.num_batches_tracked == b.num_batches_tracked == 3
        torch.testing.assert_close(a.running_mean, b.running_mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.running_var, b.running_var, rtol=1e-6, atol=1e-6)
    assert_close(ours.eval()(x), copy.deepcopy(theirs).double().eval()(x.double()), theirs.eval()(x))


def test_running_variance_is_unbiased() -> None:
    x = torch.tensor([[1.0], [3.0]])
    mean, var = torch.zeros(1), torch.zeros(1)
    y = F.batch_norm(x, mean, var, training=True, momentum=1.0, eps=1e-12)
    assert (mean.item(), var.item()) == (2.0, 2.0)  # biased 1, unbiased 2
    assert y.flatten().tolist() == [-1.0, 1.0]  # normalised by the biased one


def test_non_dense_statistics_are_updated_in_place() -> None:
    store = torch.zeros(6, 2)
    x = randn(5, 6, 3)
    F.batch_norm(x, store[:, 0], store[:, 1], training=True, momentum=1.0)
    torch.testing.assert_close(store[:, 0], x.mean((0, 2)))
    torch.testing.assert_close(store[:, 1], x.var((0, 2)))


def test_empty_batch_leaves_statistics_and_counts_the_batch() -> None:
    module = nn.BatchNorm2d(4)
    x = torch.empty(0, 4, 3, 3, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.shape == x.shape and module.num_batches_tracked == 1
    assert torch.equal(module.running_mean, torch.zeros(4)) and torch.equal(module.running_var, torch.ones(4))
    assert x.grad.shape == x.shape and torch.equal(module.weight.grad, torch.zeros(4))


def test_batch_norm_without_buffers_uses_the_batch_in_evaluation() -> None:
    ours, theirs = nn.BatchNorm1d(3, track_running_stats=False).eval(), torch.nn.BatchNorm1d(3, track_running_stats=False).eval()
    x = randn(7, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_func_grad_updates_running_statistics() -> None:
    results = []
    x = randn(5, 4, 3)
    for f in (F, T):
        mean, var = torch.zeros(4), torch.ones(4)
        grad = torch.func.grad(lambda t, f=f, mean=mean, var=var: (f.batch_norm(t, mean, var, training=True) ** 3).sum())(x)
        results.append((grad, mean, var))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_instance_norm_running_statistics() -> None:
    ours, theirs = [torch.zeros(5), torch.ones(5)], [torch.zeros(5), torch.ones(5)]
    for _ in range(3):
        x = randn(3, 5, 4, 6) * 2 + 1
        F.instance_norm(x, *ours)
        T.instance_norm(x, *theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_golden_17_batch_norm_can_be_the_identity_and_is_linear_in_evaluation() -> None:
    """gamma = sigma and beta = mu undo the normalisation; in evaluation the map is affine and folds into a convolution."""
    x = randn(8, 5, 6, 7, dtype=torch.float64) * 3 + 2
    mu, sigma = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(F.batch_norm(x, None, None, sigma, mu, training=True), x, rtol=1e-13, atol=1e-13)
    mean, var, weight, bias = randn(5).double(), randn(5).double().abs() + 1, randn(5).double(), randn(5).double()

    def f(t: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(t, mean, var, weight, bias)

    z, a = torch.randn_like(x), 0.3
    torch.testing.assert_close(f(a * x + (1 - a) * z), a * f(x) + (1 - a) * f(z), rtol=1e-12, atol=1e-12)
    conv, scale = randn(5, 3, 3, 3).double(), weight / (var + 1e-5).sqrt()
    image = randn(2, 3, 8, 8).double()
    folded = T.conv2d(image, conv * scale[:, None, None, None], bias - mean * scale)
    torch.testing.assert_close(f(T.conv2d(image, conv)), folded, rtol=1e-12, atol=1e-12)


# Fused ---------------------------------------------------------------------------------------------------------------------------

X = randn(2, 4, 3)


def test_batch_norm_act_errors() -> None:
    with pytest.raises(ValueError, match="activation must be"):
        F.batch_norm_act(X, None, None, training=True, activation="gelu")
    with pytest.raises(ValueError, match="negative_slope"):
        F.batch_norm_act(X, None, None, training=True, activation="leaky_relu", negative_slope=-1.0)
    with pytest.raises(RuntimeError, match="residual of shape"):
        F.batch_norm_act(X, None, None, training=True, residual=randn(2, 4, 1))
