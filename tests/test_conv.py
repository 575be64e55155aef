"""Convolutions forward: torch's answers for the cases, any strides and random arguments; modules; golden numbers."""

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv_common import DTYPES, assert_within_bound
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcv
import fastcv.functional as ours
from fastcv.testing import Case, assert_close, cases_of, check_case

FUNCTIONS = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
SMALL = [case for case in cases_of(*FUNCTIONS, "conv2d_fused") if not case.bench]

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


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


def test_integers_of_any_kind() -> None:
    x, w = torch.randn(1, 2, 9, 9), torch.randn(2, 2, 3, 3)
    expected = ours.conv2d(x, w, stride=2, padding=1)
    for two, one in (([2, 2], [1]), ((2,), torch.tensor(1)), (torch.Size([2, 2]), (1, torch.tensor(1)))):
        assert torch.equal(ours.conv2d(x, w, stride=two, padding=one), expected)


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
    assert_within_bound(y, exact, magnitude, x.shape[1] * math.prod(w.shape[2:]) + 1)


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
