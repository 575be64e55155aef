"""Convolutions of arguments that do not go together: the same types of errors as torch's, with sentences that name the values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fastcv.functional as ours

X, W, B, WT = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6), torch.randn(4, 6, 3, 3)
ERRORS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "input of 2 dimensions": lambda f: f(X[0, 0], W),
    "input of 5 dimensions": lambda f: f(X[None], W),
    "weight of 3 dimensions": lambda f: f(X, W[0]),
    "weight of 5 dimensions": lambda f: f(X, W[None]),
    "other channels": lambda f: f(X[:, :3], W),
    "channels not of the groups": lambda f: f(X, W, groups=3),
    "outputs not of the groups": lambda f: f(X, W[:5, :2], groups=2),
    "no groups": lambda f: f(X, W, groups=0),
    "negative groups": lambda f: f(X, W, groups=-1),
    "groups of float": lambda f: f(X, W, groups=1.0),
    "groups of None": lambda f: f(X, W, groups=None),
    "negative padding": lambda f: f(X, W, padding=-1),
    "padding of float": lambda f: f(X, W, padding=1.0),
    "padding of None": lambda f: f(X, W, padding=None),
    "three paddings": lambda f: f(X, W, padding=(1, 1, 1)),
    "no paddings": lambda f: f(X, W, padding=()),
    "zero stride": lambda f: f(X, W, stride=0),
    "negative stride": lambda f: f(X, W, stride=(1, -1)),
    "stride of float": lambda f: f(X, W, stride=1.5),
    "stride of None": lambda f: f(X, W, stride=None),
    "stride of bool": lambda f: f(X, W, stride=True),
    "three strides": lambda f: f(X, W, stride=(1, 1, 1)),
    "zero dilation": lambda f: f(X, W, dilation=0),
    "negative dilation": lambda f: f(X, W, dilation=-1),
    "bias of another length": lambda f: f(X, W, B[:5]),
    "bias of 2 dimensions": lambda f: f(X, W, B[None]),
    "bias of no dimension": lambda f: f(X, W, B[0]),
    "bias of int": lambda f: f(X, W, 3),
    "weight of another dtype": lambda f: f(X.double(), W),
    "half input": lambda f: f(X.half(), W),
    "bias of another dtype": lambda f: f(X, W, B.double()),
    "integer input": lambda f: f(X.long(), W),
    "list input": lambda f: f([1, 2], W),
    "no weight": lambda f: f(X, None),
    "empty rows": lambda f: f(X[:, :, :0], W, padding=2),
    "unknown argument": lambda f: f(X, W, foo=1),
}
CONV_ERRORS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "unknown padding": lambda f: f(X, W, padding="bad"),
    "same with stride": lambda f: f(X, W, padding="same", stride=2),
    "kernel over input": lambda f: f(X, torch.randn(6, 4, 9, 9)),
    "dilated kernel over input": lambda f: f(X, W, dilation=4),
    "no outputs": lambda f: f(X, W[:0]),
}
TRANSPOSED_ERRORS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "padding of str": lambda f: f(X, WT, padding="same"),
    "output_padding as stride": lambda f: f(X, WT, output_padding=1),
    "output_padding over stride": lambda f: f(X, WT, stride=2, output_padding=(1, 2)),
    "negative output_padding": lambda f: f(X, WT, stride=2, output_padding=-1),
    "three output_paddings": lambda f: f(X, WT, stride=2, output_padding=(1, 1, 1)),
    "padding over output": lambda f: f(X, WT, padding=9),
    "bias of one group": lambda f: f(X, WT, B, groups=2),
    "no outputs": lambda f: f(X, WT[:, :0]),
}


def _raised(call: Callable[[Callable[..., Any]], Any], function: Callable[..., Any]) -> BaseException:
    with pytest.raises((RuntimeError, TypeError, ValueError, IndexError)) as caught:
        call(function)
    return caught.value


@pytest.mark.parametrize("call", [*ERRORS.values(), *CONV_ERRORS.values()], ids=[*ERRORS, *CONV_ERRORS])
def test_conv_raises_what_torch_raises(call) -> None:
    theirs = type(_raised(call, F.conv2d))
    for function in (ours.conv2d, ours.conv2d_fused):
        mine = _raised(call, function)
        assert type(mine) is theirs
        assert len(str(mine)) > 10


@pytest.mark.parametrize("call", [*ERRORS.values(), *TRANSPOSED_ERRORS.values()], ids=[*ERRORS, *TRANSPOSED_ERRORS])
def test_transposed_conv_raises_what_torch_raises(call) -> None:
    if call in ERRORS.values():
        swapped = call
        call = lambda f: swapped(lambda x, w, *a, **k: f(x, WT if w is W else w.transpose(0, 1) if torch.is_tensor(w) else w, *a, **k))  # noqa: E731
    assert type(_raised(call, ours.conv_transpose2d)) is type(_raised(call, F.conv_transpose2d))


def test_messages_name_the_values() -> None:
    with pytest.raises(RuntimeError, match=r"\[2, 3, 8, 8\].*\[6, 4, 3, 3\]"):
        ours.conv2d(X[:, :3], W)
    with pytest.raises(RuntimeError, match=r"output_padding=\[1, 1\], stride=\[1, 1\]"):
        ours.conv_transpose2d(X, WT, output_padding=1)
    with pytest.raises(ValueError, match=r"activation must be one of.*'mish'"):
        ours.conv2d_fused(X, W, activation="mish")
    with pytest.raises(TypeError, match="negative_slope must be a number"):
        ours.conv2d_fused(X, W, activation="leaky_relu", negative_slope="0.1")
    with pytest.raises(RuntimeError, match="residual"):
        ours.conv2d_fused(X, W, residual=X)
