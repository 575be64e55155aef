"""The CUDA kernels of the norms on the emulator: what the cases of `fastcv.testing` do not reach, and what the sweeps promise.

Packs of 16 bytes, tails and tensors that are not aligned, channels that are no whole packs, planes smaller than a pack, several
segments and blocks: right against float64, and the same bits whatever the alignment, the order of threads and the batch.
"""

from __future__ import annotations

from collections.abc import Callable
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

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ON_CUDA = {f"{op}{step}": "two_pass_sm80" for op in ("batch_norm", "group_norm", "layer_norm") for step in ("", "_backward")}
CL = torch.channels_last


def moved(x: Tensor, by: int) -> Tensor:
    """The same values and strides, `by` elements behind an aligned address."""
    memory = torch.empty(x.numel() + by + 16, dtype=x.dtype)
    start = -memory.data_ptr() // x.element_size() % (16 // x.element_size()) + by
    y = memory[start : start + x.numel()].as_strided(x.shape, x.stride())
    assert y.data_ptr() % 16 == by * x.element_size() % 16
    return y.copy_(x)


def activated(y: Tensor, activation: str | None) -> Tensor:
    return y if activation is None else getattr(torch.nn.functional, activation)(y)


def batch_norm(training: bool, activation: str | None, residual: bool) -> tuple[Callable, Callable]:
    """(ours, torch's) of x, weight, bias, mean, var and the residual."""

    def ours(x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor, r: Tensor) -> Tensor:
        running = (None, None) if training else (mean, var)
        return F.batch_norm_act(x, *running, w, b, training=training, residual=r if residual else None, activation=activation)

    def theirs(x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor, r: Tensor) -> Tensor:
        running = (None, None) if training else (mean, var)
        y = torch.nn.functional.batch_norm(x, *running, w, b, training=training)
        return activated(y + r if residual else y, activation)

    return ours, theirs


def group_norm(groups: int) -> tuple[Callable, Callable]:
    return tuple(lambda x, w, b, *_, f=f: f.group_norm(x, groups, w, b) for f in (F, torch.nn.functional))


def layer_norm() -> tuple[Callable, Callable]:
    return tuple(lambda x, w, b, *_, f=f: f.layer_norm(x, x.shape[-1:], w, b) for f in (F, torch.nn.functional))


def operands(sizes: tuple[int, ...], columns: int, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """x, and per column weight, bias, mean, variance; the residual."""
    g = torch.Generator().manual_seed(sum(sizes))
    x, residual = ((torch.randn(*sizes, generator=g) + shift).to(dtype) for shift in (0.5, 0))
    w, b, mean = (torch.randn(columns, generator=g).to(dtype) for _ in range(3))
    var = (torch.rand(columns, generator=g) + 0.5).to(dtype)
    if len(sizes) == 4:
        x, residual = x.to(memory_format=layout), residual.to(memory_format=layout)
    return [x, w, b, mean, var, residual]


def results(function: Callable, x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor, r: Tensor) -> list[Tensor]:
    """The result and the gradients of x, weight, bias and, where it takes part, the residual."""
    leaves = [t.detach().requires_grad_() for t in (x, w, b, r)]
    y = function(leaves[0], leaves[1], leaves[2], mean, var, leaves[3])
    toward = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).to(y.dtype).reshape(y.shape)
    return [y.detach(), *(g for g in torch.autograd.grad(y, leaves, toward, allow_unused=True) if g is not None)]


def check(name: str, functions: tuple[Callable, Callable], tensors: list[Tensor], variants: dict[str, str] = ON_CUDA) -> list[Tensor]:
    with fastcv.use(**variants):
        ours = results(functions[0], *tensors)
    theirs = results(functions[1], *tensors)
    exact = results(functions[1], *(t.double() for t in tensors))
    for i, (a, t, e) in enumerate(zip(ours, theirs, exact, strict=True)):
        if a.dtype == torch.float64:  # both round sums of up to ten thousand numbers: 1e-16 per number kept
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12, msg=lambda said, i=i: f"{name} {i}: {said}")
        else:
            assert_close(a, e, t, f"{name} {i}")
    return ours


