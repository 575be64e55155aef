"""Distances and neighbours together: against long double, layouts, errors, invariance, torch's machinery, any problem."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbors_common import DTYPES, INF, PS, exact, first_k
from torch import Tensor

import fastcv
import fastcv.functional as F
from fastcv.testing import assert_close, cases_of, check_case, runnable_variants, serves


@pytest.mark.parametrize("case", [c for c in cases_of("cdist", "knn", "nearest") if not c.bench], ids=lambda c: c.id)
def test_cases(case) -> None:
    check_case(case, getattr(F, case.op), torch.float32)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", runnable_variants("cdist"))
def test_every_variant_against_long_double(variant: str, dtype: torch.dtype, p: float) -> None:
    if not serves("cdist", variant, dtype):
        pytest.skip("that instruction set leaves this dtype to another")
    for m, n, d in ((1, 1, 1), (5, 3, 2), (9, 31, 15), (8, 32, 16), (17, 33, 129), (66, 2, 300)):
        x, y = torch.randn(m, d).to(dtype), torch.randn(n, d).to(dtype)
        with fastcv.use(cdist=variant):
            try:
                ours = F.cdist(x, y, p)
            except ValueError as error:
                assert "cannot run this call" in str(error) and variant.startswith(("bytes", "product"))
                continue
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        torchs = torch.cdist(x.to(compute), y.to(compute), p, "donot_use_mm_for_euclid_dist").to(dtype)
        assert_close(ours, exact(x, y, p), torchs, f"{m}x{n}x{d}")


def test_golden_l1_distance() -> None:
    test = torch.tensor([[56, 32, 10, 18], [90, 23, 128, 133], [24, 26, 178, 200], [2, 0, 255, 220]], dtype=torch.uint8)
    train = torch.tensor([[10, 20, 24, 17], [8, 10, 89, 100], [12, 16, 178, 170], [4, 32, 233, 112]], dtype=torch.uint8)
    for dtype in (torch.uint8, *DTYPES[:2]):
        x, y = test.view(1, 16).to(dtype), train.view(1, 16).to(dtype)
        assert F.cdist(x, y, 1).item() == 456
        distance, index = F.nearest(x, y, 1)
        assert distance.item() == 456 and index.item() == 0


@pytest.mark.parametrize("mode", ["use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"])
def test_near_points_keep_their_distance(mode: str) -> None:
    """pytorch/pytorch#42479: points far from the origin and 109 apart; the matrix-product form cancels to 0."""
    x = torch.full((30, 2), 1.5e9)
    y = x.clone()
    y[:, 0] += 128
    distances = F.cdist(x, y, compute_mode=mode)
    assert torch.equal(distances, torch.full((30, 30), 128.0))
    assert torch.equal(F.knn(x, y, 1, squared=True)[0], torch.full((30, 1), 128.0**2))
    near = torch.randn(40, 64) + 1000
    assert not F.cdist(near, near, compute_mode=mode).diagonal().any()


def test_empty_and_flat_inputs() -> None:
    assert F.knn(torch.randn(0, 3), torch.randn(5, 3), 2)[1].shape == (0, 2)
    distances, indices = F.knn(torch.randn(4, 0), torch.randn(5, 0), 3)
    assert not distances.any() and indices.tolist() == [[0, 1, 2]] * 4
    assert F.knn(torch.randn(0, 4, 3), torch.randn(0, 5, 3), 2)[0].shape == (0, 4, 2)
    assert F.cdist(torch.randn(2, 0, 3, 4), torch.randn(1, 0, 5, 4)).shape == (2, 0, 3, 5)


def test_batches_broadcast() -> None:
    x, y = torch.randn(3, 1, 5, 4), torch.randn(2, 9, 4)
    assert torch.equal(F.cdist(x, y, 1), torch.stack([torch.stack([F.cdist(a[0], b, 1) for b in y]) for a in x]))
    distances, indices = F.knn(x, y, 2)
    assert distances.shape == (3, 2, 5, 2)
    assert torch.equal(indices[2, 1], F.knn(x[2, 0], y[1], 2)[1])
    one = torch.randn(6, 5, 4)
    assert torch.equal(F.knn(one, y[0], 3)[1], torch.stack([F.knn(a, y[0], 3)[1] for a in one]))


