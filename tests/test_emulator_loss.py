"""The CUDA kernels of the losses on the emulator: what the cases of `fastcv.testing` are too small for, and what torch promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastcv
from fastcv import functional as F
from fastcv.testing.compare import assert_close

pytestmark = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)

KEEPERS = ("warp_sm80", "staged_sm80", "cluster_sm90", "online_sm80", "column_sm80")


def seed_emulator(value: int) -> None:
    from fastcv import _C

    _C.seed_emulator(value)


def with_grad(function: Any, x: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = function(x, *rest, **options)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), grad


def check(name: str, ours: Any, theirs: Any, x: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    result = with_grad(ours, x, *rest, **options)
    torchs = with_grad(theirs, x, *rest, **options)
    exact = with_grad(theirs, x.double(), *map(wide, rest), **{k: wide(v) for k, v in options.items()})
    for what, a, t, e in zip(("loss", "gradient"), result, torchs, exact, strict=True):
        assert_close(a, e, t, f"{name} {what}")
    return result


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize(("classes", "dtype"), [(1000, torch.float32), (1000, torch.bfloat16), (16, torch.float32), (255, torch.float16)])
@pytest.mark.parametrize("kind", ["hard", "smooth", "soft"])
def test_rows(keeper: str, classes: int, dtype: torch.dtype, kind: str) -> None:
    g = torch.Generator().manual_seed(classes)
    x = (3 * torch.randn(3, classes, generator=g)).to(dtype)
    weight = (torch.rand(classes, generator=g) + 0.25).to(dtype)
    target: Tensor = torch.tensor([classes - 1, -100, 0])
    if kind == "soft":
        target = torch.randn(3, classes, generator=g).softmax(1).to(dtype)
    options = {"weight": weight, "label_smoothing": 0.0 if kind == "hard" else 0.125}
    with fastcv.use(cross_entropy=keeper, cross_entropy_backward=keeper):
        for reduction in ("mean", "none"):
            check(f"{keeper} {reduction}", F.cross_entropy, torch.nn.functional.cross_entropy, x, target, reduction=reduction, **options)


@pytest.mark.parametrize("keeper", ["staged_sm80", "cluster_sm90", "online_sm80"])
@pytest.mark.parametrize("classes", [4099, 8192])
def test_long_rows(keeper: str, classes: int) -> None:
    x = 3 * torch.randn(2, classes, generator=torch.Generator().manual_seed(0))
    with fastcv.use(cross_entropy=keeper):
        check(keeper, F.cross_entropy, torch.nn.functional.cross_entropy, x, torch.tensor([5, classes - 1]))


def test_a_row_of_eight_blocks() -> None:
    """384 KB of scores, of which each block of the cluster keeps a part."""
    x = 3 * torch.randn(1, 98_309, generator=torch.Generator().manual_seed(0))
    x[0, 5] = -torch.inf
    with fastcv.use(cross_entropy="cluster_sm90"):
        check("cluster", F.cross_entropy, torch.nn.functional.cross_entropy, x, torch.tensor([98_308]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeper", ["cluster_sm90", "online_sm80"])
def test_a_vocabulary_of_256k(keeper: str, dtype: torch.dtype) -> None:
    x = (3 * torch.randn(2, 2**18, generator=torch.Generator().manual_seed(0))).to(dtype)
    with fastcv.use(cross_entropy=keeper, cross_entropy_backward=keeper):
        check(keeper, F.cross_entropy, torch.nn.functional.cross_entropy, x, torch.tensor([2**18 - 1, 7]), label_smoothing=0.1)


def test_a_map_of_many_classes_is_read_again() -> None:
    x = torch.randn(2, 40, 5, 3, generator=torch.Generator().manual_seed(0))
    with fastcv.use(cross_entropy="column_sm80"):
        check("column", F.cross_entropy, torch.nn.functional.cross_entropy, x, torch.randint(0, 40, (2, 5, 3)), label_smoothing=0.1)


@pytest.mark.parametrize("keeper", KEEPERS)
def test_infinite_scores(keeper: str) -> None:
    x = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf] * 3, [torch.inf, 0, 0], [torch.nan, 0, 0], [2.0, 3.0, -torch.inf]])
    target = torch.tensor([0, 1, 2, 1, 2])
    expected = torch.nn.functional.cross_entropy(x, target, reduction="none")
    with fastcv.use(cross_entropy=keeper, cross_entropy_backward=keeper):
        loss, grad = with_grad(F.cross_entropy, x, target, reduction="none")
    torch.testing.assert_close(loss, expected, equal_nan=True)
    torch.testing.assert_close(grad[0], x[0].softmax(0) - torch.tensor([1.0, 0, 0]))
    assert grad[1:4].isnan().all()


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_mean_of_nothing_is_nan_and_its_gradient_zero(keeper: str) -> None:
    with fastcv.use(cross_entropy=keeper):
        loss, grad = with_grad(F.cross_entropy, torch.randn(3, 4), torch.full((3,), -100))
    assert loss.isnan() and not grad.any()


@pytest.mark.parametrize("keeper", KEEPERS)
def test_bits_do_not_depend_on_the_order_or_the_batch(keeper: str) -> None:
    x, target = torch.randn(7, 40), torch.randint(0, 40, (7,))
    results = []
    with fastcv.use(cross_entropy=keeper, cross_entropy_backward=keeper):
        for seed in range(3):
            seed_emulator(seed)
            results.append(with_grad(F.cross_entropy, x, target, reduction="none", label_smoothing=0.1))
        alone = with_grad(F.cross_entropy, x[4:5], target[4:5], reduction="none", label_smoothing=0.1)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])
    assert torch.equal(alone[0][0], results[0][0][4]) and torch.equal(alone[1][0], results[0][1][4])


@pytest.mark.parametrize(
    ("op", "variant", "function"),
    [
        *(("cross_entropy", keeper, F.cross_entropy) for keeper in KEEPERS),
        ("nll_loss", "gather_sm80", F.nll_loss),
        ("multi_margin_loss", "warp_sm80", F.multi_margin_loss),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_first_bad_target_is_named(op: str, variant: str, function: Any, reduction: str) -> None:
    target = torch.tensor([0, 1, 9, 2, -1])
    with fastcv.use(**{op: variant}), pytest.raises((IndexError, RuntimeError), match=r"target 9 at index \(2\)"):
        function(torch.randn(5, 4), target, reduction=reduction)


def test_linear_cross_entropy_in_several_chunks() -> None:
    g = torch.Generator().manual_seed(0)
    rows, features, classes = 2050, 1, 2
    x, w = torch.randn(rows, features, generator=g), torch.randn(classes, features, generator=g, requires_grad=True)
    target = torch.randint(0, classes, (rows,), generator=g)

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w), target)

    with fastcv.use(linear_cross_entropy="chunked_sm80"):
        loss = F.linear_cross_entropy(x, w, target)
        (ours,) = torch.autograd.grad(loss, w)
    exact_w = w.detach().double().requires_grad_()
    exact = theirs(x.double(), exact_w)
    assert_close(loss.detach(), exact.detach(), theirs(x, w).detach(), "loss")
    assert_close(ours, torch.autograd.grad(exact, exact_w)[0], torch.autograd.grad(theirs(x, w), w)[0], "gradient of the weights")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_cross_entropy_takes_what_cross_entropy_takes(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 8, generator=g).to(dtype), torch.randn(9, 8, generator=g).to(dtype)
    bias, weight = torch.randn(9, generator=g).to(dtype), (torch.rand(9, generator=g) + 0.25).to(dtype)
    soft = torch.randn(5, 9, generator=g).softmax(1).to(dtype)
    hard = torch.tensor([3, -100, 8, 0, 1])

    def theirs(x: Tensor, w: Tensor, target: Tensor, linear_bias: Tensor, **options: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w, linear_bias), target, **options)

    with fastcv.use(linear_cross_entropy="chunked_sm80", linear_cross_entropy_backward="chunked_sm80"):
        for target in (hard, soft):
            for reduction in ("mean", "none"):
                check(
                    f"{reduction} {target.dtype}",
                    F.linear_cross_entropy,
                    theirs,
                    x,
                    w,
                    target,
                    linear_bias=bias,
                    weight=weight,
                    reduction=reduction,
                    label_smoothing=0.1,
                )


def test_sums_of_several_segments() -> None:
    g = torch.Generator().manual_seed(0)
    x, t = torch.rand(2, 5003, generator=g), torch.rand(2, 5003, generator=g)
    with fastcv.use(soft_iou_loss="onepass_sm80", soft_iou_loss_backward="onepass_sm80"):
        check(
            "soft IoU", lambda x, t: F.soft_iou_loss(x, t, reduction="none"), lambda x, t: 1 - (x * t).sum(1) / (x + t - x * t).sum(1), x, t
        )
    with fastcv.use(kl_div="onepass_sm80", kl_div_backward="onepass_sm80"):
        check("KL", F.kl_div, torch.nn.functional.kl_div, x[0].repeat(4).log(), t[0].repeat(4), reduction="sum")


def test_packs_of_unaligned_memory() -> None:
    """A view that begins in the middle of a pack is read element by element: the same bits."""
    memory, target = torch.randn(1 + 3 * 8), torch.tensor([1, 7, 3])
    x = memory[1:].view(3, 8)
    for op, variants, function, rest in (
        ("cross_entropy", KEEPERS, F.cross_entropy, target),
        ("kl_div", ("onepass_sm80",), lambda x, t: F.kl_div(x, t, reduction="sum"), torch.rand(3, 8)),
    ):
        for variant in variants:
            with fastcv.use(**{op: variant}):
                for a, b in zip(with_grad(function, x.clone(), rest), with_grad(function, x, rest), strict=True):
                    assert torch.equal(a, b), variant


def test_a_ready_gradient_is_scaled() -> None:
    x, target = torch.randn(3, 5, requires_grad=True), torch.tensor([0, 4, 2])
    with fastcv.use(cross_entropy="warp_sm80", scale_gradient="onepass_sm80"):
        (ours,) = torch.autograd.grad(3 * F.cross_entropy(x, target), x)
    torch.testing.assert_close(ours, torch.autograd.grad(3 * torch.nn.functional.cross_entropy(x, target), x)[0])
