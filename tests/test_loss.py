"""The loss family: values, gradients and corner cases against torch and float64, every variant, threads, torch integration."""

import math
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as T
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcv
import fastcv.functional as F
from fastcv.testing import assert_close, cases_of, check_case

OPS = ["softmax", "log_softmax", "cross_entropy", "nll_loss", "linear_cross_entropy", "multi_margin_loss", "kl_div", "soft_iou_loss"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES = [case for case in cases_of(*OPS) if not case.bench]
INF, NAN = math.inf, math.nan

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides", "ignore:__array__")


def variants_of(op: str) -> list[str]:
    order = ["portable", "avx2", "avx512", "avx512bf16", "amx"]
    usable = order.index(fastcv._ext.module().cpu_isa())
    return [name for name, isa in fastcv.variants(op) if order.index(isa) <= usable]


def outcome(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def same(ours: Any, torchs: Any, what: str) -> None:
    """Both raise the same type of error, or both give close answers."""
    if isinstance(torchs, Exception) or isinstance(ours, Exception):
        assert type(ours) is type(torchs), f"{what}: {ours!r}, torch: {torchs!r}"
    else:
        torch.testing.assert_close(ours, torchs, equal_nan=True, msg=lambda m: f"{what}: {m}")


# ---- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case) -> None:
    for dtype in case.dtypes:
        for layout in case.layouts:
            check_case(case, getattr(F, case.op), dtype, layout)


@pytest.mark.parametrize("op", OPS)
def test_every_variant_agrees(op: str) -> None:
    backward = f"{op}_backward"
    for forward_name, backward_name in zip(variants_of(op), variants_of(backward), strict=True):
        with fastcv.use(**{op: forward_name, backward: backward_name}):
            for case in CASES:
                if case.op == op and "float64" not in case.name:
                    for layout in case.layouts:
                        check_case(case, getattr(F, op), case.dtypes[-1], layout)
                        check_case(case, getattr(F, op), torch.float32, layout)


def test_scale_gradient_variants() -> None:
    image = torch.randn(3, 5, 7, 19)
    for x in (image, image.to(memory_format=torch.channels_last), torch.randn(9, 4).t()):
        for dtype in DTYPES:
            for name in variants_of("scale_gradient"):
                with fastcv.use(scale_gradient=name):
                    y = torch.ops.fastcv.scale_gradient(x.to(dtype), torch.tensor(0.5, dtype=dtype))
                    assert torch.equal(y, x.to(dtype) * 0.5) and y.stride() == x.stride()


@pytest.mark.parametrize("classes", [1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129])
def test_widths_around_vectors(classes: int) -> None:
    for shape in ((17, classes), (2, classes, 3, 11), (1, classes, 65)):
        x = torch.randn(shape, requires_grad=True)
        target = torch.randint(0, classes, (shape[0], *shape[2:]))
        assert_close(F.softmax(x, 1), T.softmax(x.double(), 1), T.softmax(x, 1))
        assert_close(F.log_softmax(x, 1), T.log_softmax(x.double(), 1), T.log_softmax(x, 1))
        ours, torchs = F.cross_entropy(x, target), T.cross_entropy(x, target)
        exact = T.cross_entropy(x.double(), target)
        assert_close(ours, exact, torchs)
        gradients = [torch.autograd.grad(loss, x)[0] for loss in (ours, exact, torchs)]
        assert_close(*gradients)


def test_exponential_within_two_ulp() -> None:
    """softmax over (x, top) with top = 0 large enough to dominate: numerator exp(x), denominator 1 + exp(x), known in float64."""
    x = torch.linspace(-87, 0, 200_001)
    for name in variants_of("softmax"):
        with fastcv.use(softmax=name):
            ours = F.softmax(torch.stack([x, torch.zeros_like(x)]), 0)[0].double()
        exact = x.double().exp() / (1 + x.double().exp())
        ulp = torch.finfo(torch.float32).eps * torch.exp2(exact.log2().floor())
        # One ulp each for the reciprocal and the product come on top of the exponential's two, half an ulp for the sum.
        assert ((ours - exact).abs() / ulp).max() <= 4
    # Positive arguments never occur in a softmax; kl_div with logarithmic targets has them: exp(t) (t - x) with t - x = 1.
    t = torch.linspace(-87, 88, 200_001)
    x = t - 1
    exact = t.double().exp() * (t.double() - x.double())
    for name in variants_of("kl_div"):
        with fastcv.use(kl_div=name):
            ours = F.kl_div(x, t, reduction="none", log_target=True).double()
        ulp = torch.finfo(torch.float32).eps * torch.exp2(exact.abs().log2().floor())
        assert ((ours - exact).abs() / ulp).max() <= 3  # two of the exponential, one of the product


def test_large_vocabulary() -> None:
    x = torch.randn(3, 200_003, requires_grad=True)
    target = torch.tensor([0, 200_002, 77_777])
    ours, torchs = F.cross_entropy(x, target), T.cross_entropy(x, target)
    assert_close(ours, T.cross_entropy(x.double(), target), torchs)
    assert_close(
        torch.autograd.grad(ours, x)[0],
        torch.autograd.grad(T.cross_entropy(x.double(), target), x)[0].double(),
        torch.autograd.grad(torchs, x)[0],
    )


@pytest.mark.parametrize("offset", [0.0, 100.0, -1000.0, 3e4])
def test_large_scores_stay_accurate(offset: float) -> None:
    x = (torch.randn(40, 100) + offset).requires_grad_()
    target = torch.randint(0, 100, (40,))
    for reduction in ("none", "mean"):
        results = []
        for function, scores in ((F.cross_entropy, x), (T.cross_entropy, x.double()), (T.cross_entropy, x)):
            loss = function(scores, target, reduction=reduction)
            results.append((loss, torch.autograd.grad(loss.sum(), x)[0]))
        assert_close(*(r[0] for r in results))
        assert_close(*(r[1] for r in results))


# ---- semantics --------------------------------------------------------------------------------------------------------

SHAPES = [(4,), (6, 5), (3, 70), (2, 3, 4, 7), (2, 21, 9, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["indices", "ignored", "all_ignored", "uint8", "probabilities"])
def test_grid_of_options(shape: tuple[int, ...], kind: str) -> None:
    """weights x smoothing x kind of target x reduction x layout, values and gradients, against torch in float64."""
    axis = 0 if len(shape) == 1 else 1
    sample_shape = shape[:axis] + shape[axis + 1 :]
    for weighted in (False, True):
        for smoothing in (0.0, 0.1, 1.0):
            for reduction in ("none", "mean", "sum"):
                x = torch.randn(shape, dtype=torch.float64)
                if len(shape) == 4 and weighted:
                    x = x.to(memory_format=torch.channels_last)
                x.requires_grad_()
                weight = torch.rand(shape[axis]).double() if weighted else None
                options = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight}
                if kind == "probabilities":
                    target = torch.rand(shape, dtype=torch.float64).softmax(axis)
                else:
                    target = torch.randint(0, shape[axis], sample_shape)
                    if kind == "ignored":
                        target = torch.where(torch.rand(sample_shape) < 0.5, -100, target)
                    elif kind == "all_ignored":
                        target = torch.full(sample_shape, 1)
                        options["ignore_index"] = 1
                    elif kind == "uint8":
                        target = target.to(torch.uint8)
                        # torch takes uint8 in some of these calls only; here it means the same as int64.
                what = f"{shape} {kind} {options}"
                peer_target = target.long() if kind == "uint8" else target
                before = x.detach().clone()
                ours, torchs = F.cross_entropy(x, target, **options), T.cross_entropy(x, peer_target, **options)
                same(ours, torchs, what)
                g = torch.randn(ours.shape, dtype=torch.float64)
                same(torch.autograd.grad(ours, x, g)[0], torch.autograd.grad(torchs, x, g)[0], what)
                assert torch.equal(x, before), "cross_entropy wrote into its scores"


def test_special_values() -> None:
    rows = [[0.0, 1.0, -INF], [-INF, 1.0, 2.0], [-INF] * 3, [INF, 0.0, 1.0], [NAN, 0.0, 1.0], [1e38, -1e38, 0.0], [-1e4, 0.0, 1e4]]
    x = torch.tensor(rows, requires_grad=True)
    wide = torch.cat([x.detach(), torch.full((len(rows), 80), -5.0)], 1).requires_grad_()
    for scores in (x, wide, wide.detach().T.reshape(1, 83, 7).requires_grad_()):
        shape = (1, 7) if scores.dim() == 3 else (7,)
        same(F.softmax(scores, 1), T.softmax(scores, 1), "softmax")
        same(F.log_softmax(scores, 1), T.log_softmax(scores, 1), "log_softmax")
        for value in (0, 1):
            target = torch.full(shape, value)
            for smoothing in (0.0, 0.1):
                ours = F.cross_entropy(scores, target, reduction="none", label_smoothing=smoothing)
                torchs = T.cross_entropy(scores, target, reduction="none", label_smoothing=smoothing)
                same(ours, torchs, f"target {value}, smoothing {smoothing}")
                same(torch.autograd.grad(ours.sum(), scores)[0], torch.autograd.grad(torchs.sum(), scores)[0], "gradient")


def test_nothing_counts() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    ignored = torch.full((4,), -100)
    for function in (F.cross_entropy, F.nll_loss):
        loss = function(x, ignored)
        assert loss.isnan()
        assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros(4, 3))
        assert function(x, ignored, reduction="sum") == 0
        assert torch.equal(function(x, ignored, reduction="none"), torch.zeros(4))
        empty = torch.empty(0, 3, requires_grad=True)
        loss = function(empty, torch.empty(0, dtype=torch.int64))
        assert loss.isnan() and torch.autograd.grad(loss, empty)[0].shape == (0, 3)


def test_target_out_of_range_names_position_and_value() -> None:
    target = torch.zeros(2, 4, 8, dtype=torch.int64)
    target[0, 3, 7] = 255
    with pytest.raises(IndexError, match=r"target 255 at index \(0, 3, 7\) is outside \[0, 21\); did you mean ignore_index=255\?"):
        F.cross_entropy(torch.randn(2, 21, 4, 8), target)
    with pytest.raises(IndexError, match=r"target -1 at index \(2\) is outside \[0, 5\)"):
        F.nll_loss(torch.randn(3, 5), torch.tensor([0, 4, -1]))
    with pytest.raises(IndexError, match=r"target 9 at index \(1\)"):
        F.linear_cross_entropy(torch.randn(2, 3), torch.randn(9, 3), torch.tensor([0, 9]))
    with pytest.raises(RuntimeError, match=r"target 4 at index \(1\) is out of range"):
        F.multi_margin_loss(torch.randn(2, 4), torch.tensor([0, 4]))


X = torch.randn(3, 4)
L = torch.tensor
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *((op, args, kwargs) for op in ("cross_entropy", "nll_loss") for args, kwargs in [
        ((X, L([0, 1, 2], dtype=torch.int32)), {}),
        ((X, L([0, 1, 1], dtype=torch.bool)), {}),
        ((X, L([0.0, 1, 2])), {}),
        ((X, L([0, 1, 4])), {}),
        ((X, L([0, 1, 255], dtype=torch.uint8)), {}),
        ((X, L([0, 1])), {}),
        ((X, L([[0, 1]] * 3)), {}),
        ((X[0], L([2, 1])), {}),
        ((X[0, 0], L([0])), {}),
        ((X, L([0, 1, 2])), {"weight": torch.ones(3)}),
        ((X, L([0, 1, 2])), {"weight": torch.ones(4, 1)}),
        ((X, L([0, 1, 2])), {"weight": torch.ones(4).double()}),
        ((X, L([0, 1, 2])), {"weight": torch.ones(4, requires_grad=True)}),
        ((X, L([0, 1, 2])), {"reduction": "average"}),
        ((X.long(), L([0, 1, 2])), {}),
        ((X.to(torch.complex64), L([0, 1, 2])), {}),
        ((X[:, :0], L([0, 0, 0])), {}),
        ((torch.randn(2, 4, 3), torch.zeros(2, 2, dtype=torch.int64)), {}),
        ((torch.randn(2, 4, 3, 3), torch.zeros(2, 3, 2, dtype=torch.int64)), {}),
        ((torch.randn(2, 4, 3, 3), torch.zeros(2, 3, dtype=torch.int64)), {}),
        ((torch.randn(2, 4, 3, 3, 2), torch.zeros(2, 3, 3, 1, dtype=torch.int64)), {}),
    ]),
    ("cross_entropy", (X, torch.ones(3, 4, dtype=torch.int64)), {}),
    ("cross_entropy", (X, X.softmax(1)), {"ignore_index": 1}),
    ("cross_entropy", (X, X.softmax(1)), {"weight": torch.ones(3)}),
    ("cross_entropy", (X, X.softmax(1)), {"label_smoothing": 1.5}),
    ("cross_entropy", (X, L([0, 1, 2])), {"label_smoothing": 1.5}),
    ("cross_entropy", (X[0, 0], X[0, 0]), {}),
    ("cross_entropy", (X.long(), X), {}),
    ("softmax", (X, 2), {}),
    ("softmax", (X, -3), {}),
    ("softmax", (X[0, 0], 1), {}),
    ("softmax", (X, 1.0), {}),
    ("softmax", (X, "a"), {}),
    ("softmax", (X.long(), 1), {}),
    ("log_softmax", (X > 0, 1), {}),
    ("log_softmax", (X, 1), {"dtype": torch.int64}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"p": 3}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"weight": torch.ones(4, 1)}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"weight": torch.ones(3)}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"weight": torch.ones(4).double()}),
    ("multi_margin_loss", (X, L([0, 1, 2], dtype=torch.int32)), {}),
    ("multi_margin_loss", (X, L([0, 1])), {}),
    ("multi_margin_loss", (X, L([0, 1, 4])), {}),
    ("multi_margin_loss", (X, L([[0], [1], [2]])), {}),
    ("multi_margin_loss", (X[0], L([1, 2])), {}),
    ("multi_margin_loss", (X[:, :0], L([0, 0, 0])), {}),
    ("multi_margin_loss", (X.unsqueeze(0), L([0])), {}),
    ("multi_margin_loss", (X.long(), L([0, 1, 2])), {}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"reduction": "x"}),
    ("kl_div", (X, torch.rand(3)), {}),
    ("kl_div", (X, torch.ones(3, 4, dtype=torch.int64)), {}),
    ("kl_div", (X.to(torch.complex64), X), {}),
    ("kl_div", (X, X > 0), {}),
    ("kl_div", (X, X), {"reduction": "x"}),
    ("linear_cross_entropy", (X, torch.randn(5, 3), L([0, 1, 2])), {}),
    ("linear_cross_entropy", (X[0, 0], torch.randn(5, 3), L([0, 1, 2])), {}),
    ("linear_cross_entropy", (X, torch.randn(4), L([0, 1, 2])), {}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), L([0, 1, 5])), {}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), L([0, 1])), {}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), L([0, 1, 2])), {"linear_bias": torch.ones(4)}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), L([0, 1, 2])), {"weight": torch.ones(4)}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), torch.rand(3, 5)), {"ignore_index": 1}),
    ("linear_cross_entropy", (X[0], torch.randn(5, 2, 4), L([0, 1])), {}),
    ("linear_cross_entropy", (X, torch.randn(5, 4).double(), L([0, 1, 2])), {}),
]  # fmt: skip