@pytest.fixture
def poisoned_outputs() -> Any:
    """Fresh memory holds NaN, so that an element which no thread writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


# Channels: whole packs, odd, fewer than a pack, more than the packs of a block. Planes: of several tiles, of no whole packs, smaller
# than a pack, of one element.
MAPS = [
    (2, 64, 3, 3),
    (3, 67, 5, 3),
    (5, 3, 7, 7),
    (2, 4, 40, 41),
    (2, 264, 2, 2),
    (40, 6, 2, 1),
    (3, 2, 1, 3),
    (1, 1, 3, 3),
    (2, 8, 14, 14),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("sizes", MAPS, ids=str)
def test_maps(sizes: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, poisoned_outputs: None) -> None:
    tensors = operands(sizes, sizes[1], dtype, layout)
    groups = next(g for g in (8, 3, 2, 1) if sizes[1] % g == 0)
    checks = {
        "training": batch_norm(True, "relu", sizes[0] % 2 == 0),
        "evaluation": batch_norm(False, "relu6" if sizes[0] % 2 else None, sizes[0] % 2 == 1),
        "groups": group_norm(groups),
    }
    for name, functions in checks.items():
        aligned = check(name, functions, tensors)
        apart = [moved(t, 1) if t.dim() > 1 else t for t in tensors]
        with fastcv.use(**ON_CUDA):
            for a, b in zip(aligned, results(functions[0], *apart), strict=True):
                assert torch.equal(a, b), f"{name}: other bits where tensors are not aligned"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "variant"),
    [
        *((sizes, "two_pass_sm80") for sizes in ((9, 8), (300, 24), (5, 37), (3, 2056), (1, 4101), (700, 3))),
        *((sizes, "warp_sm80") for sizes in ((37, 5), (9, 136), (5, 256), (3, 509), (2, 512), (70, 1))),
    ],
    ids=str,
)
def test_rows(sizes: tuple[int, ...], variant: str, dtype: torch.dtype, poisoned_outputs: None) -> None:
    tensors = operands(sizes, sizes[-1], dtype, torch.contiguous_format)
    variants = ON_CUDA | {"layer_norm": variant, "layer_norm_backward": variant}
    aligned = check("rows", layer_norm(), tensors, variants)
    for by in (1, 8 // tensors[0].element_size()):  # no access of 16 bytes, and none of 8
        with fastcv.use(**variants):
            apart = results(layer_norm()[0], *(moved(t, by) if t.dim() > 1 else t for t in tensors))
        assert all(torch.equal(a, b) for a, b in zip(aligned, apart, strict=True))


# Groups of several rounds of a block and less than one, planes of no whole packs and smaller than a pack, 256 channels in a group.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("sizes", "groups"), [((2, 4, 40, 41), 2), ((1, 6, 51, 53), 3), ((1, 512, 3, 3), 2), ((2, 512, 8, 1), 2)], ids=str)
def test_groups_kept_in_shared_memory(sizes: tuple[int, ...], groups: int, dtype: torch.dtype, poisoned_outputs: None) -> None:
    tensors, variants = operands(sizes, sizes[1], dtype, torch.contiguous_format), ON_CUDA | {"group_norm": "staged_sm80"}
    aligned = check("groups", group_norm(groups), tensors, variants)
    for by in (1, 8 // tensors[0].element_size()):
        with fastcv.use(**variants):
            apart = results(group_norm(groups)[0], *(moved(t, by) if t.dim() > 1 else t for t in tensors))
        assert all(torch.equal(a, b) for a, b in zip(aligned, apart, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, CL], ids=["nchw", "nhwc"])
def test_several_segments(layout: torch.memory_format, poisoned_outputs: None) -> None:
    """More elements of a set than one block adds up, and a mean that would swallow the variance in float32."""
    for sizes, functions in (((2, 3, 97, 131), batch_norm(True, None, False)), ((1, 4, 90, 111), group_norm(2))):
        tensors = operands(sizes, sizes[1], torch.float32, layout)
        tensors[0] += 1000
        check("segments", functions, tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_vectors_beside_16_bit_elements(dtype: torch.dtype) -> None:
    x, *rest = operands((4, 12, 3, 5), 12, dtype, CL)
    vectors = [t.float() for t in rest[:4]]
    for function, other, t in ((*batch_norm(False, None, False), x), (*layer_norm(), x.contiguous().reshape(15, 4, 12))):
        with fastcv.use(**ON_CUDA):
            y = function(t, *vectors, t)
        assert_close(y, other(t.double(), *(v.double() for v in vectors), t.double()), other(t, *vectors, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_warp_keeps_rows_with_large_means_and_outliers(dtype: torch.dtype) -> None:
    """A mean that would swallow the variance, a first element far from the others, and values near the largest of float32."""
    x = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    x[0] += 1e5
    x[1] = x[1] * 1e-2 + 1000
    x[2, 0] = 1e4
    x[3] *= 0
    x[4] = 3e38
    x[5, 7] = torch.nan
    w, b = torch.ones(300, dtype=dtype), torch.zeros(300, dtype=dtype)
    x = x.to(dtype)
    with fastcv.use(layer_norm="warp_sm80"):
        y = F.layer_norm(x, (300,), w, b)
    theirs = torch.nn.functional.layer_norm(x, (300,), w, b)
    exact = torch.nn.functional.layer_norm(x.double(), (300,))
    for row in range(6):
        assert_close(y[row], exact[row], theirs[row], f"row {row}")


def test_empty() -> None:
    with fastcv.use(**ON_CUDA):
        for sizes in ((0, 4, 3, 3), (2, 4, 0, 3), (2, 0, 3, 3)):
            x, w, b, mean, var, _ = operands(sizes, sizes[1], torch.float32, torch.contiguous_format)
            y, dx, dw, db, _ = results(batch_norm(False, "relu", True)[0], x, w, b, mean, var, x)
            assert y.shape == dx.shape == x.shape and not dw.any() and not db.any()
        for sizes in ((0, 5), (4, 0)):
            x, w, b, *_ = operands(sizes, sizes[1], torch.float32, torch.contiguous_format)
            y, dx, dw, db = results(layer_norm()[0], x, w, b, w, w, x)
            assert y.shape == dx.shape == x.shape and not dw.any() and not db.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL], ids=["nchw", "nhwc"])
def test_bits_do_not_depend_on_the_order_or_the_batch(layout: torch.memory_format, dtype: torch.dtype) -> None:
    from fastcv import _C

    tensors = operands((3, 20, 7, 9), 20, dtype, layout)
    rows = operands((7, 1031), 1031, dtype, torch.contiguous_format)
    for functions, operand in ((batch_norm(True, "relu", True), tensors), (group_norm(5), tensors), (layer_norm(), rows)):
        runs = []
        for seed in range(2):
            _C.seed_emulator(seed)
            with fastcv.use(**ON_CUDA):
                runs.append(results(functions[0], *operand))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    with fastcv.use(**ON_CUDA):
        for functions, (x, w, b, *_rest) in ((group_norm(5), tensors), (layer_norm(), rows)):
            batch = functions[0](x, w, b)
            for i in range(1, x.shape[0], 2):
                assert torch.equal(functions[0](x[i : i + 1], w, b)[0], batch[i])
