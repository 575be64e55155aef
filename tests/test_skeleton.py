"""The do-nothing op through every room: variants, layouts, autograd, compile, vmap, CUDA. New ops start from this file."""

import pytest
import torch

import fastcv
from fastcv.functional._skeleton import skeleton
from fastcv.testing import serves

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
USABLE = [name for name, isa in fastcv.variants("skeleton")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", USABLE)
@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9, 15, 16, 17, 1 << 15])
def test_every_variant_copies(variant: str, dtype: torch.dtype, n: int) -> None:
    if not serves("skeleton", variant, dtype):
        pytest.skip("that instruction set leaves this dtype to another")
    x = torch.randn(n).to(dtype)
    with fastcv.use(skeleton=variant):
        assert torch.equal(skeleton(x), x)


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x[:, ::2, 1:], lambda x: x.mT])
def test_any_strides(make) -> None:
    x = make(torch.randn(2, 4, 5, 6))
    y = skeleton(x)
    assert torch.equal(y, x)
    assert y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_any_order() -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(skeleton, (x,)) and torch.autograd.gradgradcheck(skeleton, (x,))


def test_torch_integration() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.library.opcheck(torch.ops.fastcv.skeleton.default, (x,))
    assert torch.equal(torch.compile(skeleton, fullgraph=True, backend="aot_eager")(x), x)
    assert torch.equal(torch.vmap(skeleton)(x), x)
    grad = torch.func.grad(lambda a: (skeleton(a) ** 2).sum())(x)
    torch.testing.assert_close(grad, 2 * x)


def test_refuses_integers() -> None:
    with pytest.raises(RuntimeError, match="fastcv skeleton: dtype Int has no kernel"):
        skeleton(torch.ones(3, dtype=torch.int32))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda(dtype: torch.dtype) -> None:
    x = torch.randn(1000, device="cuda").to(dtype)
    assert torch.equal(skeleton(x), x)
