"""linear_cross_entropy, multi_margin_loss, kl_div and soft_iou_loss: what only they have; golden numbers; gradients."""

import pytest
import torch
import torch.nn.functional as T
from loss_common import double, same

import fastcv
import fastcv.functional as F
from fastcv.testing import assert_close, runnable_variants

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides", "ignore:__array__")

X = torch.randn(3, 4)
L = torch.tensor


def test_linear_cross_entropy_of_k_dimensions() -> None:
    x, w = torch.randn(5, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 3, 2, dtype=torch.float64)
    indices = torch.randint(0, 4, (5, 3, 2))
    indices[0, 0, 0] = 2
    soft = torch.rand(5, 4, 3, 2, dtype=torch.float64).softmax(1)
    for target, extra in ((indices, {"ignore_index": 2}), (indices, {"weight": torch.rand(4).double()}), (soft, {"label_smoothing": 0.1})):
        for reduction in ("none", "mean", "sum"):
            ours = F.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction, **extra)
            torchs = T.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction, **extra)
            same(ours, torchs, f"{reduction} {extra}")
            g = torch.randn(ours.shape, dtype=torch.float64)
            for mine, theirs in zip(torch.autograd.grad(ours, (x, w), g), torch.autograd.grad(torchs, (x, w), g), strict=True):
                same(mine, theirs, f"gradient {reduction} {extra}")
    for reduction in ("none", "mean"):
        same(
            F.linear_cross_entropy(x[0], w[:, 0, 0], L(3), reduction=reduction),
            T.linear_cross_entropy(x[0], w[:, 0, 0], L(3), reduction=reduction),
            "unbatched",
        )


def test_linear_cross_entropy_sums_long_batches_accurately() -> None:
    """The bias's gradient sums 6000 rows, the weight's as many in several chunks."""
    leaves = [torch.randn(6000, 24), torch.randn(300, 24), torch.randn(300)]
    target = torch.randint(0, 300, (6000,))
    gradients = []
    for function, dtype in ((F, torch.float32), (T, torch.float64), (T, torch.float32)):
        x, w, b = (t.to(dtype).requires_grad_() for t in leaves)
        gradients.append(torch.autograd.grad(function.linear_cross_entropy(x, w, target, linear_bias=b), (x, w, b)))
    for ours, exact, torchs in zip(*gradients, strict=True):
        assert_close(ours, exact, torchs)


TILES = [name for name in runnable_variants("linear_cross_entropy") if "_bf16x6_" in name]


