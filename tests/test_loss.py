"""The loss family as a whole: every case and variant, errors, strides, threads and batches, torch integration, modules."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as T
from loss_common import outcome, same

import fastcv
import fastcv.functional as F
from fastcv.testing import cases_of, check_case, runnable_variants, serves

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides", "ignore:__array__")

OPS = ["softmax", "log_softmax", "cross_entropy", "nll_loss", "linear_cross_entropy", "multi_margin_loss", "kl_div", "soft_iou_loss"]
CASES = [case for case in cases_of(*OPS) if not case.bench]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case) -> None:
    for dtype in case.dtypes:
        for layout in case.layouts:
            check_case(case, getattr(F, case.op), dtype, layout)


@pytest.mark.parametrize("op", OPS)
def test_every_variant_agrees(op: str) -> None:
    backward = f"{op}_backward"
    for forward_name, backward_name in zip(runnable_variants(op), runnable_variants(backward), strict=True):
        ran = 0
        with fastcv.use(**{op: forward_name, backward: backward_name}):
            for case in CASES:
                if case.op == op and "float64" not in case.name:
                    for layout in case.layouts:
                        for dtype in {case.dtypes[-1], torch.float32}:
                            if not serves(op, forward_name, dtype):
                                continue
                            try:
                                check_case(case, getattr(F, op), dtype, layout)
                                ran += 1
                            except ValueError as error:
                                assert f"{forward_name} cannot run this call: needs " in str(error) and "_bf16x6_" in forward_name
        assert ran > 0


def test_target_out_of_range_names_position_and_value() -> None:
    target = torch.zeros(2, 4, 8, dtype=torch.int64)
    target[0, 3, 7] = 255
    with pytest.raises(IndexError, match=r"target 255 at index \(0, 3, 7\) is outside \[0, 21\); did you mean ignore_index=255\?"):
        F.cross_entropy(torch.randn(2, 21, 4, 8), target)
    with pytest.raises(IndexError, match=r"target -1 at index \(2\) is outside \[0, 5\)"):
        F.nll_loss(torch.randn(3, 5), torch.tensor([0, 4, -1]))
    with pytest.raises(IndexError, match=r"target 9 at index \(1\)"):
        F.linear_cross_entropy(torch.randn(2, 3), torch.randn(9, 3), torch.tensor([0, 9]))
    with pytest.raises(RuntimeError, match=r"target 4 at index \(1\) is out of range"):
        F.multi_margin_loss(torch.randn(2, 4), torch.tensor([0, 4]))


X = torch.randn(3, 4)
L = torch.tensor
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *((op, args, kwargs) for op in ("cross_entropy", "nll_loss") for args, kwargs in [
        ((X, L([0, 1, 2], dtype=torch.int32)), {}),
        ((X, L([0, 1, 1], dtype=torch.bool)), {}),
        ((X, L([0.0, 1, 2])), {}),
        ((X, L([0, 1, 4])), {}),
        ((X, L([0, 1, 255], dtype=torch.uint8)), {}),
        ((X, L([0, 1])), {}),
        ((X, L([[0, 1]] * 3)), {}),
        ((X[0], L([2, 1])), {}),
        ((X[0, 0], L([0])), {}),
        ((X, L([0, 1, 2])), {"weight": torch.ones(3)}),
        ((X, L([0, 1, 2])), {"weight": torch.ones(4, 1)}),
        ((X, L([0, 1, 2])), {"weight": torch.ones(4).double()}),
        ((X, L([0, 1, 2])), {"weight": torch.ones(4, requires_grad=True)}),
        ((X, L([0, 1, 2])), {"reduction": "average"}),
        ((X.long(), L([0, 1, 2])), {}),
        ((X.to(torch.complex64), L([0, 1, 2])), {}),
        ((X[:, :0], L([0, 0, 0])), {}),
        ((torch.randn(2, 4, 3), torch.zeros(2, 2, dtype=torch.int64)), {}),
        ((torch.randn(2, 4, 3, 3), torch.zeros(2, 3, 2, dtype=torch.int64)), {}),
        ((torch.randn(2, 4, 3, 3), torch.zeros(2, 3, dtype=torch.int64)), {}),
        ((torch.randn(2, 4, 3, 3, 2), torch.zeros(2, 3, 3, 1, dtype=torch.int64)), {}),
    ]),
    ("cross_entropy", (X, torch.ones(3, 4, dtype=torch.int64)), {}),
    ("cross_entropy", (X, X.softmax(1)), {"ignore_index": 1}),
    ("cross_entropy", (X, X.softmax(1)), {"weight": torch.ones(3)}),
    ("cross_entropy", (X, X.softmax(1)), {"label_smoothing": 1.5}),
    ("cross_entropy", (X, L([0, 1, 2])), {"label_smoothing": 1.5}),
    ("cross_entropy", (X[0, 0], X[0, 0]), {}),
    ("cross_entropy", (X.long(), X), {}),
    ("softmax", (X, 2), {}),
    ("softmax", (X, -3), {}),
    ("softmax", (X[0, 0], 1), {}),
    ("softmax", (X, 1.0), {}),
    ("softmax", (X, "a"), {}),
    ("softmax", (X.long(), 1), {}),
    ("log_softmax", (X > 0, 1), {}),
    ("log_softmax", (X, 1), {"dtype": torch.int64}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"p": 3}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"weight": torch.ones(4, 1)}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"weight": torch.ones(3)}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"weight": torch.ones(4).double()}),
    ("multi_margin_loss", (X, L([0, 1, 2], dtype=torch.int32)), {}),
    ("multi_margin_loss", (X, L([0, 1])), {}),
    ("multi_margin_loss", (X, L([0, 1, 4])), {}),
    ("multi_margin_loss", (X, L([[0], [1], [2]])), {}),
    ("multi_margin_loss", (X[0], L([1, 2])), {}),
    ("multi_margin_loss", (X[:, :0], L([0, 0, 0])), {}),
    ("multi_margin_loss", (X.unsqueeze(0), L([0])), {}),
    ("multi_margin_loss", (X.long(), L([0, 1, 2])), {}),
    ("multi_margin_loss", (X, L([0, 1, 2])), {"reduction": "x"}),
    ("kl_div", (X, torch.rand(3)), {}),
    ("kl_div", (X, torch.ones(3, 4, dtype=torch.int64)), {}),
    ("kl_div", (X.to(torch.complex64), X), {}),
    ("kl_div", (X, X > 0), {}),
    ("kl_div", (X, X), {"reduction": "x"}),
    ("linear_cross_entropy", (X, torch.randn(5, 3), L([0, 1, 2])), {}),
    ("linear_cross_entropy", (X[0, 0], torch.randn(5, 3), L([0, 1, 2])), {}),
    ("linear_cross_entropy", (X, torch.randn(4), L([0, 1, 2])), {}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), L([0, 1, 5])), {}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), L([0, 1])), {}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), L([0, 1, 2])), {"linear_bias": torch.ones(4)}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), L([0, 1, 2])), {"weight": torch.ones(4)}),
    ("linear_cross_entropy", (X, torch.randn(5, 4), torch.rand(3, 5)), {"ignore_index": 1}),
    ("linear_cross_entropy", (X[0], torch.randn(5, 2, 4), L([0, 1])), {}),
    ("linear_cross_entropy", (X, torch.randn(5, 4).double(), L([0, 1, 2])), {}),
]  # fmt: skip


@pytest.mark.parametrize("op, args, kwargs", WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_errors_are_torchs(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torchs = outcome(getattr(T, op), *args, **kwargs)
    assert isinstance(torchs, Exception), "torch accepts this"
    ours = outcome(getattr(F, op), *args, **kwargs)
    assert type(ours) is type(torchs), f"{ours!r}, torch: {torchs!r}"
    assert "\n" not in str(ours)


@pytest.mark.parametrize("name, value", [("size_average", False), ("size_average", True), ("reduce", False), ("reduce", True)])
def test_deprecated_reductions(name: str, value: bool) -> None:
    target = L([0, 1, 2])
    for op, second in (("cross_entropy", target), ("nll_loss", target), ("multi_margin_loss", target), ("kl_div", X.exp())):
        with pytest.warns(UserWarning, match="size_average and reduce"):
            ours = getattr(F, op)(X, second, **{name: value})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(ours, getattr(T, op)(X, second, **{name: value}), op)


def test_strides_and_layouts() -> None:
    target = torch.randint(0, 4, (2, 5, 6))
    base = torch.randn(2, 4, 5, 6)
    for make in (
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: torch.cat([x, x], 3)[..., ::2].contiguous(memory_format=torch.channels_last)[..., :6],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x[:, :, :1].expand_as(x),
        lambda x: x.flip(0),
    ):
        x = make(base).detach().requires_grad_()
        for ours, torchs in (
            (F.softmax(x, 1), T.softmax(x, 1)),
            (F.log_softmax(x, -1), T.log_softmax(x, -1)),
            (F.cross_entropy(x, target), T.cross_entropy(x, target)),
            (F.cross_entropy(x, target, reduction="none"), T.cross_entropy(x, target, reduction="none")),
            (F.kl_div(x, base.exp(), reduction="none"), T.kl_div(x, base.exp(), reduction="none")),
            (F.kl_div(base, x.exp(), reduction="none"), T.kl_div(base, x.exp(), reduction="none")),
        ):
            same(ours, torchs, f"strides {x.stride()}")
            assert ours.stride() == torchs.stride()
            g = torch.randn_like(ours)
            if ours.requires_grad:
                same(torch.autograd.grad(ours, x, g)[0], torch.autograd.grad(torchs, x, g)[0], f"gradient, strides {x.stride()}")
    for matrix in (torch.randn(4, 7).t(), torch.randn(7, 8)[:, ::2], torch.randn(1, 4).expand(7, 4)):
        x = matrix.detach().requires_grad_()
        labels = torch.randint(0, 8, (7, 2))[:, 0] % 4
        ours, torchs = F.cross_entropy(x, labels), T.cross_entropy(x, labels)
        same(ours, torchs, "matrix")
        same(torch.autograd.grad(ours, x)[0], torch.autograd.grad(torchs, x)[0], "matrix gradient")


def everything(x: torch.Tensor, image: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
    """Losses and gradients of all ops, from a matrix, an image batch and a linear layer."""
    x, image, w = (t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, image, w))
    g = torch.Generator().manual_seed(3)
    labels = torch.randint(0, x.shape[1], (x.shape[0],), generator=g)
    mask = torch.randint(0, image.shape[1], (image.shape[0], *image.shape[2:]), generator=g)
    classes = torch.randint(0, w.shape[0], (x.shape[0],), generator=g)
    losses = [
        F.cross_entropy(x, labels),
        F.cross_entropy(image, mask, label_smoothing=0.1),
        F.nll_loss(image, mask, reduction="sum"),
        F.multi_margin_loss(x, labels),
        F.kl_div(x, x.detach().square(), reduction="sum"),
        F.soft_iou_loss(image, image.detach().square()),
        F.linear_cross_entropy(x, w, classes),
    ]
    results = list(losses)
    for scores in (x, image):
        for y in (F.softmax(scores, 1), F.log_softmax(scores, 1)):
            results += [y, torch.autograd.grad(y, scores, scores.detach().sin())[0]]
    for loss in losses:
        results += [g for g in torch.autograd.grad(loss, (x, image, w), allow_unused=True) if g is not None]
    return results


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    args = torch.randn(301, 130), torch.randn(3, 21, 61, 67), torch.randn(500, 130)
    threads(1)
    one = everything(*args)
    for n in (2, 3):
        threads(n)
        for a, b in zip(one, everything(*args), strict=True):
            assert torch.equal(a, b)


def test_an_image_alone_gives_the_same_bits() -> None:
    image, rows = torch.randn(5, 21, 13, 17), torch.randn(37, 130)
    mask, labels = torch.randint(0, 21, (5, 13, 17)), torch.randint(0, 130, (37,))
    w, classes = torch.randn(70, 130), torch.randint(0, 70, (37,))
    for layout in (torch.contiguous_format, torch.channels_last):
        batch = image.contiguous(memory_format=layout)
        for op in (F.softmax, F.log_softmax):
            assert torch.equal(op(batch, 1)[3:4], op(batch[3:4], 1))
        whole = F.cross_entropy(batch, mask, reduction="none")
        assert torch.equal(whole[3:4], F.cross_entropy(batch[3:4], mask[3:4], reduction="none"))
    for i in (0, 17, 36):
        assert torch.equal(F.softmax(rows, 1)[i : i + 1], F.softmax(rows[i : i + 1], 1))
        for whole, alone in (
            (F.cross_entropy(rows, labels, reduction="none"), F.cross_entropy(rows[i : i + 1], labels[i : i + 1], reduction="none")),
            (
                F.linear_cross_entropy(rows, w, classes, reduction="none"),
                F.linear_cross_entropy(rows[i : i + 1], w, classes[i : i + 1], reduction="none"),
            ),
        ):
            assert torch.equal(whole[i : i + 1], alone)


def test_compile_and_export() -> None:
    x, target = torch.randn(6, 5, requires_grad=True), torch.randint(0, 5, (6,))

    def step(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(x, target, label_smoothing=0.1) + F.nll_loss(F.log_softmax(x, 1), target) + F.softmax(x, 1).square().sum()
        loss = loss + F.multi_margin_loss(x, target) + F.kl_div(x, x.detach().exp(), reduction="batchmean")
        return loss + F.soft_iou_loss(x.sigmoid(), x.detach().sigmoid()) + F.linear_cross_entropy(x, x.detach()[:5], target)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours, expected = compiled(x, target), step(x, target)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, x)[0], torch.autograd.grad(expected, x)[0])

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(x, target) + F.softmax(x, 1).amax()

    exported = torch.export.export(Module(), (x.detach(), target)).module()
    torch.testing.assert_close(exported(x.detach(), target), Module()(x.detach(), target))


def test_vmap_and_func() -> None:
    x, target = torch.randn(3, 6, 5), torch.randint(0, 5, (3, 6))
    loop = lambda f, *args: torch.stack([f(*a) for a in zip(*args, strict=True)])  # noqa: E731
    for function, args in (
        (lambda a: F.softmax(a, 1), (x,)),
        (lambda a: F.log_softmax(a, -1), (x,)),
        (lambda a: F.softmax(a, 0), (x[:, 0],)),
        (lambda a: F.softmax(a, 0), (x[:, 0, 0],)),
        (lambda a, t: F.cross_entropy(a, t), (x, target)),
        (lambda a, t: F.nll_loss(a, t, reduction="none"), (x, target)),
        (lambda a, t: F.multi_margin_loss(a, t), (x, target)),
        (lambda a, t: F.kl_div(a, t.softmax(1), reduction="sum"), (x, x.flip(0))),
        (lambda a, t: F.soft_iou_loss(a, t), (x.sigmoid(), x.flip(0).sigmoid())),
    ):
        torch.testing.assert_close(torch.vmap(function)(*args), loop(function, *args))
    for ours, torchs in (
        (lambda a, t: F.cross_entropy(a, t), lambda a, t: T.cross_entropy(a, t)),
        (lambda a, t: F.softmax(a, 1).square().sum(), lambda a, t: T.softmax(a, 1).square().sum()),
    ):
        torch.testing.assert_close(torch.vmap(torch.func.grad(ours))(x, target), torch.vmap(torch.func.grad(torchs))(x, target))
        hessians = [torch.func.jacrev(torch.func.grad(f))(x[0], target[0]) for f in (ours, torchs)]
        torch.testing.assert_close(*hessians)


def test_autocast() -> None:
    x, target = torch.randn(4, 5).bfloat16(), torch.randint(0, 5, (4,))
    with torch.autocast("cpu", torch.bfloat16):
        assert F.softmax(x, 1).dtype == T.softmax(x, 1).dtype and F.log_softmax(x, 1).dtype == T.log_softmax(x, 1).dtype
        assert F.cross_entropy(x, target).dtype == F.nll_loss(x, target).dtype == torch.float32
        assert F.multi_margin_loss(x, target).dtype == F.kl_div(x, x.softmax(1), reduction="sum").dtype == torch.float32
        assert F.linear_cross_entropy(x, x, target % 4).dtype == torch.float32
        leaf = x.clone().requires_grad_()
        F.cross_entropy(leaf, target).backward()
        assert leaf.grad.dtype == torch.bfloat16


def test_modules() -> None:
    nn = fastcv.nn
    x, target = torch.randn(4, 5), torch.randint(0, 5, (4,))
    weight = torch.rand(5)
    soft = torch.randn(4, 5).softmax(1)
    for name, args, kwargs, second in (
        ("CrossEntropyLoss", (weight,), {"label_smoothing": 0.1, "reduction": "sum"}, target),
        ("NLLLoss", (weight,), {"ignore_index": 2}, target),
        ("MultiMarginLoss", (2,), {"margin": 0.5}, target),
        ("KLDivLoss", (), {"reduction": "batchmean"}, soft),
    ):
        ours, torchs = getattr(nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)
        assert isinstance(ours, getattr(torch.nn, name)) and repr(ours) == repr(torchs)
        assert ours.state_dict().keys() == torchs.state_dict().keys()
        same(ours(x, second), torchs(x, second), name)
    for name in ("Softmax", "LogSoftmax"):
        ours, torchs = getattr(nn, name)(1), getattr(torch.nn, name)(1)
        assert repr(ours) == repr(torchs)
        same(ours(x), torchs(x), name)
    same(nn.SoftIoULoss("mean", 0.1)(x.sigmoid(), soft), F.soft_iou_loss(x.sigmoid(), soft, "mean", 0.1), "SoftIoULoss")
    assert repr(nn.SoftIoULoss()) == "SoftIoULoss(reduction='whole', eps=0.0)"
    if hasattr(nn, "LinearCrossEntropyLoss"):
        ours, torchs = nn.LinearCrossEntropyLoss(5, 7, bias=True), torch.nn.LinearCrossEntropyLoss(5, 7, bias=True)
        torchs.load_state_dict(ours.state_dict())
        same(ours(x, target), torchs(x, target), "LinearCrossEntropyLoss")


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_weaker_instruction_sets(isa: str) -> None:
    """FASTCV_CPU_ISA caps the choice: the first row that runs is the weaker one, and it is right."""
    code = (
        "import torch, fastcv, fastcv.functional as F\n"
        "x = torch.randn(50, 70, requires_grad=True); t = torch.randint(0, 70, (50,))\n"
        "a = F.cross_entropy(x, t); b = torch.nn.functional.cross_entropy(x, t)\n"
        "torch.testing.assert_close(a, b); torch.testing.assert_close(*(torch.autograd.grad(l, x)[0] for l in (a, b)))\n"
        "print(fastcv._ext.module().cpu_isa())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "FASTCV_CPU_ISA": isa})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (isa, "portable")


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux")
@pytest.mark.parametrize("wanted", ["1", "0"])
def test_large_results_ask_for_huge_pages(wanted: str) -> None:
    """The kernel notes the advice as the flag hg of the mapping that holds the result; FASTCV_HUGE_PAGES=0 leaves it alone."""
    code = (
        "import torch, fastcv.functional as F\n"
        "y = F.softmax(torch.zeros(4096, 4096), 1)\n"
        "middle, inside = y.data_ptr() + y.nbytes // 2, False\n"
        "for line in open('/proc/self/smaps'):\n"
        "    ends = line.split()[0].split('-')\n"
        "    if len(ends) == 2: inside = int(ends[0], 16) <= middle < int(ends[1], 16)\n"
        "    if inside and line.startswith('VmFlags'): print('hg' in line.split())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "FASTCV_HUGE_PAGES": wanted})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True" if wanted == "1" else "False"]