@pytest.mark.parametrize("op, args, kwargs", WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_errors_are_torchs(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torchs = outcome(getattr(T, op), *args, **kwargs)
    assert isinstance(torchs, Exception), "torch accepts this"
    ours = outcome(getattr(F, op), *args, **kwargs)
    assert type(ours) is type(torchs), f"{ours!r}, torch: {torchs!r}"
    assert "\n" not in str(ours)


def test_soft_iou_refuses() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) and \(4,\)"):
        F.soft_iou_loss(X, X[0])
    with pytest.raises(ValueError, match="batchmean is not a valid value"):
        F.soft_iou_loss(X, X, "batchmean")
    with pytest.raises(ValueError, match="eps must not be negative"):
        F.soft_iou_loss(X, X, eps=-1)
    with pytest.raises(RuntimeError, match="floating"):
        F.soft_iou_loss(X, X > 0)


@pytest.mark.parametrize("name, value", [("size_average", False), ("size_average", True), ("reduce", False), ("reduce", True)])
def test_deprecated_reductions(name: str, value: bool) -> None:
    target = L([0, 1, 2])
    for op, second in (("cross_entropy", target), ("nll_loss", target), ("multi_margin_loss", target), ("kl_div", X.exp())):
        with pytest.warns(UserWarning, match="size_average and reduce"):
            ours = getattr(F, op)(X, second, **{name: value})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(ours, getattr(T, op)(X, second, **{name: value}), op)


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_implicit_dim_and_dtype(op: str) -> None:
    ours, torchs = getattr(F, op), getattr(T, op)
    for x in (torch.randn(()), torch.randn(3), torch.randn(3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4, 5)):
        with pytest.warns(UserWarning, match="Implicit dimension choice") as seen:
            y = ours(x)
        assert seen[0].filename == __file__
        with pytest.warns(UserWarning):
            same(y, torchs(x), op)
    x = torch.randn(3, 4)
    for source, wanted in (
        (x.half(), torch.float32),
        (x, torch.float16),
        (x, torch.float64),
        (x.long(), torch.float32),
        (x > 0, torch.float32),
    ):
        y = ours(source, 1, dtype=wanted)
        assert y.dtype == wanted
        same(y, torchs(source, 1, dtype=wanted), op)


def test_strides_and_layouts() -> None:
    target = torch.randint(0, 4, (2, 5, 6))
    base = torch.randn(2, 4, 5, 6)
    for make in (
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: torch.cat([x, x], 3)[..., ::2].contiguous(memory_format=torch.channels_last)[..., :6],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x[:, :, :1].expand_as(x),
        lambda x: x.flip(0),
    ):
        x = make(base).detach().requires_grad_()
        for ours, torchs in (
            (F.softmax(x, 1), T.softmax(x, 1)),
            (F.log_softmax(x, -1), T.log_softmax(x, -1)),
            (F.cross_entropy(x, target), T.cross_entropy(x, target)),
            (F.cross_entropy(x, target, reduction="none"), T.cross_entropy(x, target, reduction="none")),
            (F.kl_div(x, base.exp(), reduction="none"), T.kl_div(x, base.exp(), reduction="none")),
            (F.kl_div(base, x.exp(), reduction="none"), T.kl_div(base, x.exp(), reduction="none")),
        ):
            same(ours, torchs, f"strides {x.stride()}")
            assert ours.stride() == torchs.stride()
            g = torch.randn_like(ours)
            if ours.requires_grad:
                same(torch.autograd.grad(ours, x, g)[0], torch.autograd.grad(torchs, x, g)[0], f"gradient, strides {x.stride()}")
    for matrix in (torch.randn(4, 7).t(), torch.randn(7, 8)[:, ::2], torch.randn(1, 4).expand(7, 4)):
        x = matrix.detach().requires_grad_()
        labels = torch.randint(0, 8, (7, 2))[:, 0] % 4
        ours, torchs = F.cross_entropy(x, labels), T.cross_entropy(x, labels)
        same(ours, torchs, "matrix")
        same(torch.autograd.grad(ours, x)[0], torch.autograd.grad(torchs, x)[0], "matrix gradient")


def test_mixed_dtypes_promote_as_in_torch() -> None:
    p = X.softmax(1)
    for x, target in ((X, p.double()), (X.double(), p), (X.bfloat16(), p), (X, p.half())):
        ours, torchs = F.cross_entropy(x, target), T.cross_entropy(x, target)
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs, rtol=1e-2, atol=1e-2)
        assert F.kl_div(x, target).dtype == T.kl_div(x, target).dtype


