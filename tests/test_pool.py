"""The pool family: golden numbers, every case on every variant, torch's corner cases, gradients of any order, errors."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as T
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcv
import fastcv.functional as F
from fastcv import nn
from fastcv.testing import Case, cases_of, check_case, serves

OPS = [
    "max_pool2d",
    "avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_avg_pool2d",
    "sum_pool2d",
    "max_unpool2d",
    "upsample_bed_of_nails",
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SMALL = [c for c in cases_of(*OPS) if not c.bench]
TABLES = [t for t in fastcv.variants() if "pool2d" in t.removeprefix("batch_norm_max_pool2d") or "bed_of_nails" in t]
MAX_POOLING = [v for v, _ in fastcv.variants("max_pool2d") if serves("max_pool2d", v, torch.float32)]
inf, nan = float("inf"), float("nan")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small maps: threads are the subject of one test only, and cost more than they save in the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal values, NaN equal to NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


# ---- golden numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [(7, 3, 1, 0, 5), (7, 3, 2, 0, 3), (7, 3, 3, 0, 2), (7, 3, 1, 1, 7)],
)
def test_golden_10_output_sizes(size: int, kernel: int, stride: int, padding: int, expected: int) -> None:
    """(N + 2P - F) / S + 1; 7 by 3 at stride 3 does not fit evenly: floor."""
    x = torch.randn(1, 2, size, size)
    for pool in (F.max_pool2d, F.avg_pool2d):
        assert pool(x, kernel, stride, padding).shape == (1, 2, expected, expected)


@pytest.mark.parametrize("variant", [v for v in MAX_POOLING if "nhwc" not in v])
def test_golden_11_pooling(variant: str) -> None:
    x = torch.tensor([[[[1.0, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]]]])
    with fastcv.use(max_pool2d=variant):
        assert F.max_pool2d(x, 2, 2).tolist() == [[[[6, 8], [3, 4]]]]
        for width in (5, 7, 9):
            assert F.max_pool2d(torch.randn(1, 1, width, width), 2, 2, ceil_mode=True).shape[-1] == (width + 1) // 2


def test_golden_12_unpooling() -> None:
    x = torch.tensor([[[[1.0, 2], [3, 4]]]])
    assert F.upsample_bed_of_nails(x, 2).tolist() == [[[[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]]]
    big = torch.tensor([[[[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]]]])
    values, places = F.max_pool2d(big, 2, 2, return_indices=True)
    assert values.tolist() == [[[[5, 6], [7, 8]]]]
    assert F.max_unpool2d(x, places, 2).tolist() == [[[[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]]]]
    nearest = F.max_unpool2d(x, torch.tensor([[[[0, 2], [8, 10]]]]), 2)
    assert same(nearest, F.upsample_bed_of_nails(x, 2)), "bed of nails is unpooling to the top left corners"


# ---- every case --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.id)
def test_case(case: Case, layout: str) -> None:
    for dtype in case.dtypes:
        check_case(case, getattr(F, case.op), dtype, layout)


@pytest.mark.parametrize("variant", [(t, v) for t in TABLES for v, _ in fastcv.variants(t)], ids=lambda v: f"{v[0]}-{v[1]}")
def test_every_variant_meets_the_rule(variant: tuple[str, str]) -> None:
    table, name = variant
    if not serves(table, name, torch.float32):
        pytest.skip("a CUDA kernel takes CPU tensors in a build with the emulator")
    layout = "channels_last" if "nhwc" in name else "contiguous"
    forward = table.removesuffix("_backward")
    ops = {"max_unpool2d": ["max_unpool2d", "adaptive_max_pool2d"], "avg_pool2d": ["avg_pool2d", "sum_pool2d"]}.get(forward, [forward])
    ran = 0
    with fastcv.use(**{table: name}):
        for i, case in enumerate(SMALL):
            unbatched = case.name == "unbatched"  # always row-major
            if case.op in ops and not (unbatched and "nhwc" in name):
                for dtype in {torch.float32, case.dtypes[i % len(case.dtypes)]}:
                    if not serves(table, name, dtype):
                        continue
                    try:
                        check_case(case, getattr(F, case.op), dtype, layout)
                        ran += 1
                    except RuntimeError as error:  # maps of one pixel or channel count as either layout
                        assert "needs row-major" in str(error) or "needs channels_last" in str(error)
    assert ran >= (4 if serves(table, name, torch.bfloat16) else 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 1), (5, 1, 2)], ids=str)
def test_widths_around_a_vector(window: tuple[int, int, int], channels_last: bool, dtype: torch.dtype) -> None:
    """Widths and channel counts one below, at and one above a vector and two, against the reference: values, indices, gradients."""
    for n in (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65):
        width, channels = (7, n) if channels_last else (n + 2, 2)
        x = torch.randint(-4, 5, (2, channels, 6, width)).to(dtype)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        results = []
        for choice in ({}, dict.fromkeys(TABLES, "ref")):
            with fastcv.use(**choice):
                leaf = x.clone().requires_grad_()
                values, indices = F.max_pool2d(leaf, *window, return_indices=True)
                values.sum().backward()
                offsets_leaf = x.clone().requires_grad_()
                F.max_pool2d(offsets_leaf, *window).sum().backward()
                avg_leaf = x.clone().requires_grad_()
                average = F.sum_pool2d(avg_leaf, *window)
                average.sum().backward()
                results.append([values, indices, leaf.grad, offsets_leaf.grad, F.max_pool2d(x, *window), average, avg_leaf.grad])
        assert all(map(torch.equal, *results)), n


# ---- NaN and infinities ------------------------------------------------------------------------------------------------

WINDOWS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 1), (5, 1, 2), (4, 3, 2)]


def agree_with_torch(x: torch.Tensor, *window: Any) -> None:
    """Values (inference, with indices, training), indices and gradients are torch's, exactly."""
    values, indices = T.max_pool2d(x, *window, return_indices=True)
    ours, our_indices = F.max_pool2d(x, *window, return_indices=True)
    assert same(ours, values) and torch.equal(our_indices, indices)
    assert same(F.max_pool2d(x, *window), values)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    grad = torch.randint(-3, 4, values.shape).to(x.dtype)
    T.max_pool2d(a, *window).backward(grad)
    F.max_pool2d(b, *window).backward(grad)
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("special", [nan, inf, -inf])
def test_special_values_are_torchs(special: float, window: tuple[int, int, int], channels_last: bool) -> None:
    for share, dtype in itertools.product((0.02, 0.5, 0.95, 1.0), DTYPES):
        x = torch.randint(-2, 3, (2, 19, 11, 37)).to(dtype)
        x[torch.rand(x.shape) < share] = special
        agree_with_torch(x.to(memory_format=torch.channels_last) if channels_last else x, *window)


