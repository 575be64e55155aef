"""Batch norm, activation and max pooling in one pass: the bits of the two ops one after the other, in every variant, and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as T
from hypothesis import given, settings
from hypothesis import strategies as st
from test_emulator_norm import moved
from torch import Tensor

import fastcv
import fastcv.functional as F
from fastcv.functional import _batch_norm, _conv_statistics
from fastcv.testing import cases_of, check_case, max_error, runnable_variants

pytestmark = pytest.mark.skipif(not fastcv.is_built(), reason="needs the compiled module")

OP = "batch_norm_max_pool2d"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
CASES = [case for case in cases_of(OP) if not case.bench]
ISAS = [name for name in runnable_variants(OP) if name != "ref"] if fastcv.is_built() else []
inf, nan = float("inf"), float("nan")

WINDOWS: dict[str, dict[str, Any]] = {
    "k3s2p1": {"kernel_size": 3, "stride": 2, "padding": 1},
    "k2": {"kernel_size": 2},
    "k3s1p1": {"kernel_size": 3, "stride": 1, "padding": 1},
    "k2s3": {"kernel_size": 2, "stride": 3},
    "k2x3": {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)},
    "k5s3p2-ceil": {"kernel_size": 5, "stride": 3, "padding": 2, "ceil_mode": True},
    "dilated": {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
    "padding-only": {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 5},
}
# Channels below, at and above a vector; maps of several bands of rows in either layout, and several maps to a band.
SIZES = [(3, 5, 7, 9), (2, 16, 12, 8), (1, 33, 9, 13), (2, 2, 150, 83), (1, 70, 81, 62), (4, 3, 6, 6)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, zeros' signs and NaN's payload too."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a.view(whole), b.view(whole))


def operands(sizes: tuple[int, ...], dtype: torch.dtype, layout: str, hostile: bool = False) -> list[Tensor]:
    """x of few different values, so that windows hold ties, and weight (of either sign, one zero), bias, mean and variance."""
    g = torch.Generator().manual_seed(sum(sizes))
    x = torch.randint(-6, 7, sizes, generator=g) / 4
    if hostile:
        x[torch.rand(sizes, generator=g) < 0.03] = nan
        x[torch.rand(sizes, generator=g) < 0.03] = -inf
        x[torch.rand(sizes, generator=g) < 0.03] = inf
    c = sizes[1]
    w, b, mean = (torch.randn(c, generator=g) for _ in range(3))
    w[0] = 0
    vectors = [t.to(dtype) for t in (w, b, mean, torch.rand(c, generator=g) + 0.5)]
    return [x.to(dtype).to(memory_format=LAYOUTS[layout]), *vectors]


def results(fused: bool, tensors: list[Tensor], training: bool, activation: str | None, windows: dict[str, Any]) -> list[Tensor]:
    """The result without and with gradients, the gradients of x, weight and bias, and the running statistics."""
    x, w, b, mean, var = tensors
    leaves, running = [t.detach().requires_grad_() for t in (x, w, b)], (mean.clone(), var.clone())

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        how = (w, b, training, 0.1, 1e-3)
        if fused:
            return F.batch_norm_max_pool2d(x, *running, *how, activation=activation, **windows)
        return F.max_pool2d(F.batch_norm_act(x, *running, *how, activation=activation), **windows)

    with torch.no_grad():
        plain = call(x, w, b)
    y = call(*leaves)
    toward = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).to(y.dtype).reshape(y.shape)
    return [plain, y.detach(), *torch.autograd.grad(y, leaves, toward), *running]


def check(variants: dict[str, str], tensors: list[Tensor], training: bool, activation: str | None, windows: dict[str, Any]) -> None:
    with fastcv.use(**variants):
        ours, apart = (results(fused, tensors, training, activation, windows) for fused in (True, False))
    for name, a, b in zip(("values", "result", "dx", "dweight", "dbias", "mean", "var"), ours, apart, strict=True):
        assert same(a, b), f"{name} {training=} {activation}: {(a != b).sum()} of {a.numel()} differ"


def variants_of(isa: str, layout: str) -> dict[str, str]:
    """The two ops and the one on the same instruction set."""
    if isa == "ref":
        return {OP: "ref", "batch_norm": "ref", "max_pool2d": "ref"}
    return {OP: f"bands_{isa}", "batch_norm": f"chan_{isa}", "max_pool2d": f"{'channels' if layout == 'nhwc' else 'rows'}_{layout}_{isa}"}


# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_the_bits_of_the_two_ops(windows: dict[str, Any], dtype: torch.dtype, layout: str) -> None:
    for name in runnable_variants(OP, dtype):
        isa = name.removeprefix("bands_")
        for i, sizes in enumerate(SIZES[: 1 if isa == "ref" else None]):
            activation = (None, "relu", "relu6", "leaky_relu")[i % 4]
            for training, hostile in ((True, False), (False, i % 2 == 1)):
                check(variants_of(isa, layout), operands(sizes, dtype, layout, hostile), training, activation, windows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_offsets_are_those_of_max_pooling(layout: str) -> None:
    x, w, b, mean, var = operands((2, 20, 31, 33), torch.bfloat16, layout, hostile=True)
    windows = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    y, offsets = torch.ops.fastcv.batch_norm_max_pool2d_eval(x, mean, var, w, b, 1e-3, 0.0, 0.0, *windows, True)
    whole = F.batch_norm_act(x, mean, var, w, b, eps=1e-3, activation="relu")
    assert all(map(same, (y, offsets), torch.ops.fastcv.max_pool2d_with_offsets(whole, *windows)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_depend_on_neither_threads_nor_batch(layout: str) -> None:
    windows = WINDOWS["k3s2p1"]
    for sizes in ((6, 12, 60, 70), (2, 64, 70, 61), (40, 3, 9, 9)):
        tensors = operands(sizes, torch.float32, layout)
        runs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            runs.append([results(True, tensors, training, "relu", windows) for training in (True, False)])
        for other in runs[1:]:
            assert all(same(a, b) for mine, theirs in zip(runs[0], other, strict=True) for a, b in zip(mine, theirs, strict=True))
        whole = runs[0][1][0]
        alone = results(True, [tensors[0][1:2].contiguous(memory_format=LAYOUTS[layout]), *tensors[1:]], False, "relu", windows)[0]
        assert torch.equal(alone[0], whole[1])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_windows_and_strides(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kernel = (draw(1, 5), draw(1, 5))
    windows = {
        "kernel_size": kernel,
        "stride": (draw(1, 4), draw(1, 4)),
        "padding": (draw(0, kernel[0] // 2), draw(0, kernel[1] // 2)),
        "dilation": (draw(1, 3), draw(1, 3)),
        "ceil_mode": data.draw(st.booleans()),
    }
    sizes = (draw(1, 3), draw(1, 19), draw(13, 30), draw(13, 40))
    dtype, layout = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(list(LAYOUTS)))
    tensors = operands(sizes, dtype, layout)
    match draw(0, 3):
        case 0:
            tensors[0] = tensors[0].transpose(2, 3).contiguous().transpose(2, 3)
        case 1:
            tensors[0] = tensors[0][:, :, ::2, 1:] if sizes[2] > 26 else tensors[0][:, :, :, 1:]
        case 2:
            tensors[0] = tensors[0].expand(3, *sizes[1:]) if sizes[0] == 1 else tensors[0][1:]
    training, activation = data.draw(st.booleans()), data.draw(st.sampled_from([None, "relu", "relu6", "leaky_relu"]))
    try:
        T.max_pool2d(tensors[0].float(), **windows)
    except RuntimeError:
        return  # the window does not fit
    check({}, tensors, training, activation, windows)


# ---- the CUDA kernels, emulated ---------------------------------------------------------------------------------------

ON_CUDA = {OP: "strips_sm80", "batch_norm": "two_pass_sm80", "max_pool2d": "window_sm80"}
emulated = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)
# Packs and single channels, more packs than lanes, several strips and sites; small planes together, several tiles of one, a row too
# long for shared memory.
EMULATED = {
    "nhwc": [(2, 16, 7, 9), (1, 3, 6, 5), (1, 264, 5, 3), (2, 24, 19, 6)],
    "nchw": [(2, 16, 7, 9), (40, 5, 3, 3), (1, 2, 83, 61), (1, 1, 5, 4500), (3, 7, 1, 2)],
}


@emulated
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("windows", ["k3s2p1", "k2", "k3s1p1", "k2s3", "k5s3p2-ceil", "dilated"])
def test_emulated_kernels_have_the_bits_of_the_two(windows: str, dtype: torch.dtype, layout: str) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory holds NaN, so that an element nobody writes shows
    try:
        for i, sizes in enumerate(EMULATED[layout]):
            if sizes[2] * sizes[3] < 30 and windows not in ("k3s2p1", "k3s1p1"):
                continue  # the window may not fit
            tensors = operands(sizes, dtype, layout, hostile=True)
            if i % 2:
                tensors[0] = moved(tensors[0], 1)
            for training in (False, True):
                with torch.no_grad(), fastcv.use(**ON_CUDA):
                    x, w, b, *running = tensors
                    calls = []
                    for fused in (True, False):
                        how = (*([None, None] if training else running), w, b, training, 0.1, 1e-3)
                        activation = (None, "relu", "relu6", "leaky_relu")[i % 4]
                        if fused:
                            calls.append(F.batch_norm_max_pool2d(x, *how, activation=activation, **WINDOWS[windows]))
                        else:
                            calls.append(F.max_pool2d(F.batch_norm_act(x, *how, activation=activation), **WINDOWS[windows]))
                assert same(*calls), f"{sizes} {training=}"
    finally:
        torch.use_deterministic_algorithms(False)


@emulated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_emulated_offsets_and_order_of_threads(layout: str) -> None:
    from fastcv import _C

    x, w, b, mean, var = operands((2, 16, 21, 37), torch.bfloat16, layout, hostile=True)
    windows = ([3, 3], [2, 2], [1, 1], [1, 1], True)
    for seed in range(2):
        _C.seed_emulator(seed)
        with fastcv.use(**ON_CUDA):
            ours = torch.ops.fastcv.batch_norm_max_pool2d_eval(x, mean, var, w, b, 1e-3, 0.0, 6.0, *windows, True)
            whole = F.batch_norm_act(x, mean, var, w, b, eps=1e-3, activation="relu6")
            assert all(map(same, ours, torch.ops.fastcv.max_pool2d_with_offsets(whole, *windows)))


# ---- accuracy and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case(case: Any) -> None:
    for layout in case.layouts:
        for dtype in case.dtypes:
            check_case(case, getattr(F, OP), dtype, layout)
        args, kwargs = case.arguments(torch.float64, layout)  # torch's long sums lose 1e-14 per number kept
        assert (
            max_error(getattr(F, OP)(*args, **kwargs), case.torch_function()(*case.arguments(torch.float64, layout)[0], **kwargs)) < 1e-12
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_first_and_second_gradients(training: bool, layout: str) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 5, 6, generator=g, dtype=torch.float64).to(memory_format=LAYOUTS[layout]).requires_grad_()
    w, b = (torch.randn(3, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    running = (None, None) if training else (torch.zeros(3).double(), torch.ones(3).double())

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.batch_norm_max_pool2d(x, *running, w, b, training, activation="leaky_relu", kernel_size=3, stride=2, padding=1)

    assert torch.autograd.gradcheck(f, (x, w, b))
    assert torch.autograd.gradgradcheck(f, (x, w, b))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=["x", "weight", "bias"])
def test_gradients_one_by_one(wanted: tuple[bool, ...]) -> None:
    tensors = [t.clone().requires_grad_(w) for t, w in zip(operands((2, 6, 9, 9), torch.float32, "nchw")[:3], wanted, strict=True)]
    leaf = tensors[wanted.index(True)]
    grads = []
    for y in (
        F.batch_norm_max_pool2d(tensors[0], None, None, *tensors[1:], True, activation="relu", kernel_size=3, stride=2),
        F.max_pool2d(F.batch_norm_act(tensors[0], None, None, *tensors[1:], True, activation="relu"), 3, 2),
    ):
        grads += torch.autograd.grad(y.square().sum(), leaf)
    assert same(*grads)


def test_statistics_that_a_convolution_left_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(2, 3, 12, 12), torch.randn(8, 3, 3, 3).requires_grad_()
    w, b, how = torch.randn(8).requires_grad_(), torch.randn(8), {"activation": "relu", "kernel_size": 3, "stride": 2, "padding": 1}
    runs = []
    for left in (True, False):
        running = torch.zeros(8), torch.ones(8)
        y = _conv_statistics.convolve_measured(x, weight, None, ([1, 1], [1, 1], [1, 1], 1))
        if not left:
            monkeypatch.setattr(_batch_norm, "statistics_left", lambda t: None)
        z = F.batch_norm_max_pool2d(y, *running, w, b, True, **how)
        assert type(z.grad_fn).__name__ == ("BatchNormMaxPool2dEvalBackward" if left else "BatchNormMaxPool2dTrainBackward")
        runs.append([z.detach(), *torch.autograd.grad(z.square().sum(), (weight, w)), *running])
    assert all(map(same, *runs))


def test_nothing_but_the_input_and_a_byte_per_output_is_kept() -> None:
    x, kept = torch.randn(2, 8, 16, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        F.batch_norm_max_pool2d(x, None, None, training=True, activation="relu", kernel_size=2)
    assert sorted(t.numel() * t.element_size() for t in kept) == [8 * 8, 8 * 8, 2 * 8 * 8 * 8, x.numel() * 4]


# ---- errors ------------------------------------------------------------------------------------------------------------

X, MEAN, VAR = torch.randn(2, 4, 6, 6), torch.zeros(4), torch.ones(4)


@pytest.mark.parametrize(
    ("args", "more", "error", "words"),
    [
        ((X, MEAN, VAR), {"kernel_size": 2, "activation": "gelu"}, ValueError, "batch_norm_max_pool2d: activation must be"),
        ((X, MEAN, VAR), {"kernel_size": 2, "activation": "leaky_relu", "negative_slope": -1.0}, ValueError, "negative_slope"),
        ((X[0], MEAN, VAR), {"kernel_size": 2}, RuntimeError, r"expected a 4-D input, got \[4, 6, 6\]"),
        ((X, None, None), {"kernel_size": 2}, RuntimeError, "running_mean must be defined in evaluation mode"),
        ((X, MEAN[:3], VAR), {"kernel_size": 2}, RuntimeError, "running_mean should contain 4 elements not 3"),
        ((X, MEAN, VAR), {"kernel_size": 9}, RuntimeError, "output size is too small"),
        ((X, MEAN, VAR), {"kernel_size": 2, "padding": 2}, RuntimeError, "padding should be at most half"),
        ((X, MEAN, VAR), {"kernel_size": 2.0}, TypeError, "'kernel_size' must be an int"),
        ((X, MEAN, VAR), {"kernel_size": 2, "ceil_mode": 1}, TypeError, "'ceil_mode' must be bool"),
        ((X[:1, :, :1, :1], MEAN, VAR, None, None, True), {"kernel_size": 1}, ValueError, "more than 1 value per channel"),
        ((X.int(), MEAN, VAR), {"kernel_size": 2}, NotImplementedError, "not implemented for torch.int32"),
        ((X.double(), MEAN, VAR), {"kernel_size": 2}, RuntimeError, "mixed dtypes"),
        (([1.0], MEAN, VAR), {"kernel_size": 2}, TypeError, "'input' must be Tensor"),
    ],
)
def test_errors(args: tuple[Any, ...], more: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        F.batch_norm_max_pool2d(*args, **more)


def test_a_window_that_does_not_fit_leaves_the_statistics_alone() -> None:
    mean, var = torch.zeros(4), torch.ones(4)
    with pytest.raises(RuntimeError, match="too small"):
        F.batch_norm_max_pool2d(X, mean, var, training=True, kernel_size=9)
    assert not mean.any() and torch.equal(var, torch.ones(4))
