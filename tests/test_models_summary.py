"""The per-layer page: shapes, memory, parameters, multiply-adds, and receptive fields against brute force."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastcv
from fastcv import models
from fastcv.models.summary import Layer, Summary, summarise


def of(network: nn.Module, size: tuple[int, ...]) -> tuple[Summary, dict[str, Layer]]:
    summary = summarise(network, size)
    return summary, {layer.name: layer for layer in summary.layers}


def test_vgg16_by_hand() -> None:
    """The worked example: parameters of each layer without biases, and the true sum of its activations."""
    with torch.device("meta"):
        network = models.vgg16(layers=nn)
    summary, rows = of(network, (1, 3, 224, 224))
    weights = [m.weight.numel() for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert weights == [1728, 36864, 73728, 147456, 294912, 589824, 589824, 1179648, *[2359296] * 5, 102760448, 16777216, 4096000]
    assert [row.parameters for row in summary.layers if row.kind == "Conv2d"] == [
        w + b for w, b in zip(weights[:13], [64, 64, 128, 128, *[256] * 3, *[512] * 6], strict=True)
    ]
    assert rows["features.28"].sees == (196, 196)
    assert rows["features.30"].sees == (212, 212)  # Araujo et al. 2019
    assert rows["classifier.0"].sees == (math.inf, math.inf)
    assert rows["features.0"].multiply_adds == 3 * 9 * 64 * 224 * 224
    assert rows["features.1"].memory == 0  # in place
    sides = ((224, 64, 2), (112, 128, 2), (56, 256, 3), (28, 512, 3), (14, 512, 3))
    convolutions = sum(side * side * channels * count for side, channels, count in sides)
    pools = sum((side // 2) ** 2 * channels for side, channels, _ in sides)
    assert summary.memory == 4 * (convolutions + pools + 512 * 7 * 7 + 4096 + 4096 + 1000)  # with the average pooling from 7 to 7


@pytest.mark.parametrize(
    ("name", "layer", "sees"),
    [
        ("alexnet", "features.12", 195),  # Araujo et al. 2019, as are the others but ResNet-50
        ("mobilenet_v1", "features.13.3", 315),
        ("resnet50", "layer4.2.conv3", 427),  # stride in the 3x3: 35 + 8 + 3 16 + 16 + 5 32 + 32 + 2 64
    ],
)
def test_published_receptive_fields(name: str, layer: str, sees: int) -> None:
    with torch.device("meta"):
        network = models.get_model(name, layers=nn)
    assert of(network, (1, *models.model_info(name).input_size))[1][layer].sees == (sees, sees)


def brute_force(network: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """The extent of the pixels on which a value in the middle of the output depends, with weights that cannot cancel."""
    network = network.double().eval()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.rand(1, 2, *size, dtype=torch.float64, requires_grad=True)
    out = network(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    seen = x.grad[0].abs().sum(0)
    hits = (seen.sum(1 - axis).nonzero().flatten() for axis in (0, 1))
    return tuple(int(hit[-1] - hit[0]) + 1 for hit in hits)


class Branches(nn.Module):
    """A dilated branch beside a pooled one and the input itself, concatenated, added, permuted and back."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 2, (3, 5), padding=(3, 2), dilation=(3, 1))
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.joined = nn.Conv2d(6, 2, 1)
        self.mix = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.joined(torch.cat((self.wide(x), self.pool(x), x), 1)) + x
        return self.mix(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).flatten(2).unflatten(2, y.shape[2:])


STAGES = {
    "conv3": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "conv_asymmetric": lambda: nn.Conv2d(2, 2, (1, 5), padding=(0, 2)),
    "conv_strided": lambda: nn.Conv2d(2, 2, 3, 2, 1),
    "conv_dilated": lambda: nn.Conv2d(2, 2, 3, padding=2, dilation=2),
    "depthwise": lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2),
    "pool": lambda: nn.AvgPool2d(2),
    "branches": Branches,
    "norm": lambda: nn.BatchNorm2d(2),
}


@settings(max_examples=25)
@given(st.lists(st.sampled_from(sorted(STAGES)), min_size=1, max_size=4))
def test_receptive_fields_by_brute_force(stages: list[str]) -> None:
    network = nn.Sequential(*(STAGES[stage]() for stage in stages))
    size = (96, 128)
    assert summarise(network, (1, 2, *size)).layers[-1].sees == brute_force(network, size)


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_transposed_convolutions_see_their_share(kernel: int) -> None:
    """A transposed convolution of stride 2 sees ceil(kernel / 2) inputs: the most of its outputs do."""
    network = nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), nn.ConvTranspose2d(2, 2, kernel, 2))
    sees = summarise(network, (1, 2, 64, 64)).layers[-1].sees
    assert sees == (3 + (math.ceil(kernel / 2) - 1) * 2,) * 2


