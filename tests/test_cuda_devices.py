"""Which device runs what, without a GPU: tensors on cuda have shapes but no memory, and fastcv._gpu is told what GPU there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

import fastcv
from fastcv import _gpu, functional
from fastcv.functional import _fallback
from fastcv.optimizer import layout as layouts
from fastcv.optimizer import trace
from fastcv.testing.cases import CASES

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not fastcv.is_built(), reason="needs the compiled module")


class Ran(TorchDispatchMode):
    """The ops that ran: names of fastcv's, and the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastcv":
            self.ours.append(function.__name__)
        return function(*args, **(kwargs or {}))


def there(value):
    """A tensor of the same shape, strides and dtype on cuda, within FakeTensorMode."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


def outputs(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for t in value if isinstance(t, torch.Tensor)]


SMALL = [case for case in CASES if not case.bench]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that fastcv's kernels serve."""
    monkeypatch.setattr(_gpu, "why_not", lambda index: "")
    with torch.no_grad():
        yield


@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_every_function_takes_cuda_tensors_to_its_own_op(op: str, served: None) -> None:
    """Shapes and dtypes as on the CPU, on the input's device, from ops of fastcv."""
    for case in SMALL:
        if case.op != op:
            continue
        for dtype in case.dtypes:
            for layout in case.layouts if op != "instance_norm" else ("contiguous",):  # which copies, and a copy needs a GPU
                args, kwargs = case.arguments(dtype, layout)
                with FakeTensorMode():
                    args, kwargs = [there(a) for a in args], {k: there(v) for k, v in kwargs.items()}
                    with Ran() as ran:
                        ours = outputs(getattr(functional, op)(*args, **kwargs))
                    assert ran.ours, f"{case.id}: no op of fastcv"
                    for t in ours:
                        assert t.device.type == "cuda", f"{case.id}: an output on {t.device}"
                on_cpu = outputs(getattr(functional, op)(*case.arguments(dtype, layout)[0], **case.arguments(dtype, layout)[1]))
                for t, u in zip(ours, on_cpu, strict=True):
                    assert (t.shape, t.dtype) == (u.shape, u.dtype), case.id