def test_linear_cross_entropy_of_k_dimensions() -> None:
    x, w = torch.randn(5, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 3, 2, dtype=torch.float64)
    indices = torch.randint(0, 4, (5, 3, 2))
    indices[0, 0, 0] = 2
    soft = torch.rand(5, 4, 3, 2, dtype=torch.float64).softmax(1)
    for target, extra in ((indices, {"ignore_index": 2}), (indices, {"weight": torch.rand(4).double()}), (soft, {"label_smoothing": 0.1})):
        for reduction in ("none", "mean", "sum"):
            ours = F.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction, **extra)
            torchs = T.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction, **extra)
            same(ours, torchs, f"{reduction} {extra}")
            g = torch.randn(ours.shape, dtype=torch.float64)
            for mine, theirs in zip(torch.autograd.grad(ours, (x, w), g), torch.autograd.grad(torchs, (x, w), g), strict=True):
                same(mine, theirs, f"gradient {reduction} {extra}")
    for reduction in ("none", "mean"):
        same(
            F.linear_cross_entropy(x[0], w[:, 0, 0], L(3), reduction=reduction),
            T.linear_cross_entropy(x[0], w[:, 0, 0], L(3), reduction=reduction),
            "unbatched",
        )


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_fuzz_cross_entropy_against_torch(data: Any) -> None:
    draw = data.draw
    dims = draw(st.integers(0, 4))
    shape = [draw(st.integers(0, 5)) for _ in range(dims)]
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    x = torch.randn(shape, dtype=dtype)
    if dims == 4 and draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    sample_shape = shape[:1] + shape[2:] if dims > 1 else []
    if draw(st.booleans()) and sample_shape:
        sample_shape[draw(st.integers(0, len(sample_shape) - 1))] = draw(st.integers(0, 5))
    classes = shape[1] if dims > 1 else shape[0] if dims else 1
    kind = draw(st.sampled_from(["indices", "indices", "indices", "soft", "wild"]))
    if kind == "soft":
        target = torch.rand(shape, dtype=dtype)
    else:
        target = torch.randint(-1 if kind == "wild" else 0, max(classes, 1) + (kind == "wild"), sample_shape)
    options = {
        "reduction": draw(st.sampled_from(["none", "mean", "sum"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.0, 0.25, 1.0, -0.5, 1.5])),
        "ignore_index": draw(st.sampled_from([-100, -1, 0, 3])),
        "weight": torch.rand(classes, dtype=dtype) if draw(st.booleans()) else None,
    }
    if classes == 0 and (kind == "soft" or options["label_smoothing"] > 0 or dims > 2):
        return  # torch divides by the number of classes, and loses the shape of a map without classes
    if dims == 0 and not 0 <= options["label_smoothing"] <= 1:
        return  # two things are wrong: either may be named first
    x.requires_grad_()
    what = f"{shape} {list(target.shape)} {options}"
    ours, torchs = outcome(F.cross_entropy, x, target, **options), outcome(T.cross_entropy, x, target, **options)
    same(ours, torchs, what)
    if isinstance(ours, torch.Tensor):
        g = torch.randn(ours.shape, dtype=dtype)
        same(torch.autograd.grad(ours, x, g)[0], torch.autograd.grad(torchs, x, g)[0], what)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_fuzz_softmax_against_torch(data: Any) -> None:
    draw = data.draw
    shape = [draw(st.integers(0, 20)) for _ in range(draw(st.integers(0, 4)))]
    dim = draw(st.integers(-5, 4))
    x = torch.randn(shape)
    for _ in range(draw(st.integers(0, 1)) if len(shape) > 1 else 0):
        x = x.transpose(0, -1)
    for op in ("softmax", "log_softmax"):
        same(outcome(getattr(F, op), x, dim), outcome(getattr(T, op), x, dim), f"{op} {list(x.shape)} {dim}")


