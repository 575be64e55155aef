"""The zoo against what is published: torchvision's keys and shapes, parameters, multiply-adds; the registry; initial weights."""

import gzip
import json
import math
import subprocess
import sys
from collections import OrderedDict
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from torch import nn

import fastcv
from fastcv import models
from fastcv.models.summary import summarise

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "data" / "torchvision_state_dicts.json.gz").read_bytes()))

# Parameters of models that torchvision does not have. Counts follow from the papers' tables; those without a remark are the papers'
# or, where a paper rounds, those of timm.
PARAMETERS = {
    "linear_classifier": ({}, 3072 * 10 + 10),
    "mlp2": ({}, 3072 * 100 + 100 + 1010),
    "mlp3": ({"activation": "maxout"}, 3072 * 200 + 200 + 100 * 200 + 200 + 1010),
    "lenet5": ({}, 61_706),
    "alexnet_2012": ({}, 60_965_224),
    "resnet20": ({"shortcut": "pad"}, 269_722),  # 0.27 M in the paper's table 6
    "resnet32": ({"shortcut": "pad"}, 464_154),  # 0.46 M
    "resnet44": ({"shortcut": "pad"}, 658_586),  # 0.66 M
    "resnet56": ({"shortcut": "pad"}, 853_018),  # 0.85 M
    "resnet110": ({"shortcut": "pad"}, 1_727_962),  # 1.7 M
    "seresnet50": ({}, 28_088_024),
    "mobilenet_v1": ({}, 4_231_976),
    "mixer_b_16": ({}, 59_880_472),
}

# Multiply-adds in 1e9 as torchvision publishes them ("_ops" of its weights), at 224 pixels, segmentation at 520 with auxiliary head.
TORCHVISION_OPS = {
    "alexnet": 0.714,
    "vgg11": 7.609,
    "vgg16_bn": 15.47,
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnext50_32x4d": 4.23,
    "wide_resnet50_2": 11.398,
    "densenet121": 2.834,
    "mobilenet_v2": 0.301,
    "shufflenet_v2_x0_5": 0.04,
    "shufflenet_v2_x1_0": 0.145,
    "shufflenet_v2_x1_5": 0.296,
    "shufflenet_v2_x2_0": 0.583,
    "vit_b_16": 17.564,
    "swin_t": 4.491,
    "fcn_resnet50": 152.717,
    "deeplabv3_resnet50": 178.722,
}
# The papers': MobileNetV1 569 M (table 4), Mixer-B/16 12.6 G (as timm counts it).
PAPER_OPS = {"mobilenet_v1": (0.569, 3), "mixer_b_16": (12.6, 1)}


def on_meta(name: str, **config: object) -> nn.Module:
    with torch.device("meta"):
        return models.get_model(name, layers=nn, **config)


def auxiliary(name: str) -> dict[str, bool]:
    return {"aux_loss": True} if "aux_classifier.0.weight" in GOLDEN.get(name, {}).get("state_dict", {}) else {}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", list(GOLDEN))
def test_keys_and_shapes_are_torchvisions(name: str) -> None:
    network = on_meta(name, **auxiliary(name))
    ours = [(key, list(value.shape)) for key, value in network.state_dict().items()]
    assert ours == list(GOLDEN[name]["state_dict"].items())  # in their order too
    assert count(network) == GOLDEN[name]["parameters"]


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_parameters_as_published(name: str) -> None:
    config, parameters = PARAMETERS[name]
    assert count(on_meta(name, **config)) == parameters


def test_parameters_of_unet_follow_from_its_figure() -> None:
    widths = (64, 128, 256, 512, 1024)
    down = sum(9 * b * a + a + 9 * a * a + a for b, a in zip((1, *widths), widths, strict=False))
    up = sum(4 * 2 * a * a + a + 9 * 2 * a * a + a + 9 * a * a + a for a in widths[:-1])
    assert count(on_meta("unet", in_chans=1)) == down + up + 64 * 2 + 2
    without = 9 * sum(a * a for a in widths[:-1])
    assert count(on_meta("unet", in_chans=1, skips=False)) == down + up - without + 64 * 2 + 2


def test_rounded_sizes_of_segmentation_papers() -> None:
    assert round(count(on_meta("deconvnet_vgg16")) / 1e6) == 252
    assert round(count(on_meta("fcn32s_vgg16")) / 1e6) in (134, 136)  # 134 M in the paper, without the 1.8 M of its fixed upsampling
    assert round(count(on_meta("upernet_swin_t", aux_loss=True)) / 1e6) == 60  # Swin's table 3


@pytest.mark.parametrize("name", [*TORCHVISION_OPS, *PAPER_OPS])
def test_multiply_adds_as_published(name: str) -> None:
    published, digits = PAPER_OPS.get(name, (TORCHVISION_OPS.get(name), 3))
    summary = summarise(on_meta(name, **auxiliary(name)), (1, *models.model_info(name).input_size))
    # torchvision cuts shufflenet_v2_x0_5's 0.0405 after three digits where others are rounded: half a unit of the last digit.
    assert summary.multiply_adds / 1e9 == pytest.approx(published, abs=0.6 * 10**-digits)
    assert summary.unused == 0


