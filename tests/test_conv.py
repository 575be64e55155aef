"""Convolutions forward: torch's answers, layouts and errors; variants, invariance, compile, export, vmap, autocast, modules."""

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastcv
import fastcv.functional as ours
from fastcv.functional import conv as layer
from fastcv.testing import Case, assert_close, cases_of, check_case, serves

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FUNCTIONS = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
SMALL = [case for case in cases_of(*FUNCTIONS, "conv2d_fused") if not case.bench]
CONV2D = [case for case in SMALL if case.op == "conv2d"]

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture
def threads():
    """Sets the number of threads; restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=operator.attrgetter("id"))
def test_cases(case: Case, dtype: torch.dtype) -> None:
    for layout in case.layouts:
        check_case(case, getattr(ours, case.op), dtype, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", ["conv2d", "conv3d", "conv_transpose2d"])
def test_layers_of_known_networks(op: str, layout: str) -> None:
    for case in cases_of(op, bench=True):
        if case.flops < 1.5e8:
            check_case(case, getattr(ours, op), torch.float32, layout)


STRIDES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "slice": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "offset": lambda t: F.pad(t, (1, 1))[..., 1:-1],
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch inside": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda t: t[:, :1].expand(t.shape),
    "one value": lambda t: t.flatten()[0].expand(t.shape),
}


@pytest.mark.parametrize("make", STRIDES.values(), ids=STRIDES)
def test_any_strides(make) -> None:
    x, w = make(torch.randn(2, 4, 7, 6)), make(torch.randn(6, 4, 3, 3))
    for function in ("conv2d", "conv_transpose2d"):
        y, t = (getattr(f, function)(x, w if function == "conv2d" else w[:4], padding=1) for f in (ours, F))
        exact = getattr(F, function)(x.double(), (w if function == "conv2d" else w[:4]).double(), padding=1)
        assert_close(y, exact, t)
    g = make(torch.randn(2, 6, 7, 6))
    dw = torch.ops.fastcv.conv_wgrad(x, g, [3, 3], [1, 1], [1, 1], [1, 1], 1, 0)
    reference = torch.nn.grad.conv2d_weight(x.double(), (6, 4, 3, 3), g.double(), padding=1)
    assert_close(dw, reference, torch.nn.grad.conv2d_weight(x, (6, 4, 3, 3), g, padding=1))
    assert_close(torch.ops.fastcv.conv_bias_grad(g), g.double().sum((0, 2, 3)), g.sum((0, 2, 3)))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_unbatched(nd: int) -> None:
    x, w = torch.randn(4, 7, 6, 5)[(..., *[0] * (3 - nd))], torch.randn(4, 4, 3, 3, 3)[(..., *[0] * (3 - nd))]
    for name in (f"conv{nd}d", f"conv_transpose{nd}d"):
        function = getattr(ours, name)
        assert torch.equal(function(x, w, padding=1), function(x[None], w, padding=1)[0])
    if nd == 2:
        r = torch.randn(4, 7, 6)
        y = ours.conv2d_fused(x, w, padding=1, residual=r, activation="relu")
        assert torch.equal(y, ours.conv2d_fused(x[None], w, padding=1, residual=r[None], activation="relu")[0])


# ---- errors: the same types as torch ------------------------------------------------------------------------------------

X, W, B, WT = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6), torch.randn(4, 6, 3, 3)
ERRORS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "input of 2 dimensions": lambda f: f(X[0, 0], W),
    "input of 5 dimensions": lambda f: f(X[None], W),
    "weight of 3 dimensions": lambda f: f(X, W[0]),
    "weight of 5 dimensions": lambda f: f(X, W[None]),
    "other channels": lambda f: f(X[:, :3], W),
    "channels not of the groups": lambda f: f(X, W, groups=3),
    "outputs not of the groups": lambda f: f(X, W[:5, :2], groups=2),
    "no groups": lambda f: f(X, W, groups=0),
    "negative groups": lambda f: f(X, W, groups=-1),
    "groups of float": lambda f: f(X, W, groups=1.0),
    "groups of None": lambda f: f(X, W, groups=None),
    "negative padding": lambda f: f(X, W, padding=-1),
    "padding of float": lambda f: f(X, W, padding=1.0),
    "padding of None": lambda f: f(X, W, padding=None),
    "three paddings": lambda f: f(X, W, padding=(1, 1, 1)),
    "no paddings": lambda f: f(X, W, padding=()),
    "zero stride": lambda f: f(X, W, stride=0),
    "negative stride": lambda f: f(X, W, stride=(1, -1)),
    "stride of float": lambda f: f(X, W, stride=1.5),
    "stride of None": lambda f: f(X, W, stride=None),
    "stride of bool": lambda f: f(X, W, stride=True),
    "three strides": lambda f: f(X, W, stride=(1, 1, 1)),
    "zero dilation": lambda f: f(X, W, dilation=0),
    "negative dilation": lambda f: f(X, W, dilation=-1),
    "bias of another length": lambda f: f(X, W, B[:5]),
    "bias of 2 dimensions": lambda f: f(X, W, B[None]),
    "bias of no dimension": lambda f: f(X, W, B[0]),
    "bias of int": lambda f: f(X, W, 3),
    "weight of another dtype": lambda f: f(X.double(), W),
    "half input": lambda f: f(X.half(), W),
    "bias of another dtype": lambda f: f(X, W, B.double()),
    "integer input": lambda f: f(X.long(), W),
    "list input": lambda f: f([1, 2], W),
    "no weight": lambda f: f(X, None),
    "empty rows": lambda f: f(X[:, :, :0], W, padding=2),
    "unknown argument": lambda f: f(X, W, foo=1),
}
CONV_ERRORS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "unknown padding": lambda f: f(X, W, padding="bad"),
    "same with stride": lambda f: f(X, W, padding="same", stride=2),
    "kernel over input": lambda f: f(X, torch.randn(6, 4, 9, 9)),
    "dilated kernel over input": lambda f: f(X, W, dilation=4),
    "no outputs": lambda f: f(X, W[:0]),
}
TRANSPOSED_ERRORS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "padding of str": lambda f: f(X, WT, padding="same"),
    "output_padding as stride": lambda f: f(X, WT, output_padding=1),
    "output_padding over stride": lambda f: f(X, WT, stride=2, output_padding=(1, 2)),
    "negative output_padding": lambda f: f(X, WT, stride=2, output_padding=-1),
    "three output_paddings": lambda f: f(X, WT, stride=2, output_padding=(1, 1, 1)),
    "padding over output": lambda f: f(X, WT, padding=9),
    "bias of one group": lambda f: f(X, WT, B, groups=2),
    "no outputs": lambda f: f(X, WT[:, :0]),
}


def _raised(call: Callable[[Callable[..., Any]], Any], function: Callable[..., Any]) -> BaseException:
    with pytest.raises((RuntimeError, TypeError, ValueError, IndexError)) as caught:
        call(function)
    return caught.value


@pytest.mark.parametrize("call", [*ERRORS.values(), *CONV_ERRORS.values()], ids=[*ERRORS, *CONV_ERRORS])
def test_conv_raises_what_torch_raises(call) -> None:
    theirs = type(_raised(call, F.conv2d))
    for function in (ours.conv2d, ours.conv2d_fused):
        mine = _raised(call, function)
        assert type(mine) is theirs
        assert len(str(mine)) > 10


@pytest.mark.parametrize("call", [*ERRORS.values(), *TRANSPOSED_ERRORS.values()], ids=[*ERRORS, *TRANSPOSED_ERRORS])
def test_transposed_conv_raises_what_torch_raises(call) -> None:
    if call in ERRORS.values():
        swapped = call
        call = lambda f: swapped(lambda x, w, *a, **k: f(x, WT if w is W else w.transpose(0, 1) if torch.is_tensor(w) else w, *a, **k))  # noqa: E731
    assert type(_raised(call, ours.conv_transpose2d)) is type(_raised(call, F.conv_transpose2d))


def test_messages_name_the_values() -> None:
    with pytest.raises(RuntimeError, match=r"\[2, 3, 8, 8\].*\[6, 4, 3, 3\]"):
        ours.conv2d(X[:, :3], W)
    with pytest.raises(RuntimeError, match=r"output_padding=\[1, 1\], stride=\[1, 1\]"):
        ours.conv_transpose2d(X, WT, output_padding=1)
    with pytest.raises(ValueError, match=r"activation must be one of.*'mish'"):
        ours.conv2d_fused(X, W, activation="mish")
    with pytest.raises(TypeError, match="negative_slope must be a number"):
        ours.conv2d_fused(X, W, activation="leaky_relu", negative_slope="0.1")
    with pytest.raises(RuntimeError, match="residual"):
        ours.conv2d_fused(X, W, residual=X)


def test_integers_of_any_kind() -> None:
    x, w = torch.randn(1, 2, 9, 9), torch.randn(2, 2, 3, 3)
    expected = ours.conv2d(x, w, stride=2, padding=1)
    for two, one in (([2, 2], [1]), ((2,), torch.tensor(1)), (torch.Size([2, 2]), (1, torch.tensor(1)))):
        assert torch.equal(ours.conv2d(x, w, stride=two, padding=one), expected)


# ---- random arguments --------------------------------------------------------------------------------------------------------


def _assert_within_bound(y: torch.Tensor, exact: torch.Tensor, magnitude: torch.Tensor, terms: int) -> None:
    """|y - exact| <= the bound on any order of summation, n eps sum |terms|, plus the rounding of the result."""
    eps = torch.finfo(torch.float64 if y.dtype == torch.float64 else torch.float32).eps
    allowed = (terms + 4) * eps * magnitude + torch.finfo(y.dtype).eps * exact.abs() + torch.finfo(y.dtype).tiny
    excess = (y.double() - exact).abs() - allowed
    assert excess.numel() == 0 or excess.max() <= 0, f"error beyond the bound by {excess.max():.3g}"


@st.composite
def _calls(draw) -> dict[str, Any]:
    transposed = draw(st.booleans())
    nd = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    c, k = groups * draw(st.sampled_from([1, 2, 3, 8, 16])), groups * draw(st.sampled_from([1, 2, 5, 17]))

    def per_dim(*values: int) -> Any:
        return draw(st.one_of(st.sampled_from(values), st.tuples(*[st.sampled_from(values)] * nd)))

    arguments = {"stride": per_dim(1, 1, 2, 3, 5), "padding": per_dim(0, 0, 1, 2, 4), "dilation": per_dim(1, 1, 2, 3), "groups": groups}
    if transposed:
        arguments["output_padding"] = per_dim(0, 0, 0, 1, 2)
    elif draw(st.integers(0, 5)) == 0:
        arguments["padding"] = draw(st.sampled_from(["same", "valid"]))
    spoiled = draw(st.sampled_from([None] * 8 + ["stride", "padding", "dilation", "groups", "channels"]))
    if spoiled == "channels":
        c += 1
    elif spoiled is not None:
        arguments[spoiled] = draw(st.sampled_from([0, -1, (1,) * (nd + 1), 1.5, None]))
    kernel = [draw(st.sampled_from([1, 1, 2, 3, 4])) for _ in range(nd)]
    rows, columns = (groups * (c // groups), k // groups) if transposed else (k, max(1, c // groups))
    return {
        "function": f"conv{'_transpose' if transposed else ''}{nd}d",
        "input": [draw(st.sampled_from([1, 2] if transposed else [0, 1, 2])), c, *[draw(st.sampled_from([1, 2, 5, 9])) for _ in range(nd)]],
        "weight": [rows, columns, *kernel],
        "bias": k if draw(st.booleans()) else None,
        "arguments": arguments,
        "dtype": draw(st.sampled_from(DTYPES)),
        "channels_last": (draw(st.booleans()), draw(st.booleans())),
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_calls())
def test_random_arguments_agree_with_torch_or_both_raise(call: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(call[name], generator=generator).to(call["dtype"]) for name in ("input", "weight"))
    b = None if call["bias"] is None else torch.randn(call["bias"], generator=generator).to(call["dtype"])
    if x.dim() == 4:
        x, w = (t.to(memory_format=torch.channels_last) if last else t for t, last in zip((x, w), call["channels_last"], strict=True))
    mine, theirs = getattr(ours, call["function"]), getattr(F, call["function"])
    double = [None if t is None else t.double() for t in (x, w, b)]
    try:
        exact = theirs(*double, **call["arguments"])
    except (RuntimeError, TypeError) as error:
        if "Output size is too small" in str(error):
            return  # a transposed convolution without outputs: torch raises or not, depending on the dtype and the geometry
        with pytest.raises(type(error)):
            mine(x, w, b, **call["arguments"])
        return
    y = mine(x, w, b, **call["arguments"])
    assert y.shape == exact.shape
    assert y.dtype == x.dtype
    magnitude = theirs(*[None if t is None else t.abs() for t in double], **call["arguments"])
    _assert_within_bound(y, exact, magnitude, x.shape[1] * math.prod(w.shape[2:]) + 1)


# ---- variants, determinism ---------------------------------------------------------------------------------------------------


def _wgrad(x: torch.Tensor, g: torch.Tensor, case: Case) -> tuple[Any, ...]:
    args, kwargs = case.arguments(x.dtype)
    pair = lambda name, default: list(layer._ints(kwargs.get(name, default), 2, name))  # noqa: E731
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
            _assert_within_bound(dw, reference, magnitude, exact[:, 0].numel())
    takes = serves("conv_wgrad", variant, dtype)
    if variant.startswith("igemm"):  # tensor cores: 16-bit numbers, or float32 in three parts
        takes = dtype == torch.float32 if "tf32x3" in variant else dtype in (torch.bfloat16, torch.float16)
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
            _assert_within_bound(db, g.double().sum(dims), g.double().abs().sum(dims), g.numel() // max(1, sizes[1]))


LAYERS = [
    {"x": (3, 16, 21, 19), "w": (24, 16, 3, 3), "stride": 1, "padding": 1, "groups": 1},
    {"x": (3, 3, 33, 30), "w": (16, 3, 7, 7), "stride": 2, "padding": 3, "groups": 1},
    {"x": (3, 40, 14, 15), "w": (72, 40, 1, 1), "stride": 1, "padding": 0, "groups": 1},
    {"x": (3, 48, 20, 20), "w": (48, 1, 3, 3), "stride": 1, "padding": 1, "groups": 48},
    {"x": (3, 32, 15, 15), "w": (32, 4, 3, 3), "stride": 2, "padding": 1, "groups": 8},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["row_major", "channels_last"])
@pytest.mark.parametrize("shapes", LAYERS, ids=lambda s: f"{s['w']}")
def test_bits_depend_neither_on_threads_nor_on_the_batch(shapes, memory_format, dtype, threads) -> None:
    x, w = (torch.randn(shapes[k]).to(dtype).to(memory_format=memory_format) for k in "xw")
    kwargs = {k: shapes[k] for k in ("stride", "padding", "groups")}
    x.requires_grad_()
    w.requires_grad_()

    def everything(x: torch.Tensor) -> list[torch.Tensor]:
        b = torch.zeros(w.shape[0], dtype=dtype, requires_grad=True)
        y = ours.conv2d(x, w, b, **kwargs)
        grads = torch.autograd.grad(y, (x, w, b), torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype))
        z = ours.conv_transpose2d(y.detach(), w.detach(), **kwargs)
        return [y.detach(), z, *grads]

    results = []
    for n in (1, 2, 5):
        threads(n)
        results.append(everything(x))
    for other in (*results[1:], everything(x)):
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    y, z, dx = results[0][:3]
    g = torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype)
    for i in range(len(x)):
        alone = ours.conv2d(x[i : i + 1], w, torch.zeros(w.shape[0], dtype=dtype), **kwargs)
        assert torch.equal(alone, y[i : i + 1])
        assert torch.equal(ours.conv_transpose2d(alone.detach(), w.detach(), **kwargs), z[i : i + 1])
        assert torch.equal(torch.autograd.grad(alone, x, g[i : i + 1])[0][i], dx[i])


# ---- precision ------------------------------------------------------------------------------------------------------------------


def test_precision_follows_torchs_switches() -> None:
    x = torch.randn(1)
    before = torch.get_float32_matmul_precision(), torch.backends.mkldnn.conv.fp32_precision
    try:
        for setting, level in (("highest", 0), ("high", 1), ("medium", 2)):
            torch.set_float32_matmul_precision(setting)
            assert layer._precision(x) == level
            assert layer._precision(x.double()) == layer._precision(x.half()) == 0
        for setting, level in (("ieee", 3), ("tf32", 1), ("bf16", 2)):
            torch.backends.mkldnn.conv.fp32_precision = setting
            assert layer._precision(x) == level
            assert layer._precision(x.double()) == (3 if setting == "ieee" else 0)
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before[1]
        torch.set_float32_matmul_precision(before[0])


@pytest.fixture
def ieee():
    """Sets the convolution's switch to "ieee"; restores it."""
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.mkldnn.conv.fp32_precision = before