# ---- golden numbers ---------------------------------------------------------------------------------------------------


def test_golden_2_softmax() -> None:
    scores = L([3.2, 5.1, -1.7])
    torch.testing.assert_close(F.softmax(scores, 0), L([0.13, 0.87, 0.00]), atol=0.005, rtol=0)
    assert F.cross_entropy(scores, L(0)).item() == pytest.approx(2.04, abs=0.005)
    torch.testing.assert_close(F.log_softmax(scores, 0).exp() * scores.exp().sum(), L([24.5, 164.0, 0.18]), atol=0.05, rtol=0)


def test_golden_3_temperature() -> None:
    z = torch.linspace(-5, 5, 11)
    pairs = torch.stack([z, torch.zeros_like(z)], 1)
    torch.testing.assert_close(F.softmax(pairs, 1)[:, 0], torch.sigmoid(z))
    scores = L([1.0, 3.0, 2.0])
    assert torch.equal(F.softmax(1e4 * scores, 0), L([0.0, 1.0, 0.0]))


def test_golden_4_and_5_multiclass_svm() -> None:
    scores, target = L([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]]), L([0, 1, 2])
    each = 3 * F.multi_margin_loss(scores, target, reduction="none")  # torch divides the sum by the number of classes
    torch.testing.assert_close(each, L([2.9, 0.0, 12.9]))
    assert each.mean().item() == pytest.approx(5.27, abs=0.005)
    assert F.multi_margin_loss(L([2.6, 9.8, 4.0]), L(1)) == 0


