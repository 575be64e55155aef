"""The norm family: every case and variant against float64, torch's semantics corner by corner, autograd, transforms, determinism."""

import copy
import itertools
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as T
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcv
import fastcv.functional as F
import fastcv.nn as nn
from fastcv.testing import assert_close, cases_of, check_case, check_variants, max_error

OPS = ("batch_norm", "batch_norm_act", "group_norm", "layer_norm", "instance_norm", "local_response_norm")
TABLES = [op for op in fastcv.variants() if op.startswith(("batch_norm", "group_norm", "layer_norm", "local_response_norm"))]
CASES = [case for case in cases_of(*OPS) if not case.bench]
LAYERS = cases_of(*OPS, bench=True)
CL = torch.channels_last


def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*sizes, dtype=dtype)


# Values --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "layout", "dtype"),
    [pytest.param(c, layout, d, id=f"{c.id}-{layout}-{d}") for c in CASES for layout in c.layouts for d in c.dtypes],
)
def test_accuracy_rule(case: Any, layout: str, dtype: torch.dtype) -> None:
    check_case(case, getattr(F, case.op), dtype, layout)


@pytest.mark.parametrize("case", [c for c in CASES if torch.float64 not in c.dtypes], ids=lambda c: c.id)
def test_float64_agrees_with_torch(case: Any) -> None:
    """Within 1e-12: both add some ten thousand numbers, torch in one chain, whose rounding can reach 1e-14 per number kept."""
    for layout in case.layouts:
        args, kwargs = case.arguments(torch.float64, layout)
        results = []
        for f in (getattr(F, case.op), case.torch_function()):
            own = [a.clone().requires_grad_(i in case.grad) if isinstance(a, torch.Tensor) else a for i, a in enumerate(args)]
            y = f(*own, **kwargs)
            y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape))
            results.append([y, *(own[i].grad for i in case.grad)])
        for ours, theirs in zip(*results, strict=True):
            assert max_error(ours, theirs) < 1e-12


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


@pytest.mark.parametrize("case", [c for c in LAYERS if "-8x" not in c.id and "64x197" not in c.id], ids=lambda c: c.id)
def test_layers_of_models(case: Any) -> None:
    for layout in case.layouts:
        check_case(case, getattr(F, case.op), torch.float32, layout)


def test_every_variant_meets_the_accuracy_rule() -> None:
    chosen = [c for c in CASES if torch.float32 in c.dtypes]
    usable = ["portable", "avx2", "avx512", "avx512bf16", "amx"]
    usable = usable[: usable.index(fastcv._ext.module().cpu_isa()) + 1]
    for dtype in (torch.float32, torch.bfloat16):
        outcomes = check_variants(chosen, dtype)
        for op in (t for t in TABLES if dtype == torch.float32 or not t.startswith("local")):
            for name, isa in fastcv.variants(op):
                failures = [text for text in outcomes[op, name] if text]
                assert not failures, f"{op} {name} {dtype}: {failures[:2]}"
                assert outcomes[op, name] or isa not in usable, f"{op} {name}: no case ran it"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "layer_norm", "instance_norm"])