def denormal_results(dtype: torch.dtype) -> list[Tensor]:
    """Forward, both gradients and a transposed convolution, whose every number lies below the normal range."""
    tiny = math.sqrt(torch.finfo(dtype).tiny) / 64
    x, w = (torch.full(size, tiny, dtype=dtype, requires_grad=True) for size in ((2, 16, 9, 9), (16, 16, 3, 3)))
    y = ours.conv2d(x, w)
    return [y.detach(), ours.conv_transpose2d(x, w).detach(), *torch.autograd.grad(y, (x, w), torch.full_like(y, tiny))]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_denormals_are_zeros_inside_the_kernels_only(dtype: torch.dtype, count: int, threads: Callable[[int], None]) -> None:
    threads(count)
    assert not any(t.any() for t in denormal_results(dtype))
    # What the threads compute for others afterwards is what it was before.
    left = torch.full((1 << 20,), torch.finfo(dtype).tiny, dtype=dtype)
    assert (left * 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ieee_keeps_denormals(dtype: torch.dtype, ieee: None, threads: Callable[[int], None]) -> None:
    for count in (1, 3):
        threads(count)
        for t in denormal_results(dtype):
            assert ((t > 0) & (t < torch.finfo(dtype).tiny)).all()


# ---- torch's transformations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layouts", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_opcheck(layouts: tuple[int, int]) -> None:
    ops = torch.ops.fastcv
    x, w = (
        t.to(memory_format=torch.channels_last) if last else t
        for t, last in zip((torch.randn(2, 4, 9, 8), torch.randn(6, 2, 3, 3)), layouts, strict=True)
    )
    y = ops.conv(x, w, None, [1, 2], [1, 1], [1, 1], 2, None, 0, 0)
    geometry = ([1, 2], [1, 1], [1, 1], 2)
    torch.library.opcheck(ops.conv.default, (x, w, torch.randn(6), *geometry, torch.randn_like(y), 1, 0))
    torch.library.opcheck(ops.conv_dgrad.default, (y, w, torch.randn(4), [9, 8], *geometry, 0))
    residual = torch.randn(2, 4, 9, 8)
    torch.library.opcheck(ops.conv_dgrad.default, (y, w, torch.randn(4), [9, 8], *geometry, 0, None, residual, 6, 0.2))
    torch.library.opcheck(ops.conv_wgrad.default, (x, y, [3, 3], *geometry, 0))
    torch.library.opcheck(ops.conv_bias_grad.default, (y,))


class Net(torch.nn.Module):
    def __init__(self, nn: Any) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.mix = nn.Conv2d(8, 8, 3, groups=2, padding="same", padding_mode="reflect")
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.mix(self.down(x)))


