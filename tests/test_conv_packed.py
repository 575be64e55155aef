"""Weights that a kernel has arranged for itself (conv_pack, conv_dgrad_pack): the same bits with them, and never a wrong use."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator

import pytest
import torch
from test_conv_kernels import CONV, DGRAD, LAYERS, Layer, dtype_for, integers, normal, precision_for, serves
from torch import Tensor, nn

import fastcv
from fastcv.optimizer.forwards import installed
from fastcv.optimizer.packed_weights import PackedWeights
from fastcv.testing import runnable_variants

CONV_PACK, DGRAD_PACK = torch.ops.fastcv.conv_pack, torch.ops.fastcv.conv_dgrad_pack
KEEPING = [n for n in runnable_variants("conv") if n.startswith(("igemm", "winograd")) and "sm" not in n]
WINOGRAD = Layer((2, 19, 13, 17), 37, (3, 3), padding=(1, 1))
CHOSEN = ["1x1", "3x3-wide-panels", "stem", "uneven-everything", "groups", "groups-of-4", "depthwise", "1d", "3d-stride"]


def layers(variant: str) -> Iterator[tuple[str, Layer]]:
    if "winograd" in variant:
        yield "winograd", WINOGRAD
        yield "winograd-groups", Layer((1, 64, 9, 9), 68, (3, 3), padding=(2, 0), dilation=(2, 1), groups=2)
        if "bf16" not in variant:  # so many weights for so small a map that their taps are kept, not their transforms
            yield "winograd-taps", Layer((1, 520, 7, 9), 520, (3, 3), padding=(1, 1))
        return
    for name in CHOSEN:
        if serves(variant, name, True, dtype_for(variant)):
            yield name, LAYERS[name]


def other_images(x: Tensor, channels_last: bool) -> Tensor:
    """More images, of another size."""
    return normal((x.shape[0] + 1, x.shape[1], *(s + 3 for s in x.shape[2:])), x.dtype, channels_last, seed=9)


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels_last"])
@pytest.mark.parametrize("variant", KEEPING)
def test_packed_weights_give_the_same_bits(variant: str, channels_last: bool) -> None:
    dtype, precision = dtype_for(variant), precision_for(variant)
    for name, layer in layers(variant):
        x, w = normal(layer.input, dtype, channels_last), normal(layer.weight, dtype, channels_last, seed=1)
        b = normal((layer.out_channels,), dtype, seed=2)
        geometry = layer.geometry
        with fastcv.use(conv=variant, conv_dgrad=variant):
            packed = CONV_PACK(x, w, *geometry, precision)
            assert packed.numel() > 0, name
            for images in (x, other_images(x, channels_last)):
                y = CONV(images, w, b, *geometry, None, 1, precision)
                assert torch.equal(CONV(images, w, b, *geometry, None, 1, precision, packed), y), name
            size = list(x.shape[2:])
            if len(geometry[1]) > len(size):
                continue
            g = normal(tuple(CONV(x, w, None, *geometry, None, 0, precision).shape), dtype, channels_last, seed=3)
            packed = DGRAD_PACK(g, w, size, *geometry, precision)
            assert torch.equal(DGRAD(g, w, None, size, *geometry, precision, packed), DGRAD(g, w, None, size, *geometry, precision)), name


@pytest.mark.parametrize("variant", KEEPING)
def test_the_weight_itself_is_not_read_again(variant: str) -> None:
    dtype, precision = dtype_for(variant), precision_for(variant)
    for name, layer in layers(variant):
        x, w = integers(layer.input, dtype), integers(layer.weight, dtype, seed=1)
        with fastcv.use(conv=variant):
            y = CONV(x, w, None, *layer.geometry, None, 0, precision)
            packed = CONV_PACK(x, w, *layer.geometry, precision)
            assert torch.equal(CONV(x, torch.zeros_like(w), None, *layer.geometry, None, 0, precision, packed), y), name


def test_packed_weights_of_another_layer_or_kernel_are_passed_over() -> None:
    x, w = normal((1, 32, 12, 12)), normal((32, 32, 3, 3), seed=1)
    plain = [[1, 1], [1, 1], [1, 1], 1]
    kernels = [n for n in KEEPING if "bf16" not in n]
    for variant in kernels:
        with fastcv.use(conv=variant):
            others = [CONV_PACK(x, w, [1, 1], [0, 0], [1, 1], 1, 0), CONV_PACK(x[:, :16], w[:, :16], *plain, 0)]
        others += [torch.empty(0, dtype=torch.uint8), torch.zeros(200, dtype=torch.uint8)]
        for other in kernels:
            if other != variant:
                with fastcv.use(conv=other):
                    others.append(CONV_PACK(x, w, *plain, 0))
        with fastcv.use(conv=variant):
            y = CONV(x, w, None, *plain, None, 0, 0)
            others.append(torch.zeros_like(CONV_PACK(x, w, *plain, 0)))
            assert all(torch.equal(CONV(x, w, None, *plain, None, 0, 0, packed), y) for packed in others), variant


def test_what_is_not_packed_says_so() -> None:
    x, w = normal((1, 4, 8, 8)), normal((4, 4, 3, 3))
    for wrong in (w, torch.zeros(2, 3, dtype=torch.uint8)):
        with pytest.raises(RuntimeError, match="packed must be what conv_pack returned"):
            CONV(x, w, None, [1, 1], [0, 0], [1, 1], 1, None, 0, 0, wrong)


def test_nothing_is_kept_where_there_is_nothing() -> None:
    plain = [[1, 1], [1, 1], [1, 1], 1]
    assert CONV_PACK(torch.empty(0, 4, 8, 8), torch.ones(4, 4, 3, 3), *plain, 0).numel() == 0
    assert CONV_PACK(torch.empty(1, 0, 8, 8), torch.ones(4, 0, 3, 3), *plain, 0).numel() == 0
    with fastcv.use(conv="ref"):
        assert CONV_PACK(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3), *plain, 0).numel() == 0


def test_opcheck() -> None:
    x, w, plain = normal((1, 4, 8, 8)), normal((4, 4, 3, 3)), [[1, 1], [1, 1], [1, 1], 1]
    packed = CONV_PACK(x, w, *plain, 0)
    torch.library.opcheck(CONV.default, (x, w, None, *plain, None, 0, 0, packed))
    for op, args in ((CONV_PACK, (x, w, *plain, 0)), (DGRAD_PACK, (x, w, [8, 8], *plain, 0))):
        torch.library.opcheck(op.default, args, test_utils=("test_schema", "test_faketensor"))


# ---- in optimized models --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.bn = nn.BatchNorm2d(24)
        self.up = nn.ConvTranspose2d(24, 20, 2, stride=2)
        self.head = nn.Conv2d(20, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.bn(self.conv(x)).relu()))


def packs_of(model: nn.Module) -> list[PackedWeights]:
    forwards = [installed(m) for m in model.modules()]
    return [f.chain.packs if hasattr(f, "chain") else f.packs for f in forwards if getattr(f, "packs", None) is not None]


def made(model: nn.Module) -> int:
    return sum(p.packed is not None for p in packs_of(model))


@pytest.fixture
def nets() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Net().eval()
    ours = fastcv.optimize(model)
    assert len(packs_of(ours)) == 3
    return model, ours


X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def settled(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return [model(X) for _ in range(3)][-1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_are_packed_at_the_second_call_and_kept(nets: tuple[nn.Module, nn.Module], mode: type) -> None:
    _, ours = nets
    with mode():
        first = ours(X)
        assert made(ours) == 0
        second = ours(X)
        assert made(ours) == 3
        kept = [p.packed.data_ptr() for p in packs_of(ours)]
        third = ours(torch.cat([X, X]))[:2]
    assert torch.equal(first, second) and torch.equal(second, third)
    assert kept == [p.packed.data_ptr() for p in packs_of(ours)]


@pytest.mark.parametrize("how", ["in place", "data", "load", "new", "optimizer"])
def test_changed_weights_are_packed_again(nets: tuple[nn.Module, nn.Module], how: str) -> None:
    model, ours = nets
    settled(ours)
    with torch.no_grad():
        if how == "in place":
            ours.head.weight.mul_(2)
        elif how == "data":
            ours.head.weight.data = ours.head.weight.data * 2
            ours.up.weight.data.mul_(3)
        elif how == "load":
            ours.load_state_dict({k: v * 1.5 if v.is_floating_point() else v for k, v in ours.state_dict().items()})
        elif how == "new":
            ours.head.weight = nn.Parameter(ours.head.weight * 2)
    if how == "optimizer":
        optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
        ours(X).square().mean().backward()
        optimizer.step()
    model.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = fastcv.optimize(model)(X)
        got = ours(X)
    assert torch.equal(got, expected)
    assert torch.equal(settled(ours), expected)
    assert made(ours) == 3


def test_training_lets_them_go(nets: tuple[nn.Module, nn.Module]) -> None:
    _, ours = nets
    settled(ours)
    ours.train()(X)
    assert made(ours) == 0


def test_alternating_sizes_are_never_packed(nets: tuple[nn.Module, nn.Module]) -> None:
    model, ours = nets
    with torch.no_grad():
        for size in (8, 12, 8, 12):
            x = normal((1, 3, size, size))
            torch.testing.assert_close(ours(x), model(x))
            assert made(ours) == 0


def test_copies_and_pickles_start_anew(nets: tuple[nn.Module, nn.Module]) -> None:
    _, ours = nets
    y = settled(ours)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert made(twin) == 0
        assert torch.equal(settled(twin), y)
        assert made(twin) == 3


def test_restore_frees_them(nets: tuple[nn.Module, nn.Module]) -> None:
    _, ours = nets
    settled(ours)
    fastcv.restore(ours)
    gc.collect()
    assert not packs_of(ours)


def test_errors_stay_torchs_own(nets: tuple[nn.Module, nn.Module]) -> None:
    model, ours = nets
    for wrong in (X.double(), torch.randn(1, 4, 8, 8)):
        for _ in range(2):
            with pytest.raises(RuntimeError) as theirs, torch.no_grad():
                model(wrong)
            with pytest.raises(type(theirs.value)), torch.no_grad():
                ours(wrong)
    with pytest.raises(TypeError):
        ours.head(torch.randn(1, 20, 4, 4), [4, 4])