def test_large_mean_with_tiny_variance(op: str, layout: str) -> None:
    """mean / std = 1e5: the sum of squares holds nothing of the variance in float32; torch's channels_last loses it."""
    x = (randn(4, 24, 40, 40) * 1e-2 + 1000).to(memory_format=CL if layout == "channels_last" else torch.contiguous_format)
    run = {
        "batch_norm": lambda f, t: f.batch_norm(t, None, None, training=True),
        "group_norm": lambda f, t: f.group_norm(t, 4),
        "layer_norm": lambda f, t: f.layer_norm(t, (40,)),
        "instance_norm": lambda f, t: f.instance_norm(t),
    }[op]
    ours, exact = run(F, x), run(T, x.double().contiguous())  # torch's channels_last loses digits in float64 too
    assert max_error(ours, exact) < 4 * torch.finfo(torch.float32).eps  # nothing is lost: x - mean is exact


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
def test_nan_and_infinity_stay_in_their_channel_and_group(value: float, layout: torch.memory_format) -> None:
    x = randn(3, 36, 9, 9)
    x[1, 17, 4, 3] = value
    x = x.to(memory_format=layout)
    functions = (
        lambda f, t: f.batch_norm(t, None, None, training=True),
        lambda f, t: f.batch_norm(t, torch.zeros(36), torch.ones(36)),
        lambda f, t: f.group_norm(t, 6),
        lambda f, t: f.instance_norm(t),
        lambda f, t: f.layer_norm(t, (9,)),
        lambda f, t: f.local_response_norm(t, 3),
    )
    for f in functions:
        torch.testing.assert_close(f(F, x), f(T, x), rtol=1e-4, atol=1e-5, equal_nan=True)
    ours, theirs = [torch.zeros(36), torch.ones(36)], [torch.zeros(36), torch.ones(36)]
    F.batch_norm(x, *ours, training=True)
    T.batch_norm(x, *theirs, training=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)
    y = F.batch_norm_act(x, torch.zeros(36), torch.ones(36), activation="relu")
    torch.testing.assert_close(y, T.relu(T.batch_norm(x, torch.zeros(36), torch.ones(36))), equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_stride_is_torchs(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    sizes[1] = draw(st.sampled_from([1, 2, 3, 4, 8, 16, 17, 33, 70]))
    x = randn(*[s * draw(st.sampled_from([1, 1, 2])) for s in sizes])
    x = x[tuple(slice(None, s) if draw(st.booleans()) else slice(x.shape[d] - s, None) for d, s in enumerate(sizes))]
    if x.dim() in (4, 5) and draw(st.booleans()):
        x = x.to(memory_format=CL if x.dim() == 4 else torch.channels_last_3d)
    if x.dim() > 3 and draw(st.booleans()):
        x = x.transpose(-1, -2)
    x = x * draw(st.sampled_from([1.0, 1e-3, 300.0])) + draw(st.sampled_from([0.0, -50.0]))
    c = x.shape[1]
    w, b, mean, var = randn(c), randn(c), randn(c), randn(c).abs() + 0.1
    groups = draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    dims = draw(st.integers(1, x.dim()))
    functions = [
        lambda f, t, v: f.batch_norm(t, v(mean), v(var), v(w), v(b), False),
        lambda f, t, v: f.batch_norm(t, None, None, v(w), v(b), True),
        lambda f, t, v: f.group_norm(t, groups, v(w), v(b)),
        lambda f, t, v: f.layer_norm(t, t.shape[-dims:]),
        lambda f, t, v: f.instance_norm(t, weight=v(w), bias=v(b)),
        lambda f, t, v: f.local_response_norm(t, groups),
    ]
    for f in functions:
        try:
            theirs = f(T, x, lambda t: t)
        except ValueError as error:
            with pytest.raises(ValueError, match=str(error)[:20]):
                f(F, x, lambda t: t)
            continue
        except RuntimeError:  # torch's local_response_norm cannot view every layout
            continue
        ours = f(F, x, lambda t: t)
        exact = f(T, x.double(), lambda t: t.double())
        # On a handful of numbers torch's own error can be none at all: a few units of rounding are allowed besides.
        assert max_error(ours, exact) <= 2 * max_error(theirs, exact) + 4 * torch.finfo(torch.float32).eps
        # The stride of a dimension of one says nothing about memory; torch's differs with the path it takes.
        placed = [d for d in range(x.dim()) if x.shape[d] > 1]
        assert [ours.stride(d) for d in placed] == [theirs.stride(d) for d in placed]


# Semantics -----------------------------------------------------------------------------------------------------------------------

X = randn(2, 4, 3)
BAD = {
    "scalar": lambda f: f.batch_norm(randn(()), None, None, training=True),
    "1-d": lambda f: f.batch_norm(randn(3), None, None, training=True),
    "1-d evaluation": lambda f: f.batch_norm(randn(3), torch.zeros(1), torch.ones(1)),
    "batch of one": lambda f: f.batch_norm(randn(1, 4, 1, 1), None, None, training=True),
    "no statistics": lambda f: f.batch_norm(X, None, None),
    "no running_var": lambda f: f.batch_norm(X, torch.zeros(4), None),
    "one statistic": lambda f: f.batch_norm(X, torch.zeros(4), None, training=True),
    "eps 0": lambda f: f.batch_norm(X, None, None, training=True, eps=0.0),
    "eps < 0": lambda f: f.batch_norm(X, torch.zeros(4), torch.ones(4), eps=-1.0),
    "weight size": lambda f: f.batch_norm(X, None, None, randn(5), None, True),
    "bias size": lambda f: f.batch_norm(X, None, None, None, randn(5), True),
    "running_mean size": lambda f: f.batch_norm(X, torch.zeros(5), torch.ones(4), training=True),
    "running_var size": lambda f: f.batch_norm(X, torch.zeros(4), torch.ones(5)),
    "integers": lambda f: f.batch_norm(X.int(), None, None, training=True),
    "complex": lambda f: f.batch_norm(X.to(torch.complex64), None, None, training=True),
    "momentum None": lambda f: f.batch_norm(X, torch.zeros(4), torch.ones(4), training=True, momentum=None),
    "weight no tensor": lambda f: f.batch_norm(X, None, None, 1.0, None, True),
    "statistics require grad": lambda f: f.batch_norm(X, torch.zeros(4).requires_grad_(), torch.ones(4), training=True),
    "groups 1-d": lambda f: f.group_norm(randn(4), 2),
    "groups 0": lambda f: f.group_norm(X, 0),
    "groups 3": lambda f: f.group_norm(X, 3),
    "groups < 0": lambda f: f.group_norm(X, -2),
    "groups float": lambda f: f.group_norm(X, 2.0),
    "group of one": lambda f: f.group_norm(randn(1, 4), 4),
    "group weight size": lambda f: f.group_norm(X, 2, randn(5)),
    "group weight 2-d": lambda f: f.group_norm(X, 2, randn(4, 1)),
    "group bias size": lambda f: f.group_norm(X, 2, None, randn(5)),
    "group integers": lambda f: f.group_norm(X.int(), 2),
    "layer int": lambda f: f.layer_norm(X, 3),
    "layer float": lambda f: f.layer_norm(X, (3.0,)),
    "layer shape": lambda f: f.layer_norm(X, (4,)),
    "layer empty shape": lambda f: f.layer_norm(X, ()),
    "layer long shape": lambda f: f.layer_norm(X, (1, 2, 4, 3)),
    "layer weight": lambda f: f.layer_norm(X, (3,), randn(4)),
    "layer bias": lambda f: f.layer_norm(X, (3,), None, randn(3, 1)),
    "layer integers": lambda f: f.layer_norm(X.int(), (3,)),
    "instance 2-d": lambda f: f.instance_norm(randn(2, 4)),
    "instance one position": lambda f: f.instance_norm(randn(2, 4, 1)),
    "instance no statistics": lambda f: f.instance_norm(X, use_input_stats=False),
    "instance one statistic": lambda f: f.instance_norm(X, torch.zeros(4)),
    "instance weight size": lambda f: f.instance_norm(X, weight=randn(5)),
    "instance weight 2-d": lambda f: f.instance_norm(X, weight=randn(4, 1)),
    "instance statistics size": lambda f: f.instance_norm(X, torch.zeros(5), torch.ones(5)),
    "instance integers": lambda f: f.instance_norm(X.int()),
    "response 2-d": lambda f: f.local_response_norm(randn(2, 4), 3),
    "response size 0": lambda f: f.local_response_norm(X, 0),
    "response size < 0": lambda f: f.local_response_norm(X, -1),
    "response size float": lambda f: f.local_response_norm(X, 3.0),
    "response integers": lambda f: f.local_response_norm(X.int(), 3),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD.keys())
def test_errors_are_of_torchs_types(call: Any) -> None:
    with pytest.raises(Exception) as theirs:
        call(T)
    with pytest.raises(Exception) as ours:
        call(F)
    assert type(ours.value) is type(theirs.value), f"{ours.value!r}, torch raises {theirs.value!r}"
    assert str(ours.value)


def test_batch_norm_act_errors() -> None:
    with pytest.raises(ValueError, match="activation must be"):
        F.batch_norm_act(X, None, None, training=True, activation="gelu")
    with pytest.raises(ValueError, match="negative_slope"):
        F.batch_norm_act(X, None, None, training=True, activation="leaky_relu", negative_slope=-1.0)
    with pytest.raises(RuntimeError, match="residual of shape"):
        F.batch_norm_act(X, None, None, training=True, residual=randn(2, 4, 1))


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixed_dtypes_are_accepted_where_torch_accepts_them(dtype: torch.dtype, training: bool) -> None:
    x = X.to(dtype)
    for w, s in itertools.product([None, *DTYPES], [None, *DTYPES]):
        vectors = [None, None] if w is None else [torch.ones(4, dtype=w), torch.zeros(4, dtype=w)]
        statistics = [None, None] if s is None else [torch.zeros(4, dtype=s), torch.ones(4, dtype=s)]
        for op in (lambda f: f.batch_norm(x, *statistics, *vectors, training), lambda f: f.group_norm(x, 2, *vectors)):  # noqa: B023
            try:
                expected = op(T)
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    op(F)
            else:
                assert op(F).dtype == expected.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_float32_vectors_beside_16_bit_input(dtype: torch.dtype) -> None:
    x, w, b = randn(4, 6, 5, 5), randn(6), randn(6)
    results = []
    for f, cast in ((F, dtype), (T, dtype), (T, torch.float64)):
        args = [
            x.to(dtype).to(cast).requires_grad_(),
            *(t.clone().to(torch.promote_types(cast, torch.float32)).requires_grad_() for t in (w, b)),
        ]
        y = f.batch_norm(args[0], None, None, args[1], args[2], True)
        y.backward(torch.linspace(-1, 1, y.numel()).to(dtype).to(y.dtype).reshape(y.shape))
        results.append([y, *(a.grad for a in args)])
    for ours, theirs, exact in zip(*results, strict=True):
        assert_close(ours, exact, theirs)


def test_empty_batch_leaves_statistics_and_counts_the_batch() -> None:
    module = nn.BatchNorm2d(4)
    x = torch.empty(0, 4, 3, 3, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.shape == x.shape and module.num_batches_tracked == 1
    assert torch.equal(module.running_mean, torch.zeros(4)) and torch.equal(module.running_var, torch.ones(4))
    assert x.grad.shape == x.shape and torch.equal(module.weight.grad, torch.zeros(4))


@pytest.mark.parametrize("c", [0, 1])
def test_no_channels_and_no_positions(c: int) -> None:
    for sizes in ((2, c, 3), (2, c, 0), (0, c, 2)):
        x = torch.zeros(sizes)
        for run in (
            lambda f: f.batch_norm(x, None, None, training=True),  # noqa: B023
            lambda f: f.layer_norm(x, x.shape[2:]),  # noqa: B023
            lambda f: f.instance_norm(x),  # noqa: B023
            lambda f: f.local_response_norm(x, 2),  # noqa: B023
            lambda f: f.group_norm(x, 1),  # noqa: B023
        ):
            assert run(F).shape == run(T).shape


def _strided() -> list[torch.Tensor]:
    one = torch.channels_last
    return [
        randn(2, 8, 3, 10)[:, ::2, :, ::2],
        randn(2, 4, 5, 3).mT,
        randn(2, 1, 3, 5).expand(2, 4, 3, 5),
        randn(2, 5, 4).mT,
        randn(2, 4, 6, 5).to(memory_format=one)[:, :, ::2],
        randn(2, 4, 2, 3, 5).to(memory_format=torch.channels_last_3d),
        randn(2, 4, 1, 1),
        randn(2, 1, 3, 5).to(memory_format=one),
        randn(2, 4, 1, 1).to(memory_format=one),
    ]


@pytest.mark.parametrize("i", range(9))
def test_layouts_are_torchs(i: int) -> None:
    x = _strided()[i]
    c = x.shape[1]
    for run in (
        lambda f: f.batch_norm(x, None, None, training=True),
        lambda f: f.batch_norm(x, torch.zeros(c), torch.ones(c)),
        lambda f: f.group_norm(x, 1),
        lambda f: f.layer_norm(x, x.shape[1:]),
        lambda f: f.instance_norm(x),
        lambda f: f.instance_norm(x, torch.zeros(c), torch.ones(c), use_input_stats=False),
        lambda f: f.local_response_norm(x, 3),
    ):
        try:
            expected = run(T)
        except ValueError:
            continue
        torch.testing.assert_close(run(F), expected)
        assert run(F).stride() == expected.stride()


def test_non_dense_statistics_are_updated_in_place() -> None:
    store = torch.zeros(6, 2)
    x = randn(5, 6, 3)
    F.batch_norm(x, store[:, 0], store[:, 1], training=True, momentum=1.0)
    torch.testing.assert_close(store[:, 0], x.mean((0, 2)))
    torch.testing.assert_close(store[:, 1], x.var((0, 2)))


# Autograd ------------------------------------------------------------------------------------------------------------------------


def d(*sizes: int) -> torch.Tensor:
    return randn(*sizes, dtype=torch.float64).requires_grad_()


FORMULAS = {
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), lambda: (d(3, 4, 2, 2), d(4), d(4))),
    "batch_norm plain": (lambda x: F.batch_norm(x, None, None, training=True), lambda: (d(5, 3),)),
    "batch_norm channels_last": (
        lambda x, w, b: F.batch_norm(x.contiguous(memory_format=CL), None, None, w, b, True),
        lambda: (d(2, 3, 2, 2), d(3), d(3)),
    ),
    "batch_norm evaluation": (
        lambda x, w, b: F.batch_norm(x, torch.tensor([0.1, -0.2], dtype=x.dtype), torch.tensor([0.5, 2.0], dtype=x.dtype), w, b),
        lambda: (d(3, 2, 3), d(2), d(2)),
    ),
    "batch_norm leaky add": (
        lambda x, w, b, r: F.batch_norm_act(x, None, None, w, b, True, residual=r, activation="leaky_relu"),
        lambda: (d(3, 2, 4), d(2), d(2), d(3, 2, 4)),
    ),
    "batch_norm relu": (
        lambda x, w, b: F.batch_norm_act(x, None, None, w, b, True, activation="relu"),
        lambda: (d(3, 2, 4), d(2), d(2)),
    ),
    "batch_norm evaluation relu6 add": (
        lambda x, w, b, r: F.batch_norm_act(
            x * 5, torch.zeros(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype), w, b, residual=r, activation="relu6"
        ),
        lambda: (d(3, 2, 4), d(2), d(2), d(3, 2, 4)),
    ),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), lambda: (d(2, 4, 3), d(4), d(4))),
    "group_norm plain": (lambda x: F.group_norm(x, 3), lambda: (d(2, 6, 2),)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (2, 3), w, b), lambda: (d(4, 2, 3), d(2, 3), d(2, 3))),
    "layer_norm plain": (lambda x: F.layer_norm(x, (5,)), lambda: (d(3, 5),)),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), lambda: (d(2, 3, 4), d(3), d(3))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_first_and_second_gradients(name: str) -> None:
    function, make = FORMULAS[name]
    torch.manual_seed(7)
    args = make()
    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)