@pytest.mark.parametrize("variant", MAX_POOLING)
def test_one_nan_reaches_every_window_that_sees_it(variant: str) -> None:
    """Wherever the NaN lies, in a vector's body or tail, the same windows give NaN (permute channels: the result permutes)."""
    for c, w in itertools.product((0, 15, 16, 20), (0, 7, 15, 16, 31, 34)):
        x = torch.randn(1, 21, 4, 35)
        x[0, c, 2, w] = nan
        if "nhwc" in variant:
            x = x.to(memory_format=torch.channels_last)
        with fastcv.use(max_pool2d=variant):
            y = F.max_pool2d(x, 3, 2, 1)
            order = torch.randperm(21)
            permuted = F.max_pool2d(
                x[:, order].contiguous(memory_format=torch.channels_last if "nhwc" in variant else torch.contiguous_format), 3, 2, 1
            )
        expected = torch.zeros(y.shape, dtype=torch.bool)
        expected[0, c, 1, (w + 1) // 2 - (1 - w % 2) * 0 : (w + 1) // 2 + 1] = True
        expected[0, c, 1, w // 2] = True
        assert torch.equal(y.isnan(), T.max_pool2d(x.contiguous(), 3, 2, 1).isnan())
        assert same(permuted, y[:, order])


def test_a_window_of_minus_infinity_names_its_first_element() -> None:
    x = torch.full((1, 1, 4, 4), -inf)
    values, indices = F.max_pool2d(x, 2, 2, return_indices=True)
    assert values.tolist() == [[[[-inf] * 2] * 2]] and indices.tolist() == [[[[0, 2], [8, 10]]]]
    assert F.max_pool2d(x, 3, 2, 1, return_indices=True)[1].tolist() == [[[[0, 1], [4, 5]]]]


# ---- properties --------------------------------------------------------------------------------------------------------

pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731


@st.composite
def pool_calls(draw: Any) -> tuple[torch.Tensor, tuple[Any, ...]]:
    sizes = (*draw(st.sampled_from([(1,), (2,), ()])), draw(st.sampled_from([1, 3, 16, 17])), *draw(pairs(1, 24)))
    x = torch.randint(-3, 4, sizes, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(draw(st.sampled_from(DTYPES)))
    if len(sizes) == 4 and draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    kernel, stride = draw(pairs(0, 5)), draw(st.one_of(st.none(), pairs(0, 4)))
    padding = draw(st.one_of(st.just((0, 0)), pairs(-1, 3)))
    return x, (kernel, stride, padding)


def outcome(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except RuntimeError:
        return RuntimeError


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pool_calls(), pairs(1, 3), st.booleans())
def test_max_pool2d_is_torchs(call: Any, dilation: tuple[int, int], ceil_mode: bool) -> None:
    """Both raise, or both give the same values and indices."""
    x, args = call
    theirs, ours = outcome(T.max_pool2d, x, *args, dilation, ceil_mode, True), outcome(F.max_pool2d, x, *args, dilation, ceil_mode, True)
    if theirs is RuntimeError or ours is RuntimeError:
        assert theirs is ours
    else:
        assert torch.equal(theirs[0], ours[0]) and torch.equal(theirs[1], ours[1]) and ours[0].stride() == theirs[0].stride()
        assert torch.equal(F.max_pool2d(x, *args, dilation, ceil_mode), theirs[0])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pool_calls(), st.booleans(), st.booleans(), st.sampled_from([None, 0, 1, -3, 5]))
def test_avg_pool2d_is_torchs(call: Any, ceil_mode: bool, count_include_pad: bool, divisor: int | None) -> None:
    x, args = call
    args = (*args, ceil_mode, count_include_pad, divisor)
    theirs, ours = outcome(T.avg_pool2d, x, *args), outcome(F.avg_pool2d, x, *args)
    if theirs is RuntimeError or ours is RuntimeError:
        assert theirs is ours
    else:
        # Sums of small integers are exact: one division each, the same one.
        assert same(ours, theirs) and ours.stride() == theirs.stride()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pool_calls(), pairs(-1, 9))
def test_adaptive_pools_are_torchs(call: Any, size: tuple[int, int]) -> None:
    x, _ = call
    theirs, ours = outcome(T.adaptive_max_pool2d, x, size, True), outcome(F.adaptive_max_pool2d, x, size, True)
    if theirs is RuntimeError or ours is RuntimeError:
        assert theirs is ours
    else:
        assert torch.equal(theirs[0], ours[0]) and torch.equal(theirs[1], ours[1])
    theirs, ours = outcome(T.adaptive_avg_pool2d, x, size), outcome(F.adaptive_avg_pool2d, x, size)
    if theirs is RuntimeError or ours is RuntimeError:
        assert theirs is ours
    elif x.dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", OPS)
def test_threads_and_batch_do_not_matter(name: str, channels_last: bool) -> None:
    """The same bits on one thread and two, and for an image alone, forward and backward."""

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        match name:
            case "max_unpool2d":
                places = (torch.arange(28 * 28).reshape(28, 28) * 3).expand(leaf.shape).contiguous()
                y = F.max_unpool2d(leaf, places, 2)
            case "upsample_bed_of_nails":
                y = F.upsample_bed_of_nails(leaf, 2)
            case "adaptive_avg_pool2d" | "adaptive_max_pool2d":
                y = getattr(F, name)(leaf, (5, 3))
            case _:
                y = getattr(F, name)(leaf, 3, 2, 1)
        (y * y).sum().backward()
        return [y.detach(), leaf.grad]

    x = torch.randn(3, 96, 28, 28)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(x)
        torch.set_num_threads(2)
        assert all(map(torch.equal, alone, run(x)))
        assert all(torch.equal(a[1:2], b) for a, b in zip(alone, run(x[1:2]), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[:, ::2, 1:],
        lambda x: x.mT,
        lambda x: x[:, :, ::2, ::3],
        lambda x: x[:, :1].expand(-1, 3, -1, -1),
        lambda x: x.flip(1)[:, :, 2:],
    ],
)
def test_any_strides(make: Any) -> None:
    x = make(torch.randn(2, 4, 9, 12))
    torch.testing.assert_close(F.avg_pool2d(x, 2), T.avg_pool2d(x, 2))
    agree_with_torch(x, 3, 2, 1)
    leaf = x.clone().requires_grad_()
    F.avg_pool2d(leaf, 2).sum().backward()  # an expanded gradient: strides of zero
    assert leaf.grad.unique().numel() <= 2


def test_layouts_of_ambiguous_maps() -> None:
    for sizes in [(2, 1, 6, 6), (1, 5, 6, 6), (2, 5, 4, 1), (2, 5, 1, 4)]:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(sizes).to(memory_format=layout)
            for ours, theirs in ((F.max_pool2d, T.max_pool2d), (F.avg_pool2d, T.avg_pool2d)):
                assert ours(x, 1).stride() == theirs(x, 1).stride()
            for ours, theirs in ((F.adaptive_max_pool2d, T.adaptive_max_pool2d), (F.adaptive_avg_pool2d, T.adaptive_avg_pool2d)):
                assert ours(x, 1).stride() == theirs(x, 1).stride()


# ---- autograd and torch's machinery ---------------------------------------------------------------------------------------

CALLS = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max-dilated": lambda x: F.max_pool2d(x, 2, 1, 1, 2),
    "max-s3": lambda x: F.max_pool2d(x, 3, 3, 1),
    "max-indices": lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
    "avg": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg-valid": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "sum": lambda x: F.sum_pool2d(x, 2, 1),
    "adaptive-avg": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive-avg-1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive-max": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "nails": lambda x: F.upsample_bed_of_nails(x, (2, 1)),
    "unpool": lambda x: F.max_unpool2d(x, torch.arange(42).flip(0).reshape(6, 7).expand(x.shape), 1),
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("call", CALLS)
def test_gradients_of_any_order(call: str, channels_last: bool) -> None:
    x = torch.randperm(2 * 2 * 6 * 7).reshape(2, 2, 6, 7).double() / 10
    x = (x.to(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    assert torch.autograd.gradcheck(CALLS[call], (x,))
    assert torch.autograd.gradgradcheck(lambda a: CALLS[call](a) ** 2, (x,))


@pytest.mark.parametrize("call", CALLS)
def test_compile_export_vmap_and_func(call: str) -> None:
    function = CALLS[call]
    x = torch.randn(2, 3, 6, 7)
    expected = function(x)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x), expected)
    leaf, peer = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(leaf).square().sum().backward()
    function(peer).square().sum().backward()
    assert torch.equal(leaf.grad, peer.grad)

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    assert torch.equal(torch.export.export(Module(), (x,)).module()(x), expected)
    assert torch.equal(torch.vmap(function)(x), expected)
    if call != "unpool":
        batched = torch.randn(2, 3, 4, 6, 7)
        assert torch.equal(torch.vmap(function, in_dims=2)(batched), torch.stack([function(b) for b in batched.unbind(2)]))
        per_sample = torch.vmap(torch.func.grad(lambda a: function(a).square().sum()))(x)
        assert torch.equal(per_sample, peer.grad)


MAP, GRAD = torch.randn(2, 3, 6, 7), torch.randn(2, 3, 3, 4)
PLACES = torch.randint(0, 42, (2, 3, 3, 4))
WINDOW = ([3, 3], [2, 2], [1, 1])
RAW = [
    ("max_pool2d", (MAP, *WINDOW, [1, 1], False)),
    ("max_pool2d_with_offsets", (MAP, *WINDOW, [1, 1], False)),
    ("max_pool2d_with_indices", (MAP, *WINDOW, [1, 1], True)),
    ("max_pool2d_backward", (GRAD, PLACES, [6, 7], *WINDOW, [1, 1], False, False)),
    ("max_pool2d_backward", (GRAD, PLACES.byte(), [6, 7], *WINDOW, [1, 1], False, True)),
    ("avg_pool2d", (MAP, *WINDOW, False, True, None)),
    ("avg_pool2d_backward", (GRAD, [6, 7], *WINDOW, False, False, 3, True)),
    ("adaptive_avg_pool2d", (MAP, [4, 3])),
    ("adaptive_avg_pool2d_backward", (GRAD, [5, 9], False)),
    ("adaptive_max_pool2d", (MAP, [4, 3])),
    ("adaptive_max_pool2d_with_indices", (MAP, [4, 3])),
    ("max_unpool2d", (GRAD, PLACES, [6, 7], False)),
    ("max_unpool2d", (GRAD, PLACES, [6, 7], True)),
    ("max_unpool2d_backward", (MAP, PLACES)),
    ("upsample_bed_of_nails", (MAP, [2, 3])),
    ("upsample_bed_of_nails_backward", (MAP, [2, 1], True)),
]


@pytest.mark.parametrize("name, args", RAW, ids=[f"{name}-{i}" for i, (name, _) in enumerate(RAW)])
def test_opcheck(name: str, args: tuple[Any, ...]) -> None:
    op = getattr(torch.ops.fastcv, name).default
    torch.library.opcheck(op, args)
    last = tuple(a.to(memory_format=torch.channels_last) if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(op, last, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_dtype_as_torch_does(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=dtype):
        for ours, theirs in ((F.max_pool2d, T.max_pool2d), (F.avg_pool2d, T.avg_pool2d), (F.adaptive_avg_pool2d, T.adaptive_avg_pool2d)):
            for t in (x, x.to(dtype)):
                assert ours(t, 2).dtype == theirs(t, 2).dtype


def test_inference_mode_and_no_grad_keep_no_map() -> None:
    """Without a gradient the values-only op runs; nothing else is computed."""
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, torch.profiler.profile() as profile:
            F.max_pool2d(x, 2)
        assert {e.name for e in profile.events() if e.name.startswith("fastcv")} == {"fastcv::max_pool2d"}


# ---- modules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("MaxPool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
        ("MaxPool2d", (2,), {"return_indices": True}),
        ("AvgPool2d", (3, 2, 1), {"count_include_pad": False}),
        ("AdaptiveAvgPool2d", ((None, 3),), {}),
        ("AdaptiveMaxPool2d", (3,), {"return_indices": True}),
    ],
)
def test_modules_are_torchs(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, theirs = getattr(nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)
    x = torch.randn(2, 3, 9, 9)
    assert isinstance(ours, type(theirs)) and repr(ours) == repr(theirs) and ours.state_dict() == {}
    torch.testing.assert_close(ours(x), theirs(x))


def test_unpool_module_inverts_pool_module() -> None:
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    x = torch.randn(2, 3, 9, 10)
    values, places = pool(x)
    back = unpool(values, places, output_size=x.shape)
    assert back.shape == x.shape and torch.equal(back, torch.nn.MaxUnpool2d(2)(values, places, output_size=x.shape))
    assert torch.equal(pool(back.where(back != 0, torch.tensor(-inf)))[0], values)
    assert torch.equal(nn.SumPool2d(2)(x), F.sum_pool2d(x, 2)) and "kernel_size=2, stride=2" in repr(nn.SumPool2d(2))
    assert nn.UpsampleBedOfNails(3)(x).shape == (2, 3, 27, 30)


# ---- errors ----------------------------------------------------------------------------------------------------------------

X = torch.randn(2, 3, 5, 6)
VALUES, INDICES = T.max_pool2d(X, 2, return_indices=True)


def place(value: int) -> torch.Tensor:
    indices = INDICES.clone()
    indices[1, 0, 1, 1] = value
    return indices


ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    *[
        (name, args, kwargs, match)
        for name in ("max_pool2d", "avg_pool2d")
        for args, kwargs, match in [
            ((X, 7), {}, "output size is too small"),
            ((X, 2, 1, 2), {}, r"padding should be at most half.*\[2, 2\]"),
            ((X, 2, 0), {}, "stride must be greater than zero"),
            ((X, 2, -1), {}, "stride must be greater than zero"),
            ((X, 0), {}, "kernel_size must be greater than zero"),
            ((X, -2, 1), {}, "kernel_size must be greater than zero"),
            ((X, 2, 1, -1), {}, "padding must be non-negative"),
            ((X[None], 2), {}, "3-D or 4-D"),
            ((X[0, 0], 2), {}, "3-D or 4-D"),
            ((X[:, :0], 2), {}, "non-zero sizes"),
            ((X[:, :, :0], 2), {}, r"non-zero sizes.*\[2, 3, 0, 6\]"),
            ((X, (2, 2, 2)), {}, "kernel_size"),
            ((X, ()), {}, "kernel_size"),
            ((X, 2, (1, 1, 1)), {}, "stride"),
            ((X, 2, 1, (0, 0, 0)), {}, "padding"),
            ((X, None), {}, "kernel_size"),
            ((X, 2.0), {}, "kernel_size"),
            ((X, (2, 2.0)), {}, "kernel_size"),
            ((X, True), {}, "kernel_size"),
            ((X, 2), {"ceil_mode": 1}, "ceil_mode"),
            (([1.0], 2), {}, "must be Tensor"),
            ((X > 0, 2), {}, "dtype"),
            ((X + 0j, 2), {}, "dtype"),
        ]
    ],
    ("max_pool2d", (X, 2, 1, 0, 0), {}, "dilation must be greater than zero"),
    ("max_pool2d", (X, 3, 1, 0, 3), {}, "output size is too small"),
    ("avg_pool2d", (X, 2), {"divisor_override": 0}, "divisor must be not zero"),
    ("avg_pool2d", (X, 2), {"divisor_override": 1.5}, "divisor_override"),
    ("avg_pool2d", (X.int(), 2), {}, "dtype Int"),
    *[
        (name, args, {}, match)
        for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d")
        for args, match in [
            ((X, -1), "-1"),
            ((X, (1, 2, 3)), "output_size"),
            ((X, (2,)), "output_size"),
            ((X, ()), "output_size"),
            ((X, None), "output_size"),
            ((X, 1.5), "output_size"),
            ((X, (1.5, 1)), "output_size"),
            ((X[0, 0], 2), "3-D or 4-D"),
            ((X[0, 0, 0], (2, 2)), "at least 3"),
            ((X[None], 2), "3-D or 4-D"),
            ((X[:, :, :0], 2), "non-zero sizes"),
            ((X.int(), 2), "dtype Int"),
        ]
    ],
    ("adaptive_max_pool2d", (X[:, :0], 2), {}, "non-zero sizes"),
    ("max_unpool2d", (VALUES, place(24), 2), {}, "invalid max index: 24 .*4x6"),
    ("max_unpool2d", (VALUES, place(-1), 2), {}, "invalid max index: -1"),
    ("max_unpool2d", (VALUES, place(2**62), 2), {}, f"invalid max index: {2**62}"),
    ("max_unpool2d", (VALUES, INDICES.int(), 2), {}, "int64"),
    ("max_unpool2d", (VALUES, INDICES[:1], 2), {}, r"\[2, 3, 2, 3\].*\[1, 3, 2, 3\]"),
    ("max_unpool2d", (VALUES[0, 0], INDICES[0, 0], 2), {}, "3-D or 4-D"),
    ("max_unpool2d", (VALUES[:, :0], INDICES[:, :0], 2), {}, "non-zero sizes"),
    ("max_unpool2d", (VALUES[:, :, :0], INDICES[:, :, :0], 2), {}, "non-zero sizes|negative"),
    ("max_unpool2d", (VALUES, INDICES, 2), {"output_size": (9, 7)}, "between 2 and 6"),
    ("max_unpool2d", (VALUES, INDICES, 2), {"output_size": (9, 7, 1)}, "2 or 4 elements"),
    ("max_unpool2d", (VALUES, INDICES, 2, -2), {}, "negative"),
    ("max_unpool2d", (VALUES, INDICES, 2, 2, 3), {}, "negative"),
    ("max_unpool2d", (VALUES, INDICES, None), {}, "kernel_size"),
    ("max_unpool2d", (VALUES.int(), INDICES, 2), {}, "dtype Int"),
]


@pytest.mark.parametrize("name, args, kwargs, match", ERRORS, ids=[f"{i}-{e[0]}" for i, e in enumerate(ERRORS)])
def test_errors_are_torchs_types(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], match: str) -> None:
    try:
        getattr(T, name)(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        expected: type[Exception] = RuntimeError if isinstance(error, RuntimeError) else type(error)
    else:
        pytest.fail(f"torch's {name} accepts this")
    with pytest.raises(expected, match=match):
        getattr(F, name)(*args, **kwargs)


def test_errors_of_our_own() -> None:
    with pytest.raises(RuntimeError, match="dtype Int has no kernel"):  # torch pools integers; these kernels do not
        F.max_pool2d(X.int(), 2)
    with pytest.raises(RuntimeError, match="scale_factor"):
        F.upsample_bed_of_nails(X, 0)
    with pytest.raises(TypeError, match="scale_factor"):
        F.upsample_bed_of_nails(X, 2.0)
    with pytest.raises(RuntimeError, match="invalid max index: 99"):
        torch.ops.fastcv.max_unpool2d_backward(X, torch.full((2, 3, 1, 1), 99))
    with pytest.raises(RuntimeError, match=r"gradient of height and width \[2, 3\]"):
        torch.ops.fastcv.avg_pool2d_backward(X, [5, 6], [2, 2], [2, 2], [0, 0], False, True, None, False)


def test_empty_outputs() -> None:
    assert F.adaptive_avg_pool2d(X, 0).shape == (*F.adaptive_max_pool2d(X, (0, 2)).shape[:2], 0, 0)
    assert F.adaptive_avg_pool2d(X[:, :0], 2).shape == (2, 0, 2, 2)
    leaf = X[:0].clone().requires_grad_()
    for call in (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        leaf.grad = None
        call(leaf, 2).sum().backward()
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape
