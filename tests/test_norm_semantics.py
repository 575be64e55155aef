"""The norm family takes and refuses what torch takes and refuses: errors, dtypes, layouts, modules."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as T

import fastcv.functional as F
import fastcv.nn as nn

CL = torch.channels_last
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*sizes, dtype=dtype)


X = randn(2, 4, 3)
BAD = {
    "scalar": lambda f: f.batch_norm(randn(()), None, None, training=True),
    "1-d": lambda f: f.batch_norm(randn(3), None, None, training=True),
    "1-d evaluation": lambda f: f.batch_norm(randn(3), torch.zeros(1), torch.ones(1)),
    "batch of one": lambda f: f.batch_norm(randn(1, 4, 1, 1), None, None, training=True),
    "no statistics": lambda f: f.batch_norm(X, None, None),
    "no running_var": lambda f: f.batch_norm(X, torch.zeros(4), None),
    "one statistic": lambda f: f.batch_norm(X, torch.zeros(4), None, training=True),
    "eps 0": lambda f: f.batch_norm(X, None, None, training=True, eps=0.0),
    "eps < 0": lambda f: f.batch_norm(X, torch.zeros(4), torch.ones(4), eps=-1.0),
    "weight size": lambda f: f.batch_norm(X, None, None, randn(5), None, True),
    "bias size": lambda f: f.batch_norm(X, None, None, None, randn(5), True),
    "running_mean size": lambda f: f.batch_norm(X, torch.zeros(5), torch.ones(4), training=True),
    "running_var size": lambda f: f.batch_norm(X, torch.zeros(4), torch.ones(5)),
    "integers": lambda f: f.batch_norm(X.int(), None, None, training=True),
    "complex": lambda f: f.batch_norm(X.to(torch.complex64), None, None, training=True),
    "momentum None": lambda f: f.batch_norm(X, torch.zeros(4), torch.ones(4), training=True, momentum=None),
    "weight no tensor": lambda f: f.batch_norm(X, None, None, 1.0, None, True),
    "statistics require grad": lambda f: f.batch_norm(X, torch.zeros(4).requires_grad_(), torch.ones(4), training=True),
    "groups 1-d": lambda f: f.group_norm(randn(4), 2),
    "groups 0": lambda f: f.group_norm(X, 0),
    "groups 3": lambda f: f.group_norm(X, 3),
    "groups < 0": lambda f: f.group_norm(X, -2),
    "groups float": lambda f: f.group_norm(X, 2.0),
    "group of one": lambda f: f.group_norm(randn(1, 4), 4),
    "group weight size": lambda f: f.group_norm(X, 2, randn(5)),
    "group weight 2-d": lambda f: f.group_norm(X, 2, randn(4, 1)),
    "group bias size": lambda f: f.group_norm(X, 2, None, randn(5)),
    "group integers": lambda f: f.group_norm(X.int(), 2),
    "layer int": lambda f: f.layer_norm(X, 3),
    "layer float": lambda f: f.layer_norm(X, (3.0,)),
    "layer shape": lambda f: f.layer_norm(X, (4,)),
    "layer empty shape": lambda f: f.layer_norm(X, ()),
    "layer long shape": lambda f: f.layer_norm(X, (1, 2, 4, 3)),
    "layer weight": lambda f: f.layer_norm(X, (3,), randn(4)),
    "layer bias": lambda f: f.layer_norm(X, (3,), None, randn(3, 1)),
    "layer integers": lambda f: f.layer_norm(X.int(), (3,)),
    "instance 2-d": lambda f: f.instance_norm(randn(2, 4)),
    "instance one position": lambda f: f.instance_norm(randn(2, 4, 1)),
    "instance no statistics": lambda f: f.instance_norm(X, use_input_stats=False),
    "instance one statistic": lambda f: f.instance_norm(X, torch.zeros(4)),
    "instance weight size": lambda f: f.instance_norm(X, weight=randn(5)),
    "instance weight 2-d": lambda f: f.instance_norm(X, weight=randn(4, 1)),
    "instance statistics size": lambda f: f.instance_norm(X, torch.zeros(5), torch.ones(5)),
    "instance integers": lambda f: f.instance_norm(X.int()),
    "response 2-d": lambda f: f.local_response_norm(randn(2, 4), 3),
    "response size 0": lambda f: f.local_response_norm(X, 0),
    "response size < 0": lambda f: f.local_response_norm(X, -1),
    "response size float": lambda f: f.local_response_norm(X, 3.0),
    "response integers": lambda f: f.local_response_norm(X.int(), 3),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD.keys())
def test_errors_are_of_torchs_types(call: Any) -> None:
    with pytest.raises(Exception) as theirs:
        call(T)
    with pytest.raises(Exception) as ours:
        call(F)
    assert type(ours.value) is type(theirs.value), f"{ours.value!r}, torch raises {theirs.value!r}"
    assert str(ours.value)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixed_dtypes_are_accepted_where_torch_accepts_them(dtype: torch.dtype, training: bool) -> None:
    x = X.to(dtype)
    for w, s in itertools.product([None, *DTYPES], [None, *DTYPES]):
        vectors = [None, None] if w is None else [torch.ones(4, dtype=w), torch.zeros(4, dtype=w)]
        statistics = [None, None] if s is None else [torch.zeros(4, dtype=s), torch.ones(4, dtype=s)]
        for op in (lambda f: f.batch_norm(x, *statistics, *vectors, training), lambda f: f.group_norm(x, 2, *vectors)):  # noqa: B023
            try:
                expected = op(T)
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    op(F)
            else:
                assert op(F).dtype == expected.dtype


@pytest.mark.parametrize("c", [0, 1])
def test_no_channels_and_no_positions(c: int) -> None:
    for sizes in ((2, c, 3), (2, c, 0), (0, c, 2)):
        x = torch.zeros(sizes)
        for run in (
            lambda f: f.batch_norm(x, None, None, training=True),  # noqa: B023
            lambda f: f.layer_norm(x, x.shape[2:]),  # noqa: B023
            lambda f: f.instance_norm(x),  # noqa: B023
            lambda f: f.local_response_norm(x, 2),  # noqa: B023
            lambda f: f.group_norm(x, 1),  # noqa: B023
        ):
            assert run(F).shape == run(T).shape


def _strided() -> list[torch.Tensor]:
    one = torch.channels_last
    return [
        randn(2, 8, 3, 10)[:, ::2, :, ::2],
        randn(2, 4, 5, 3).mT,
        randn(2, 1, 3, 5).expand(2, 4, 3, 5),
        randn(2, 5, 4).mT,
        randn(2, 4, 6, 5).to(memory_format=one)[:, :, ::2],
        randn(2, 4, 2, 3, 5).to(memory_format=torch.channels_last_3d),
        randn(2, 4, 1, 1),
        randn(2, 1, 3, 5).to(memory_format=one),
        randn(2, 4, 1, 1).to(memory_format=one),
    ]


@pytest.mark.parametrize("i", range(9))
def test_layouts_are_torchs(i: int) -> None:
    x = _strided()[i]
    c = x.shape[1]
    for run in (
        lambda f: f.batch_norm(x, None, None, training=True),
        lambda f: f.batch_norm(x, torch.zeros(c), torch.ones(c)),
        lambda f: f.group_norm(x, 1),
        lambda f: f.layer_norm(x, x.shape[1:]),
        lambda f: f.instance_norm(x),
        lambda f: f.instance_norm(x, torch.zeros(c), torch.ones(c), use_input_stats=False),
        lambda f: f.local_response_norm(x, 3),
    ):
        try:
            expected = run(T)
        except ValueError:
            continue
        torch.testing.assert_close(run(F), expected)
        assert run(F).stride() == expected.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_is_torchs(dtype: torch.dtype) -> None:
    x = randn(2, 4, 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for run in (
            lambda f: f.batch_norm(x, None, None, training=True),
            lambda f: f.group_norm(x, 2),
            lambda f: f.layer_norm(x, (3,)),
            lambda f: f.instance_norm(x),
            lambda f: f.local_response_norm(x, 3),
        ):
            assert run(F).dtype == run(T).dtype


MODULES = {
    "BatchNorm1d": ((6,), (4, 6, 5)),
    "BatchNorm2d": ((6,), (4, 6, 5, 3)),
    "BatchNorm3d": ((6,), (4, 6, 2, 3, 2)),
    "GroupNorm": ((3, 6), (4, 6, 5)),
    "LayerNorm": ((5,), (4, 6, 5)),
    "InstanceNorm1d": ((6, 1e-5, 0.1, True, True), (4, 6, 5)),
    "InstanceNorm2d": ((6, 1e-5, 0.1, True, True), (4, 6, 5, 3)),
    "InstanceNorm3d": ((6, 1e-5, 0.1, True, True), (4, 6, 2, 3, 2)),
    "LocalResponseNorm": ((3,), (4, 6, 5)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_drop_ins(name: str) -> None:
    arguments, sizes = MODULES[name]
    ours, theirs = getattr(nn, name)(*arguments), getattr(torch.nn, name)(*arguments)
    assert isinstance(ours, type(theirs)) and repr(ours) == repr(theirs)
    theirs.load_state_dict(ours.state_dict())
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        x = randn(*sizes)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    if "Instance" in name:
        torch.testing.assert_close(ours(x[0]), theirs(x[0]), rtol=1e-5, atol=1e-5)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    if name.startswith("Batch"):
        assert isinstance(torch.nn.SyncBatchNorm.convert_sync_batchnorm(ours), torch.nn.SyncBatchNorm)
        with pytest.raises(ValueError, match="expected"):
            ours(torch.zeros(2))
