"""halo_3x3_sm90a on the emulator: equal to the plain loops bit for bit, on integers, whose sums are exact in any order.

Sizes around its tiles (8 x 16 pixels, 64 channels, 64 outputs), one to three slices of channels (of which two stay in shared memory),
odd numbers of tiles, outputs beyond the taps, and every refusal.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastcv
from fastcv.testing import max_error

pytestmark = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)

OPS = torch.ops.fastcv
HALO = "halo_3x3_sm90a"
BF16, F16 = torch.bfloat16, torch.float16

# images, channels, height, width; output channels; padding
LAYERS = {
    "one tile": ((1, 64, 8, 16), 64, (1, 1)),
    "a pixel more": ((1, 64, 9, 17), 64, (1, 1)),
    "a pixel less": ((2, 16, 7, 15), 24, (1, 1)),
    "no padding": ((1, 32, 12, 9), 40, (0, 0)),
    "padding of two, outputs beyond a tile": ((2, 8, 5, 14), 72, (2, 2)),
    "two paddings": ((1, 64, 6, 20), 16, (0, 2)),
    "three channels": ((3, 3, 4, 5), 5, (1, 1)),
    "one channel more than a slice": ((1, 65, 5, 6), 65, (1, 1)),
    "two slices": ((1, 128, 9, 18), 8, (1, 1)),
    "three slices take turns": ((3, 136, 9, 6), 70, (1, 1)),
    "padding over the image": ((1, 4, 3, 2), 6, (7, 40)),
    "one output": ((2, 16, 3, 3), 8, (0, 0)),
    "many images of a pixel": ((9, 8, 1, 1), 8, (1, 1)),
}


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    t = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def run(op: str, variant: str, *args: object) -> Tensor:
    with fastcv.use(**{op: variant}):
        return getattr(OPS, op)(*args)


@pytest.fixture(autouse=True)
def poisoned_outputs():
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_plain_loops(name: str) -> None:
    from fastcv import _C

    input, outputs, padding = LAYERS[name]
    order = list(LAYERS).index(name)
    dtype = (BF16, F16)[order % 2]
    _C.seed_emulator(order)
    x, w = integers(input, dtype, 0), integers((outputs, input[1], 3, 3), dtype, 1)
    args = (x, w, integers((outputs,), dtype, 2), [1, 1], list(padding), [1, 1], 1)
    plain = run("conv", "ref", *args, None, 0, 0)
    residual = integers(tuple(plain.shape), dtype, 3)
    for end in ((None, 0), (residual, 1)):  # nothing; an addition and ReLU
        y, expected = (run("conv", variant, *args, *end, 0) for variant in (HALO, "ref"))
        assert torch.equal(y, expected) and y.stride() == expected.stride()
    grad = (residual, w, integers((input[1],), dtype, 4), list(input[2:]), [1, 1], list(padding), [1, 1], 1, 0)
    assert torch.equal(run("conv_dgrad", HALO, *grad), run("conv_dgrad", "ref", *grad))


@pytest.mark.parametrize("name", LAYERS)
def test_takes_the_statistics_of_its_outputs_from_its_sums(name: str) -> None:
    """Of integers every sum is exact; half a tile may have no outputs, and the last group none at all."""
    from fastcv import _C

    input, outputs, padding = LAYERS[name]
    order = list(LAYERS).index(name)
    dtype = (BF16, F16)[order % 2]
    x, w = integers(input, dtype, 0), integers((outputs, input[1], 3, 3), dtype, 1)
    args = (x, w, integers((outputs,), dtype, 2), [1, 1], list(padding), [1, 1], 1)
    found = []
    for seed in range(2):
        _C.seed_emulator(order + seed)
        with fastcv.use(conv=HALO):
            found.append(OPS.conv_statistics(*args, 0))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    y, mean, var = found[0]
    assert torch.equal(y, run("conv", HALO, *args, None, 0, 0))
    values = y.double().transpose(0, 1).flatten(1)
    exact_mean, exact_var = values.mean(1), values.var(1, correction=0)
    assert ((mean - exact_mean).abs() <= 1e-14 * (exact_mean.abs() + exact_var.sqrt())).all()
    assert ((var - exact_var).abs() <= 1e-12 * exact_var).all()


@pytest.mark.parametrize("activation", range(7))
def test_ends_with_every_activation(activation: int) -> None:
    x, w, bias = integers((1, 12, 5, 18), BF16, 0), integers((20, 12, 3, 3), BF16, 1), integers((20,), BF16, 2)
    args = (x, w, bias, [1, 1], [1, 1], [1, 1], 1, integers((1, 20, 5, 18), BF16, 3), activation, 0)
    assert max_error(run("conv", HALO, *args), run("conv", "ref", *args).double()) <= 2 * torch.finfo(BF16).eps


def test_a_gradient_may_be_larger_than_its_taps_reach() -> None:
    grad, w, bias = integers((1, 8, 4, 3), F16, 0), integers((8, 16, 3, 3), F16, 1), integers((16,), F16, 2)
    for size in ([5, 3], [6, 5], [11, 19]):
        args = (grad, w, bias, size, [1, 1], [0, 1], [1, 1], 1, 0)
        assert torch.equal(run("conv_dgrad", HALO, *args), run("conv_dgrad", "ref", *args))


def test_results_depend_neither_on_the_batch_nor_on_the_order_of_threads() -> None:
    from fastcv import _C

    x, w = torch.randn(3, 72, 9, 20, generator=torch.Generator().manual_seed(0)), torch.randn(64, 72, 3, 3) / 25
    x, w = (t.to(BF16).to(memory_format=torch.channels_last) for t in (x, w))
    rest = (None, [1, 1], [1, 1], [1, 1], 1, None, 0, 0)
    results = []
    for seed in range(2):
        _C.seed_emulator(seed)
        results.append(run("conv", HALO, x, w, *rest))
    alone = torch.cat([run("conv", HALO, image, w, *rest) for image in x.split(1)])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], alone)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    assert max_error(results[0], exact) <= torch.finfo(BF16).eps


def test_misaligned_tensors() -> None:
    def shifted(shape: tuple[int, ...], seed: int) -> Tensor:
        t = integers(shape, F16, seed)
        return torch.empty(t.numel() + 1, dtype=F16)[1:].as_strided(t.shape, t.stride()).copy_(t)

    args = (shifted((1, 16, 4, 5), 0), shifted((16, 16, 3, 3), 1), None, [1, 1], [1, 1], [1, 1], 1, shifted((1, 16, 4, 5), 3), 0, 0)
    assert torch.equal(run("conv", HALO, *args), run("conv", "ref", *args))


def test_what_is_not_finite_reaches_only_who_reads_it() -> None:
    x = integers((2, 6, 9, 17), BF16, 0)
    x[0, 1, 0, 16], x[1, 2, 3, 3] = float("inf"), float("nan")
    args = (x, integers((6, 6, 3, 3), BF16, 1) + 3, None, [1, 1], [1, 1], [1, 1], 1, None, 0, 0)
    y, expected = run("conv", HALO, *args), run("conv", "ref", *args)
    finite = expected.isfinite()
    assert torch.equal(y.isfinite(), finite) and torch.equal(y[finite], expected[finite])


X, W = integers((1, 8, 5, 5), BF16, 0), integers((8, 8, 3, 3), BF16, 1)
VOLUME = X.unsqueeze(2).contiguous(memory_format=torch.channels_last_3d)
REFUSED = {
    "needs bfloat16 or float16": (X.float(), W.float(), [1, 1], [1, 1], [1, 1], 1),
    "needs a convolution without groups": (X, W[:, :4].contiguous(memory_format=torch.channels_last), [1, 1], [1, 1], [1, 1], 2),
    "needs channels_last images": (X.contiguous(), W.contiguous(), [1, 1], [1, 1], [1, 1], 1),
    "needs a 3x3 kernel": (X, W[:, :, :2], [1, 1], [1, 1], [1, 1], 1),
    "needs stride 1": (X, W, [1, 2], [1, 1], [1, 1], 1),
    "needs a kernel without dilation": (X, W, [1, 1], [1, 1], [2, 1], 1),
    "needs one plane of depth": (VOLUME, W.unsqueeze(2), [1, 1, 1], [1, 1, 1], [1, 1, 1], 1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses_in_one_clause(reason: str) -> None:
    x, w, *geometry = REFUSED[reason]
    with pytest.raises(ValueError, match=f"variant {HALO} cannot run this call: {reason}"):
        run("conv", HALO, x, w, None, *geometry, None, 0, 0)


def test_is_taken_only_when_asked_for() -> None:
    names = [name for name, _ in fastcv.variants("conv")]
    assert names.index("tiled_sm80") < names.index(HALO)  # behind the row that takes everything
