"""The norm family under torch's machinery: first and second gradients, opcheck, compile, export, vmap and func."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as T

import fastcv.functional as F
import fastcv.nn as nn
from fastcv.testing import assert_close

CL = torch.channels_last


def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*sizes, dtype=dtype)


def d(*sizes: int) -> torch.Tensor:
    return randn(*sizes, dtype=torch.float64).requires_grad_()


FORMULAS = {
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), lambda: (d(3, 4, 2, 2), d(4), d(4))),
    "batch_norm plain": (lambda x: F.batch_norm(x, None, None, training=True), lambda: (d(5, 3),)),
    "batch_norm channels_last": (
        lambda x, w, b: F.batch_norm(x.contiguous(memory_format=CL), None, None, w, b, True),
        lambda: (d(2, 3, 2, 2), d(3), d(3)),
    ),
    "batch_norm evaluation": (
        lambda x, w, b: F.batch_norm(x, torch.tensor([0.1, -0.2], dtype=x.dtype), torch.tensor([0.5, 2.0], dtype=x.dtype), w, b),
        lambda: (d(3, 2, 3), d(2), d(2)),
    ),
    "batch_norm leaky add": (
        lambda x, w, b, r: F.batch_norm_act(x, None, None, w, b, True, residual=r, activation="leaky_relu"),
        lambda: (d(3, 2, 4), d(2), d(2), d(3, 2, 4)),
    ),
    "batch_norm relu": (
        lambda x, w, b: F.batch_norm_act(x, None, None, w, b, True, activation="relu"),
        lambda: (d(3, 2, 4), d(2), d(2)),
    ),
    "batch_norm evaluation relu6 add": (
        lambda x, w, b, r: F.batch_norm_act(
            x * 5, torch.zeros(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype), w, b, residual=r, activation="relu6"
        ),
        lambda: (d(3, 2, 4), d(2), d(2), d(3, 2, 4)),
    ),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), lambda: (d(2, 4, 3), d(4), d(4))),
    "group_norm plain": (lambda x: F.group_norm(x, 3), lambda: (d(2, 6, 2),)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (2, 3), w, b), lambda: (d(4, 2, 3), d(2, 3), d(2, 3))),
    "layer_norm plain": (lambda x: F.layer_norm(x, (5,)), lambda: (d(3, 5),)),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), lambda: (d(2, 3, 4), d(3), d(3))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_first_and_second_gradients(name: str) -> None:
    function, make = FORMULAS[name]
    torch.manual_seed(7)
    args = make()
    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)


def test_local_response_norm_gradient() -> None:
    for size, beta in ((3, 0.75), (4, 0.5), (2, 1.0), (9, 1.7)):
        assert torch.autograd.gradcheck(lambda x, s=size, b=beta: F.local_response_norm(x, s, 0.7, b, 1.5), (d(2, 5, 3),))
        x = randn(2, 5, 2, 3, dtype=torch.float64).to(memory_format=CL).requires_grad_()
        assert torch.autograd.gradcheck(lambda t, s=size, b=beta: F.local_response_norm(t, s, 0.7, b, 1.5), (x,))
    x = d(1, 3, 2)
    (first,) = torch.autograd.grad(F.local_response_norm(x, 3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        first.sum().backward()


def test_only_wanted_gradients_are_computed() -> None:
    x, w, b = randn(3, 4, 5, 5), randn(4), randn(4)
    g = randn(3, 4, 5, 5)
    for wanted in itertools.product([False, True], repeat=3):
        if not any(wanted):
            continue
        for run in (lambda f, t: f.batch_norm(t[0], None, None, t[1], t[2], True), lambda f, t: f.group_norm(t[0], 2, t[1], t[2])):
            results = []
            for f in (F, T):
                args = [t.clone().requires_grad_(want) for t, want in zip((x, w, b), wanted, strict=True)]
                run(f, args).backward(g)
                results.append([a.grad for a in args])
            for ours, theirs in zip(*results, strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_float32_vectors_beside_16_bit_input(dtype: torch.dtype) -> None:
    x, w, b = randn(4, 6, 5, 5), randn(6), randn(6)
    results = []
    for f, cast in ((F, dtype), (T, dtype), (T, torch.float64)):
        args = [
            x.to(dtype).to(cast).requires_grad_(),
            *(t.clone().to(torch.promote_types(cast, torch.float32)).requires_grad_() for t in (w, b)),
        ]
        y = f.batch_norm(args[0], None, None, args[1], args[2], True)
        y.backward(torch.linspace(-1, 1, y.numel()).to(dtype).to(y.dtype).reshape(y.shape))
        results.append([y, *(a.grad for a in args)])
    for ours, theirs, exact in zip(*results, strict=True):
        assert_close(ours, exact, theirs)


# torch's machinery ---------------------------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    ops, x, w = torch.ops.fastcv, randn(3, 6, 4, 5), randn(6)
    for image in (x, x.to(memory_format=CL), x[:, :, ::2], x[:, :, 0]):
        g = torch.randn_like(image)
        y, mean, var = ops.batch_norm_train(image, None, w, w, 1e-5, 0.0, 0.0)
        calls = [
            (ops.batch_norm_train, (image, g, w, None, 1e-5, 0.0, 0.0)),
            (ops.batch_norm_eval, (image, None, w, w.abs(), w, w, 1e-5, 1.0, 0.0)),
            (ops.batch_norm_backward, (g, image, y, mean, var, w, w, True, 1e-5, 0.0, 0.0, 15)),
            (ops.batch_norm_backward, (g, image, None, mean, var, None, None, False, 1e-5, 1.0, 0.0, 1)),
            (ops.batch_norm_update_, (w.clone(), w.clone(), mean, var, 10, 0.1)),
            (ops.batch_norm_train_update_, (image, g, w.clone(), w.clone(), w, None, 0.1, 1e-5, 0.0, 0.0)),
            (ops.group_norm, (image, 3, w, w, 1e-5)),
            (ops.group_norm_backward, (g, image, *ops.group_norm(image, 3, w, w, 1e-5)[1:], 3, w, w, 1e-5, 7)),
            (ops.layer_norm, (image, 1, None, None, 1e-5)),
            (ops.layer_norm_backward, (g, image, *ops.layer_norm(image, 2, None, None, 1e-5)[1:], 2, None, None, 1e-5, 1)),
            (ops.local_response_norm, (image, 3, 1e-4, 0.75, 1.0)),
            (ops.local_response_norm_backward, (g, image, 3, 1e-4, 0.75, 1.0)),
        ]
        for op, args in calls:
            torch.library.opcheck(op.default, args, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(
            [nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.LayerNorm(6), nn.LocalResponseNorm(3)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = norm(x)
        return x


def test_compile_and_export() -> None:
    torch._dynamo.reset()
    model = Small()
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3, 5):
        x = randn(n, 8, 5, 6)
        y = compiled(x)
        torch.testing.assert_close(y, reference(x))
    assert torch.equal(model.norms[0].running_var, reference.norms[0].running_var)
    assert model.norms[0].num_batches_tracked == 3
    y.square().sum().backward()
    reference(x).square().sum().backward()
    torch.testing.assert_close(model.norms[1].weight.grad, reference.norms[1].weight.grad)
    model.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    torch.testing.assert_close(exported.module()(randn(7, 8, 5, 6) * 0 + x[:1]), model(randn(7, 8, 5, 6) * 0 + x[:1]))


def test_vmap_and_func() -> None:
    x, w, b = randn(3, 4, 6, 5), randn(3, 6), randn(3, 6)
    for run in (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        lambda x, w, b: F.batch_norm(x, torch.zeros(6), torch.full((6,), 2.0), w, b),
        lambda x, w, b: F.group_norm(x, 2, w, b),
        lambda x, w, b: F.layer_norm(x.transpose(1, 2), (6,), w, b),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: F.local_response_norm(x, 3),
    ):
        expected = torch.stack([run(*(t[i] for t in (x, w, b))) for i in range(3)])
        torch.testing.assert_close(torch.vmap(run)(x, w, b), expected)
        shared = torch.stack([run(x[i], w[0], b[0]) for i in range(3)])
        torch.testing.assert_close(torch.vmap(run, in_dims=(0, None, None))(x, w[0], b[0]), shared)

        def loss(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, run: Any = run) -> torch.Tensor:
            return (run(x, w, b) ** 3).sum()

        per_sample = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(x, w, b)
        for i in range(3):
            args = [t[i].clone().requires_grad_() for t in (x, w, b)]
            direct = torch.autograd.grad(loss(*args), args, allow_unused=True, materialize_grads=True)
            for a, e in zip(per_sample, direct, strict=True):
                torch.testing.assert_close(a[i], e, rtol=1e-4, atol=1e-4)
    mean, var = torch.zeros(3, 6), torch.ones(3, 6)
    torch.vmap(lambda x, m, v: F.batch_norm(x, m, v, training=True))(x, mean, var)
    torch.testing.assert_close(mean, 0.1 * x.mean((1, 3)))
    with pytest.raises(RuntimeError, match="mapped"):
        torch.vmap(lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6), training=True))(x)
