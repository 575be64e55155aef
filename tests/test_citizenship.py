"""Every function of fastcv.functional under PyTorch's transforms and modes, by one table: autocast, vmap, torch.func, forward-mode
differentiation, compile with dynamic sizes, export, AOTInductor, fake kernels, deterministic algorithms, inference mode,
functionalisation. What is particular to a family stands in the family's own tests.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.fx.experimental._config
from test_raw_ops import FAMILIES, recorded
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

import fastcv
from fastcv.testing import CASES, Case, max_error

# The first case of an op, but where that one is a corner.
CHOSEN = {"cdist": "p2", "knn": "k3", "nearest": "l2", "cross_entropy": "none"}


def case_of(op: str) -> Case:
    cases = [c for c in CASES if c.op == op and not c.bench and c.grad and CHOSEN.get(op, "") in c.name]
    return next(c for c in cases if all(a.numel() for a in c.arguments(torch.float32)[0] if isinstance(a, Tensor)))


TABLE = {op: case_of(op) for op in fastcv.functional.__all__}
each_op = pytest.mark.parametrize("op", TABLE)


class Call:
    """One call of one op as functions of its differentiable tensors."""

    def __init__(self, op: str, dtype: torch.dtype = torch.float32) -> None:
        self.case = TABLE[op]
        self.args, self.kwargs = self.case.arguments(dtype)
        self.function, self.peer = getattr(fastcv.functional, op), self.case.torch_function()
        self.tensors = tuple(self.args[i] for i in self.case.grad)

    def _with(self, function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Any:
        args = list(pytree.tree_map_only(Tensor, torch.clone, self.args))
        for i, t in zip(self.case.grad, tensors, strict=True):
            args[i] = t
        return function(*args, **pytree.tree_map_only(Tensor, torch.clone, self.kwargs))

    def ours(self, *tensors: Tensor) -> Any:
        return self._with(self.function, tensors or self.tensors)

    def torchs(self, *tensors: Tensor) -> Any:
        return self._with(self.peer, tensors or self.tensors)

    def first(self, *tensors: Tensor) -> Tensor:
        """The first floating output."""
        return next(t for t in pytree.tree_leaves(self.ours(*tensors)) if isinstance(t, Tensor) and t.is_floating_point())

    def loss(self, *tensors: Tensor) -> Tensor:
        y = self.first(*tensors)
        return (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)).sum()

    def several(self, n: int) -> tuple[Tensor, ...]:
        """n different sets of the tensors, stacked."""
        return tuple(torch.stack([t.roll(i, -1) * (1 + i / 8) for i in range(n)]) for t in self.tensors)


def leaves(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


# Autocast ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in TABLE if op != "soft_iou_loss"])  # of which torch has none
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_autocast_gives_torchs_dtypes(op: str, dtype: torch.dtype, given: torch.dtype) -> None:
    """Of outputs and gradients, where torch accepts the call; and answers that are torch's within the dtype it asks for."""
    call = Call(op, given)
    mine, theirs = (tuple(t.clone().requires_grad_() for t in call.tensors) for _ in range(2))
    try:
        with torch.autocast("cpu", dtype):
            torchs = leaves(call.torchs(*theirs))
        torchs[0].float().sum().backward()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        pytest.skip(f"torch refuses: {error}")
    with torch.autocast("cpu", dtype):
        ours = leaves(call.ours(*mine))
    ours[0].float().sum().backward()
    assert [t.dtype for t in ours] == [t.dtype for t in torchs]
    assert [None if t.grad is None else t.grad.dtype for t in mine] == [None if t.grad is None else t.grad.dtype for t in theirs]
    exact = leaves(Call(op, torch.float64).torchs())
    if ours[0].dtype == torch.float64:
        torch.testing.assert_close(ours[0], torchs[0])
    elif ours[0].is_floating_point():
        allowed = 4 * max(max_error(torchs[0], exact[0]), torch.finfo(torchs[0].dtype).eps, torch.finfo(given).eps)
        assert max_error(ours[0], exact[0]) <= allowed


# torch.func ----------------------------------------------------------------------------------------------------------------------