def test_registry() -> None:
    names = models.list_models()
    assert names == sorted(names)
    assert len(names) == len(set(names)) >= 60
    assert models.list_models("vgg1?") == ["vgg11", "vgg13", "vgg16", "vgg19"]
    assert models.list_models("vgg*", exclude="*_bn") == models.list_models("vgg1?")
    assert "unet" in models.list_models(task="segmentation")
    assert models.list_models(task="reconstruction") == ["autoencoder"]
    for name in names:
        assert callable(getattr(models, name)), name
        assert models.model_info(name).name == name
    with pytest.raises(ValueError, match=r"no model 'resnet5O'; did you mean .*resnet50"):
        models.get_model("resnet5O")
    with pytest.raises(ValueError, match=r"list_models\(\) lists the names"):
        models.get_model("/weights/model.pt")
    # As torchvision has it: patterns one by one or several, names in capitals, and a keyword about downloads.
    assert models.list_models(include=["vgg1?", "lenet*"], exclude=("vgg11", "vgg13")) == ["lenet5", "vgg16", "vgg19"]
    assert models.list_models(include=[]) == []
    assert models.model_info("VGG16_BN").name == "vgg16_bn"
    with torch.device("meta"):
        assert isinstance(models.get_model("ResNet18", weights=None, progress=False), models.ResNet)
    for part, whole in (("linear", "linear_classifier"), ("vit", "vit_b_16"), ("fcn", "fcn16s_vgg16"), ("mlp", "mlp2")):
        with pytest.raises(ValueError, match=f"did you mean .*{whole}"):
            models.get_model(part)
    with pytest.raises(ValueError, match="task must be one of classification, segmentation, reconstruction, got 'detection'"):
        models.list_models(task="detection")
    with pytest.raises(TypeError, match="pretrained"):
        models.resnet18(pretrained=True)
    with pytest.raises(ValueError, match="'resnet18' is registered already"):
        models.register_model()(models.resnet18)
    with pytest.raises(ValueError, match="task must be one of"):
        models.register_model("detection")