def test_golden_6_random_initialisation() -> None:
    for classes in (10, 1000):
        x = 1e-3 * torch.randn(64, classes)
        assert F.cross_entropy(x, torch.randint(0, classes, (64,))).item() == pytest.approx(math.log(classes), abs=0.01)


def test_golden_7_kl_divergence() -> None:
    p, q = torch.randn(2, 50, dtype=torch.float64).softmax(1)
    kl = F.kl_div(q.log(), p, reduction="sum")
    cross, entropy = (F.cross_entropy(t.log(), p) for t in (q, p))
    torch.testing.assert_close(kl, cross - entropy)
    assert kl > 0 and F.kl_div(p.log(), p, reduction="sum").abs() < 1e-15
    assert (kl - F.kl_div(p.log(), q, reduction="sum")).abs() > 1e-3


def test_golden_18_soft_iou() -> None:
    x, y = torch.rand(2, 3, 4), (torch.rand(2, 3, 4) > 0.5).float()
    torch.testing.assert_close(F.soft_iou_loss(x, y), 1 - (x * y).sum() / (x + y - x * y).sum())
    assert F.soft_iou_loss(y, y) == 0 and F.soft_iou_loss(y, 1 - y) == 1
    empty = torch.zeros(2, 3, requires_grad=True)
    loss = F.soft_iou_loss(empty, torch.zeros(2, 3))
    assert loss == 0 and torch.equal(torch.autograd.grad(loss, empty)[0], torch.zeros(2, 3))