def test_attention_sees_all_and_windows_are_not_guessed() -> None:
    with torch.device("meta"):
        vit, swin, mixer = (models.get_model(name, layers=nn) for name in ("vit_b_16", "swin_t", "mixer_b_16"))
    rows = of(vit, (1, 3, 224, 224))[1]
    assert rows["conv_proj"].sees == (16, 16)
    assert rows["encoder.layers.encoder_layer_0.ln_1"].sees == (16, 16)
    assert rows["encoder.layers.encoder_layer_0.self_attention"].sees == (math.inf, math.inf)
    assert rows["encoder.layers.encoder_layer_0.self_attention"].parameters == 4 * 768 * 768 + 4 * 768
    assert of(mixer, (1, 3, 224, 224))[1]["blocks.0.mlp_tokens.fc1"].sees == (math.inf, math.inf)
    rows = of(swin, (1, 3, 224, 224))[1]
    assert rows["features.0.0"].sees == (4, 4)
    assert rows["features.1.0.attn"].sees is None


@pytest.mark.parametrize("name", ["resnet20", "unet_small", "swin_t", "deconvnet_vgg16", "autoencoder"])
def test_counts_do_not_depend_on_whose_layers_run(name: str) -> None:
    size = (1, *models.model_info(name).input_size)
    with torch.device("meta"):
        theirs, ours = (summarise(models.get_model(name, layers=layers), size) for layers in (nn, fastcv.nn))
    assert ours.multiply_adds == theirs.multiply_adds
    assert ours.parameters == theirs.parameters and ours.unused == theirs.unused == 0
    assert [(row.name, row.shape, row.parameters, row.sees) for row in ours.layers] == [
        (row.name, row.shape, row.parameters, row.sees) for row in theirs.layers
    ]


def test_the_model_stays_as_it_is_and_repeated_layers_count_once() -> None:
    shared = nn.Linear(8, 8)
    network = nn.Sequential(shared, nn.ReLU(), shared).train()
    network[0].weight.requires_grad_(False)
    summary = summarise(network, (3, 8))
    assert network.training and network[0].weight.device.type == "cpu"
    assert [row.parameters for row in summary.layers] == [72, 0, 0]
    assert summary.parameters == 72 and summary.trainable == 8 and summary.unused == 0
    assert summary.multiply_adds == 2 * 3 * 64
    spare = nn.Sequential(nn.Linear(8, 8))
    spare[0].extra = nn.Linear(5, 5)
    summary = summarise(spare, (3, 8))
    assert summary.parameters == 72 + 30 and summary.unused == 30


typer = pytest.importorskip("typer", reason="typer is not installed")


def command(*arguments: str) -> tuple[int, str]:
    from typer.testing import CliRunner

    from fastcv.cli import _application

    result = CliRunner().invoke(_application(), list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_command_prints_and_saves(tmp_path: Path) -> None:
    code, text = command("summary", "lenet5", "--save", str(tmp_path / "rows.csv"))
    assert code == 0
    assert "features.3    Conv2d     1x16x10x10    14   6.2 KiB       2,416        240,000" in text
    assert "parameters 61,706" in text
    assert "multiply-adds 416,520" in text
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[0] == "layer,kind,output,sees_rows,sees_columns,memory_bytes,parameters,multiply_adds"
    assert lines[1] == "features.0,Conv2d,1x6x28x28,5,5,18816,156,117600"
    assert lines[-1] == "classifier.4,Linear,1x10,all,all,40,850,840"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]
    code, text = command("summary", "mlp2", "--size", "2x1x8x8")
    assert code == 0 and "parameters 7,510" in text
    code, text = command("summary", "fastcv.models:unet_small", "--size", "1x3x32x48")
    assert code == 0 and "1x2x32x48" in text


def test_command_lists() -> None:
    assert command("models", "vgg1?") == (0, "vgg11\nvgg13\nvgg16\nvgg19\n")
    assert command("models", "--task", "reconstruction") == (0, "autoencoder\n")
    assert command("models", "--task", "detection")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet51",), "there is no model 'resnet51'; did you mean resnet56"),
        (("vgg16", "--size", "3x224"), "--size 3x224: vgg16 takes images, such as 1x3x224x224"),
        (("vgg16", "--size", "axb"), "'axb' is no size such as 1x3x224x224"),
        (("vgg16", "--size", "1x3x8x8"), "Output size is too small"),
        (("vit_b_16", "--size", "1x3x200x224"), "vit_b_16 takes square images, got 200x224"),
        (("lenet5", "--save", "rows.txt"), "the path must end in .csv"),
        (("lenet5", "--save", "/nowhere/rows.csv"), "there is no folder /nowhere"),
        (("nowhere:resnet",), "No module named 'nowhere'"),
        (("math:pi",), "gives a float, not a torch.nn.Module"),
    ],
)
def test_command_refuses_in_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    code, text = command("summary", *arguments)
    assert code == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1
