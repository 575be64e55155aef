"""The norm family against float64: every case, dtype, layout and variant, extreme data, random shapes and strides, determinism."""

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
from fastcv.testing import cases_of, check_case, check_variants, max_error, runnable_variants

OPS = ("batch_norm", "batch_norm_act", "group_norm", "layer_norm", "instance_norm", "local_response_norm")
TABLES = [
    op for op in fastcv.variants() if op.startswith(("batch_norm", "group_norm", "layer_norm", "local_response_norm")) and "pool" not in op
]
CASES = [case for case in cases_of(*OPS) if not case.bench]
LAYERS = cases_of(*OPS, bench=True)
CL = torch.channels_last


def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*sizes, dtype=dtype)


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


@pytest.mark.parametrize("case", [c for c in LAYERS if "-8x" not in c.id and "64x197" not in c.id], ids=lambda c: c.id)
def test_layers_of_models(case: Any) -> None:
    for layout in case.layouts:
        check_case(case, getattr(F, case.op), torch.float32, layout)


def test_every_variant_meets_the_accuracy_rule() -> None:
    chosen = [c for c in CASES if torch.float32 in c.dtypes]
    for dtype in (torch.float32, torch.bfloat16):
        outcomes = check_variants(chosen, dtype)
        for op in (t for t in TABLES if dtype == torch.float32 or not t.startswith("local")):
            for name in runnable_variants(op, dtype):
                failures = [text for text in outcomes[op, name] if text]
                assert not failures, f"{op} {name} {dtype}: {failures[:2]}"
                assert outcomes[op, name], f"{op} {name}: no case ran it"


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
