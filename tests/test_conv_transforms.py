"""Convolutions under torch's transformations: opcheck, compile, export, vmap, gradients per sample, autocast, inference mode."""

from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F

import fastcv
import fastcv.functional as ours


@pytest.mark.parametrize("layouts", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_opcheck(layouts: tuple[int, int]) -> None:
    ops = torch.ops.fastcv
    x, w = (
        t.to(memory_format=torch.channels_last) if last else t
        for t, last in zip((torch.randn(2, 4, 9, 8), torch.randn(6, 2, 3, 3)), layouts, strict=True)
    )
    y = ops.conv(x, w, None, [1, 2], [1, 1], [1, 1], 2, None, 0, 0)
    geometry = ([1, 2], [1, 1], [1, 1], 2)
    torch.library.opcheck(ops.conv.default, (x, w, torch.randn(6), *geometry, torch.randn_like(y), 1, 0))
    torch.library.opcheck(ops.conv_dgrad.default, (y, w, torch.randn(4), [9, 8], *geometry, 0))
    residual = torch.randn(2, 4, 9, 8)
    torch.library.opcheck(ops.conv_dgrad.default, (y, w, torch.randn(4), [9, 8], *geometry, 0, None, residual, 6, 0.2))
    torch.library.opcheck(ops.conv_wgrad.default, (x, y, [3, 3], *geometry, 0))
    torch.library.opcheck(ops.conv_bias_grad.default, (y,))


class Net(torch.nn.Module):
    def __init__(self, nn: Any) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.mix = nn.Conv2d(8, 8, 3, groups=2, padding="same", padding_mode="reflect")
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.mix(self.down(x)))


def test_compile_once_for_any_batch_and_size() -> None:
    model, twin = Net(fastcv.nn), Net(torch.nn)
    twin.load_state_dict(model.state_dict())
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for sizes in ((5, 3, 9, 14), (2, 3, 8, 8), (3, 3, 12, 10)):
        x = torch.randn(sizes)
        y, t = compiled(x), twin(x)
        torch.testing.assert_close(y, t)
        for net, out in ((model, y), (twin, t)):
            net.zero_grad()
            out.square().sum().backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def test_export_with_dynamic_sizes() -> None:
    dynamic = torch.export.Dim.DYNAMIC
    model = Net(fastcv.nn).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes={"x": {0: dynamic, 2: dynamic, 3: dynamic}})
    assert "fastcv.conv.default" in program.graph_module.code
    x = torch.randn(3, 3, 12, 10)
    torch.testing.assert_close(program.module()(x), model(x))


VMAPS = [
    ("conv2d", (3, 2, 4, 5, 5), (6, 4, 3, 3), (6,), (0, None, None), {"padding": 1}),
    ("conv2d", (2, 4, 5, 5), (3, 6, 4, 3, 3), (6,), (None, 0, None), {"padding": 1}),
    ("conv2d", (2, 4, 5, 5, 3), (6, 3, 2, 3, 3), (3, 6), (4, 1, 0), {"groups": 2}),
    ("conv2d", (2, 4, 5, 5), (6, 2, 3, 3), (3, 6), (None, None, 0), {"groups": 2}),
    ("conv1d", (3, 2, 4, 9), (3, 6, 4, 3), (6,), (0, 0, None), {"stride": 2}),
    ("conv_transpose2d", (3, 2, 4, 5, 5), (3, 4, 2, 3, 3), (3, 4), (0, 0, 0), {"groups": 2, "stride": 2}),
    ("conv_transpose2d", (3, 2, 4, 5, 5), (4, 2, 3, 3), (4,), (0, None, None), {"groups": 2, "stride": 2}),
    ("conv_transpose3d", (2, 4, 3, 3, 3), (3, 4, 2, 2, 2, 2), (2,), (None, 0, None), {}),
]


@pytest.mark.parametrize(("name", "x", "w", "b", "in_dims", "kwargs"), VMAPS)
def test_vmap(name, x, w, b, in_dims, kwargs) -> None:
    args = [torch.randn(s, dtype=torch.float64) for s in (x, w, b)]
    y, t = (torch.vmap(lambda *a, f=f: getattr(f, name)(*a, **kwargs), in_dims)(*args) for f in (ours, F))
    torch.testing.assert_close(y, t)


def test_vmap_of_the_fused_form() -> None:
    x, w, r = torch.randn(3, 2, 4, 6, 6), torch.randn(3, 5, 4, 3, 3), torch.randn(2, 5, 4, 4)
    for in_dims in ((0, None, None), (0, 0, None), (None, 0, None)):
        args = [t if d is not None or t is r else t[0] for t, d in zip((x, w, r), in_dims, strict=True)]
        y = torch.vmap(lambda x, w, r: ours.conv2d_fused(x, w, residual=r, activation="relu"), in_dims)(*args)
        torch.testing.assert_close(y, torch.vmap(lambda x, w, r: F.relu(F.conv2d(x, w) + r), in_dims)(*args))
        y = torch.vmap(lambda x, w, r: ours.conv2d_fused(x, w, residual=r, activation="leaky_relu", negative_slope=0.3), in_dims)(*args)
        torch.testing.assert_close(y, torch.vmap(lambda x, w, r: F.leaky_relu(F.conv2d(x, w) + r, 0.3), in_dims)(*args))


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, None), (None, 0, 0), (0, None, 1)])
def test_vmap_of_the_fused_transposed_form(in_dims: tuple[int | None, ...]) -> None:
    x, w, r = torch.randn(3, 2, 5, 4, 4), torch.randn(3, 5, 4, 3, 3), torch.randn(3, 2, 4, 6, 6)
    args = [t[0] if d is None else t.movedim(0, d) for t, d in zip((x, w, r), in_dims, strict=True)]

    def fused(x, w, r):
        return torch.ops.fastcv.conv_dgrad(x, w, None, [6, 6], [1, 1], [0, 0], [1, 1], 1, 0, None, r, 6, 0.3)

    expected = torch.vmap(lambda x, w, r: F.leaky_relu(F.conv_transpose2d(x, w) + r, 0.3), in_dims)(*args)
    torch.testing.assert_close(torch.vmap(fused, in_dims)(*args), expected)


def test_per_sample_gradients() -> None:
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((5, 4, 6, 6), (3, 4, 3, 3), (3,)))

    def samples(f: Any) -> Any:
        loss = lambda p, x: f.conv2d(x[None], p[0], p[1], padding=1).square().sum()  # noqa: E731
        return torch.vmap(torch.func.grad(loss), (None, 0))((w, b), x)

    for mine, theirs in zip(samples(ours), samples(F), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    x, w, b = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(4, 4, 3, 3), torch.randn(4).to(dtype)
    lower = [t.detach().to(dtype) for t in (x, w, b)]
    with torch.autocast("cpu", dtype):
        for name in ("conv2d", "conv_transpose2d"):
            y = getattr(ours, name)(x, w, b)
            assert y.dtype == getattr(F, name)(x, w, b).dtype == dtype
            assert torch.equal(y, getattr(ours, name)(*lower))
        y = ours.conv2d_fused(x, w, b, residual=torch.zeros(2, 4, 4, 4), activation="relu")
        assert y.dtype == dtype
        assert ours.conv2d(x.double(), w.double()).dtype == F.conv2d(x.double(), w.double()).dtype
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_inference_mode_and_meta() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with torch.inference_mode():
        assert torch.equal(ours.conv2d(x, w), ours.conv2d(x, w.clone()))
    y = ours.conv2d(x.to("meta"), w.to("meta"), stride=2)
    assert y.is_meta
    assert y.shape == (2, 4, 3, 3)