# ---- derivatives ------------------------------------------------------------------------------------------------------


def double(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_softmax_gradients_of_any_order() -> None:
    for op in (F.softmax, F.log_softmax):
        for shape, dim in (((3, 5), 1), ((2, 3, 4), 1), ((4,), 0)):
            function = lambda x, op=op, dim=dim: op(x, dim)  # noqa: E731
            assert torch.autograd.gradcheck(function, double(*shape)) and torch.autograd.gradgradcheck(function, double(*shape))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_gradients_of_any_order(reduction: str, smoothing: float) -> None:
    weight = torch.rand(4, dtype=torch.float64)
    for shape, target in (((3, 4), L([1, -100, 3])), ((2, 4, 3), L([[0, 1, -100], [3, 3, 2]])), ((4,), L(2))):
        function = lambda x, t=target: F.cross_entropy(x, t, weight, reduction=reduction, label_smoothing=smoothing)  # noqa: E731
        assert torch.autograd.gradcheck(function, double(*shape)) and torch.autograd.gradgradcheck(function, double(*shape))
    function = lambda x, t, w: F.cross_entropy(x, t, w, reduction=reduction, label_smoothing=smoothing)  # noqa: E731
    soft = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    args = (double(3, 4), soft, weight.clone().requires_grad_())
    assert torch.autograd.gradcheck(function, args) and torch.autograd.gradgradcheck(function, args)


def test_other_gradients() -> None:
    target = L([1, 0, 3])
    check, again = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    for reduction in ("none", "mean"):
        nll = lambda x, r=reduction: F.nll_loss(x, target, reduction=r)  # noqa: E731
        assert check(nll, double(3, 4)) and again(nll, double(3, 4))
        for p in (1, 2):
            assert check(lambda x, p=p, r=reduction: F.multi_margin_loss(x, target, p, reduction=r), double(3, 4))
        linear = lambda x, w, b, r=reduction: F.linear_cross_entropy(x, w, target, linear_bias=b, reduction=r)  # noqa: E731
        args = (double(3, 5), double(4, 5), double(4))
        assert check(linear, args) and again(linear, args)
        for log_target in (False, True):
            kl = lambda x, t, r=reduction, lt=log_target: F.kl_div(x, t.exp() if not lt else t, reduction=r, log_target=lt)  # noqa: E731
            assert check(kl, (double(3, 4), double(3, 4))) and again(kl, (double(3, 4), double(3, 4)))
        iou = lambda x, t, r=reduction: F.soft_iou_loss(x.sigmoid(), t.sigmoid(), r)  # noqa: E731
        assert check(iou, (double(3, 4), double(3, 4))) and again(iou, (double(3, 4), double(3, 4)))
    weight = torch.rand(4, dtype=torch.float64)
    assert again(lambda x: F.multi_margin_loss(x, target, 2, weight=weight), double(3, 4))


def test_gradient_is_scaled_and_repeatable() -> None:
    """The gradient written with the loss is multiplied by the loss's own gradient and survives a second backward."""
    x, target = torch.randn(6, 5, requires_grad=True), torch.randint(0, 5, (6,))
    loss = F.cross_entropy(x, target)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    first.zero_()
    x.grad = None
    loss.backward(retain_graph=True)
    (loss * 3).backward()
    peer = x.detach().clone().requires_grad_()
    (4 * T.cross_entropy(peer, target)).backward()
    torch.testing.assert_close(x.grad, peer.grad)


# ---- invariance -------------------------------------------------------------------------------------------------------


def everything(x: torch.Tensor, image: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
    """Losses and gradients of all ops, from a matrix, an image batch and a linear layer."""
    x, image, w = (t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, image, w))
    g = torch.Generator().manual_seed(3)
    labels = torch.randint(0, x.shape[1], (x.shape[0],), generator=g)
    mask = torch.randint(0, image.shape[1], (image.shape[0], *image.shape[2:]), generator=g)
    classes = torch.randint(0, w.shape[0], (x.shape[0],), generator=g)
    losses = [
        F.cross_entropy(x, labels),
        F.cross_entropy(image, mask, label_smoothing=0.1),
        F.nll_loss(image, mask, reduction="sum"),
        F.multi_margin_loss(x, labels),
        F.kl_div(x, x.detach().square(), reduction="sum"),
        F.soft_iou_loss(image, image.detach().square()),
        F.linear_cross_entropy(x, w, classes),
    ]
    results = list(losses)
    for scores in (x, image):
        for y in (F.softmax(scores, 1), F.log_softmax(scores, 1)):
            results += [y, torch.autograd.grad(y, scores, scores.detach().sin())[0]]
    for loss in losses:
        results += [g for g in torch.autograd.grad(loss, (x, image, w), allow_unused=True) if g is not None]
    return results


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = torch.randn(301, 130), torch.randn(3, 21, 61, 67), torch.randn(500, 130)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything(*args)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for a, b in zip(one, everything(*args), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_an_image_alone_gives_the_same_bits() -> None:
    image, rows = torch.randn(5, 21, 13, 17), torch.randn(37, 130)
    mask, labels = torch.randint(0, 21, (5, 13, 17)), torch.randint(0, 130, (37,))
    w, classes = torch.randn(70, 130), torch.randint(0, 70, (37,))
    for layout in (torch.contiguous_format, torch.channels_last):
        batch = image.contiguous(memory_format=layout)
        for op in (F.softmax, F.log_softmax):
            assert torch.equal(op(batch, 1)[3:4], op(batch[3:4], 1))
        whole = F.cross_entropy(batch, mask, reduction="none")
        assert torch.equal(whole[3:4], F.cross_entropy(batch[3:4], mask[3:4], reduction="none"))
    for i in (0, 17, 36):
        assert torch.equal(F.softmax(rows, 1)[i : i + 1], F.softmax(rows[i : i + 1], 1))
        for whole, alone in (
            (F.cross_entropy(rows, labels, reduction="none"), F.cross_entropy(rows[i : i + 1], labels[i : i + 1], reduction="none")),
            (
                F.linear_cross_entropy(rows, w, classes, reduction="none"),
                F.linear_cross_entropy(rows[i : i + 1], w, classes[i : i + 1], reduction="none"),
            ),
        ):
            assert torch.equal(whole[i : i + 1], alone)


# ---- torch integration ------------------------------------------------------------------------------------------------


def test_compile_and_export() -> None:
    x, target = torch.randn(6, 5, requires_grad=True), torch.randint(0, 5, (6,))

    def step(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(x, target, label_smoothing=0.1) + F.nll_loss(F.log_softmax(x, 1), target) + F.softmax(x, 1).square().sum()
        loss = loss + F.multi_margin_loss(x, target) + F.kl_div(x, x.detach().exp(), reduction="batchmean")
        return loss + F.soft_iou_loss(x.sigmoid(), x.detach().sigmoid()) + F.linear_cross_entropy(x, x.detach()[:5], target)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours, expected = compiled(x, target), step(x, target)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, x)[0], torch.autograd.grad(expected, x)[0])

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(x, target) + F.softmax(x, 1).amax()

    exported = torch.export.export(Module(), (x.detach(), target)).module()
    torch.testing.assert_close(exported(x.detach(), target), Module()(x.detach(), target))


def test_fake_strides() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = torch.ops.fastcv.cross_entropy_with_grad.default
    for x in (
        torch.randn(2, 3, 4, 5),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 4, 3).transpose(1, 2),
        torch.randn(3, 6).t(),
        torch.randn(6, 6)[:, ::2],
        torch.randn(5),
        torch.randn(0, 3),
        torch.randn(1, 3, 1, 1),
    ):
        target = torch.zeros(() if x.dim() == 1 else (x.shape[0], *x.shape[2:]), dtype=torch.int64)
        _, grad = op(x, target, None, 1, -100, 0.0)
        with FakeTensorMode() as mode:
            _, fake = op(mode.from_tensor(x), mode.from_tensor(target), None, 1, -100, 0.0)
        assert fake.stride() == grad.stride(), tuple(x.shape)


