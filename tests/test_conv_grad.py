"""Gradients of convolutions: of any order, only those asked for, in every layout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastcv
import fastcv.functional as ours
from fastcv.functional import conv
from fastcv.testing import assert_close, runnable_variants

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

GEOMETRIES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv1d": ("conv1d", (2, 2, 6), (3, 2, 3), {"stride": 2, "padding": 1}),
    "conv1d valid": ("conv1d", (1, 2, 5), (2, 2, 2), {"padding": "valid"}),
    "conv2d": ("conv2d", (2, 2, 4, 3), (2, 2, 3, 2), {"padding": 1}),
    "conv2d strided, dilated, grouped": (
        "conv2d",
        (1, 4, 6, 5),
        (2, 2, 2, 2),
        {"stride": 2, "padding": 1, "dilation": (2, 1), "groups": 2},
    ),
    "conv2d depthwise": ("conv2d", (1, 3, 4, 4), (3, 1, 3, 3), {"padding": 1, "groups": 3}),
    "conv2d same, uneven": ("conv2d", (1, 2, 4, 3), (2, 2, 2, 3), {"padding": "same"}),
    "conv2d unbatched": ("conv2d", (2, 4, 3), (2, 2, 2, 3), {}),
    "conv2d stride over kernel": ("conv2d", (1, 1, 6, 7), (2, 1, 1, 2), {"stride": 4}),
    "conv3d": ("conv3d", (1, 1, 3, 3, 2), (2, 1, 2, 2, 2), {"stride": (2, 1, 1), "padding": (1, 0, 1)}),
    "conv_transpose1d": ("conv_transpose1d", (1, 2, 3), (2, 2, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "conv_transpose2d": ("conv_transpose2d", (1, 2, 3, 2), (2, 1, 3, 2), {"stride": (2, 1), "padding": 1, "groups": 2}),
    "conv_transpose2d dilated, output padding beyond the stride": (
        "conv_transpose2d",
        (1, 1, 2, 3),
        (1, 2, 2, 2),
        {"dilation": 3, "output_padding": 2},
    ),
    "conv_transpose3d": ("conv_transpose3d", (1, 1, 2, 2, 2), (1, 1, 2, 2, 2), {"stride": 2}),
}


def _inputs(x: tuple[int, ...], w: tuple[int, ...], name: str, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    outputs = w[1] * kwargs.get("groups", 1) if "transpose" in name else w[0]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (x, w, (outputs,))]


@pytest.mark.parametrize("layout", ["row_major", "channels_last"])
@pytest.mark.parametrize(("name", "x", "w", "kwargs"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_first_and_second_gradients(name, x, w, kwargs, layout) -> None:
    inputs = _inputs(x, w, name, kwargs)
    if layout == "channels_last":
        if len(x) != 4:
            pytest.skip("has no channels_last form")
        inputs[:2] = [t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in inputs[:2]]
    function = lambda *args: getattr(ours, name)(*args, **kwargs)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


ENDS = [
    (None, 0.0),
    ("relu", 0.0),
    ("relu6", 0.0),
    ("silu", 0.0),
    ("hardswish", 0.0),
    ("gelu", 0.0),
    ("leaky_relu", 0.2),
    ("leaky_relu", -0.3),
]


@pytest.mark.parametrize(("activation", "slope"), ENDS)
def test_gradients_of_the_fused_form(activation: str | None, slope: float) -> None:
    inputs = _inputs((1, 2, 3, 3), (2, 2, 2, 2), "conv2d", {})
    residual = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x, w, b, r):
        return ours.conv2d_fused(x, w, b, residual=r, activation=activation, negative_slope=slope)

    assert torch.autograd.gradcheck(function, (*inputs, residual))
    assert torch.autograd.gradgradcheck(function, (*inputs, residual))
    plain = function(*[t.detach() for t in (*inputs, residual)])
    torch.testing.assert_close(plain, function(*inputs, residual).detach())


@pytest.mark.parametrize(("activation", "slope"), ENDS)
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_gradients_of_what_follows_a_transposed_convolution(nd: int, activation: str | None, slope: float) -> None:
    name = f"conv_transpose{nd}d"
    inputs = _inputs((1, 2, *[2] * nd), (2, 2, *[2] * nd), name, {})
    residual = torch.randn(1, 2, *[3] * nd, dtype=torch.float64, requires_grad=True)

    def function(x, w, b, r):
        return conv.transposed(nd, name, x, w, b, 1, 0, 0, 1, 1, None, r, activation, slope)

    assert torch.autograd.gradcheck(function, (*inputs, residual))
    assert torch.autograd.gradgradcheck(function, (*inputs, residual))
    plain = function(*[t.detach() for t in (*inputs, residual)])
    torch.testing.assert_close(plain, function(*inputs, residual).detach())


@pytest.mark.parametrize(("name", "x", "w", "kwargs"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_third_gradients_are_torchs(name, x, w, kwargs) -> None:
    kwargs = {k: v for k, v in kwargs.items() if k != "output_padding"}  # torch's own third gradients raise with it
    inputs = _inputs(x, w, name, kwargs)

    def third(f: Any) -> tuple[torch.Tensor, ...]:
        y = getattr(f, name)(*inputs, **kwargs)
        first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.sum() for g in second), inputs)

    for mine, theirs in zip(third(ours), third(F), strict=True):
        torch.testing.assert_close(mine, theirs)


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "fastcv":
            self.names.append(op.name().removeprefix("fastcv::"))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("wanted", "runs"),
    [((0,), ["conv_dgrad"]), ((1,), ["conv_wgrad"]), ((2,), ["conv_bias_grad"]), ((0, 2), ["conv_dgrad", "conv_bias_grad"])],
)
def test_only_the_gradients_asked_for_are_computed(wanted: tuple[int, ...], runs: list[str]) -> None:
    tensors = [t.detach() for t in _inputs((2, 2, 5, 5), (3, 2, 3, 3), "conv2d", {})]
    for i in wanted:
        tensors[i].requires_grad_()
    y = ours.conv2d(*tensors)
    with Ops() as ops:
        y.sum().backward()
    assert ops.names == runs


def test_the_layout_of_gradients_is_torchs() -> None:
    for x_last in (False, True):
        for w_last in (False, True):
            strides = []
            for f in (ours, F):
                x, w = (
                    (t.to(memory_format=torch.channels_last) if last else t).requires_grad_()
                    for t, last in ((torch.randn(2, 8, 9, 9), x_last), (torch.randn(16, 8, 3, 3), w_last))
                )
                y = f.conv2d(x, w)
                strides.append([t.stride() for t in (y, *torch.autograd.grad(y, (x, w), torch.randn_like(y)))])
            assert strides[0] == strides[1]


def test_empty_batches_have_zero_gradients() -> None:
    for name, w in (("conv2d", (6, 4, 3, 3)), ("conv_transpose2d", (4, 6, 3, 3))):
        inputs = _inputs((0, 4, 5, 5), w, name, {})
        dx, dw, db = torch.autograd.grad(getattr(ours, name)(*inputs).sum(), inputs)
        assert dx.shape == inputs[0].shape
        assert not dw.any()
        assert not db.any()


def test_forward_mode_says_that_it_has_no_rule() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda w: ours.conv2d(x, w), (w,), (w,))


# ---- the kernels of the weight gradient ---------------------------------------------------------------------------------

WGRADS = [n for n in runnable_variants("conv_wgrad") if n != "ref" and not n.startswith("winograd4")]  # its points are irrational
# Input, output channels, kernel, stride, padding, dilation, groups.
LAYERS: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], int, int, int, int]] = {
    "3x3": ((2, 16, 9, 7), 40, (3, 3), 1, 1, 1, 1),
    "1x1-odd-pixels": ((3, 40, 7, 7), 17, (1, 1), 1, 0, 1, 1),
    "stem": ((1, 3, 25, 24), 33, (7, 7), 2, 3, 1, 1),
    "groups": ((2, 12, 11, 13), 18, (3, 3), 2, 1, 2, 3),
    "long": ((1, 32, 40, 41), 64, (3, 3), 1, 1, 1, 1),
    "one-pixel": ((4, 8, 1, 1), 8, (1, 1), 1, 0, 1, 1),
    "depthwise": ((2, 19, 15, 13), 19, (3, 3), 1, 1, 1, 19),
    "3d": ((2, 5, 4, 5, 6), 20, (2, 3, 3), 1, 1, 1, 1),
}


def wgrad_case(name: str, dtype: torch.dtype, x_last: bool, g_last: bool) -> list[Any]:
    """The arguments of the raw op, of small integers: every sum is exact in any order."""
    shape, channels, kernel, stride, padding, dilation, groups = LAYERS[name]
    nd, formats = len(kernel), {4: torch.channels_last, 5: torch.channels_last_3d}
    out = [(i + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for i, k in zip(shape[2:], kernel, strict=True)]

    def integers(sizes: tuple[int, ...], last: bool, seed: int) -> torch.Tensor:
        t = torch.randint(-1, 2, sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)
        return t.to(memory_format=formats[t.dim()]) if last else t

    x, g = integers(shape, x_last, 0), integers((shape[0], channels, *out), g_last, 1)
    return [x, g, list(kernel), [stride] * nd, [padding] * nd, [dilation] * nd, groups, 0]


@pytest.mark.parametrize("layouts", [(False, False), (True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("variant", WGRADS)
def test_weight_gradients_equal_the_reference(variant: str, name: str, layouts: tuple[bool, bool]) -> None:
    wgrad, ran = torch.ops.fastcv.conv_wgrad, False
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        args = wgrad_case(name, dtype, *layouts)
        try:
            with fastcv.use(conv_wgrad=variant):
                dw = wgrad(*args)
        except ValueError as refusal:
            assert "cannot run this call" in str(refusal)
            continue
        ran = True
        with fastcv.use(conv_wgrad="ref"):
            expected = wgrad(*args)
        assert torch.equal(dw, expected) and dw.stride() == expected.stride(), dtype
    if not ran:
        pytest.skip(f"{variant} does not serve {name}")


@pytest.mark.parametrize("variant", [n for n in WGRADS if "bf16" in n])
def test_weight_gradients_do_not_depend_on_threads(variant: str, threads: Callable[[int], None]) -> None:
    dtype = torch.float32 if "bf16x6" in variant else torch.bfloat16
    args = wgrad_case("long", dtype, True, True)
    g = torch.Generator().manual_seed(2)
    args[:2] = [torch.randn(t.shape, generator=g).to(dtype).to(memory_format=torch.channels_last) for t in args[:2]]
    with fastcv.use(conv_wgrad=variant):
        one, two, five = (threads(n) or torch.ops.fastcv.conv_wgrad(*args) for n in (1, 2, 5))
    assert torch.equal(one, two) and torch.equal(one, five)
    exact = torch.nn.grad.conv2d_weight(args[0].double(), (64, 32, 3, 3), args[1].double(), padding=1)
    theirs = torch.nn.grad.conv2d_weight(args[0], (64, 32, 3, 3), args[1], padding=1)
    assert_close(one, exact, theirs)


PARTS = [n for n in WGRADS if "bf16x6" in n]


@pytest.mark.parametrize("variant", PARTS)
@pytest.mark.parametrize("layouts", [(False, False), (True, True), (True, False), (False, True)], ids=str)
def test_weight_gradients_of_parts_keep_infinities_apart(variant: str, layouts: tuple[bool, bool]) -> None:
    x, g = torch.randn(3, 40, 13, 11), torch.randn(3, 50, 13, 11)
    x[0, 3, 2, 2], x[2, 7, 12, 10], x[1, 39, 0, 0] = float("inf"), float("nan"), 3.4e38
    g[1, 9, 5, 5], g[2, 49, 1, 1] = float("-inf"), torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    g[0, 4, 2, 2] = 0  # times infinity
    x, g = (t.to(memory_format=torch.channels_last) if last else t for t, last in zip((x, g), layouts, strict=True))
    exact = torch.einsum("nkhw,nchw->kc", g.double(), x.double())
    with fastcv.use(conv_wgrad=variant):
        dw = torch.ops.fastcv.conv_wgrad(x, g, [1, 1], [1, 1], [0, 0], [1, 1], 1, 0)[:, :, 0, 0]
    dw, exact = dw[:, :39], exact[:, :39]  # sums with the largest number may overflow: they must not spoil others
    assert torch.equal(dw.isnan(), exact.isnan()) and torch.equal(dw.isinf(), exact.isinf())
    assert (dw.double() - exact)[exact.isfinite()].abs().max() < 1e-4


@pytest.mark.skipif("gemm_bf16x6_amx" not in PARTS, reason="needs AMX")
def test_weight_gradients_of_parts_are_chosen_where_products_are_many() -> None:
    def chosen(c: int, k: int, kernel: int, stride: int = 1, precision: int = 0) -> bool:
        x, size = torch.randn(1, c, 12, 12), (12 - kernel) // stride + 1
        args = (x, torch.randn(1, k, size, size), [kernel] * 2, [stride] * 2, [0, 0], [1, 1], 1, precision)
        return ("conv_wgrad", "gemm_bf16x6_amx", "") in fastcv.why_not(torch.ops.fastcv.conv_wgrad, *args)

    assert chosen(256, 512, 1) and chosen(128, 128, 3, stride=2) and not chosen(64, 256, 1)
    assert not chosen(256, 512, 1, precision=3) and not chosen(16, 512, 1)
