"""torch.compile(backend="fastcv"): convolutions in a row run as one call, with the bits of the steps, as long as nothing is another."""

import copy
import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from optimize_models import trained
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastcv
from fastcv.compiler import fastcv as backend
from fastcv.compiler import rewrite, sequence
from fastcv.compiler.sequence import ConvSequence
from fastcv.functional._conv_ops import conv_raw, sequence_raw, step_numbers


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def joined_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many convolutions each call of the raw op has made."""
    calls: list[int] = []

    def counted(tensors: list[Tensor], plan: list[int], slopes: list[float], outputs: list[int]) -> list[Tensor]:
        calls.append(len(slopes))
        return sequence_raw(tensors, plan, slopes, outputs)

    monkeypatch.setattr(sequence, "sequence_raw", counted)
    return calls


@pytest.fixture
def latest(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ConvSequence, tuple[Tensor, ...]]]:
    """The sequences that went step by step, and what they were called with."""
    calls: list[tuple[ConvSequence, tuple[Tensor, ...]]] = []
    steps = ConvSequence._step_by_step

    def remembered(self: ConvSequence, values: tuple[Tensor, ...], *rest: list) -> list[Tensor]:
        calls.append((self, values))
        return steps(self, values, *rest)

    monkeypatch.setattr(ConvSequence, "_step_by_step", remembered)
    return calls


class Graphs:
    """The backend, with the graphs that it has rewritten; join: whether convolutions in a row are made one call."""

    def __init__(self, join: bool = True) -> None:
        self.join = join
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: list) -> object:
        self.graphs.append(gm)
        with pytest.MonkeyPatch.context() as patch:
            if not self.join:
                patch.setattr(rewrite, "join_convolutions", lambda gm: None)
            return backend(gm, example_inputs)

    def lengths(self) -> list[int]:
        return [len(m.steps) for gm in self.graphs for m in gm.modules() if isinstance(m, ConvSequence)]


def both(model: nn.Module, **options: object) -> tuple[nn.Module, nn.Module]:
    """The model, joined and step by step."""
    steps = copy.deepcopy(model)  # a code object of its own would not do: torch would take the other's graph
    return torch.compile(model, backend=Graphs(), **options), torch.compile(steps, backend=Graphs(join=False), **options)


class Bottleneck(nn.Module):
    """A ResNet's block, with a way around it of its own."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.down = nn.Sequential(nn.Conv2d(channels, 2 * width, 1, stride, bias=False), nn.BatchNorm2d(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + self.down(x), inplace=True)


class Inverted(nn.Module):
    """A MobileNet's block: groups, relu6, a residual without an activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Plain(nn.Module):
    """Nothing to fold: biases or none, dilation, groups, padding that is uneven, activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 12, 3, padding=2, dilation=2)
        self.b = nn.Conv2d(12, 16, (4, 2), padding="same", bias=False)
        self.c = nn.Conv2d(16, 8, 3, (1, 2), padding=(0, 1), groups=4)
        self.d, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        x = F.leaky_relu(self.c(F.gelu(self.b(x))), 0.2)
        return F.hardswish(self.bn(self.d(x)) + x)


def model_of(name: str) -> nn.Module:
    torch.manual_seed(3)
    makes = {
        "resnet": lambda: nn.Sequential(Bottleneck(8, 8, 2), Bottleneck(16, 6), Bottleneck(12, 8)),
        "mobilenet": lambda: nn.Sequential(Inverted(8), Inverted(8)),
        "plain": Plain,
        "conv1d": lambda: nn.Sequential(nn.Conv1d(8, 9, 3), nn.ReLU(), nn.Conv1d(9, 4, 5, padding=2), nn.BatchNorm1d(4)),
        "conv3d": lambda: nn.Sequential(nn.Conv3d(8, 9, 2), nn.BatchNorm3d(9), nn.ReLU(), nn.Conv3d(9, 4, 1)),
    }
    return trained(makes[name]()).eval()


