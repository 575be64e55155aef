"""Sub-pixel convolution: every row against float64 on any geometry, in rounds of images, what it promises, and when it is chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import fastcv
import fastcv.functional as ours
from fastcv.testing import max_error, runnable_variants

CONV, DGRAD = torch.ops.fastcv.conv, torch.ops.fastcv.conv_dgrad
CONV_PACK, DGRAD_PACK = torch.ops.fastcv.conv_pack, torch.ops.fastcv.conv_dgrad_pack
ROWS = [n for n in runnable_variants("conv") if n.startswith("subpixel")]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def normal(*sizes: int, layout: str = "contiguous", seed: int = 0) -> torch.Tensor:
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=FORMATS[layout])


@pytest.mark.parametrize("row", ROWS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    transposed=st.booleans(),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 16, 33]), st.integers(1, 23), st.integers(1, 40)),
    outputs=st.integers(1, 20),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    padding=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    more=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    layout=st.sampled_from(sorted(FORMATS)),
    weight_layout=st.sampled_from(sorted(FORMATS)),
    end=st.tuples(st.booleans(), st.booleans(), st.sampled_from([0, 1, 5])),
)
# A cell that reads beyond an image without padding; a kernel narrower than the stride; images of one pixel.
@example(True, (3, 2, 33, 31), 3, (1, 2), (1, 2), (0, 0), (2, 1), (0, 1), "contiguous", "channels_last", (True, True, 0))
@example(True, (1, 33, 5, 5), 1, (2, 3), (8, 5), (0, 1), (1, 1), (5, 4), "channels_last", "contiguous", (False, False, 1))
@example(False, (2, 16, 1, 1), 2, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0), "channels_last", "channels_last", (True, False, 0))
def test_any_geometry(row, transposed, shape, outputs, kernel, stride, padding, dilation, more, layout, weight_layout, end) -> None:
    n, c, *sizes = shape
    biased, resides, activation = end
    if transposed:
        more = [min(m, s - 1) for m, s in zip(more, stride, strict=True)]
        along = zip(sizes, stride, padding, dilation, kernel, more, strict=True)
        spatial = [(i - 1) * s - 2 * p + d * (k - 1) + 1 + m for i, s, p, d, k, m in along]
        weight = normal(c, outputs, *kernel, layout=weight_layout, seed=1)
    else:
        stride = [min(s, 4) for s in stride]
        spatial = [(i + 2 * p - d * (k - 1) - 1) // s + 1 for i, s, p, d, k in zip(sizes, stride, padding, dilation, kernel, strict=True)]
        weight = normal(outputs, c, *kernel, layout=weight_layout, seed=1)
    assume(min(spatial) >= 1 and max(spatial) <= 120)
    x = normal(*shape, layout=layout)
    bias = normal(outputs, seed=2) if biased else None
    residual = normal(n, outputs, *spatial, layout=layout, seed=3) if resides else None
    geometry = ([*stride], [*padding], [*dilation], 1)

    def run(name: str, cast=lambda t: t) -> torch.Tensor:
        x_, w_, b_, r_ = (None if t is None else cast(t) for t in (x, weight, bias, residual))
        with fastcv.use(conv=name, conv_dgrad=name):
            if transposed:
                return DGRAD(x_, w_, b_, spatial, *geometry, 0, None, r_, activation)
            return CONV(x_, w_, b_, *geometry, r_, activation, 0)

    y, exact = run(row), run("ref", torch.Tensor.double)
    assert y.stride() == run("ref").stride()
    magnitude = exact.abs().max() if exact.numel() else 0
    assert max_error(y, exact) <= 3e-6 or (y - exact).abs().max() <= 3e-6 * magnitude
    if n > 1:
        with fastcv.use(conv=row, conv_dgrad=row):
            one = x[1:2].clone(memory_format=torch.preserve_format)
            left = None if residual is None else residual[1:2].clone(memory_format=torch.preserve_format)
            if transposed:
                alone = DGRAD(one, weight, bias, spatial, *geometry, 0, None, left, activation)
            else:
                alone = CONV(one, weight, bias, *geometry, left, activation, 0)
        assert torch.equal(alone, y[1:2])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("row", [r for r in ROWS if "model" not in r])
def test_images_in_rounds(row: str, layout: str) -> None:
    """More of them than fit the scratch memory of a round, in rounds of different sizes."""
    x, w, b = normal(5, 2, 700, 900, layout=layout), normal(1, 2, 3, 3, seed=1), normal(1, seed=2)
    geometry = ([1, 1], [1, 1], [1, 1], 1, None, 0, 0)
    with fastcv.use(conv=row):
        y = CONV(x, w, b, *geometry)
        alone = [CONV(x[i : i + 1], w, b, *geometry) for i in range(5)]
    torch.testing.assert_close(y, F.conv2d(x, w, b, padding=1), rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat(alone), y)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("row", ROWS)
def test_kept_weights_and_threads(row: str, layout: str) -> None:
    """Weights kept from one image size serve any other, to the same bits."""
    w, b, geometry = normal(20, 3, 5, 5, layout=layout, seed=1), normal(3, seed=2), ([2, 2], [2, 2], [1, 1], 1)
    threads = torch.get_num_threads()
    with fastcv.use(conv=row, conv_dgrad=row):
        kept = DGRAD_PACK(normal(1, 20, 9, 9, layout=layout), w, [17, 17], *geometry, 0)
        for h, size in ((9, [17, 17]), (14, [28, 27]), (1, [1, 2])):
            x = normal(2, 20, h, h, layout=layout, seed=h)
            y = DGRAD(x, w, b, size, *geometry, 0)
            assert torch.equal(DGRAD(x, w, b, size, *geometry, 0, kept), y)
            for count in (1, 3):
                torch.set_num_threads(count)
                try:
                    assert torch.equal(DGRAD(x, w, b, size, *geometry, 0), y)
                finally:
                    torch.set_num_threads(threads)
        v = normal(3, 20, 3, 3, layout=layout, seed=4)
        x = normal(2, 20, 11, 30, layout=layout, seed=5)
        kept = CONV_PACK(normal(1, 20, 8, 8, layout=layout), v, [1, 1], [1, 1], [1, 1], 1, 0)
        plain = CONV(x, v, b, [1, 1], [1, 1], [1, 1], 1, None, 0, 0)
        assert torch.equal(CONV(x, v, b, [1, 1], [1, 1], [1, 1], 1, None, 0, 0, kept), plain)


@pytest.mark.parametrize("row", ROWS)
def test_nan_and_infinity_spread_no_farther_than_their_cells(row: str) -> None:
    x, w = normal(1, 40, 30, 30), normal(3, 40, 3, 3, seed=1)
    x[0, 5, 11, 13], x[0, 7, 20, 2] = float("nan"), float("inf")
    with fastcv.use(conv=row):
        bad = ~CONV(x, w, None, [1, 1], [1, 1], [1, 1], 1, None, 0, 0)[0].isfinite().all(0)
    read = torch.zeros(30, 30, dtype=torch.bool)
    read[10:13, 12:15] = read[19:22, 1:4] = True
    near = F.max_pool2d(read[None].float(), 7, 1, 3)[0] > 0  # blocks of up to four
    assert bad[read].all() and not bad[~near].any()


def test_ieee_keeps_nan_and_infinity_to_the_outputs_that_read_them() -> None:
    x, w = normal(1, 64, 40, 40), normal(64, 3, 4, 4, seed=1)
    x[0, 5, 11, 13], x[0, 7, 20, 2] = float("nan"), float("inf")
    wide = normal(64, 3, 32, 32, seed=1)
    before = torch.backends.mkldnn.conv.fp32_precision
    try:
        torch.backends.mkldnn.conv.fp32_precision = "ieee"
        y, far = ours.conv_transpose2d(x, w, stride=2, padding=1), ours.conv_transpose2d(x[..., :5], wide, stride=16, padding=8)
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before
    assert torch.equal(y.isfinite(), F.conv_transpose2d(x.double(), w.double(), stride=2, padding=1).isfinite())
    assert torch.equal(far.isfinite(), F.conv_transpose2d(x[..., :5].double(), wide.double(), stride=16, padding=8).isfinite())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"groups": 2}, "needs a convolution without groups"),
        ({"stride": 5}, "needs strides up to 4, transposed up to 8"),
        ({"precision": 3}, "the precision 'ieee' asks for a direct sum"),
        ({"dtype": torch.bfloat16}, "needs float32"),
        ({"kernel": 67, "padding": 33}, "needs a kernel that reaches over at most 64 pixels"),
    ],
)
def test_what_it_refuses(options: dict, sentence: str) -> None:
    dtype, kernel, groups = options.get("dtype", torch.float32), options.get("kernel", 3), options.get("groups", 1)
    x, w = normal(1, 4, 9, 9).to(dtype), normal(2, 4 // groups, kernel, kernel, seed=1).to(dtype)
    stride, padding = options.get("stride", 1), options.get("padding", 1)
    for row in ROWS:
        with pytest.raises(ValueError, match=sentence), fastcv.use(conv=row):
            CONV(x, w, None, [stride] * 2, [padding] * 2, [1, 1], groups, None, 0, options.get("precision", 0))


def chosen(call) -> str:
    (variant,) = [variant for op, variant, reason in fastcv.why_not(call) if reason == "" and op in ("conv", "conv_dgrad")]
    return variant


def test_the_rule_takes_it_where_few_outputs_leave_lanes_idle() -> None:
    taken = {
        "dcgan's image": lambda: ours.conv_transpose2d(normal(1, 64, 32, 32), normal(64, 3, 4, 4), stride=2, padding=1),
        "a denoiser's image": lambda: ours.conv2d(normal(1, 64, 180, 180), normal(1, 64, 3, 3), padding=1),
        "srcnn's image": lambda: ours.conv2d(normal(1, 32, 128, 128), normal(1, 32, 5, 5), padding=2),
        "a stem's input gradient": lambda: DGRAD(
            normal(1, 64, 112, 112), normal(64, 3, 7, 7), None, [224, 224], [2, 2], [3, 3], [1, 1], 1, 0
        ),
    }
    for name, call in taken.items():
        assert chosen(call).startswith("subpixel_"), name
    left = {
        "many outputs": lambda: ours.conv2d(normal(1, 64, 56, 56), normal(64, 64, 5, 5), padding=2),
        "a small map": lambda: ours.conv2d(normal(1, 64, 8, 8), normal(1, 64, 3, 3), padding=1),
        "one tap": lambda: ours.conv2d(normal(1, 64, 56, 56), normal(3, 64, 1, 1)),
    }
    for name, call in left.items():
        assert not chosen(call).startswith("subpixel_"), name
