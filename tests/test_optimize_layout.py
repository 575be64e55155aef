"""fastcv.optimize with an example: row-major images in channels_last inside, and nobody notices.

On a GPU other convolutions gain by it: which ones, and that they do what they did, is tried here on the emulator
(models on cuda without one: test_cuda_devices.py).
"""

import copy
import pickle

import pytest
import torch
from optimize_models import Block, trained
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

import fastcv
from fastcv.optimizer.layout import LayoutForward, reads_in_place
from fastcv.testing import assert_close


class Mobile(nn.Module):
    """Depthwise and 1x1 convolutions; returns maps and logits. view: takes a view that only row-major maps have."""

    def __init__(self, view: bool = False, changes: bool = False, asserts: bool = False, returns: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.depthwise = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1, groups=3, bias=False), nn.BatchNorm2d(3), nn.ReLU6())
        self.pointwise = nn.Sequential(nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.view, self.changes, self.asserts, self.returns, self.layouts = view, changes, asserts, returns, []

    def forward(self, x):
        if self.changes:
            x.mul_(2)
        image = x
        x = self.pointwise(self.depthwise(x))
        assert x.is_contiguous() or not self.asserts
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
        return {"maps": x, "logits": (x.view(len(x), -1) if self.view else x.flatten(1)).sum(1), "n": image if self.returns else len(x)}


X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def made(**options: bool) -> tuple[nn.Module, nn.Module]:
    model = trained(Mobile(**options)).eval()
    return model, fastcv.optimize(model, example=X)


def inside(model: nn.Module, x: torch.Tensor = X) -> bool:
    """Whether a call of the model runs in channels_last."""
    model(x)
    return model.layouts[-1]


@torch.no_grad()
def test_images_are_channels_last_inside_only() -> None:
    model, ours = made()
    assert ours.fastcv_report.layout_kept == "" and "channels_last inside the model" in str(ours.fastcv_report)
    assert inside(ours) and not inside(model)
    expected, got, exact = model(X), ours(X), copy.deepcopy(model).double()(X.double())
    for key in ("maps", "logits"):
        assert_close(got[key], exact[key], expected[key])
        assert got[key].stride() == expected[key].stride()
    assert got["n"] == 2
    assert list(ours.state_dict()) == list(model.state_dict()) and ours.depthwise[0].weight.is_contiguous()


@torch.no_grad()
def test_channels_last_images_stay_so() -> None:
    model, ours = made()
    x = X.contiguous(memory_format=torch.channels_last)
    assert inside(ours, x) and ours(x)["maps"].stride() == model(x)["maps"].stride()


def test_with_gradients_and_in_training_the_layout_stays() -> None:
    _, ours = made()
    assert not inside(ours)
    with torch.no_grad():
        assert not inside(ours.train())
        assert inside(ours.eval())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"view": True}, "asks for row-major images (RuntimeError: view size is not compatible"),
        ({"asserts": True}, "asks for row-major images (AssertionError"),
        ({"changes": True}, "changes its input"),
        ({"returns": True}, "returns its input"),
    ],
)
def test_what_cannot_be_is_left_and_named(options: dict[str, bool], reason: str) -> None:
    _, ours = made(**options)
    assert reason in ours.fastcv_report.layout_kept and "images keep their layout" in str(ours.fastcv_report)
    with torch.no_grad():
        assert not inside(ours)


def test_models_of_other_convolutions_keep_their_layout() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 2, 1))).eval()
    assert fastcv.optimize(model, example=X).fastcv_report.layout_kept == "1 of 3 convolutions are 1x1 or depthwise"
    rows = fastcv.optimize(model, example=X.contiguous(memory_format=torch.channels_last)).fastcv_report.layout_kept
    assert rows == "the example has no row-major images"
    assert fastcv.optimize(model).fastcv_report.layout_kept is None
    assert fastcv.optimize(model.train(), mode="training", example=X).fastcv_report.layout_kept is None


def test_hooks_would_see_the_layout() -> None:
    model = trained(Mobile()).eval()
    model.depthwise[2].register_forward_hook(lambda *_: None)
    assert "hooks" in fastcv.optimize(model, example=X).fastcv_report.layout_kept


@torch.no_grad()
def test_a_path_the_example_did_not_take() -> None:
    model, ours = made()
    model.view = ours.view = True
    with pytest.raises(RuntimeError, match="channels"):
        ours(torch.randn(1, 4, 8, 8))
    assert ours.fastcv_report.layout_kept == ""  # the error was the input's, not the layout's
    for calls in (2, 1):  # the first finds out, in two runs of the forward; from then on the layout stays
        before = len(ours.layouts)
        assert torch.allclose(ours(X)["logits"], model(X)["logits"], rtol=1e-5) and not ours.layouts[-1]
        assert len(ours.layouts) - before == calls
    assert ours.fastcv_report.layout_kept.startswith("in a later call it asks for row-major images (RuntimeError: view size")


@torch.no_grad()
def test_copies_pickles_and_restore() -> None:
    model, ours = made()
    expected = ours(X)["maps"]
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert inside(twin) and torch.equal(twin(X)["maps"], expected)
        assert isinstance(vars(twin)["forward"], LayoutForward) and vars(twin)["forward"].module is twin
    assert not inside(fastcv.restore(ours)) and "forward" not in vars(ours)
    torch._dynamo.reset()
    again = fastcv.optimize(model, example=X)
    compiled = torch.compile(lambda x: again(x)["maps"], backend="eager")
    assert_close(compiled(X), copy.deepcopy(model).double()(X.double())["maps"], model(X)["maps"])