def image_of(name: str, batch: int = 2, size: int = 11) -> Tensor:
    dims = int(name[4]) if name.startswith("conv") else 2
    return torch.randn(batch, 8, *[size - i for i in range(dims)])


def same_bits(mine: Tensor, other: Tensor) -> None:
    assert mine.shape == other.shape and mine.stride() == other.stride() and torch.equal(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "convs"), [("resnet", 12), ("mobilenet", 6), ("plain", 4), ("conv1d", 2), ("conv3d", 2)])
def test_bits_of_the_steps(name: str, convs: int, channels_last: bool, dtype: torch.dtype, joined_calls: list[int]) -> None:
    model, x = model_of(name).to(dtype), image_of(name).to(dtype)
    if channels_last and x.dim() == 3:
        pytest.skip("no such layout")
    if channels_last:
        layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    joined, steps = both(model, fullgraph=True)
    with torch.inference_mode():
        for call in range(4):
            same_bits(joined(x), steps(x))
            assert joined_calls == [convs] * max(call - 1, 0)
        same_bits(joined(x * 2), steps(x * 2))


def test_other_batches_layouts_and_sizes(joined_calls: list[int]) -> None:
    graphs, model = Graphs(), model_of("resnet")
    joined = torch.compile(model, backend=graphs, dynamic=True)
    reference = fastcv.optimize(model)
    with torch.no_grad():
        for batch in (4, 4, 4, 3, 7, 4):
            x = image_of("resnet", batch)
            same_bits(joined(x), reference(x))
        assert joined_calls == [12] * 4  # the number of images makes no other kind
        count = len(graphs.graphs)
        for size in (13, 13, 13, 11):
            x = image_of("resnet", 4, size)
            same_bits(joined(x), reference(x))
        assert joined_calls == [12] * 5
        assert len(graphs.graphs) == count
        for other in (image_of("resnet", 4).to(memory_format=torch.channels_last), image_of("resnet", 4).transpose(2, 3)):
            for _ in range(4):
                same_bits(joined(other), reference(other))
        assert len(joined_calls) >= 8


@pytest.mark.parametrize("how", ["in place", "data", "through data", "load", "new", "statistics", "optimizer"])
@pytest.mark.parametrize("name", ["resnet", "plain"])
def test_changed_weights(name: str, how: str, joined_calls: list[int]) -> None:
    graphs, model, x = Graphs(), model_of(name), image_of(name)
    joined = torch.compile(model, backend=graphs, fullgraph=True)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        before = [joined(x) for _ in range(3)][-1]
        count = len(joined_calls)
        assert count == 1
        if how == "in place":
            convs[1].weight.mul_(2)
        elif how == "data":
            convs[-1].weight.data = convs[-1].weight.data * 2
        elif how == "through data":
            convs[0].weight.data.mul_(3)
        elif how == "load":
            model.load_state_dict({k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()})
        elif how == "new":
            convs[2].weight = nn.Parameter(convs[2].weight * 2)
        elif how == "statistics":
            next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.add_(1)
    if how == "optimizer":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        expected = fastcv.optimize(model)(x)
        assert not torch.equal(before, expected)
        for more in (0, 0, 1, 2):
            same_bits(joined(x), expected)
            assert len(joined_calls) == count + more
    assert len(graphs.graphs) == 1


def test_models_that_share_a_graph(joined_calls: list[int]) -> None:
    graphs, models, x = Graphs(), [model_of("plain"), trained(model_of("plain"))], image_of("plain")
    ours = [torch.compile(m, backend=graphs) for m in models]
    with torch.no_grad():
        expected = [fastcv.optimize(m)(x) for m in models]
        for _ in range(4):
            for mine, answer in zip(ours, expected, strict=True):
                same_bits(mine(x), answer)
    assert len(graphs.graphs) == 1 and len(joined_calls) == 4  # taking turns makes nothing anew
    gone = [weakref.ref(p) for p in models[1].parameters()]
    del ours, mine, models
    gc.collect()
    assert not any(p() is not None for p in gone)  # the graph keeps no model alive