def test_compile_once_for_any_batch_and_size() -> None:
    model, twin = Net(fastcv.nn), Net(torch.nn)
    twin.load_state_dict(model.state_dict())
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for sizes in ((5, 3, 9, 14), (2, 3, 8, 8), (3, 3, 12, 10)):
        x = torch.randn(sizes)
        y, t = compiled(x), twin(x)
        torch.testing.assert_close(y, t)
        for net, out in ((model, y), (twin, t)):
            net.zero_grad()
            out.square().sum().backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def test_export_with_dynamic_sizes() -> None:
    dynamic = torch.export.Dim.DYNAMIC
    model = Net(fastcv.nn).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes={"x": {0: dynamic, 2: dynamic, 3: dynamic}})
    assert "fastcv.conv.default" in program.graph_module.code
    x = torch.randn(3, 3, 12, 10)
    torch.testing.assert_close(program.module()(x), model(x))


VMAPS = [
    ("conv2d", (3, 2, 4, 5, 5), (6, 4, 3, 3), (6,), (0, None, None), {"padding": 1}),
    ("conv2d", (2, 4, 5, 5), (3, 6, 4, 3, 3), (6,), (None, 0, None), {"padding": 1}),
    ("conv2d", (2, 4, 5, 5, 3), (6, 3, 2, 3, 3), (3, 6), (4, 1, 0), {"groups": 2}),
    ("conv2d", (2, 4, 5, 5), (6, 2, 3, 3), (3, 6), (None, None, 0), {"groups": 2}),
    ("conv1d", (3, 2, 4, 9), (3, 6, 4, 3), (6,), (0, 0, None), {"stride": 2}),
    ("conv_transpose2d", (3, 2, 4, 5, 5), (3, 4, 2, 3, 3), (3, 4), (0, 0, 0), {"groups": 2, "stride": 2}),
    ("conv_transpose2d", (3, 2, 4, 5, 5), (4, 2, 3, 3), (4,), (0, None, None), {"groups": 2, "stride": 2}),
    ("conv_transpose3d", (2, 4, 3, 3, 3), (3, 4, 2, 2, 2, 2), (2,), (None, 0, None), {}),
]