def test_vmap_and_func() -> None:
    x, target = torch.randn(3, 6, 5), torch.randint(0, 5, (3, 6))
    loop = lambda f, *args: torch.stack([f(*a) for a in zip(*args, strict=True)])  # noqa: E731
    for function, args in (
        (lambda a: F.softmax(a, 1), (x,)),
        (lambda a: F.log_softmax(a, -1), (x,)),
        (lambda a: F.softmax(a, 0), (x[:, 0],)),
        (lambda a: F.softmax(a, 0), (x[:, 0, 0],)),
        (lambda a, t: F.cross_entropy(a, t), (x, target)),
        (lambda a, t: F.nll_loss(a, t, reduction="none"), (x, target)),
        (lambda a, t: F.multi_margin_loss(a, t), (x, target)),
        (lambda a, t: F.kl_div(a, t.softmax(1), reduction="sum"), (x, x.flip(0))),
        (lambda a, t: F.soft_iou_loss(a, t), (x.sigmoid(), x.flip(0).sigmoid())),
    ):
        torch.testing.assert_close(torch.vmap(function)(*args), loop(function, *args))
    for ours, torchs in (
        (lambda a, t: F.cross_entropy(a, t), lambda a, t: T.cross_entropy(a, t)),
        (lambda a, t: F.softmax(a, 1).square().sum(), lambda a, t: T.softmax(a, 1).square().sum()),
    ):
        torch.testing.assert_close(torch.vmap(torch.func.grad(ours))(x, target), torch.vmap(torch.func.grad(torchs))(x, target))
        hessians = [torch.func.jacrev(torch.func.grad(f))(x[0], target[0]) for f in (ours, torchs)]
        torch.testing.assert_close(*hessians)


