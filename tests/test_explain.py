"""fastcv.explain: what it says is what runs, and the model is left as it was."""

import io
import json
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import fastcv
from fastcv.bench import roofs
from fastcv.explainer import work
from fastcv.models.resnet_cifar import resnet8
from fastcv.testing import serves


class Mixed(nn.Module):
    """A fused convolution, a strided view in front of a kernel, a linear layer and functions of torch's in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x, scale: float = 1.0):
        x = self.relu(self.bn(self.conv(x[:, :, ::2, ::2])))
        x.mul_(scale)
        return self.fc(torch.sigmoid(self.pool(x).flatten(1)))


def images() -> torch.Tensor:
    return torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(1))


def explain(model: nn.Module, *inputs, **kwargs) -> fastcv.explainer.Explanation:
    return fastcv.explain(model, *inputs, seconds=0.0, **kwargs)


def layers(explanation: fastcv.explainer.Explanation) -> dict[str, fastcv.explainer.Layer]:
    return {layer.name: layer for layer in explanation.layers}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


def test_fused_layer(model: nn.Module) -> None:
    result = explain(fastcv.optimize(model), images())
    found = layers(result)
    assert set(found) == {"conv", "pool", "fc", ""}
    conv = found["conv"]
    assert conv.runs_on == "fastcv" and conv.ops == {"fastcv.conv": 1} and conv.fused == ["bn", "relu"] and conv.calls == 1
    assert conv.input == [2, 8, 6, 5] and conv.output == [2, 16, 6, 5] and conv.dtype == "float32" and conv.layout == "strided"
    assert conv.flops == 2 * 2 * 16 * 6 * 5 * 8 * 9
    assert conv.bytes == 4 * (2 * 8 * 6 * 5 + 16 * 8 * 9 + 16 + 2 * 16 * 6 * 5)
    assert [(c.to, c.bytes) for c in conv.conversions] == [("row-major", 2 * 4 * 2 * 8 * 6 * 5)] and conv.conversions[0].seconds > 0
    assert 0 < conv.seconds < result.totals["model"] and conv.torch_seconds > 0
    assert conv.bound in ("arithmetic", "memory") and conv.least_seconds > 0 and conv.roof_percent > 0
    assert found["fc"].runs_on == "torch" and found["fc"].reason.startswith("runs on torch: 16 to 4 features")
    assert found["fc"].flops == 2 * 2 * 16 * 4
    assert found[""].runs_on == "torch" and set(found[""].ops) == {"mul_", "sigmoid"} and "forward run on torch" in found[""].reason
    assert set(result.totals) == {"model", "torch", "channels_last"}


def test_variants_are_those_that_run(model: nn.Module) -> None:
    ours = fastcv.optimize(model)
    with torch.no_grad():
        expected = [(op, variant) for op, variant, reason in fastcv.why_not(ours, images()) if not reason]
    result = explain(ours, images())
    assert [(c.op, c.variant) for layer in result.layers for c in layer.choices] == expected
    with fastcv.use(conv="ref"):
        forced = layers(explain(ours, images()))["conv"].choices[0]
    table = [name for name, needs in fastcv.variants("conv") if not needs.startswith("sm")]
    assert forced.variant == "ref" and [name for name, _ in forced.not_taken] == table[:-1]
    assert all(reason for _, reason in forced.not_taken)


def test_plain_and_partly_optimised_models(model: nn.Module) -> None:
    found = layers(explain(model, images()))
    assert {layer.runs_on for layer in found.values()} == {"torch"}
    assert found["conv"].reason == "the model is not optimised: fastcv.optimize(model)" and not found["conv"].choices
    assert found["bn"].ops == {"native_batch_norm": 1} or len(found["bn"].ops) == 1
    partly = layers(explain(fastcv.optimize(model, ops=["conv2d"], fuse=False), images()))
    assert partly["conv"].runs_on == "fastcv"
    assert partly["pool"].reason == "adaptive_avg_pool2d is not among the ops that fastcv.optimize was asked for"
    hooked = Mixed().eval()
    hooked.conv.register_forward_hook(lambda module, args, output: None)
    assert layers(explain(fastcv.optimize(hooked), images()))["conv"].reason == "it has hooks"


def test_unserved_inputs_are_named(model: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, dtype=torch.complex64), nn.ReLU())
    result = explain(fastcv.optimize(model[:1]), images().to(torch.complex64))
    assert "complex64" in result.layers[0].reason


def test_training_mode() -> None:
    model = fastcv.optimize(resnet8().train(), mode="training")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = explain(model, torch.randn(2, 3, 16, 16))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    norms = [layer for layer in result.layers if "fastcv.batch_norm_train_update_" in layer.ops]
    assert norms and all(layer.runs_on == "fastcv" for layer in norms)


@pytest.mark.parametrize("optimised", [True, False])
def test_the_model_is_left_as_it_was(model: nn.Module, optimised: bool) -> None:
    ours = fastcv.optimize(model) if optimised else model
    attributes = {name: dict(vars(m)) for name, m in ours.named_modules()}
    x, state = images(), torch.random.get_rng_state()
    with torch.no_grad():
        before = ours(x)
    explain(ours, x, scale=2.0)
    with torch.no_grad():
        assert torch.equal(ours(x), before)
    assert torch.equal(x, images()) and torch.equal(torch.random.get_rng_state(), state)
    for name, m in ours.named_modules():
        assert vars(m).keys() == attributes[name].keys() and all(vars(m)[k] is v for k, v in attributes[name].items())
    assert torch.is_grad_enabled() and not fastcv._ext.module().take_recorded_choices()


def test_exceptions_are_the_models(model: nn.Module) -> None:
    class Breaks(nn.Module):
        def forward(self, x):
            raise KeyError("halfway")

    broken = nn.Sequential(nn.Conv2d(8, 8, 3), Breaks())
    with pytest.raises(KeyError, match="halfway"):
        explain(broken, images())
    assert torch.is_grad_enabled() and torch.overrides._get_current_function_mode() is None
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    broken[0](images())
    assert not fastcv._ext.module().take_recorded_choices()
    assert not any("forward" in vars(m) for m in broken.modules())
    with pytest.raises(TypeError, match="must be a torch"):
        fastcv.explain(torch.zeros(1), images())
    with pytest.raises(ValueError, match="inputs"):
        fastcv.explain(model)
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        fastcv.explain(torch.compile(model), images())


def test_shared_modules_count_their_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(F.relu(self.conv(x)))

    conv = layers(explain(fastcv.optimize(Twice().eval()), images()))["conv"]
    assert conv.calls == 2 and conv.ops == {"fastcv.conv": 2} and len(conv.choices) == 1


def test_json_and_text(model: nn.Module, tmp_path) -> None:
    result = explain(fastcv.optimize(model), images())
    data = json.loads(result.to_json())
    assert [row["name"] for row in data["layers"]] == [layer.name for layer in result.layers]
    conv = data["layers"][0]
    assert conv["runs_on"] == "fastcv" and conv["choices"][0]["op"] == "conv" and conv["roof_percent"] > 0
    assert json.loads(result.save(tmp_path / "x.json").read_text()) == data
    text = str(result)
    for piece in (
        "Conv2d + bn + relu",
        "16 to 4 features in float32 is too small to gain",
        "x torch",
        "on torch",
        "copies to row-major",
        "in channels_last",
    ):
        assert piece in text
    order = [line.split()[0] for line in text.splitlines()[3:6]]
    assert order == [layer.name or "(model)" for layer in result.by_time()[:3]]
    with pytest.raises(ValueError, match=r"\.html or \.json"):
        result.save(tmp_path / "x.txt")


def test_page_is_self_contained(tmp_path) -> None:
    class Odd(nn.Sequential):
        pass

    model = Odd()
    model.add_module("<b>&conv", nn.Conv2d(8, 8, 3))
    text = explain(fastcv.optimize(model.eval()), images()).save(tmp_path / "x.html").read_text()
    assert "&lt;b&gt;&amp;conv" in text and "<b>&conv" not in text
    assert not re.search(r"https?:|<script|<link|<img|@import|url\(|\$\w", text)
    assert text.count("<tr>") == 2 and 'lang="en"' in text and "prefers-color-scheme: dark" in text
    assert 'scope="col"' in text and 'scope="row"' in text and "<svg" in text and "aria-label" in text


def test_rich_table_fits_the_terminal(model: nn.Module) -> None:
    console = pytest.importorskip("rich.console")
    result = explain(fastcv.optimize(model), images())
    for width in (70, 110, 200):
        recorder = console.Console(width=width, record=True, file=io.StringIO())
        recorder.print(result)
        text = recorder.export_text()
        assert "conv" in text and max(map(len, text.splitlines())) <= width
        assert ("why not faster" in text) == (width == 200)


def test_roofs_are_measured_once() -> None:
    assert roofs.arithmetic(torch.float32) == roofs.arithmetic(torch.float32) > 0
    assert roofs.arithmetic(torch.bfloat16) >= roofs.arithmetic(torch.float32)
    assert roofs.copy(1 << 20) == roofs.copy((1 << 20) + 5) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", [name for name, _ in fastcv.variants("fma_chain")])
@pytest.mark.parametrize("n", [0, 1, 17, 192, 400])
def test_multiply_add_chain(variant: str, n: int, dtype: torch.dtype) -> None:
    if not serves("fma_chain", variant, dtype):
        pytest.skip("that instruction set leaves this dtype to another")
    x = torch.rand(n, dtype=dtype)
    expected = x
    for _ in range(3):
        expected = expected * 0.5 + 0.5
    with fastcv.use(fma_chain=variant):
        torch.testing.assert_close(torch.ops.fastcv.fma_chain(x, 3), expected)
        assert torch.equal(torch.ops.fastcv.fma_chain(x[::2], 0), x[::2])


def test_multiply_add_chain_refuses() -> None:
    with pytest.raises(RuntimeError, match="float32 or float64"):
        torch.ops.fastcv.fma_chain(torch.ones(3).half(), 1)
    with pytest.raises(RuntimeError, match="steps must not be negative"):
        torch.ops.fastcv.fma_chain(torch.ones(3), -1)


def test_layouts_have_names() -> None:
    x = torch.zeros(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert [work.layout(t) for t in (x, last, x[:, :, ::2], x[:, :1, :1, :1], x[0])] == [
        "NCHW",
        "channels_last",
        "strided",
        "strided",
        "dense",
    ]


def test_command(tmp_path) -> None:
    pytest.importorskip("typer")
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "fastcv", "explain"]
    done = subprocess.run(
        [*command, "fastcv.models.resnet_cifar:resnet8", "--size", "1x3x8x8", "--save", str(page)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "per call; the same model on torch" in done.stdout and "ResNet" in page.read_text()
    for wrong in (["nowhere:resnet"], ["torch"], ["fastcv.models.resnet_cifar:resnet8", "--size", "3xy"], ["math:pi"], ["builtins:dict"]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert done.returncode == 2 and "fastcv explain: " in done.stdout, wrong


class Trained(nn.Module):
    """A fused batch norm whose reader computes it again, a function in the forward, a linear layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.conv2(F.relu(self.bn(self.conv1(x))))
        return self.fc(self.fc(torch.sigmoid(x).mean((2, 3))))