def test_the_zoo_is_there_after_import_fastcv_alone() -> None:
    """``fastcv.models``, as the documentation writes it; who does not ask for it does not wait for it."""
    code = "import sys, fastcv; assert 'fastcv.models' not in sys.modules; print(fastcv.models.resnet8(), hasattr(fastcv, 'model'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("ResNetCifar(") and done.stdout.endswith("False\n"), done.stderr


def test_config_for() -> None:
    assert models.model_info("resnet20").config_for(1, 8, 9) == {"in_chans": 1}
    assert models.model_info("mlp2").config_for(1, 8, 8) == {"in_chans": 1, "image_size": 8}
    with pytest.raises(ValueError, match="vit_b_16 takes square images, got 224x200"):
        models.model_info("vit_b_16").config_for(3, 224, 200)


# Deeper siblings are built of the same parts, and their keys are tested above.
DEEPER = ("*101*", "*152", "densenet1[67]*", "densenet201", "vgg1[39]*", "*resnet34", "resnet[345]?", "resnet110")


@pytest.mark.parametrize("name", [n for n in models.list_models() if n == "resnet50" or not any(fnmatch(n, p) for p in DEEPER)])
def test_every_model_takes_the_common_keywords(name: str) -> None:
    """Five channels, seven classes, both namespaces: the same keys, and layers of fastcv.nn where it has the kind."""
    info = models.model_info(name)
    config = {} if info.task == "reconstruction" else {"num_classes": 7}
    with torch.device("meta"):
        theirs, ours = (models.get_model(name, in_chans=5, layers=layers, **config) for layers in (nn, fastcv.nn))
    assert [(k, v.shape) for k, v in theirs.state_dict().items()] == [(k, v.shape) for k, v in ours.state_dict().items()]
    for theirs_module, module in zip(theirs.modules(), ours.modules(), strict=True):
        kind = type(theirs_module)
        expected = (
            getattr(fastcv.nn, kind.__name__) if kind.__module__.startswith("torch.nn") and kind.__name__ in fastcv.nn.__all__ else kind
        )
        assert type(module) is expected
    size = info.input_size
    first = next(m for m in theirs.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert first.weight.shape[1] == (5 if isinstance(first, nn.Conv2d) else 5 * size[1] * size[2])
    answer = theirs.eval()(torch.empty(2, 5, *size[1:], device="meta"))
    if info.task == "segmentation":
        assert isinstance(answer, OrderedDict)
        assert list(answer) == ["out"]
        assert answer["out"].shape == (2, 7, *size[1:])
        assert models.as_tensor(theirs)(torch.empty(2, 5, *size[1:], device="meta")).shape == (2, 7, *size[1:])
    else:
        assert answer.shape == ((2, 5, *size[1:]) if info.task == "reconstruction" else (2, 7))


FEATURES = {
    "resnet50": ((64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32)),
    "seresnet18": ((64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
    "vgg11_bn": ((64, 128, 256, 512, 512), (1, 2, 4, 8, 16)),
    "densenet121": ((64, 256, 512, 1024, 1024), (2, 4, 8, 16, 32)),
    "mobilenet_v1": ((64, 128, 256, 512, 1024), (2, 4, 8, 16, 32)),
    "mobilenet_v2": ((16, 24, 32, 96, 320), (2, 4, 8, 16, 32)),
    "shufflenet_v2_x1_0": ((24, 116, 232, 464), (2, 8, 16, 32)),
    "swin_t": ((96, 192, 384, 768), (4, 8, 16, 32)),
}


@pytest.mark.parametrize("name", list(FEATURES))
def test_features_only(name: str) -> None:
    channels, strides = FEATURES[name]
    network, whole = on_meta(name, features_only=True), on_meta(name)
    assert network.channels == channels
    maps = network(torch.empty(2, 3, 64, 96, device="meta"))
    assert [tuple(m.shape) for m in maps] == [(2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    keys = whole.state_dict()
    assert all(keys[key].shape == value.shape for key, value in network.state_dict().items())


def test_initial_weights() -> None:
    """He's standard deviations (fan out for ResNet and VGG), zero biases; the same seed gives the same weights with either namespace."""
    states = []
    for layers in (nn, fastcv.nn):
        torch.manual_seed(3)
        states.append(models.resnet18(layers=layers, num_classes=5).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert states[0]["layer3.0.conv2.weight"].std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.01)
    vgg = models.vgg11(num_classes=0)
    assert vgg.features[3].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert not vgg.features[3].bias.any()
    tanh = models.mlp2(hidden=512, activation="tanh").hidden[1].weight
    assert tanh.std().item() == pytest.approx(math.sqrt(2 / (3072 + 512)), rel=0.01)
    relu = models.mlp2(hidden=512).hidden[1].weight
    assert relu.std().item() == pytest.approx(math.sqrt(2 / 3072), rel=0.01)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "leaky_relu", "maxout", "elu"])
def test_perceptron_activations(activation: str) -> None:
    network = models.mlp3(hidden=20, activation=activation, image_size=8, in_chans=1, num_classes=3)
    x = torch.randn(4, 1, 8, 8)
    hidden = x.flatten(1)
    for layer in (m for m in network.hidden.modules() if isinstance(m, nn.Linear)):
        z = hidden @ layer.weight.T + layer.bias
        hidden = {
            "sigmoid": lambda z: 1 / (1 + (-z).exp()),
            "tanh": lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()),
            "relu": lambda z: z.clamp(min=0),
            "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
            "maxout": lambda z: torch.maximum(z[:, 0::2], z[:, 1::2]),
            "elu": lambda z: torch.where(z > 0, z, z.exp() - 1),
        }[activation](z)
    torch.testing.assert_close(network(x), hidden @ network.fc.weight.T + network.fc.bias)


def test_wrong_arguments() -> None:
    for build, message in (
        (lambda: models.mlp2(activation="gelu"), "activation must be one of sigmoid, .*, got 'gelu'"),
        (lambda: models.lenet5(image_size=8), "16 pixels and up, got image_size=8"),
        (lambda: models.vit_b_16(image_size=100), r"multiple of patch_size \(16\), got 100"),
        (lambda: models.mixer_b_16(image_size=100), r"multiple of patch_size \(16\), got 100"),
        (lambda: models.resnet20(norm="batchnorm"), "norm must be one of batch, group, layer, instance, got 'batchnorm'"),
        (lambda: models.resnet20(shortcut="B"), "shortcut must be one of projection, pad, none, got 'B'"),
        (lambda: models.deeplabv3plus_resnet50(output_stride=4), "output_stride must be 8 or 16, got 4"),
        (lambda: models.resnet18(replace_stride_with_dilation=(False, True, True)), "dilation 1"),
        (lambda: models.resnet18(num_classes=-3), "num_classes must be a whole number of at least 0, got -3"),
        (lambda: models.unet(num_classes=2.5), "num_classes must be a whole number of at least 0, got 2.5"),
        (lambda: models.vgg11(num_classes="10"), "num_classes must be a whole number of at least 0, got '10'"),
        (lambda: models.lenet5(in_chans=0), "in_chans must be a whole number of at least 1, got 0"),
        (lambda: models.resnet20(layers="torch.nn"), "layers must be a namespace of modules, .*got 'torch.nn'"),
    ):
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            build()
    with pytest.raises(TypeError, match="ResNet is no segmentation network"):
        models.as_tensor(on_meta("resnet18"))
    with pytest.raises(ValueError, match="images of 64x64, got 64x32"):
        on_meta("vit_b_16", image_size=64)(torch.empty(1, 3, 64, 32, device="meta"))


def test_training_on_one_image_says_which_layer_and_what_to_do() -> None:
    for name, where in (("deeplabv3_resnet50", "image pooling of ASPP"), ("upernet_resnet50", "first scale of UperNet's pyramid pooling")):
        network = on_meta(name)
        with pytest.raises(ValueError, match=f"Expected more than 1 value per channel when training: the {where}.*drop_last=True.*eval()"):
            network(torch.empty(1, 3, 64, 64, device="meta"))
        network(torch.empty(2, 3, 64, 64, device="meta"))