@pytest.mark.parametrize(
    ("capability", "cuda_build", "expected"),
    [
        ((7, 5), True, "Some GPU has compute capability 7.5, fastcv's kernels need 8.0"),
        ((8, 0), True, ""),
        ((12, 0), True, ""),
        ((9, 0), False, "this build of fastcv, against torch .*, has no CUDA kernels"),
    ],
)
def test_what_a_gpu_lacks(capability: tuple[int, int], cuda_build: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = fastcv.build_info() | {"cuda": cuda_build}
    monkeypatch.setattr(_gpu._ext, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    assert re.fullmatch(expected, _gpu.why_not.__wrapped__(0))


OWN = (
    *("batch_norm_act", "batch_norm_max_pool2d", "sum_pool2d", "upsample_bed_of_nails", "soft_iou_loss", "linear_cross_entropy"),
    *("cdist", "knn", "nearest"),
)


@pytest.mark.parametrize("op", OWN)
def test_what_torch_has_no_function_for_is_put_together_right(op: str) -> None:
    peer = next(found[op] for found in map(_fallback.peers, _fallback._OWN) if op in found)
    for case in SMALL:
        if case.op == op and torch.float64 in case.dtypes:
            args, kwargs = case.arguments(torch.float64)
            again = case.arguments(torch.float64)  # running statistics move
            for ours, theirs in zip(outputs(getattr(functional, op)(*args, **kwargs)), outputs(peer(*again[0], **again[1])), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda said, case=case: f"{case.id}: {said}")
    if op in ("cdist", "knn", "nearest"):
        x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
        y[1] = y[4]
        x[0] = 0
        k = (2,) if op == "knn" else ()
        for how in ({"metric": "cosine"}, {"p": 1.0}, *([{"squared": True}] if k else [])):
            ours, theirs = (outputs(f(x, y, *k, **how)) for f in (getattr(functional, op), peer))
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    if op == "knn":
        for a, b in zip(functional.knn(x, y, 9, pad=True), peer(x, y, 9, pad=True), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        for f in (functional.knn, peer):
            with pytest.raises(ValueError, match="k=9 but there are 7 points"):
                f(x, y, 9)


def test_the_fused_convolution_is_put_together_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in SMALL:
        if case.op in ("conv2d_fused", "conv_transpose2d", "conv1d"):
            args, kwargs = case.arguments(torch.float64)
            ours = getattr(functional, case.op)(*args, **kwargs)
            with monkeypatch.context() as patched:
                for name, peer in _fallback.peers(functional.conv).items():
                    patched.setattr(functional.conv, name, peer)
                theirs = getattr(functional, case.op)(*args, **kwargs)
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


OLD_GPU = """
import sys, warnings
import torch
torch.backends.cuda.is_built = lambda: True
from fastcv import _gpu, functional, nn
_gpu.why_not = lambda index: "Some GPU has compute capability 7.5, fastcv's kernels need 8.0"
sys.path.insert(0, "tests")
from test_cuda_devices import SMALL, FakeTensorMode, Ran, moved, outputs, there
warnings.simplefilter("always")
with torch.no_grad(), warnings.catch_warnings(record=True) as said:
    for case in SMALL:
        args, kwargs = case.arguments(case.dtypes[0])
        here = outputs(getattr(functional, case.op)(*args, **kwargs))
        with FakeTensorMode(), Ran() as ran:
            args, kwargs = [there(a) for a in args], {k: there(v) for k, v in kwargs.items()}
            try:
                there_ = outputs(getattr(functional, case.op)(*args, **kwargs))
            except RuntimeError as error:  # torch's own, of a torch without CUDA
                assert "PyTorch is not linked with support for cuda" in str(error), case.id
                continue
        assert not ran.ours, f"{case.id}: {ran.ours}"
        for t, u in zip(there_, here, strict=True):
            assert t.device.type == "cuda" and (t.shape, t.dtype) == (u.shape, u.dtype), case.id
    for layer in (nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(3).eval(), nn.MaxPool2d(2), nn.Softmax(1)):
        with FakeTensorMode(), Ran() as ran:
            moved(layer)
            assert layer(torch.empty(2, 3, 8, 8, device="cuda")).is_cuda
        assert not ran.ours, layer
print([str(w.message) for w in said if "fastcv" in str(w.message)])
"""


def test_on_an_old_gpu_torchs_kernels_run_after_one_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OLD_GPU], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sentence = "fastcv: Some GPU has compute capability 7.5, fastcv's kernels need 8.0: torch's kernels run on GPU 0 in their place"
    assert done.stdout.strip() == repr([sentence])


def moved(model: nn.Module) -> nn.Module:
    """The model, its tensors on cuda; within FakeTensorMode."""
    for module in model.modules():
        for name, t in module._parameters.items():
            module._parameters[name] = None if t is None else nn.Parameter(there(t), requires_grad=False)
        module._buffers |= {name: there(t) for name, t in module._buffers.items()}
    return model


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.bn(self.conv(x)).relu()).mean((2, 3)))


def on_cuda() -> tuple[nn.Module, torch.Tensor]:
    """A model and its input; within FakeTensorMode."""
    with unset_fake_temporarily():
        model = Network().eval()
    return moved(model), torch.empty(2, 3, 12, 12, device="cuda")