@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_backward(mode: str, optimised: bool) -> None:
    model = Trained().train(mode == "training")
    ours = fastcv.optimize(model, mode="training") if optimised else model
    with torch.no_grad():  # the caller's mode does not matter
        result = explain(ours, images(), backward=True)
    found = layers(result)
    assert set(result.backward_totals) == {"model", "torch", "between"} and all(t >= 0 for t in result.backward_totals.values())
    assert all(layer.backward.seconds > 0 and layer.backward.torch_seconds > 0 for layer in result.layers)
    assert "mm" in found["fc"].backward.ops and found["fc"].calls == 2
    assert {"sigmoid_backward"} <= set(found[""].backward.ops)
    if optimised:
        batch_norm = found["bn"]
        assert batch_norm.fused == ["relu"] and set(batch_norm.backward.ops) >= {"fastcv.batch_norm_backward"}
        for name, ops in (("conv1", ["conv_wgrad"]), ("conv2", ["conv_dgrad", "conv_wgrad"])):
            part = found[name].backward
            assert [c.op for c in part.choices if c.op in ("conv_dgrad", "conv_wgrad")] == ops and part.flops and part.bound
            assert all(op.removeprefix("conv_") in part.kernel for op in ops)
        assert "fastcv.conv_wgrad" in found["conv1"].backward.ops and "mean" not in batch_norm.backward.ops
    else:
        assert "convolution_backward" in found["conv2"].backward.ops and "fastcv" not in str(found["conv2"].backward.ops)
    assert all(p.grad is None for p in ours.parameters())
    text, page, data = str(result), result.to_html(), json.loads(result.to_json())
    assert (
        "back ms" in text and "backward " in text and "Backward</th>" in page and ", backward</li>" in page and not re.search(r"\$\w", page)
    )
    assert data["layers"][0]["backward"]["seconds"] > 0 and data["backward_totals"]["model"] > 0


def test_backward_of_checkpointed_layers() -> None:
    class Checkpointed(Trained):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    result = explain(fastcv.optimize(Checkpointed(), mode="training"), images(), backward=True)
    assert result.backward_totals["model"] > 0 and all(layer.calls in (1, 2, 4) for layer in result.layers)


def test_without_backward_nothing_of_it_is_shown(model: nn.Module) -> None:
    result = explain(model, images())
    assert not result.backward_totals and "back ms" not in str(result) and "Backward" not in result.to_html()
    with pytest.raises(ValueError, match="no output of the model has a gradient"):
        explain(nn.Flatten(), images(), backward=True)