# On a GPU -----------------------------------------------------------------------------------------------------------------------

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
HIGHEST, HIGH, MEDIUM = 0, 1, 2  # csrc/conv/conv.h: enum Precision
READS = {
    (nn.Conv2d, 16, 24, 3, 1): {(BF16, HIGHEST): True, (F16, HIGHEST): True, (F32, HIGH): True, (F32, MEDIUM): True},
    (nn.Conv2d, 16, 16, 1, 1): {(BF16, HIGHEST): True, (F32, HIGHEST): False, (F64, HIGH): False},
    (nn.Conv2d, 3, 64, 3, 1): {(BF16, HIGHEST): False, (F32, HIGH): False},  # three channels fill no pack: a copy in any layout
    (nn.Conv2d, 12, 16, 3, 1): {(BF16, HIGHEST): False, (F32, HIGH): True},
    (nn.Conv2d, 16, 16, 3, 16): {(BF16, HIGHEST): True, (F32, HIGHEST): True, (F64, HIGHEST): True},
    (nn.Conv2d, 12, 12, 3, 12): {(BF16, HIGHEST): False, (F32, HIGHEST): True},
    (nn.Conv2d, 16, 32, 3, 16): {(BF16, HIGHEST): False, (F32, HIGH): False},
    (nn.Conv2d, 16, 32, 3, 2): {(BF16, HIGHEST): True, (F32, HIGH): True, (F32, HIGHEST): False},
    (nn.Conv2d, 16, 16, 3, 2): {(BF16, HIGHEST): False},
    (nn.ConvTranspose2d, 16, 8, 2, 1): {(BF16, HIGHEST): True, (F32, HIGHEST): False},
    (nn.ConvTranspose2d, 16, 16, 3, 16): {(F32, HIGHEST): True},
    (nn.ConvTranspose2d, 16, 32, 3, 16): {(F32, HIGHEST): False},
    (nn.Conv2d, 1, 16, 3, 1): {(F32, HIGH): False},
}  # fmt: skip


def layer(key: tuple[type[_ConvNd], int, int, int, int]) -> _ConvNd:
    kind, inputs, outputs, kernel, groups = key
    return kind(inputs, outputs, kernel, groups=groups)


def test_which_convolutions_gain() -> None:
    for key, answers in READS.items():
        for (dtype, precision), expected in answers.items():
            assert reads_in_place(layer(key), "cuda", dtype, precision) is expected, (key, dtype, precision)
        depthwise, pointwise = key[1] == key[4], key[3] == 1
        assert reads_in_place(layer(key), "cpu", F32, HIGHEST) is (depthwise or pointwise)


emulated = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)


@emulated
def test_they_are_those_whose_kernels_have_packs_of_channels() -> None:
    """Asks the table of CUDA kernels, in its order, which of them takes the call."""

    def takes(variant: str, conv: _ConvNd, x: torch.Tensor, precision: int) -> bool:
        ops, geometry = torch.ops.fastcv, ([1, 1], [0, 0], [1, 1], conv.groups, precision)
        with fastcv.use(conv=variant, conv_dgrad=variant):
            try:
                if conv.transposed:
                    size = [n + k - 1 for n, k in zip(x.shape[2:], conv.kernel_size, strict=True)]
                    ops.conv_dgrad(x, conv.weight.detach().to(x.dtype), None, size, *geometry)
                else:
                    ops.conv(x, conv.weight.detach().to(x.dtype), None, *geometry[:4], None, 0, precision)
            except ValueError as error:
                assert "cannot run this call" in str(error)
                return False
        return True

    for key, answers in READS.items():
        conv = layer(key)
        for (dtype, precision), expected in answers.items():
            x = torch.randn(1, conv.in_channels, 3, 3).to(dtype)
            row = next(v for v in ("depthwise_sm80", "igemm_sm80", "tiled_sm80") if takes(v, conv, x, precision))
            channels = {"depthwise_sm80": conv.groups, "igemm_sm80": conv.in_channels // conv.groups, "tiled_sm80": 1}[row]
            multiplied = row == "depthwise_sm80" and conv.out_channels != conv.groups
            assert expected is (channels % (16 // dtype.itemsize) == 0 and not multiplied), (key, dtype, row)


class Read(TorchDispatchMode):
    """Of each convolution, whether it read channels_last images."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.fastcv.conv.default:
            self.last.append(args[0].is_contiguous(memory_format=torch.channels_last) and not args[0].is_contiguous())
        return function(*args, **(kwargs or {}))


@emulated
@torch.no_grad()
def test_kernels_of_a_gpu_give_the_same_bits_inside() -> None:
    """A model that a CPU would leave in its layout, on the CUDA kernels: their sums do not depend on it."""
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Block())).eval().bfloat16()
    ours = fastcv.optimize(model)
    x = torch.randn(2, 3, 9, 8).bfloat16()
    with fastcv.use(conv="igemm_sm80"):
        with Read() as before:
            expected = ours(x)
        LayoutForward(ours, ours.fastcv_report, "cpu").install()
        with Read() as inside:
            got = ours(x)
    assert before.last == [False] * 4 and inside.last == [True] * 4
    assert torch.equal(got, expected) and got.stride() == expected.stride()
