"""torch.jit.trace, by which exporters such as OpenVINO's read a model: every op can be traced, with and without gradients."""

import warnings

import pytest
import torch
from torch import Tensor

import fastcv.functional as F
from fastcv.testing.cases import CASES, Case

SMALL = [case for case in CASES if not case.bench and case.dtypes and torch.float32 in case.dtypes]


def outputs(result: object) -> list[Tensor]:
    return [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, Tensor)]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_traced_ops(case: Case, grad: bool) -> None:
    args, kwargs = case.arguments(torch.float32, case.layouts[-1])
    where = [i for i in case.grad or range(len(args)) if isinstance(args[i], Tensor) and args[i].is_floating_point()]
    if not where:
        pytest.skip("no floating-point tensor to trace")

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        full = list(args)
        for i, t in zip(where, tensors, strict=True):
            full[i] = t
        return tuple(outputs(getattr(F, case.op)(*full, **kwargs)))

    tensors = tuple(args[i].detach().clone().requires_grad_(grad) for i in where)
    expected = function(*tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(function, tensors, check_trace=False)
    for a, b in zip(traced(*tensors), expected, strict=True):
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and a.stride() == b.stride()
