"""PyTorch's own test samples: every sample and every error input that torch keeps for an op or module, on fastcv's."""

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

pytest.importorskip("expecttest", reason="torch's test samples import it")
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import fastcv
from fastcv.testing import assert_close

MOST = 150  # samples per op and dtype; max_pool2d has thousands, of which every n-th is taken
MOST_OF_A_MODULE = 40
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPS = [
    op
    for op in op_db
    if op.name.split(".")[-1] in fastcv.functional.__all__ and op.name.split(".")[0] in ("nn", "softmax", "log_softmax", "cdist")
]
MODULES = [m for m in module_db if getattr(fastcv.nn, m.module_cls.__name__, None) is not None]


def label(item: Any) -> str:
    return item.full_name if hasattr(item, "full_name") else item.name


def leaves(value: Any, grad: bool) -> Any:
    """Fresh leaves with torch's data; floating ones ask for a gradient if the sample's did."""
    return tree_map(
        lambda t: (
            t.detach().clone(memory_format=torch.preserve_format).requires_grad_(grad and t.requires_grad)
            if isinstance(t, torch.Tensor)
            else t
        ),
        value,
    )


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors, and dtypes among the arguments, in ``dtype``."""

    def convert(t: Any) -> Any:
        if isinstance(t, torch.Tensor) and t.is_floating_point():
            return t.detach().to(dtype).requires_grad_(t.requires_grad)
        return dtype if isinstance(t, torch.dtype) and t in DTYPES else t

    return tree_map(convert, value)


def judge(result: torch.Tensor, torchs: torch.Tensor, reference: torch.Tensor, what: str, *single: torch.Tensor) -> None:
    """The accuracy rule; or torch.testing's own tolerance for the dtype, because many samples are of a few elements or
    degenerate (one value per group), where torch's own error is as good as zero, or everything, by chance."""
    try:
        assert_close(result, reference, torchs, what, *single)
    except AssertionError:
        torch.testing.assert_close(result, reference.to(result.dtype), equal_nan=True, msg=lambda text: f"{what}: {text}")


def compare(ours: Any, torchs: Any, dtype: torch.dtype, what: str) -> None:
    """Runs two callables on the same arguments, forward and backward, and torch's in float64 (for float64: in float32 too)."""
    call, args, kwargs = torchs
    mine, theirs = leaves((args, kwargs), True), leaves((args, kwargs), True)
    yardsticks = [cast(leaves((args, kwargs), True), t) for t in (torch.float64, torch.float32)[: 2 if dtype == torch.float64 else 1]]
    for _, other in yardsticks:
        other.pop("options", None)  # torch's chunked linear_cross_entropy refuses float64; the formula is the same
    runs = [mine, theirs, *yardsticks]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [tree_leaves(f(*a, **k)) for f, (a, k) in zip([ours, *[call] * 3], runs, strict=False)]
    for i, (a, t, *r) in enumerate(zip(*results, strict=True)):
        judge(a, t, r[0], f"{what} output {i}", *r[1:])
        if t.numel() and t.dim() in (4, 5):
            assert a.stride() == t.stride(), f"{what} output {i}: strides {a.stride()}, torch gives {t.stride()}"
    if not results[1][0].requires_grad:
        return
    assert results[0][0].requires_grad, f"{what}: no gradient is recorded"
    weight = torch.randn(results[2][0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).half().double()
    for outputs in results:
        outputs[0].backward(weight.to(outputs[0].dtype))
    tensors = ([x for x in tree_leaves(run) if isinstance(x, torch.Tensor)] for run in runs)
    for i, (a, t, *r) in enumerate(zip(*tensors, strict=True)):
        if t.grad is not None:
            assert a.grad is not None, f"{what}: tensor {i} got no gradient"
            judge(a.grad, t.grad, r[0].grad, f"{what} gradient of tensor {i}", *(x.grad for x in r[1:]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=label)
def test_samples(op: Any, dtype: torch.dtype) -> None:
    if dtype not in op.supported_dtypes("cpu"):
        pytest.skip(f"torch has no {dtype} of it on the CPU")
    function = getattr(fastcv.functional, op.name.split(".")[-1])
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=dtype in op.supported_backward_dtypes("cpu")))
    for i, sample in list(enumerate(samples))[:: 1 + len(samples) // MOST]:
        compare(function, (op.op, (sample.input, *sample.args), sample.kwargs), dtype, f"{label(op)} sample {i}: {sample.summary()}")


@pytest.mark.parametrize("op", [op for op in OPS if op.error_inputs_func is not None], ids=label)
def test_error_inputs(op: Any) -> None:
    function = getattr(fastcv.functional, op.name.split(".")[-1])
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        args = (sample.input, *sample.args)
        with pytest.raises(Exception) as torchs:
            op.op(*args, **sample.kwargs)
        with pytest.raises(torchs.type):
            function(*args, **sample.kwargs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", MODULES, ids=label)
def test_module_samples(info: Any, dtype: torch.dtype, training: bool) -> None:
    cls = getattr(fastcv.nn, info.module_cls.__name__)
    assert inspect.signature(cls) == inspect.signature(info.module_cls)
    samples = list(info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training))
    for sample in samples[:: 1 + len(samples) // MOST_OF_A_MODULE]:
        init, call = sample.constructor_input, sample.forward_input
        if call is None:
            continue
        state = info.module_cls(*init.args, **init.kwargs).to(dtype).state_dict()

        def module(kind: Any, in_dtype: torch.dtype, init: Any = init, state: Any = state) -> torch.nn.Module:
            made = (
                kind(*cast(leaves(init.args, False), in_dtype), **cast(leaves(init.kwargs, False), in_dtype)).to(in_dtype).train(training)
            )
            made.load_state_dict(state)
            return made

        ours, torchs = module(cls, dtype), module(info.module_cls, dtype)

        def peer(*args: Any, module: Any = module, **kwargs: Any) -> Any:
            """A fresh module of torch's in the dtype of the arguments: running statistics are updated once per call."""
            floating = [t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            return module(info.module_cls, floating[0])(*args, **kwargs)

        compare(ours, (peer, call.args, call.kwargs), dtype, f"{info.name}{init.args}{init.kwargs}")
        torchs(*leaves(call.args, False), **leaves(call.kwargs, False))
        for key, value in torchs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, msg=lambda text, key=key: f"{info.name} {key}: {text}")