@pytest.mark.parametrize(
    "make", [lambda t: t.mT.contiguous().mT, lambda t: t.repeat_interleave(2, -1)[..., ::2], lambda t: t.flip(0).flip(0)]
)
def test_any_strides(make: Callable[[Tensor], Tensor]) -> None:
    x, y = torch.randn(2, 9, 7), torch.randn(2, 12, 7)
    assert torch.equal(F.cdist(make(x), make(y)), F.cdist(x, y))
    assert torch.equal(F.knn(make(x), make(y), 3)[1], F.knn(x, y, 3)[1])
    a, b = make(x).requires_grad_(), x.clone().requires_grad_()
    w = torch.randn(2, 12, 9).mT
    assert torch.equal(*(torch.autograd.grad((F.cdist(t, y) * w).sum(), t)[0] for t in (a, b)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_bits_for_any_threads_and_batch(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    x, y = torch.randn(70, 300).to(dtype), torch.randn(530, 300).to(dtype)
    for p in (1.0, 2.0, 3.0):
        matrix, (distances, indices) = F.cdist(x, y, p), F.knn(x, y, 40, p)
        for n in (1, 2, 3):
            threads(n)
            assert torch.equal(F.cdist(x, y, p), matrix)
            again = F.knn(x, y, 40, p)
            assert torch.equal(again[0], distances) and torch.equal(again[1], indices)
            for i in (0, 37, 69):
                assert torch.equal(F.cdist(x[i : i + 1], y, p)[0], matrix[i])
                assert torch.equal(F.cdist(x, y[i : i + 1], p)[:, 0], matrix[:, i])
                alone = F.knn(x[i : i + 1], y, 40, p)
                assert torch.equal(alone[0][0], distances[i]) and torch.equal(alone[1][0], indices[i])
                assert torch.equal(F.nearest(x[i : i + 1], y, p)[1][0], indices[i, 0])
            stacked = F.knn(x.expand(3, 70, 300), torch.stack([y, y + 1, y]), 40, p)
            assert torch.equal(stacked[0][2], distances) and torch.equal(stacked[1][0], indices)


r = torch.randn
BAD_CDIST = [
    lambda f: f(r(3), r(4, 3)),
    lambda f: f(r(2, 3), r(3)),
    lambda f: f(r(2, 3), r(4, 2)),
    lambda f: f(r(2, 3), r(4, 3), -1.0),
    lambda f: f(r(2, 3), r(4, 3), math.nan),
    lambda f: f(r(2, 3), r(4, 3), "a"),
    lambda f: f(r(2, 3), r(4, 3), 2.0, "foo"),
    lambda f: f(r(2, 3), r(4, 3), compute_mode=0),
    lambda f: f(r(2, 3), r(4, 3), 1.0, None),
    lambda f: f(r(2, 3), r(4, 3).double()),
    lambda f: f(r(5, 2, 3), r(7, 4, 3)),
    lambda f: f([1], r(4, 3)),
    lambda f: f(torch.ones(2, 3).int(), torch.ones(4, 3).int()),
    lambda f: f(torch.ones(2, 3).cfloat(), torch.ones(4, 3).cfloat()),
    lambda f: f(),
]


@pytest.mark.parametrize("call", BAD_CDIST)
def test_cdist_raises_torchs_error_types(call: Callable[..., Any]) -> None:
    with pytest.raises(Exception) as torchs:
        call(torch.cdist)
    with pytest.raises(torchs.type):
        call(F.cdist)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((r(2, 3), r(4, 3), 0), ValueError, "k=0, but at least one"),
        ((r(2, 3), r(4, 3), 2.0), TypeError, "'k' must be int, not float"),
        ((r(2, 3), r(4, 3), True), TypeError, "'k' must be int, not bool"),
        ((r(2, 3), r(4, 3), 2, "cosine"), TypeError, "'p' must be float, not str"),
        ((r(2, 3), r(4, 3), 2, -2), RuntimeError, "non-negative p values, got p=-2"),
        ((r(2, 3), r(4, 5), 2), RuntimeError, "x: 3 y: 5"),
        ((r(2, 3), r(4, 3).double(), 2), RuntimeError, "same dtype"),
        ((r(3), r(4, 3), 2), RuntimeError, "at least 2D tensors, x got: 1D"),
        (([1.0], r(4, 3), 2), TypeError, "argument 'x'"),
    ],
)
def test_knn_errors_name_the_values(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        F.knn(*arguments)


def test_opcheck() -> None:
    x, y, g = r(2, 3, 4), r(2, 5, 4), r(2, 3, 5)
    ops = torch.ops.fastcv
    torch.library.opcheck(ops.cdist.default, (x, y, 1.0))
    torch.library.opcheck(ops.cdist.default, (x[0], y[0].mT.contiguous().mT, 2.0))
    torch.library.opcheck(ops.cdist.default, (x[0].byte(), y[0].byte(), 2.0))
    torch.library.opcheck(ops.cdist_backward.default, (g, x, y, 2.0, F.cdist(x, y)))
    torch.library.opcheck(ops.knn.default, (x, y, 2, 2.0, True))
    distances, indices = F.knn(x, y, 2)
    for need in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(ops.knn_backward.default, (distances, x, y, distances, indices, 2.0, False, *need))


def test_compile_export_and_vmap() -> None:
    x, y = r(2, 6, 4), r(2, 9, 4)

    def model(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (F.cdist(x, y, 1.0), *F.knn(x, y, 3), *F.nearest(x, y[0]))

    for i, j in zip(model(x, y), torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)(x, y), strict=True):
        assert torch.equal(i, j)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss = lambda t: F.cdist(t, y).sum() + F.knn(t, y, 2)[0].sum()  # noqa: E731
    loss(a).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(b).backward()
    assert torch.equal(a.grad, b.grad)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return model(x, y)

    exported = torch.export.export(Module(), (x, y)).module()(x, y)
    assert all(torch.equal(i, j) for i, j in zip(model(x, y), exported, strict=True))

    assert torch.equal(torch.vmap(F.cdist)(x, y), F.cdist(x, y))
    assert torch.equal(torch.vmap(F.cdist, in_dims=(0, None))(x, y[0]), F.cdist(x, y[0]))
    assert torch.equal(torch.vmap(lambda t: F.knn(t, y, 2)[1])(x.unsqueeze(1)), F.knn(x.unsqueeze(1), y, 2)[1])
    per_sample = torch.vmap(torch.func.grad(lambda a, b: F.cdist(a, b).sum() + F.knn(a, b, 2)[0].sum()))(x, y)
    torch.testing.assert_close(per_sample, a.grad)
    hessian = [
        torch.func.jacrev(torch.func.grad(f))(x[0, :1].double())
        for f in (lambda a: F.cdist(a, y[0].double()).sum(), lambda a: (a - y[0].double()).norm(dim=-1).sum())
    ]
    torch.testing.assert_close(*hessian)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    x, y = r(3, 4).to(dtype), r(5, 4)
    with torch.autocast("cpu", dtype=dtype):
        assert F.cdist(x, y).dtype == torch.float32
        assert F.knn(x, y.to(dtype), 2)[0].dtype == torch.float32
    assert torch.equal(F.cdist(x.float(), y), F.cdist(x.float(), y))


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_weaker_instruction_sets(isa: str) -> None:
    code = (
        "import torch, fastcv.functional as F; torch.manual_seed(0); x, y = torch.randint(0, 9, (2, 70, 33)).float()\n"
        "for f in (torch.Tensor.float, torch.Tensor.double, torch.Tensor.bfloat16, torch.Tensor.half, torch.Tensor.byte):\n"
        "  for p in (1, 2, 3):\n"
        "    print(F.cdist(f(x), f(y), p).double().sum().item(), (F.knn(f(x), f(y), 5, p)[1] * torch.arange(5)).sum().item())"
    )
    run = lambda isa: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code], env={**os.environ, "FASTCV_CPU_ISA": isa}, capture_output=True, text=True, check=True
    ).stdout.split()
    for ours, best in zip(run(isa), run("amx"), strict=True):
        assert float(ours) == pytest.approx(float(best), rel=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2), st.integers(0, 40), st.integers(1, 150), st.integers(0, 140), st.integers(1, 60),
    st.sampled_from([0.0, 1.0, 2.0, INF]), st.sampled_from([*DTYPES, torch.uint8]), st.integers(0, 2**31),
)  # fmt: skip
def test_any_problem(b: int, m: int, n: int, d: int, k: int, p: float, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda rows: torch.randint(0, 5, (b, rows, d) if b else (rows, d), generator=generator).to(dtype)  # noqa: E731
    x, y = draw(m), draw(n)
    distances, indices = F.knn(x, y, k, p, squared=p == 2, pad=True)
    difference = (x.double().unsqueeze(-2) - y.double().unsqueeze(-3)).abs()
    if p == INF:
        matrix = difference.amax(-1) if d else difference.sum(-1)
    else:
        matrix = (difference != 0).sum(-1).double() if p == 0 else (difference**p).sum(-1)
    values, expected = first_k(matrix, min(k, n))
    assert torch.equal(indices[..., : min(k, n)], expected)
    assert torch.equal(distances[..., : min(k, n)].double(), values.to(distances.dtype).double())
    assert (indices[..., n:] == -1).all() and (distances[..., n:] == INF).all()
    assert (
        torch.equal(F.cdist(x, y, p).double(), (matrix.sqrt() if p == 2 else matrix).to(distances.dtype).double()) or dtype == torch.float64
    )