def test_optimize_takes_cuda_models(served: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcv.optimizer.kernels.Tensor", FakeTensor)  # what counts as a plain tensor
    with FakeTensorMode():
        model, x = on_cuda()
        fast = fastcv.optimize(model, fuse=False, inplace=True)
        with Ran() as ran:
            assert fast(x).shape == (2, 5)
        assert ran.ours == ["conv.default", "batch_norm_eval.default", "max_pool2d.default"]
    assert not fast.fastcv_report.skipped()
    assert {row.name: row.reason for row in fast.fastcv_report.rows if row.reason} == {"head": "runs on torch: on a GPU torch multiplies"}


class Residual(nn.Module):
    """A stem and a residual block, which hand row-major maps to their caller."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        return (self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())) + x).relu()


class Layouts(Ran):
    """Of each convolution, whether it read channels_last images; and the copies that changed a layout."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[bool] = []
        self.copies: list[torch.memory_format] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.fastcv.conv.default:
            self.read.append(args[0].is_contiguous(memory_format=torch.channels_last))
        if function is torch.ops.aten.clone.default and (kwargs or {}).get("memory_format") is not None:
            self.copies.append(kwargs["memory_format"])
        return super().__torch_dispatch__(function, types, args, kwargs)


@pytest.fixture
def fused(served: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """Residual on cuda in fused chains. What counts as a plain tensor has no memory here."""
    fast = fastcv.optimize(Residual().eval(), inplace=True)
    for module in ("kernels", "chain", "layout"):
        monkeypatch.setattr(f"fastcv.optimizer.{module}.Tensor", FakeTensor)
    monkeypatch.setattr(layouts, "_memory", lambda values: set())
    monkeypatch.setattr(layouts, "random_states_kept", lambda *_: nullcontext())
    monkeypatch.setattr(layouts, "model_copy", lambda model: model)
    with FakeTensorMode():
        yield moved(fast)


def test_a_model_on_cuda_converts_row_major_images_at_its_edges_alone(fused: nn.Module) -> None:
    x = torch.empty(2, 3, 12, 12, device="cuda")
    with Layouts() as rows:
        expected = fused(x)
    assert rows.ours == ["conv.default"] * 3 and rows.read == [False] * 3 and not rows.copies
    layouts.LayoutForward(fused, fused.fastcv_report, "cuda").install()
    with Layouts() as inside:
        y = fused(x)
    assert not vars(fused)["forward"].given_up, fused.fastcv_report.layout_kept
    assert inside.ours == ["conv.default"] * 3 and inside.read == [True] * 3
    assert inside.copies == [torch.channels_last, torch.contiguous_format]
    assert y.device.type == "cuda" and y.shape == expected.shape and y.stride() == expected.stride()
    with Layouts() as own:  # the user's own layout, and another device than the one that it was tried on
        last = torch.empty(2, 3, 12, 12, device="cuda", memory_format=torch.channels_last)
        assert fused(last).is_contiguous(memory_format=torch.channels_last)
        vars(fused)["forward"].device = "cpu"
        assert fused(x).is_contiguous()
    assert not own.copies and own.read == [True] * 3 + [False] * 3


def test_whether_a_model_on_cuda_runs_in_channels_last_inside(fused: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stems of three channels are copied in either layout; the ordinary units of float32 arithmetic read both."""

    def why_not(layout: torch.memory_format, precision: int) -> str:
        x = torch.empty(2, 3, 12, 12, device="cuda", memory_format=layout)
        monkeypatch.setattr(layouts, "precision_of", lambda t: precision)
        with Layouts():
            return layouts.why_not_channels_last(fused, fused.fastcv_report, (x,), {})

    assert why_not(torch.contiguous_format, 1) == ""
    assert why_not(torch.contiguous_format, 0) == "0 of 3 convolutions read channels_last images as they lie"
    assert why_not(torch.channels_last, 1) == "the example has no row-major images"


def test_random_states_of_the_gpus_of_a_model_and_of_its_input_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: asked.append(devices))
    model = nn.Linear(2, 2)
    trace.random_states_kept(model, torch.ones(2))
    with FakeTensorMode():
        trace.random_states_kept(moved(model), [{"x": torch.empty(2, device="cuda:1")}], "word")
    assert asked == [[], [0, 1]]


def test_optimize_leaves_models_on_old_gpus_alone_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcv.optimizer.kernels.Tensor", FakeTensor)
    monkeypatch.setattr("fastcv.optimizer.kernels.why_not", lambda index: "Some GPU has compute capability 7.5")
    monkeypatch.setattr("fastcv.optimizer.kernels.serves", lambda t: not t.is_cuda)
    with FakeTensorMode(), torch.no_grad():
        report = str(fastcv.optimize(on_cuda()[0], fuse=False, inplace=True).fastcv_report)
    assert "its parameters are on cuda:0: Some GPU has compute capability 7.5" in report