def test_local_response_norm_gradient() -> None:
    for size, beta in ((3, 0.75), (4, 0.5), (2, 1.0), (9, 1.7)):
        assert torch.autograd.gradcheck(lambda x, s=size, b=beta: F.local_response_norm(x, s, 0.7, b, 1.5), (d(2, 5, 3),))
        x = randn(2, 5, 2, 3, dtype=torch.float64).to(memory_format=CL).requires_grad_()
        assert torch.autograd.gradcheck(lambda t, s=size, b=beta: F.local_response_norm(t, s, 0.7, b, 1.5), (x,))
    x = d(1, 3, 2)
    (first,) = torch.autograd.grad(F.local_response_norm(x, 3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        first.sum().backward()


def test_only_wanted_gradients_are_computed() -> None:
    x, w, b = randn(3, 4, 5, 5), randn(4), randn(4)
    g = randn(3, 4, 5, 5)
    for wanted in itertools.product([False, True], repeat=3):
        if not any(wanted):
            continue
        for run in (lambda f, t: f.batch_norm(t[0], None, None, t[1], t[2], True), lambda f, t: f.group_norm(t[0], 2, t[1], t[2])):
            results = []
            for f in (F, T):
                args = [t.clone().requires_grad_(want) for t, want in zip((x, w, b), wanted, strict=True)]
                run(f, args).backward(g)
                results.append([a.grad for a in args])
            for ours, theirs in zip(*results, strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# torch's machinery ---------------------------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    ops, x, w = torch.ops.fastcv, randn(3, 6, 4, 5), randn(6)
    for image in (x, x.to(memory_format=CL), x[:, :, ::2], x[:, :, 0]):
        g = torch.randn_like(image)
        y, mean, var = ops.batch_norm_train(image, None, w, w, 1e-5, 0.0, 0.0)
        calls = [
            (ops.batch_norm_train, (image, g, w, None, 1e-5, 0.0, 0.0)),
            (ops.batch_norm_eval, (image, None, w, w.abs(), w, w, 1e-5, 1.0, 0.0)),
            (ops.batch_norm_backward, (g, image, y, mean, var, w, w, True, 1e-5, 0.0, 0.0, 15)),
            (ops.batch_norm_backward, (g, image, None, mean, var, None, None, False, 1e-5, 1.0, 0.0, 1)),
            (ops.batch_norm_update_, (w.clone(), w.clone(), mean, var, 10, 0.1)),
            (ops.group_norm, (image, 3, w, w, 1e-5)),
            (ops.group_norm_backward, (g, image, *ops.group_norm(image, 3, w, w, 1e-5)[1:], 3, w, w, 1e-5, 7)),
            (ops.layer_norm, (image, 1, None, None, 1e-5)),
            (ops.layer_norm_backward, (g, image, *ops.layer_norm(image, 2, None, None, 1e-5)[1:], 2, None, None, 1e-5, 1)),
            (ops.local_response_norm, (image, 3, 1e-4, 0.75, 1.0)),
            (ops.local_response_norm_backward, (g, image, 3, 1e-4, 0.75, 1.0)),
        ]
        for op, args in calls:
            torch.library.opcheck(op.default, args, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(
            [nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.LayerNorm(6), nn.LocalResponseNorm(3)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = norm(x)
        return x


def test_compile_and_export() -> None:
    torch._dynamo.reset()
    model = Small()
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3, 5):
        x = randn(n, 8, 5, 6)
        y = compiled(x)
        torch.testing.assert_close(y, reference(x))
    assert torch.equal(model.norms[0].running_var, reference.norms[0].running_var)
    assert model.norms[0].num_batches_tracked == 3
    y.square().sum().backward()
    reference(x).square().sum().backward()
    torch.testing.assert_close(model.norms[1].weight.grad, reference.norms[1].weight.grad)
    model.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    torch.testing.assert_close(exported.module()(randn(7, 8, 5, 6) * 0 + x[:1]), model(randn(7, 8, 5, 6) * 0 + x[:1]))


def test_vmap_and_func() -> None:
    x, w, b = randn(3, 4, 6, 5), randn(3, 6), randn(3, 6)
    for run in (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        lambda x, w, b: F.batch_norm(x, torch.zeros(6), torch.full((6,), 2.0), w, b),
        lambda x, w, b: F.group_norm(x, 2, w, b),
        lambda x, w, b: F.layer_norm(x.transpose(1, 2), (6,), w, b),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: F.local_response_norm(x, 3),
    ):
        expected = torch.stack([run(*(t[i] for t in (x, w, b))) for i in range(3)])
        torch.testing.assert_close(torch.vmap(run)(x, w, b), expected)
        shared = torch.stack([run(x[i], w[0], b[0]) for i in range(3)])
        torch.testing.assert_close(torch.vmap(run, in_dims=(0, None, None))(x, w[0], b[0]), shared)

        def loss(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, run: Any = run) -> torch.Tensor:
            return (run(x, w, b) ** 3).sum()

        per_sample = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(x, w, b)
        for i in range(3):
            args = [t[i].clone().requires_grad_() for t in (x, w, b)]
            direct = torch.autograd.grad(loss(*args), args, allow_unused=True, materialize_grads=True)
            for a, e in zip(per_sample, direct, strict=True):
                torch.testing.assert_close(a[i], e, rtol=1e-4, atol=1e-4)
    mean, var = torch.zeros(3, 6), torch.ones(3, 6)
    torch.vmap(lambda x, m, v: F.batch_norm(x, m, v, training=True))(x, mean, var)
    torch.testing.assert_close(mean, 0.1 * x.mean((1, 3)))
    with pytest.raises(RuntimeError, match="mapped"):
        torch.vmap(lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6), training=True))(x)


def test_func_grad_updates_running_statistics() -> None:
    results = []
    x = randn(5, 4, 3)
    for f in (F, T):
        mean, var = torch.zeros(4), torch.ones(4)
        grad = torch.func.grad(lambda t, f=f, mean=mean, var=var: (f.batch_norm(t, mean, var, training=True) ** 3).sum())(x)
        results.append((grad, mean, var))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_is_torchs(dtype: torch.dtype) -> None:
    x = randn(2, 4, 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for run in (
            lambda f: f.batch_norm(x, None, None, training=True),
            lambda f: f.group_norm(x, 2),
            lambda f: f.layer_norm(x, (3,)),
            lambda f: f.instance_norm(x),
            lambda f: f.local_response_norm(x, 3),
        ):
            assert run(F).dtype == run(T).dtype


# Determinism ---------------------------------------------------------------------------------------------------------------------


def _everything(x: torch.Tensor) -> list[torch.Tensor]:
    c = x.shape[1]
    results = []
    w, b = (torch.linspace(-1, 2, c).requires_grad_() for _ in range(2))
    for run in (
        lambda t: F.batch_norm(t, None, None, w, b, True),
        lambda t: F.batch_norm_act(t, None, None, w, b, True, residual=x, activation="relu"),
        lambda t: F.group_norm(t, 1, w, b),
        lambda t: F.instance_norm(t, weight=w, bias=b),
        lambda t: F.layer_norm(t, t.shape[-1:]),
        lambda t: F.local_response_norm(t, 3),
    ):
        t = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = run(t)
        results += [y, *torch.autograd.grad(y.sin().sum(), [t, w, b], allow_unused=True, materialize_grads=True)]
    return [r.detach() for r in results]


@pytest.mark.parametrize("sizes", [(3, 5, 70, 80), (40, 35, 13, 11), (2, 600, 8, 9), (1, 3, 260, 190)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
def test_thread_count_does_not_change_a_bit(sizes: tuple[int, ...], layout: torch.memory_format) -> None:
    x = randn(*sizes).to(memory_format=layout)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(_everything(x))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, CL])
def test_an_image_is_the_same_alone_and_in_a_batch(layout: torch.memory_format) -> None:
    x = randn(9, 21, 17, 19).to(memory_format=layout)
    mean, var = randn(21), randn(21).abs() + 1
    for run in (
        lambda t: F.batch_norm(t, mean, var, mean, var),
        lambda t: F.group_norm(t, 3, mean, var),
        lambda t: F.instance_norm(t),
        lambda t: F.layer_norm(t, (17, 19)),
        lambda t: F.local_response_norm(t, 5),
    ):
        batch = run(x)
        for i in (0, 4, 8):
            assert torch.equal(batch[i : i + 1], run(x[i : i + 1]))


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_capped_instruction_sets(isa: str) -> None:
    code = (
        "import torch, fastcv, fastcv.functional as F; from fastcv.testing import cases_of, check_case\n"
        f"for c in cases_of(*{OPS!r}):\n"
        "    if not c.bench:\n"
        "        for d in (torch.float32, torch.bfloat16, torch.float16):\n"
        "            if d in c.dtypes: check_case(c, getattr(F, c.op), d, c.layouts[-1])\n"
    )
    environment = {**os.environ, "FASTCV_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


# Modules -------------------------------------------------------------------------------------------------------------------------

MODULES = {
    "BatchNorm1d": ((6,), (4, 6, 5)),
    "BatchNorm2d": ((6,), (4, 6, 5, 3)),
    "BatchNorm3d": ((6,), (4, 6, 2, 3, 2)),
    "GroupNorm": ((3, 6), (4, 6, 5)),
    "LayerNorm": ((5,), (4, 6, 5)),
    "InstanceNorm1d": ((6, 1e-5, 0.1, True, True), (4, 6, 5)),
    "InstanceNorm2d": ((6, 1e-5, 0.1, True, True), (4, 6, 5, 3)),
    "InstanceNorm3d": ((6, 1e-5, 0.1, True, True), (4, 6, 2, 3, 2)),
    "LocalResponseNorm": ((3,), (4, 6, 5)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_drop_ins(name: str) -> None:
    arguments, sizes = MODULES[name]
    ours, theirs = getattr(nn, name)(*arguments), getattr(torch.nn, name)(*arguments)
    assert isinstance(ours, type(theirs)) and repr(ours) == repr(theirs)
    theirs.load_state_dict(ours.state_dict())
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        x = randn(*sizes)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    if "Instance" in name:
        torch.testing.assert_close(ours(x[0]), theirs(x[0]), rtol=1e-5, atol=1e-5)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    if name.startswith("Batch"):
        assert isinstance(torch.nn.SyncBatchNorm.convert_sync_batchnorm(ours), torch.nn.SyncBatchNorm)
        with pytest.raises(ValueError, match="expected"):
            ours(torch.zeros(2))


def test_batch_norm_without_buffers_uses_the_batch_in_evaluation() -> None:
    ours, theirs = nn.BatchNorm1d(3, track_running_stats=False).eval(), torch.nn.BatchNorm1d(3, track_running_stats=False).eval()
    x = randn(7, 3)
    torch.testing.assert_close(ours(x), theirs(x))