def mappable(op: str) -> Call:
    """The op's call without running statistics in training: they are state, which a mapped call may not change."""
    call = Call(op, torch.float64)
    if op in ("batch_norm", "batch_norm_act", "batch_norm_max_pool2d", "instance_norm"):
        call.args = (call.args[0], None, None, *call.args[3:])
        if op != "instance_norm":
            call.kwargs = {**call.kwargs, "training": True}
            call.args = call.args[:5]
    return call


@each_op
def test_vmap(op: str) -> None:
    call = mappable(op)
    stacked = call.several(3)
    expected = [leaves(call.ours(*(t[i] for t in stacked))) for i in range(3)]
    for in_dim in (0, -1):
        moved = tuple(t.movedim(0, in_dim) for t in stacked)
        mapped = leaves(torch.vmap(call.ours, in_dims=in_dim)(*moved))
        for k, t in enumerate(mapped):
            torch.testing.assert_close(t, torch.stack([e[k] for e in expected]))
    if len(stacked) > 1:  # one of them mapped, the others shared
        for which in range(len(stacked)):
            in_dims = tuple(0 if i == which else None for i in range(len(stacked)))
            given = [t if i == which else call.tensors[i] for i, t in enumerate(stacked)]
            mapped = leaves(torch.vmap(call.ours, in_dims=in_dims)(*given))
            for k, t in enumerate(mapped):
                alone = [leaves(call.ours(*(g[i] if j == which else g for j, g in enumerate(given))))[k] for i in range(3)]
                torch.testing.assert_close(t, torch.stack(alone))


@each_op
def test_func_grad_and_gradients_per_sample(op: str) -> None:
    call = mappable(op)
    indices = tuple(range(len(call.tensors)))
    tensors = tuple(t.clone().requires_grad_() for t in call.tensors)
    expected = torch.autograd.grad(call.loss(*tensors), tensors)
    torch.testing.assert_close(torch.func.grad(call.loss, argnums=indices)(*call.tensors), expected)
    stacked = call.several(2)
    per_sample = torch.vmap(torch.func.grad(call.loss, argnums=indices))(*stacked)
    for i in range(2):
        tensors = tuple(t[i].clone().requires_grad_() for t in stacked)
        torch.testing.assert_close(tuple(g[i] for g in per_sample), torch.autograd.grad(call.loss(*tensors), tensors))


@each_op
def test_gradients_through_vmap(op: str) -> None:
    """torch.func.grad outside vmap, and vmap of leaves; torch's own functions on top may write to the outputs."""
    call = mappable(op)
    stacked = call.several(2)
    separate = tuple(t.clone().requires_grad_() for t in stacked)
    expected = torch.autograd.grad(sum(call.loss(*(t[i] for t in separate)) for i in range(2)), separate)

    def total(*tensors: Tensor) -> Tensor:
        return torch.vmap(call.loss)(*tensors).sum()

    torch.testing.assert_close(torch.func.grad(total, argnums=tuple(range(len(stacked))))(*stacked), expected)
    leaf = tuple(t.clone().requires_grad_() for t in stacked)
    torch.testing.assert_close(torch.autograd.grad(total(*leaf), leaf), expected)


@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d", "batch_norm", "group_norm", "max_pool2d", "avg_pool2d"])
def test_outputs_may_be_written_to(op: str) -> None:
    call = mappable(op)

    def loss(*tensors: Tensor) -> Tensor:
        return call.first(*tensors).relu_().square().sum()

    indices, stacked = tuple(range(len(call.tensors))), call.several(2)
    per_sample = torch.vmap(torch.func.grad(loss, argnums=indices))(*stacked)
    for i in range(2):
        torch.testing.assert_close(tuple(g[i] for g in per_sample), torch.func.grad(loss, argnums=indices)(*(t[i] for t in stacked)))


@each_op
def test_jacrev(op: str) -> None:
    call = mappable(op)

    def few(t: Tensor) -> Tensor:
        return call.first(t, *call.tensors[1:]).flatten()[:3]

    rows = torch.func.jacrev(few)(call.tensors[0])
    x = call.tensors[0].clone().requires_grad_()
    y = few(x)
    for i in range(len(y)):
        torch.testing.assert_close(rows[i], torch.autograd.grad(y[i], x, retain_graph=True)[0])