@pytest.mark.parametrize("variant", TILES)
@pytest.mark.parametrize("sizes", [(1, 32, 256), (2, 33, 300), (130, 40, 700), (97, 70, 45_000), (1000, 33, 600)], ids=str)
def test_linear_cross_entropy_on_tiles(variant: str, sizes: tuple[int, int, int]) -> None:
    rows, features, classes = sizes
    leaves = [torch.randn(rows, features), torch.randn(classes, features) * features**-0.5, torch.randn(classes)]
    target = torch.randint(0, classes, (rows,))
    target[rows // 2] = -100 if rows > 1 else 7
    options = {"ignore_index": -100, "label_smoothing": 0.1, "weight": torch.rand(classes)}
    with fastcv.use(linear_cross_entropy=variant, linear_cross_entropy_backward=variant):
        results = []
        for function, dtype in ((F, torch.float32), (T, torch.float64), (T, torch.float32)):
            x, w, b = (t.to(dtype).requires_grad_() for t in leaves)
            more = options | {"weight": options["weight"].to(dtype)}
            losses = [function.linear_cross_entropy(x, w, target, linear_bias=b, **kind) for kind in ({}, more, {"reduction": "sum"})]
            results.append([*losses, *torch.autograd.grad(losses[0], (x, w, b), retain_graph=True), *torch.autograd.grad(losses[1], w)])
        for ours, exact, torchs in zip(*results, strict=True):
            assert_close(ours, exact, torchs)

        def each(count: int, first: int = 0) -> list[torch.Tensor]:
            x = leaves[0][first : first + count].clone().requires_grad_()
            loss = F.linear_cross_entropy(
                x, leaves[1], target[first : first + count], linear_bias=leaves[2], reduction="none", ignore_index=-100
            )
            return [loss, torch.autograd.grad(loss, x, torch.ones_like(loss))[0]]

        whole = each(rows)
        for count, first in ((1, 0), (1, rows - 1), (rows // 2, rows - rows // 2)):
            for part, all_rows in zip(each(count, first), whole, strict=True):
                assert torch.equal(part, all_rows[first : first + count])
        threads = torch.get_num_threads()
        for count in (1, 3):
            torch.set_num_threads(count)
            try:
                assert all(torch.equal(a, b) for a, b in zip(each(rows), whole, strict=True))
                x, w, b = (t.clone().requires_grad_() for t in leaves)
                again = torch.autograd.grad(F.linear_cross_entropy(x, w, target, linear_bias=b), (x, w, b))
                assert all(torch.equal(a, b) for a, b in zip(again, results[0][3:6], strict=True))
            finally:
                torch.set_num_threads(threads)


@pytest.mark.skipif("columns_bf16x6_amx" not in TILES, reason="needs AMX")
def test_linear_cross_entropy_takes_tiles_where_they_are_faster() -> None:
    def chosen(features: int, classes: int, dtype: torch.dtype = torch.float32, soft: bool = False) -> bool:
        x, w = torch.randn(5, features).to(dtype), torch.randn(classes, features).to(dtype)
        target = torch.rand(5, classes).to(dtype) if soft else torch.tensor([0, 1, 2, 3, 4])
        return ("linear_cross_entropy", "columns_bf16x6_amx", "") in fastcv.why_not("linear_cross_entropy", x, w, target)

    assert chosen(32, 256) and chosen(256, 20_000)
    assert not chosen(31, 256) and not chosen(32, 255) and not chosen(32, 256, torch.bfloat16) and not chosen(32, 256, soft=True)


def test_soft_iou_refuses() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) and \(4,\)"):
        F.soft_iou_loss(X, X[0])
    with pytest.raises(ValueError, match="batchmean is not a valid value"):
        F.soft_iou_loss(X, X, "batchmean")
    with pytest.raises(ValueError, match="eps must not be negative"):
        F.soft_iou_loss(X, X, eps=-1)
    with pytest.raises(RuntimeError, match="floating"):
        F.soft_iou_loss(X, X > 0)


def test_golden_4_and_5_multiclass_svm() -> None:
    scores, target = L([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]]), L([0, 1, 2])
    each = 3 * F.multi_margin_loss(scores, target, reduction="none")  # torch divides the sum by the number of classes
    torch.testing.assert_close(each, L([2.9, 0.0, 12.9]))
    assert each.mean().item() == pytest.approx(5.27, abs=0.005)
    assert F.multi_margin_loss(L([2.6, 9.8, 4.0]), L(1)) == 0


def test_golden_7_kl_divergence() -> None:
    p, q = torch.randn(2, 50, dtype=torch.float64).softmax(1)
    kl = F.kl_div(q.log(), p, reduction="sum")
    cross, entropy = (F.cross_entropy(t.log(), p) for t in (q, p))
    torch.testing.assert_close(kl, cross - entropy)
    assert kl > 0 and F.kl_div(p.log(), p, reduction="sum").abs() < 1e-15
    assert (kl - F.kl_div(p.log(), q, reduction="sum")).abs() > 1e-3


def test_golden_18_soft_iou() -> None:
    x, y = torch.rand(2, 3, 4), (torch.rand(2, 3, 4) > 0.5).float()
    torch.testing.assert_close(F.soft_iou_loss(x, y), 1 - (x * y).sum() / (x + y - x * y).sum())
    assert F.soft_iou_loss(y, y) == 0 and F.soft_iou_loss(y, 1 - y) == 1
    empty = torch.zeros(2, 3, requires_grad=True)
    loss = F.soft_iou_loss(empty, torch.zeros(2, 3))
    assert loss == 0 and torch.equal(torch.autograd.grad(loss, empty)[0], torch.zeros(2, 3))


def test_other_gradients() -> None:
    target = L([1, 0, 3])
    check, again = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    for reduction in ("none", "mean"):
        nll = lambda x, r=reduction: F.nll_loss(x, target, reduction=r)  # noqa: E731
        assert check(nll, double(3, 4)) and again(nll, double(3, 4))
        for p in (1, 2):
            assert check(lambda x, p=p, r=reduction: F.multi_margin_loss(x, target, p, reduction=r), double(3, 4))
        linear = lambda x, w, b, r=reduction: F.linear_cross_entropy(x, w, target, linear_bias=b, reduction=r)  # noqa: E731
        args = (double(3, 5), double(4, 5), double(4))
        assert check(linear, args) and again(linear, args)
        for log_target in (False, True):
            kl = lambda x, t, r=reduction, lt=log_target: F.kl_div(x, t.exp() if not lt else t, reduction=r, log_target=lt)  # noqa: E731
            assert check(kl, (double(3, 4), double(3, 4))) and again(kl, (double(3, 4), double(3, 4)))
        iou = lambda x, t, r=reduction: F.soft_iou_loss(x.sigmoid(), t.sigmoid(), r)  # noqa: E731
        assert check(iou, (double(3, 4), double(3, 4))) and again(iou, (double(3, 4), double(3, 4)))
    weight = torch.rand(4, dtype=torch.float64)
    assert again(lambda x: F.multi_margin_loss(x, target, 2, weight=weight), double(3, 4))
