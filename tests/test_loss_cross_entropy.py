"""cross_entropy and nll_loss: widths, accuracy, options and special values against torch, gradients, golden numbers."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as T
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_common import DTYPES, INF, NAN, double, outcome, same

import fastcv
import fastcv.functional as F
from fastcv.testing import assert_close, runnable_variants

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides", "ignore:__array__")

X = torch.randn(3, 4)
L = torch.tensor


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


def test_mixed_dtypes_promote_as_in_torch() -> None:
    p = X.softmax(1)
    for x, target in ((X, p.double()), (X.double(), p), (X.bfloat16(), p), (X, p.half())):
        ours, torchs = F.cross_entropy(x, target), T.cross_entropy(x, target)
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs, rtol=1e-2, atol=1e-2)
        assert F.kl_div(x, target).dtype == T.kl_div(x, target).dtype


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


def test_golden_6_random_initialisation() -> None:
    for classes in (10, 1000):
        x = 1e-3 * torch.randn(64, classes)
        assert F.cross_entropy(x, torch.randint(0, classes, (64,))).item() == pytest.approx(math.log(classes), abs=0.01)


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


def test_scale_gradient_variants() -> None:
    image = torch.randn(3, 5, 7, 19)
    for x in (image, image.to(memory_format=torch.channels_last), torch.randn(9, 4).t(), torch.empty(0, 3)):
        for dtype in DTYPES:
            for name in runnable_variants("scale_gradient", dtype):
                with fastcv.use(scale_gradient=name):
                    y = x.to(dtype, copy=True)
                    torch.ops.fastcv.scale_gradient_(y, torch.tensor(0.5, dtype=dtype))
                    assert torch.equal(y, x.to(dtype) * 0.5) and y.stride() == x.stride()
    with pytest.raises(RuntimeError, match="without gaps or overlaps"):
        torch.ops.fastcv.scale_gradient_(image[..., ::2], torch.tensor(0.5))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [520, 1031])
def test_columns_of_many_classes(classes: int, dtype: torch.dtype) -> None:
    """Their sums follow the maximum so far: scores that rise from class to class move it every time."""
    rising = torch.linspace(-300, 300, classes)[:, None]
    for shift in (0 * rising, rising, -rising, 1e4 + rising):
        x = (torch.randn(2, classes, 45) + shift).to(dtype).requires_grad_()
        target = torch.randint(0, classes, (2, 45))
        target[0, 3] = -100
        soft = torch.randn(2, classes, 45).softmax(1).to(dtype)
        for aim, options in ((target, {}), (target, {"label_smoothing": 0.2, "weight": torch.rand(classes).to(dtype)}), (soft, {})):
            exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            results = []
            for function, scores, wanted, more in (
                (F.cross_entropy, x, aim, options),
                (T.cross_entropy, x.double(), aim.double() if aim is soft else aim, exact),
                (T.cross_entropy, x, aim, options),
            ):
                loss = function(scores, wanted, reduction="none", **more)
                results.append((loss, torch.autograd.grad(loss.sum(), x)[0]))
            assert_close(*(r[0] for r in results))
            assert_close(*(r[1] for r in results))
            assert torch.equal(F.cross_entropy(x[1:], aim[1:], reduction="none", **options), results[0][0][1:])


def test_special_values_in_columns_of_many_classes() -> None:
    x = torch.randn(1, 600, 20)
    x[0, :40, 0] = x[0, 40:, 1] = x[0, :, 2] = x[0, ::2, 3] = -INF
    x[0, 5, 4] = x[0, 590, 5] = INF
    x[0, 7, 6] = x[0, 599, 7] = NAN
    x[0, 9, 8], x[0, 10, 9] = 3e38, -3e38
    x.requires_grad_()
    for value in (0, 300, 599):
        target = torch.full((1, 20), value)
        for smoothing in (0.0, 0.1):
            ours = F.cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
            torchs = T.cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
            same(ours, torchs, f"target {value}, smoothing {smoothing}")
            same(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(torchs.sum(), x)[0], "gradient")