@pytest.mark.parametrize(("name", "x", "w", "b", "in_dims", "kwargs"), VMAPS)
def test_vmap(name, x, w, b, in_dims, kwargs) -> None:
    args = [torch.randn(s, dtype=torch.float64) for s in (x, w, b)]
    y, t = (torch.vmap(lambda *a, f=f: getattr(f, name)(*a, **kwargs), in_dims)(*args) for f in (ours, F))
    torch.testing.assert_close(y, t)


def test_vmap_of_the_fused_form() -> None:
    x, w, r = torch.randn(3, 2, 4, 6, 6), torch.randn(3, 5, 4, 3, 3), torch.randn(2, 5, 4, 4)
    for in_dims in ((0, None, None), (0, 0, None), (None, 0, None)):
        args = [t if d is not None or t is r else t[0] for t, d in zip((x, w, r), in_dims, strict=True)]
        y = torch.vmap(lambda x, w, r: ours.conv2d_fused(x, w, residual=r, activation="relu"), in_dims)(*args)
        torch.testing.assert_close(y, torch.vmap(lambda x, w, r: F.relu(F.conv2d(x, w) + r), in_dims)(*args))
        y = torch.vmap(lambda x, w, r: ours.conv2d_fused(x, w, residual=r, activation="leaky_relu", negative_slope=0.3), in_dims)(*args)
        torch.testing.assert_close(y, torch.vmap(lambda x, w, r: F.leaky_relu(F.conv2d(x, w) + r, 0.3), in_dims)(*args))


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, None), (None, 0, 0), (0, None, 1)])
def test_vmap_of_the_fused_transposed_form(in_dims: tuple[int | None, ...]) -> None:
    x, w, r = torch.randn(3, 2, 5, 4, 4), torch.randn(3, 5, 4, 3, 3), torch.randn(3, 2, 4, 6, 6)
    args = [t[0] if d is None else t.movedim(0, d) for t, d in zip((x, w, r), in_dims, strict=True)]

    def fused(x, w, r):
        return torch.ops.fastcv.conv_dgrad(x, w, None, [6, 6], [1, 1], [0, 0], [1, 1], 1, 0, None, r, 6, 0.3)

    expected = torch.vmap(lambda x, w, r: F.leaky_relu(F.conv_transpose2d(x, w) + r, 0.3), in_dims)(*args)
    torch.testing.assert_close(torch.vmap(fused, in_dims)(*args), expected)