class Changing(nn.Module):
    """Outputs of a run that are returned, read later, changed in place by the user, and not needed at all."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(8))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a, b, c, d, e, f, g, h = self.convs
        first = F.relu(a(x))
        second = b(first)
        third = c(second) + first  # first and second are read after the run
        third.mul_(2)  # ends it
        fourth = d(third)
        fifth = F.relu(e(y) + fourth)  # a second image from outside, a residual from within
        third[0].zero_()
        sixth = f(third) + y
        f(sixth)
        last = h(g(sixth))
        return last, first * 2, second, fifth, sixth, y


def test_outputs_of_the_middle_and_changes_in_place(joined_calls: list[int]) -> None:
    model = Changing().eval()
    graphs, other = Graphs(), Graphs(join=False)
    joined, steps = torch.compile(model, backend=graphs), torch.compile(copy.deepcopy(model), backend=other)
    x, y = image_of("plain"), image_of("plain")
    with torch.no_grad():
        for _ in range(4):
            for got, wanted, exact in zip(joined(x, y), steps(x, y), model(x, y), strict=True):
                same_bits(got, wanted)
                torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)
        kept = joined(x, y)
        values = [t.clone() for t in kept]
        for t in joined(x, y)[:-1]:
            t.zero_()  # nobody else's memory
        assert all(map(torch.equal, kept, values))
    assert sorted(graphs.lengths()) in ([2, 3, 3], [2, 3, 4]) and other.lengths() == []  # torch may drop the call that nobody needs
    assert len(joined_calls) == 3 * 4


def test_other_modes_step_by_step(joined_calls: list[int]) -> None:
    model, x = model_of("resnet"), image_of("resnet")
    joined, reference = torch.compile(model, backend="fastcv"), fastcv.optimize(model)
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            for _ in range(3):
                same_bits(joined(x), reference(x))
    assert len(joined_calls) >= 3
    count = len(joined_calls)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            same_bits(joined(x), reference(x))
    assert len(joined_calls) == count
    for p in model.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        wanted = reference(x)
    for _ in range(4):
        same_bits(joined(x), wanted)  # gradients are recorded, but nothing needs one
    assert len(joined_calls) > count
    count = len(joined_calls)
    leaf = x.clone().requires_grad_()
    joined(leaf).sum().backward()
    assert leaf.grad is not None and len(joined_calls) == count


@pytest.mark.parametrize("level", ["medium", "high"])
def test_precision_and_forced_variants(level: str, joined_calls: list[int]) -> None:
    model, x = model_of("resnet"), image_of("resnet")
    joined, reference = torch.compile(model, backend="fastcv"), fastcv.optimize(model)
    with torch.no_grad():
        plain = [joined(x) for _ in range(3)][-1]
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision(level)
            for _ in range(4):
                same_bits(joined(x), reference(x))
        finally:
            torch.set_float32_matmul_precision(before)
        for _ in range(3):
            same_bits(joined(x), plain)
        with fastcv.use(conv="ref"):
            forced = [joined(x) for _ in range(4)]
            assert all(torch.equal(f, forced[0]) for f in forced) and torch.equal(forced[0], reference(x))
        for _ in range(3):
            same_bits(joined(x), plain)


def test_choices_are_recorded_and_modes_see_every_convolution(joined_calls: list[int], latest: list[tuple]) -> None:
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            seen.append(op.name())
            return op(*args, **(kwargs or {}))

    joined, x = torch.compile(model_of("mobilenet"), backend="fastcv"), image_of("mobilenet")
    seen: list[str] = []
    with torch.no_grad():
        for _ in range(3):
            joined(x)
        assert [op for op, _, reason in fastcv.why_not(joined, x) if reason == ""] == ["conv"] * 6
        assert len(joined_calls) == 2
        run, values = latest[-1]
        with Seen():
            got = run(*values)[0]
        same_bits(got, joined(x))
    assert seen.count("fastcv::conv") == 6 and "fastcv::conv_sequence" not in seen


def test_threads(joined_calls: list[int]) -> None:
    model = model_of("resnet")
    joined, reference = torch.compile(model, backend="fastcv", dynamic=True), fastcv.optimize(model)
    images = [image_of("resnet", 4, 10 + i // 2) for i in range(4)]
    with torch.no_grad():
        wanted = [reference(x) for x in images]
        joined(images[0])
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            for j in range(20):
                which = (i if j % 10 else i + j) % 4
                if not torch.equal(joined(images[which]), wanted[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_copies(joined_calls: list[int], latest: list[tuple]) -> None:
    model, x = model_of("plain"), image_of("plain")
    joined = torch.compile(model, backend="fastcv")
    with torch.no_grad():
        before = [joined(x) for _ in range(3)][-1]
        twin = copy.deepcopy(joined)
        twin.a.weight.mul_(2)
        for _ in range(3):
            same_bits(joined(x), before)
            same_bits(twin(x), fastcv.optimize(copy.deepcopy(twin._orig_mod))(x))
        run, values = latest[-1]
        again = copy.deepcopy(run)  # starts anew
        assert again.steps[0].conv is again.convs[0] and again.convs[0] is not run.convs[0]
        count = len(joined_calls)
        for more in (0, 0, 1):
            same_bits(again(*values)[0], run(*values)[0])
            assert len(joined_calls) == count + 1 + more
            count += 1 + more


def _geometry(padding: tuple[int, ...] = (0, 0)) -> tuple:
    return (1, 1), padding, (1, 1), 1


def test_an_error_within_a_step_has_the_sentence_of_the_step() -> None:
    x, w, small = torch.randn(2, 3, 6, 6), torch.randn(3, 3, 3, 3), torch.randn(3, 4, 3, 3)
    plan = step_numbers(0, -1, 1, -1, -1, _geometry(), 0, 0) + step_numbers(3, -1, 2, -1, -1, _geometry(), 0, 0)
    with pytest.raises(RuntimeError) as one:
        conv_raw(torch.randn(2, 3, 4, 4), small, None, *_geometry(), None, 0, 0)
    with pytest.raises(RuntimeError) as run:
        sequence_raw([x, w, small], plan, [0.0, 0.0], [4])
    assert str(run.value) == str(one.value) and "channels" in str(one.value)


@pytest.mark.parametrize(
    ("spoiled", "sentence"),
    [
        ({"plan": [0, -1, 1]}, "the plan ends within a step"),
        ({"plan": [0, -1, 1, -1, -1, 1, 0, 0, 9, 1]}, "the plan ends within a step"),
        ({"plan": step_numbers(2, -1, 1, -1, -1, _geometry(), 0, 0)}, "step 0 reads tensor 2, and there are 2"),
        ({"plan": step_numbers(0, -2, 1, -1, -1, _geometry(), 0, 0)}, "step 0 reads tensor -2"),
        ({"plan": step_numbers(-1, -1, 1, -1, -1, _geometry(), 0, 0)}, "step 0 lacks an input or a weight"),
        ({"slopes": []}, "expected 1 slopes, got 0"),
        ({"outputs": [0]}, "outputs must be different outputs of the 1 steps after 2 tensors"),
        ({"outputs": [2, 2]}, "outputs must be different outputs"),
    ],
)
def test_plans_that_are_none(spoiled: dict, sentence: str) -> None:
    call = {"plan": step_numbers(0, -1, 1, -1, -1, _geometry(), 0, 0), "slopes": [0.0], "outputs": [2]} | spoiled
    with pytest.raises(RuntimeError, match=sentence):
        sequence_raw([torch.randn(1, 3, 5, 5), torch.randn(2, 3, 3, 3)], *call.values())


def test_nothing_is_held_longer_than_it_is_read() -> None:
    x, w = torch.randn(1, 8, 64, 64), torch.randn(8, 8, 1, 1)
    plan: list[int] = []
    for i in range(20):
        plan += step_numbers(0 if i == 0 else i + 1, -1, 1, -1, -1, _geometry(), 0, 0)
    with torch.profiler.profile(profile_memory=True) as profile:
        sequence_raw([x, w], plan, [0.0] * 20, [21])
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert 0 < most < 5 * x.nbytes
