"""The kernels behind fastcv::conv_wgrad and fastcv::conv_bias_grad: every variant within the bound on any order of summation."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv_common import DTYPES, assert_within_bound

import fastcv
from fastcv.functional import _conv_arguments as arguments
from fastcv.testing import Case, cases_of, serves

CONV2D = [case for case in cases_of("conv2d") if not case.bench]


def _wgrad(x: torch.Tensor, g: torch.Tensor, case: Case) -> tuple[Any, ...]:
    args, kwargs = case.arguments(x.dtype)
    pair = lambda name, default: list(arguments.as_ints(kwargs.get(name, default), 2, name))  # noqa: E731
    return x, g, list(args[1].shape[2:]), pair("stride", 1), pair("padding", 0), pair("dilation", 1), kwargs["groups"], 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", [name for name, _ in fastcv.variants("conv_wgrad")])
def test_every_weight_gradient(variant: str, dtype: torch.dtype) -> None:
    ran = 0
    for case in CONV2D:
        (x, w, *_), kwargs = case.arguments(dtype)
        if isinstance(kwargs.get("padding"), str):
            continue
        exact = F.conv2d(x.double(), w.double(), **kwargs)
        g = torch.randn(exact.shape).to(dtype)
        reference, magnitude = (
            torch.nn.grad.conv2d_weight(f(x.double()), w.shape, f(g.double()), **kwargs) for f in (lambda t: t, torch.abs)
        )
        for layouts in ("", "xg", "x", "g") if dtype == torch.float32 else ("xg", "g"):
            a = x.to(memory_format=torch.channels_last) if "x" in layouts else x
            b = g.to(memory_format=torch.channels_last) if "g" in layouts else g
            try:
                with fastcv.use(conv_wgrad=variant):
                    dw = torch.ops.fastcv.conv_wgrad(*_wgrad(a, b, case))
            except (RuntimeError, ValueError) as error:
                assert "cannot run this call" in str(error) or "needs" in str(error)
                continue
            ran += 1
            assert dw.dtype == dtype
            assert_within_bound(dw, reference, magnitude, exact[:, 0].numel())
    takes = serves("conv_wgrad", variant, dtype)
    if variant.startswith("igemm"):  # tensor cores: 16-bit numbers, or float32 in three parts
        takes &= dtype == torch.float32 if "tf32x3" in variant else dtype in (torch.bfloat16, torch.float16)
    assert ran or not takes or "avx" in variant or "_amx" in variant


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", [name for name, _ in fastcv.variants("conv_bias_grad")])
def test_every_bias_gradient(variant: str, dtype: torch.dtype) -> None:
    for sizes in ((2, 3, 4, 5), (1, 1, 1, 1), (3, 17, 1, 700), (2, 70, 3, 3), (0, 4, 2, 2), (2, 0, 2, 2), (2, 5, 40), (1, 9, 2, 3, 4)):
        g = torch.randn(sizes).to(dtype)
        dims = [0, *range(2, g.dim())]
        for t in (g, g.to(memory_format=torch.channels_last) if g.dim() == 4 else g):
            try:
                with fastcv.use(conv_bias_grad=variant):
                    db = torch.ops.fastcv.conv_bias_grad(t)
            except ValueError as error:
                pytest.skip(str(error))
            assert_within_bound(db, g.double().sum(dims), g.double().abs().sum(dims), g.numel() // max(1, sizes[1]))
