"""fastcv inside PyTorch: modules that stand in for torch.nn's, whole models under compile, export, autocast, copies and pickles."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch

import fastcv

PAIRS = [
    ("Conv1d", (3, 4, 3), (2, 3, 9)),
    ("Conv2d", (3, 4, 3), (2, 3, 9, 8)),
    ("Conv3d", (3, 4, 3), (2, 3, 5, 6, 7)),
    ("ConvTranspose1d", (3, 4, 3, 2), (2, 3, 9)),
    ("ConvTranspose2d", (3, 4, 3, 2), (2, 3, 9, 8)),
    ("ConvTranspose3d", (3, 4, 3, 2), (2, 3, 5, 6, 7)),
    ("BatchNorm1d", (3,), (4, 3, 9)),
    ("BatchNorm2d", (3,), (4, 3, 9, 8)),
    ("BatchNorm3d", (3,), (4, 3, 5, 6, 7)),
    ("GroupNorm", (2, 4), (2, 4, 5, 6)),
    ("LayerNorm", ((4, 5),), (2, 3, 4, 5)),
    ("InstanceNorm2d", (3,), (2, 3, 6, 7)),
    ("LocalResponseNorm", (2,), (2, 3, 6, 7)),
    ("MaxPool2d", (2,), (2, 3, 8, 9)),
    ("AvgPool2d", (2,), (2, 3, 8, 9)),
    ("AdaptiveAvgPool2d", ((2, 3),), (2, 3, 8, 9)),
    ("AdaptiveMaxPool2d", ((2, 3),), (2, 3, 8, 9)),
    ("Softmax", (1,), (2, 5)),
    ("LogSoftmax", (1,), (2, 5)),
]


@pytest.mark.parametrize(("name", "args", "shape"), PAIRS, ids=[p[0] for p in PAIRS])
def test_modules_stand_in_for_torchs(name: str, args: tuple, shape: tuple) -> None:
    ours, torchs = getattr(fastcv.nn, name)(*args), getattr(torch.nn, name)(*args)
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(torchs)
    ours.load_state_dict(torchs.state_dict())
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), torchs(x))
    for clone in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(clone) is type(ours)
        assert torch.equal(clone.eval()(x), ours.eval()(x))
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


class Net(torch.nn.Module):
    """A little of everything a classifier uses, with the layers of either package."""

    def __init__(self, nn) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.bn(self.stem(x))))
        x = self.norm(self.up(torch.relu(self.conv(x) + x)))
        return self.gap(x).flatten(1)


def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    ours, torchs = Net(fastcv.nn), Net(torch.nn)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_training_step_is_torchs(layout: torch.memory_format) -> None:
    x, target = torch.randn(4, 3, 12, 14).to(memory_format=layout), torch.tensor([0, 1, 2, 3])
    results = []
    for model, loss in zip(pair(), (fastcv.nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()), strict=True):
        model = model.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(x), target).backward()
            optimizer.step()
        results.append(model.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], msg=key)


@pytest.mark.parametrize("training", [False, True])
def test_compile_fullgraph_without_recompiles(training: bool) -> None:
    ours, _ = pair()
    ours.train(training)
    reference = copy.deepcopy(ours)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in ((2, 3, 12, 14), (5, 3, 12, 14), (3, 3, 16, 10)):
            x = torch.randn(size)
            torch.testing.assert_close(compiled(x), reference(x))


def test_inductor() -> None:
    ours, _ = pair()
    x = torch.randn(2, 3, 12, 14)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(ours.eval(), fullgraph=True)(x), ours(x))


def test_export_keeps_the_ops() -> None:
    ours, _ = pair()
    x = torch.randn(2, 3, 12, 14)
    program = torch.export.export(ours.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(x), ours(x))
    y = torch.randn(5, 3, 12, 14)
    assert torch.equal(loaded(y), ours(y))
    assert any("fastcv.conv" in str(node.target) for node in program.graph.nodes)


def test_autocast_picks_torchs_dtypes() -> None:
    ours, torchs = pair()
    x = torch.randn(2, 3, 12, 14)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert ours.stem(x).dtype == torchs.stem(x).dtype == dtype
            mine, theirs = ours(x), torchs(x)
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, atol=3e-2, rtol=3e-2)  # 16-bit roundings of six layers in a row


def test_sync_batch_norm_conversion_sees_our_batch_norm() -> None:
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(Net(fastcv.nn))
    assert isinstance(converted.bn, torch.nn.SyncBatchNorm)


def test_same_bits_for_any_thread_count_and_batch(threads: Callable[[int], None]) -> None:
    ours, _ = pair()
    ours.eval()
    x = torch.randn(5, 3, 33, 29)
    results = [threads(n) or ours(x) for n in (1, 2, 3)]
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(torch.cat([ours(image[None]) for image in x]), results[0])