def test_autocast() -> None:
    x, target = torch.randn(4, 5).bfloat16(), torch.randint(0, 5, (4,))
    with torch.autocast("cpu", torch.bfloat16):
        assert F.softmax(x, 1).dtype == T.softmax(x, 1).dtype and F.log_softmax(x, 1).dtype == T.log_softmax(x, 1).dtype
        assert F.cross_entropy(x, target).dtype == F.nll_loss(x, target).dtype == torch.float32
        assert F.multi_margin_loss(x, target).dtype == F.kl_div(x, x.softmax(1), reduction="sum").dtype == torch.float32
        assert F.linear_cross_entropy(x, x, target % 4).dtype == torch.float32
        leaf = x.clone().requires_grad_()
        F.cross_entropy(leaf, target).backward()
        assert leaf.grad.dtype == torch.bfloat16


def test_modules() -> None:
    nn = fastcv.nn
    x, target = torch.randn(4, 5), torch.randint(0, 5, (4,))
    weight = torch.rand(5)
    soft = torch.randn(4, 5).softmax(1)
    for name, args, kwargs, second in (
        ("CrossEntropyLoss", (weight,), {"label_smoothing": 0.1, "reduction": "sum"}, target),
        ("NLLLoss", (weight,), {"ignore_index": 2}, target),
        ("MultiMarginLoss", (2,), {"margin": 0.5}, target),
        ("KLDivLoss", (), {"reduction": "batchmean"}, soft),
    ):
        ours, torchs = getattr(nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)
        assert isinstance(ours, getattr(torch.nn, name)) and repr(ours) == repr(torchs)
        assert ours.state_dict().keys() == torchs.state_dict().keys()
        same(ours(x, second), torchs(x, second), name)
    for name in ("Softmax", "LogSoftmax"):
        ours, torchs = getattr(nn, name)(1), getattr(torch.nn, name)(1)
        assert repr(ours) == repr(torchs)
        same(ours(x), torchs(x), name)
    same(nn.SoftIoULoss("mean", 0.1)(x.sigmoid(), soft), F.soft_iou_loss(x.sigmoid(), soft, "mean", 0.1), "SoftIoULoss")
    assert repr(nn.SoftIoULoss()) == "SoftIoULoss(reduction='whole', eps=0.0)"
    if hasattr(nn, "LinearCrossEntropyLoss"):
        ours, torchs = nn.LinearCrossEntropyLoss(5, 7, bias=True), torch.nn.LinearCrossEntropyLoss(5, 7, bias=True)
        torchs.load_state_dict(ours.state_dict())
        same(ours(x, target), torchs(x, target), "LinearCrossEntropyLoss")


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_weaker_instruction_sets(isa: str) -> None:
    """FASTCV_CPU_ISA caps the choice: the first row that runs is the weaker one, and it is right."""
    code = (
        "import torch, fastcv, fastcv.functional as F\n"
        "x = torch.randn(50, 70, requires_grad=True); t = torch.randint(0, 70, (50,))\n"
        "a = F.cross_entropy(x, t); b = torch.nn.functional.cross_entropy(x, t)\n"
        "torch.testing.assert_close(a, b); torch.testing.assert_close(*(torch.autograd.grad(l, x)[0] for l in (a, b)))\n"
        "print(fastcv._ext.module().cpu_isa())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "FASTCV_CPU_ISA": isa})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (isa, "portable")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, dim", [((8, 1000), 1), ((3, 5), 1), ((2, 21, 7, 9), 1), ((7,), 0), ((0, 4), 1), ((2, 50257), -1)], ids=str)
def test_cuda_softmax(dtype: torch.dtype, shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape, device="cuda").to(dtype)
    for op in ("softmax", "log_softmax"):
        results = []
        for function, scores in ((F, x), (T, x.double()), (T, x)):
            leaf = scores.detach().requires_grad_()
            y = getattr(function, op)(leaf, dim)
            results.append((y, torch.autograd.grad(y, leaf, torch.ones_like(y).cumsum(dim))[0]))
        for ours, exact, torchs in zip(*results, strict=True):
            assert_close(ours.cpu(), exact.cpu(), torchs.cpu(), op)