@each_op
def test_forward_mode_is_right_or_refused(op: str) -> None:
    """In torch.func and with dual numbers; what may not happen is a tangent that is lost without a word."""
    call = mappable(op)
    tangents = tuple(torch.randn_like(t) for t in call.tensors)
    try:
        _, tangent = torch.func.jvp(call.first, call.tensors, tangents)
    except (NotImplementedError, RuntimeError) as error:
        assert "jvp" in str(error) or "forward" in str(error)
    else:
        t = 1e-6
        moved = [call.first(*(x + s * t * d for x, d in zip(call.tensors, tangents, strict=True))) for s in (1, -1)]
        torch.testing.assert_close(tangent, (moved[0] - moved[1]) / (2 * t), rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level():
        duals = tuple(forward_ad.make_dual(x, d) for x, d in zip(call.tensors, tangents, strict=True))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"):
            call.first(*duals)


@each_op
def test_functionalisation(op: str) -> None:
    """Written arguments (running statistics) change as they do without it."""
    call = Call(op)
    mine, theirs = (pytree.tree_map_only(Tensor, torch.clone, (call.args, call.kwargs)) for _ in range(2))
    with torch.no_grad():
        results = leaves(torch.func.functionalize(lambda: call.function(*mine[0], **mine[1]))())
        expected = leaves(call.function(*theirs[0], **theirs[1]))
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(leaves(mine), leaves(theirs))


# Modes ---------------------------------------------------------------------------------------------------------------------------


@each_op
def test_inference_mode(op: str) -> None:
    call = Call(op)
    expected = leaves(call.ours())
    with torch.inference_mode():
        results = leaves(call.ours(*(t.clone().requires_grad_() for t in call.tensors)))
    for a, b in zip(results, expected, strict=True):
        assert a.is_inference()
        assert torch.equal(a, b)


@each_op
def test_deterministic_algorithms(op: str) -> None:
    """Nothing is refused, with memory of outputs filled beforehand too, and the bits are those of any other run."""
    call = Call(op)

    def run() -> list[Tensor]:
        tensors = tuple(t.clone().requires_grad_() for t in call.tensors)
        outputs = leaves(call.ours(*tensors))
        floating = next(t for t in outputs if t.is_floating_point())
        return [*outputs, *torch.autograd.grad(floating.sum(), tensors, allow_unused=True)]

    before = run()
    torch.use_deterministic_algorithms(True)
    try:
        after = run()
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(after, before, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


# Tracing -------------------------------------------------------------------------------------------------------------------------


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=True, backend=counter), counter


def sizes_of(x: Tensor) -> list[tuple[int, ...]]:
    """Other batches, and for maps another height and width."""
    n, *rest = x.shape
    sizes = [(n + 1, *rest), (n + 4, *rest)]
    if x.dim() == 4:
        sizes += [(n + 2, rest[0], rest[1] + 4, rest[2] + 6), (n + 3, rest[0], rest[1] + 12, rest[2] + 2)]
    return [tuple(x.shape), *sizes]


def dynamic(op: str) -> tuple[Callable[[Tensor], Any], Tensor]:
    """The op as a function of its input alone, other tensors made from it where their sizes must follow."""
    call = Call(op)
    f, x = call.function, call.args[0]
    x = torch.cat([x, x]) if x.shape[0] == 1 else x
    rest, kwargs = call.args[1:], call.kwargs
    match op:
        case "cross_entropy" | "nll_loss" | "multi_margin_loss":
            x, labels = torch.randn(4, 6), torch.tensor([0, 3, 5, 1])
            return lambda x: f(x, labels.repeat(x.shape[0] // 4 + 1)[: x.shape[0]]), x
        case "linear_cross_entropy":
            x, w, labels = torch.randn(4, 6), torch.randn(9, 6), torch.tensor([0, 3, 5, 1])
            return lambda x: f(x, w, labels.repeat(x.shape[0] // 4 + 1)[: x.shape[0]]), x
        case "kl_div":
            return lambda x: f(x.log_softmax(1), x.softmax(1)), torch.randn(4, 6)
        case "soft_iou_loss":
            return lambda x: f(x.sigmoid(), (x > 0).float()), torch.randn(4, 3, 6, 8)
        case "cdist":
            return lambda x: f(x, x[:3] + 1), torch.randn(5, 7)
        case "knn":
            return lambda x: f(x, x + 1, 3), torch.randn(5, 7)
        case "nearest":
            return lambda x: f(x, x[:3] + 1), torch.randn(5, 7)
        case "batch_norm_act" | "conv2d_fused":
            kwargs = {k: v for k, v in kwargs.items() if k != "residual"}
        case "max_unpool2d":
            from torch.nn.functional import max_pool2d

            def unpool(x: Tensor) -> Tensor:
                return f(*max_pool2d(x, 2, return_indices=True), 2)

            return unpool, torch.randn(2, 3, 8, 8)
        case "instance_norm":
            rest = (None, None, *rest[2:])
    return lambda x: f(x, *rest, **kwargs), x


GRADIENTS_TOO = (
    *("conv2d", "conv_transpose2d", "batch_norm_act", "batch_norm_max_pool2d", "layer_norm", "max_pool2d", "avg_pool2d"),
    *("cross_entropy", "cdist"),
)


@pytest.mark.parametrize(("op", "grad"), [*((op, False) for op in TABLE), *((op, True) for op in GRADIENTS_TOO)])
@pytest.mark.filterwarnings("ignore")
@torch.fx.experimental._config.patch(use_duck_shape=False)  # sizes that are equal once stay independent
def test_compiled_once_for_all_sizes(op: str, grad: bool) -> None:
    function, x = dynamic(op)
    compiled, counter = counted(function)
    for size in sizes_of(x):
        t = torch.randn(size).requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            ours, eager = leaves(compiled(t)), leaves(function(t))
        for a, b in zip(ours, eager, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
            assert a.stride() == b.stride()
        floating = [t for t in ours if t.is_floating_point()]
        if grad and floating[0].requires_grad:
            floating[0].sum().backward()
        if size == tuple(x.shape):
            frames = counter.frame_count  # a frame that is analysed twice before it first runs counts twice
    assert counter.frame_count == frames


@each_op
@pytest.mark.filterwarnings("ignore")
def test_export(op: str) -> None:
    function, x = dynamic(op)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    program = torch.export.export(Model(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert any("fastcv." in str(node.target) for node in program.graph.nodes)
    for size in sizes_of(x)[:3]:
        t = torch.randn(size)
        for a, b in zip(leaves(program.module()(t)), leaves(function(t)), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_fake_kernels_give_the_kernels_sizes_strides_and_dtypes(family: str) -> None:
    """Every raw op in every call that the cases make, row-major and channels_last; packed weights have a size of the kernel's own."""
    for raw, args in (call for call in recorded(FAMILIES[family]) if not call[0].name().endswith("_pack")):
        args = [a.detach() if isinstance(a, Tensor) else a for a in args]
        real = leaves(raw(*pytree.tree_map_only(Tensor, lambda t: t.clone(memory_format=torch.preserve_format), args)))
        with FakeTensorMode() as mode:
            fake = leaves(raw(*pytree.tree_map_only(Tensor, mode.from_tensor, args)))
        for a, b in zip(fake, real, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{raw}: {a.shape} {a.dtype}, the kernel gives {b.shape} {b.dtype}"
            assert a.stride() == b.stride() or not b.numel(), f"{raw} {tuple(b.shape)}: {a.stride()}, the kernel gives {b.stride()}"


# AOTInductor ---------------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = fastcv.nn.Conv2d(3, 8, 3, padding=1), fastcv.nn.BatchNorm2d(8)
        self.pool, self.norm = fastcv.nn.MaxPool2d(2), fastcv.nn.GroupNorm(2, 8)
        self.softmax = fastcv.nn.LogSoftmax(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pool(torch.relu(self.bn(self.conv(x)))))
        return self.softmax(x.mean((2, 3)))


def test_aot_inductor(tmp_path: Any) -> None:
    """A package compiled ahead of time calls the raw ops from C++; any batch."""
    model, x = Net().eval(), torch.randn(2, 3, 12, 14)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        for n in (2, 5):
            y = torch.randn(n, 3, 12, 14)
            torch.testing.assert_close(loaded(y), model(y))
