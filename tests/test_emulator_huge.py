"""The CUDA kernels at the far end of tensors of more than 2^31 elements, on the emulator: where a 32-bit index goes wrong.

A tensor of 2.7 thousand million 16-bit elements is address space only: its pages exist once they are touched. Of every launch only the last
block runs, so what it writes is right only if its indices are; the last elements are compared with torch's answer for a part of the input.
Sizes are such that the last block's elements are the last ones (grids that stride over the rest have 2^16 blocks).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as torchs
from torch import Tensor

import fastcv
from fastcv import functional as F

pytestmark = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)
ELEMENTS = 5 * 2**29
assert ELEMENTS > 2**31


def memory_bytes() -> int:
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemTotal")) << 10
    except (OSError, StopIteration):
        return 0


@pytest.fixture(autouse=True)
def last_block() -> Iterator[None]:
    if memory_bytes() < 12 << 30:  # what Linux allows to be promised in one piece; a fraction of it is used
        pytest.skip("needs a machine with 12 GB of memory")
    from fastcv import _C

    _C.emulate_most_blocks(1)
    yield
    _C.emulate_most_blocks(0)


def huge(*sizes: int, last: bool = False, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Zeros but for random numbers in the last 2^16 elements of memory."""
    t = torch.empty(sizes[0], *sizes[2:], sizes[1], dtype=dtype).movedim(-1, 1) if last else torch.empty(sizes, dtype=dtype)
    flat = t.movedim(1, -1).reshape(-1) if last else t.view(-1)
    assert flat.data_ptr() == t.data_ptr() and t.numel() == ELEMENTS
    flat[-(2**16) :] = torch.randn(2**16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return t


def close(ours: Tensor, expected: Tensor) -> None:
    assert expected.any(), "nothing but zeros would show nothing"
    torch.testing.assert_close(ours, expected.to(ours.dtype), rtol=1.6e-2, atol=1e-2)  # two roundings to bfloat16


def grad_of(y: Tensor, x: Tensor, toward: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, toward)[0]


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_pooling(op: str, last: bool) -> None:
    x = huge(5, 2**13, 2**8, 2**8, last=last).requires_grad_()
    rows = 1 if last else 2  # of the result, that the last block makes
    channels = slice(-2048, None) if last else slice(-1, None)
    columns = slice(-1, None) if last else slice(None)
    corner = x.detach()[-1:, channels, -2 * rows :, -2 if last else 0 :].float().requires_grad_()
    expected = getattr(torchs, op)(corner, 2)
    with fastcv.use(**{op: "window_sm80", f"{op}_backward": "gather_sm80"}):
        y = getattr(F, op)(x, 2)
        close(y.detach()[-1:, channels, -rows:, columns], expected.detach())
        toward = torch.empty_like(y)
        toward[-1:, channels, -rows:, :] = 1
        dx = grad_of(y, x, toward)
    expected = grad_of(expected, corner, torch.ones_like(expected))
    # The last block of the backward pass makes 256 packs, or 256 elements: the last row's.
    close(dx[-1:, channels, -1:, -1 if last else 0 :], expected[:, :, -1:, -1 if last else 0 :])


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_batch_norm_in_evaluation(last: bool) -> None:
    x = huge(5, 2**13, 2**8, 2**8, last=last)
    g = torch.Generator().manual_seed(0)
    mean, var, w, b = (torch.rand(2**13, generator=g) + 0.5 for _ in range(4))
    with fastcv.use(batch_norm="two_pass_sm80"):
        y = F.batch_norm_act(x, mean, var, w, b, residual=x, activation="relu")
    end = slice(-1, None)
    part = (end, slice(-256, None), end, end) if last else (end, end, slice(-16, None))
    exact = x[part].float()
    channels = part[1]
    close(y[part], (torchs.batch_norm(exact, mean[channels], var[channels], w[channels], b[channels]) + exact).relu())


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_batch_norm_and_pooling_in_evaluation(last: bool) -> None:
    x = huge(5, 2**13, 2**8, 2**8, last=last)
    g = torch.Generator().manual_seed(0)
    mean, var, w, b = (torch.rand(2**13, generator=g) + 0.5 for _ in range(4))
    with fastcv.use(batch_norm_max_pool2d="strips_sm80"):
        y = F.batch_norm_max_pool2d(x, mean, var, w, b, activation="relu", kernel_size=2)
    end, channels = slice(-1, None), slice(-256, None) if last else slice(-1, None)
    columns = slice(-16, None) if last else slice(None)
    exact = x[-1:, channels, -8:, columns].float()
    whole = torchs.batch_norm(exact, mean[channels], var[channels], w[channels], b[channels]).relu()
    close(y[end, channels, -4:, -8 if last else 0 :], torchs.max_pool2d(whole, 2))


def test_group_norm() -> None:
    x, w, b = huge(80, 2**13, 2**6, 2**6), torch.rand(2**13), torch.rand(2**13)
    with fastcv.use(group_norm="two_pass_sm80"):
        y = F.group_norm(x, 2**13, w, b)
    close(y[-1:, -1:], torchs.group_norm(x[-1:, -1:].float(), 1, w[-1:], b[-1:]))


@pytest.mark.parametrize(("length", "variant"), [(4096, "two_pass_sm80"), (512, "warp_sm80")])
def test_layer_norm(length: int, variant: str) -> None:
    x, w, b = huge(ELEMENTS // length, length), torch.rand(length), torch.rand(length)
    with fastcv.use(layer_norm=variant):
        y = F.layer_norm(x, (length,), w, b)
    close(y[-1:, -256:], torchs.layer_norm(x[-1:].float(), (length,), w, b)[:, -256:])  # columns of a block of the second pass


def test_local_response_norm() -> None:
    x = huge(5, 2**13, 2**8, 2**8, last=True)
    with fastcv.use(local_response_norm="window_sm80"):
        y = F.local_response_norm(x, 5, 1.0)
    close(y[-1:, -256:, -1:, -1:], torchs.local_response_norm(x[-1:, -300:, -1:, -1:].float(), 5, 1.0)[:, -256:])


@pytest.mark.parametrize("variant", ["warp_sm80", "staged_sm80", "cluster_sm90", "online_sm80"])
def test_cross_entropy(variant: str) -> None:
    classes = 1024 if variant == "warp_sm80" else 2**13
    x = huge(ELEMENTS // classes, classes).requires_grad_()
    target = torch.zeros(x.shape[0], dtype=torch.int64)
    target[-8:] = torch.arange(8) * 100
    with fastcv.use(cross_entropy=variant, cross_entropy_backward=variant):
        loss = F.cross_entropy(x, target, reduction="none")
        dx = grad_of(loss, x, torch.ones_like(loss))
    corner = x.detach()[-1:].float().requires_grad_()
    expected = torchs.cross_entropy(corner, target[-1:], reduction="none")
    close(loss.detach()[-1:], expected.detach())
    close(dx[-1:], grad_of(expected, corner, torch.ones(1)))


@pytest.mark.parametrize("variant", ["block_sm80", "column_sm80"])
def test_softmax(variant: str) -> None:
    rows = variant == "block_sm80"
    x = huge(ELEMENTS // 2048, 2048) if rows else huge(ELEMENTS // 2**16, 16, 2**12)
    with fastcv.use(softmax=variant):
        y = F.softmax(x, 1)
    close(y[-1:], x[-1:].float().softmax(1)) if rows else close(y[-1:, :, -256:], x[-1:, :, -256:].float().softmax(1))


def test_kl_div() -> None:
    x, target = huge(ELEMENTS), huge(ELEMENTS)
    target.view(-1)[-2048:] += 1
    with fastcv.use(kl_div="onepass_sm80"):
        y = F.kl_div(x, target, reduction="none", log_target=True)
    close(y[-2048:], torchs.kl_div(x[-2048:].float(), target[-2048:].float(), reduction="none", log_target=True))


def test_bed_of_nails() -> None:
    x = torch.empty(5, 2**13, 2**8, 2**7, dtype=torch.bfloat16)
    x.view(-1)[-128:] = 1 + torch.arange(128)
    with fastcv.use(upsample_bed_of_nails="element_sm80"):
        y = F.upsample_bed_of_nails(x, (1, 2))
    assert y.numel() == ELEMENTS
    assert torch.equal(y[-1, -1, -1, ::2], x[-1, -1, -1]) and not y[-1, -1, -1, 1::2].any()


def test_distances() -> None:
    x, y = torch.randn(2**16, 1), torch.randn(5 * 2**13, 1)
    with fastcv.use(cdist="tile_sm80"):
        d = F.cdist(x, y, 1.0)
    assert d.numel() == ELEMENTS
    torch.testing.assert_close(d[-1:, -1:], (x[-1:] - y[-1:]).abs())


@pytest.mark.parametrize(("variant", "groups"), [("igemm_sm80", 1), ("tiled_sm80", 1), ("depthwise_sm80", 64), ("direct_sm80", 64)])
def test_convolution(variant: str, groups: int) -> None:
    from fastcv import _C

    _C.emulate_most_blocks(4)  # a small launch before the large one
    channels = 64
    x = huge(ELEMENTS // 2**22, channels, 2**8, 2**8, last=True)
    w = (torch.randn(channels, channels // groups, 3, 3) / 8).to(torch.bfloat16).to(memory_format=torch.channels_last)
    with fastcv.use(conv=variant):
        y = F.conv2d(x, w, padding=1, groups=groups)
    close(y[-1:, -8:, -1:, -1:], torchs.conv2d(x[-1:, :, -2:, -2:].float(), w.float(), padding=1, groups=groups)[:, -8:, -1:, -1:])