def test_per_sample_gradients() -> None:
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((5, 4, 6, 6), (3, 4, 3, 3), (3,)))

    def samples(f: Any) -> Any:
        loss = lambda p, x: f.conv2d(x[None], p[0], p[1], padding=1).square().sum()  # noqa: E731
        return torch.vmap(torch.func.grad(loss), (None, 0))((w, b), x)

    for mine, theirs in zip(samples(ours), samples(F), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    x, w, b = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(4, 4, 3, 3), torch.randn(4).to(dtype)
    lower = [t.detach().to(dtype) for t in (x, w, b)]
    with torch.autocast("cpu", dtype):
        for name in ("conv2d", "conv_transpose2d"):
            y = getattr(ours, name)(x, w, b)
            assert y.dtype == getattr(F, name)(x, w, b).dtype == dtype
            assert torch.equal(y, getattr(ours, name)(*lower))
        y = ours.conv2d_fused(x, w, b, residual=torch.zeros(2, 4, 4, 4), activation="relu")
        assert y.dtype == dtype
        assert ours.conv2d(x.double(), w.double()).dtype == F.conv2d(x.double(), w.double()).dtype
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_inference_mode_and_meta() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with torch.inference_mode():
        assert torch.equal(ours.conv2d(x, w), ours.conv2d(x, w.clone()))
    y = ours.conv2d(x.to("meta"), w.to("meta"), stride=2)
    assert y.is_meta
    assert y.shape == (2, 4, 3, 3)


# ---- modules ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_modules_with_every_padding_mode(nd: int, mode: str) -> None:
    x = torch.randn(2, 4, 7, 6, 5)[(..., *[0] * (3 - nd))]
    for padding in (0, 2, "same"):
        arguments = (4, 6, 3), {"padding": padding, "padding_mode": mode, "groups": 2, "dilation": 2}
        mine, theirs = (getattr(nn, f"Conv{nd}d")(*arguments[0], **arguments[1]) for nn in (fastcv.nn, torch.nn))
        mine.load_state_dict(theirs.state_dict())
        assert repr(mine) == repr(theirs)
        torch.testing.assert_close(mine(x), theirs(x))
        torch.testing.assert_close(mine(x[0]), theirs(x[0]))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_transposed_modules_with_output_size(nd: int) -> None:
    x = torch.randn(2, 4, 5, 4, 3)[(..., *[0] * (3 - nd))]
    mine, theirs = (getattr(nn, f"ConvTranspose{nd}d")(4, 6, 3, stride=3, padding=1, groups=2) for nn in (fastcv.nn, torch.nn))
    mine.load_state_dict(theirs.state_dict())
    least = theirs(x).shape[2:]
    for extra in (0, 1, 2):
        size = [s + extra for s in least]
        assert mine(x, output_size=size).shape[2:] == torch.Size(size)
        torch.testing.assert_close(mine(x, output_size=size), theirs(x, output_size=size))
    for module in (mine, theirs):
        with pytest.raises(ValueError, match="requested an output size"):
            module(x, output_size=[s + 3 for s in least])


# ---- golden numbers -------------------------------------------------------------------------------------------------------------------


def test_10_output_size() -> None:
    """(N + 2P - F) / S + 1, rounded down where it does not divide; ten 5x5 filters on 3 channels have 760 parameters."""
    x, w = torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, 3, 3)
    assert [ours.conv2d(x, w, stride=s).shape[-1] for s in (1, 2, 3)] == [5, 3, 2]
    assert ours.conv2d(x, w, padding=1).shape[-1] == 7
    module = fastcv.nn.Conv2d(3, 10, 5, padding=2)
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10, 32, 32)
    assert sum(p.numel() for p in module.parameters()) == 760


def test_13_convolution_as_a_matrix() -> None:
    """Kernel (x, y, z), stride 2, pad 1 on (a, b, c, d): (ay + bz, bx + cy + dz)."""
    a, b, c, d = 2.0, 3.0, 5.0, 7.0
    x, y, z = 11.0, 13.0, 17.0
    result = ours.conv1d(torch.tensor([[[a, b, c, d]]]), torch.tensor([[[x, y, z]]]), stride=2, padding=1)
    assert result.flatten().tolist() == [a * y + b * z, b * x + c * y + d * z]


def test_14_its_transpose() -> None:
    """On (a, b): (ax, ay, az + bx, by, bz), cropped by the padding; as matrices exactly each other's transpose."""
    a, b, x, y, z = 2.0, 3.0, 11.0, 13.0, 17.0
    kernel = torch.tensor([[[x, y, z]]])
    full = [a * x, a * y, a * z + b * x, b * y, b * z]
    assert ours.conv_transpose1d(torch.tensor([[[a, b]]]), kernel, stride=2).flatten().tolist() == full
    cropped = ours.conv_transpose1d(torch.tensor([[[a, b]]]), kernel, stride=2, padding=1)
    assert cropped.flatten().tolist() == full[1:-1]
    matrix = ours.conv1d(torch.eye(5)[:, None], kernel, stride=2)[:, 0].T
    transposed = ours.conv_transpose1d(torch.eye(2)[:, None], kernel, stride=2)[:, 0].T
    assert matrix.tolist() == [[x, y, z, 0, 0], [0, 0, x, y, z]]
    assert torch.equal(transposed, matrix.T)
