"""What the zoo computes: fastcv.nn against torch.nn, against torchvision and transformers where they are installed, and by hand.

Answers are compared in float64: in float32 the gradient of a deep network jumps with the sign of an activation near zero.
"""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcv
from fastcv import models
from fastcv.models.alexnet import AlexNet2012
from fastcv.models.deconvnet import DeconvNet
from fastcv.models.densenet import DenseNet
from fastcv.models.fcn import FCNVGG16, bilinear_kernel
from fastcv.models.mlp_mixer import MLPMixer
from fastcv.models.resnet import Bottleneck, ResNet
from fastcv.models.swin import StochasticDepth, SwinTransformer, map_of, windows_of
from fastcv.models.upernet import UperHead
from fastcv.models.vit import VisionTransformer
from fastcv.testing.zoo import settle

# One small network of each kind: a function of ``layers``, and the input's size.
SMALL = {
    "linear": (lambda layers: models.linear_classifier(layers=layers, image_size=9), (2, 3, 9, 9)),
    "mlp": (lambda layers: models.mlp3(hidden=9, activation="maxout", layers=layers, image_size=9), (2, 3, 9, 9)),
    "lenet": (lambda layers: models.lenet5(layers=layers, image_size=20), (2, 1, 20, 20)),
    "alexnet_2012": (lambda layers: AlexNet2012(5, layers=layers).features, (2, 3, 79, 91)),
    "alexnet": (lambda layers: models.alexnet(layers=layers).features, (2, 3, 70, 64)),
    "vgg_bn": (lambda layers: models.vgg11_bn(num_classes=0, layers=layers), (2, 3, 33, 40)),
    "resnet": (
        lambda layers: ResNet(Bottleneck, (1, 2, 1, 1), 5, groups=4, width_per_group=16, squeeze=True, layers=layers),
        (2, 3, 40, 33),
    ),
    "cifar_pad": (lambda layers: models.resnet8(layers=layers, shortcut="pad"), (2, 3, 13, 16)),
    "cifar_plain": (lambda layers: models.resnet8(layers=layers, shortcut="none"), (2, 3, 13, 16)),
    "cifar_group": (lambda layers: models.resnet8(layers=layers, norm="group"), (2, 3, 13, 16)),
    "cifar_layer": (lambda layers: models.resnet8(layers=layers, norm="layer"), (2, 3, 13, 16)),
    "cifar_instance": (lambda layers: models.resnet8(layers=layers, norm="instance"), (2, 3, 13, 16)),
    "densenet": (lambda layers: DenseNet(8, (2, 1, 2), 16, layers=layers, num_classes=5), (2, 3, 40, 36)),
    "mobilenet_v1": (lambda layers: models.mobilenet_v1(width_mult=0.25, layers=layers, num_classes=5), (2, 3, 40, 33)),
    "mobilenet_v2": (lambda layers: models.mobilenet_v2(width_mult=0.25, layers=layers, num_classes=5), (2, 3, 40, 33)),
    "shufflenet": (lambda layers: models.shufflenet_v2_x0_5(layers=layers, num_classes=5), (2, 3, 40, 33)),
    "vit": (lambda layers: VisionTransformer(32, 8, 2, 2, 24, 48, 5, layers=layers), (2, 3, 32, 32)),
    "swin": (lambda layers: SwinTransformer(12, (2, 2), (2, 3), 3, 4, 5, drop_path=0.0, layers=layers), (2, 3, 45, 38)),
    "mixer": (lambda layers: MLPMixer(32, 8, 2, 24, 5, layers=layers), (2, 3, 32, 32)),
    "fcn8s": (lambda layers: FCNVGG16(8, 4, code_channels=32, layers=layers), (1, 3, 45, 39)),
    "deconvnet": (lambda layers: DeconvNet(4, 3, (8, 8, 16), (1, 2, 1), 16, 3, layers=layers), (2, 3, 27, 30)),
    "autoencoder": (lambda layers: models.autoencoder(layers=layers), (2, 3, 13, 18)),
    "unet": (lambda layers: models.unet(width=8, layers=layers), (2, 3, 37, 50)),
    "unet_no_skips": (lambda layers: models.unet_small(width=8, skips=False, layers=layers), (2, 3, 37, 50)),
    "deeplabv3plus": (lambda layers: models.deeplabv3plus_resnet50(num_classes=4, aux_loss=True, layers=layers), (2, 3, 33, 40)),
    "upernet_swin": (lambda layers: models.upernet_swin_t(num_classes=4, drop_path=0.0, layers=layers), (2, 3, 33, 40)),
}


def leaves(answer: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else list(answer.values())


def scattered(network: nn.Module) -> nn.Module:
    """In float64, with norms and heads that show: those that start at zero or one would hide what is before them. No dropout."""
    generator = torch.Generator().manual_seed(5)
    settle(network)
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    for parameter in network.parameters():
        if not parameter.any():
            with torch.no_grad():
                parameter.normal_(0, 0.1, generator=generator)
    return network.double()


@pytest.mark.parametrize("name", list(SMALL))
def test_layers_of_fastcv_give_torchs_answers_and_gradients(name: str) -> None:
    build, size = SMALL[name]
    theirs, ours = scattered(build(nn)), build(fastcv.nn).double()
    for module in ours.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(size, dtype=torch.float64)
    results = []
    for network in (theirs, ours):
        answers = leaves(network.train()(x))
        sum((a * torch.linspace(-1, 1, a.numel(), dtype=a.dtype).view(a.shape)).sum() for a in answers).backward()
        gradients = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
        with torch.no_grad():
            evaluated = leaves(network.eval()(x))
        results.append((answers, evaluated, gradients, dict(network.named_buffers())))
    torch.testing.assert_close(results[1], results[0])
    assert all(a.std() > 1e-6 for a in results[0][1])
    assert len(results[0][2]) == len(list(theirs.parameters()))


TORCHVISION = [
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "mobilenet_v2"),
    *("shufflenet_v2_x1_0", "vit_b_16", "swin_t", "fcn_resnet50", "deeplabv3_resnet50"),
]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("name", TORCHVISION)
@torch.no_grad()
def test_outputs_are_torchvisions(name: str) -> None:
    """In float32 with torch's layers: the same ops in the same order. Weights go both ways, strictly."""
    import torchvision

    segmentation = name.startswith(("fcn", "deeplab"))
    options = {"weights_backbone": None, "aux_loss": True} if segmentation else {}
    theirs = torchvision.models.get_model(name, weights=None, **options).eval()
    settle(theirs)
    for parameter in theirs.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.1)
    ours = models.get_model(name, layers=nn, **({"aux_loss": True} if segmentation else {})).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 224, 224) if name == "vit_b_16" else torch.randn(1, 3, 72, 88)
    torch.testing.assert_close(leaves(ours(x)), leaves(theirs(x)))
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@torch.no_grad()
def test_upernet_is_that_of_transformers() -> None:
    from transformers import ResNetConfig, UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead

    channels = (12, 16, 20, 24)
    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    theirs = UperNetHead(UperNetConfig(backbone_config=backbone, hidden_size=10, num_labels=4), channels).eval()
    ours = UperHead(channels, 4, fastcv.nn, width=10).eval()
    settle(theirs)
    renamed = {"psp_modules": "pools", "lateral_convs": "lateral", "fpn_convs": "smooth", "fpn_bottleneck": "fuse", "classifier": "score"}
    state = {}
    for key, value in theirs.state_dict().items():
        parts = key.split(".")
        if parts[0] == "psp_modules":  # pools.0.1.conv.weight is pools.0.1.weight here, with the norm as the next module
            parts[2:4] = [{"conv": "1", "batch_norm": "2"}[parts[3]]]
        parts = [{"conv": "0", "batch_norm": "1"}.get(part, part) for part in parts]
        state[".".join([renamed.get(parts[0], parts[0]), *parts[1:]])] = value
    ours.load_state_dict(state)
    maps = [torch.randn(2, c, 16 >> i, 20 >> i) for i, c in enumerate(channels)]
    torch.testing.assert_close(ours.double()([m.double() for m in maps]), theirs.double()([m.double() for m in maps]))


@torch.no_grad()
def test_any_size_of_image() -> None:
    for network, least in ((models.unet_small(num_classes=3), 8), (FCNVGG16(8, 3, code_channels=8), 32), (models.autoencoder(), 1)):
        for size in ((least, least), (least + 5, 2 * least + 1), (3 * least - 1, least + 3)):
            answer = network.eval()(torch.randn(1, 3, *size))
            assert leaves(answer)[0].shape[-2:] == size


@torch.no_grad()
def test_fcn_starts_as_bilinear_upsampling() -> None:
    """Between the centres of the outermost pixels; beyond them interpolation repeats the border, convolution sees zeros."""
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64)
    for factor in (2, 8):
        filtered = F.conv_transpose2d(x, bilinear_kernel(2 * factor).double()[None, None], stride=factor, padding=factor // 2)
        inside = (..., slice(factor, -factor), slice(factor, -factor))
        expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        torch.testing.assert_close(filtered[inside], expected[inside])
    network = FCNVGG16(8, 3, code_channels=8)
    assert not leaves(network(torch.randn(1, 3, 40, 40)))[0].any()


@torch.no_grad()
def test_deconvnet_unpools_to_where_the_maxima_were() -> None:
    network = DeconvNet(2, 1, (4,), (1,), 4, 3).eval()
    seen = {}
    network.decoder[0].register_forward_pre_hook(lambda module, args: seen.update(unpooled=args[0]))
    network.encoder[0].register_forward_hook(lambda module, args, out: seen.update(encoded=out))
    network(torch.randn(1, 1, 9, 9))
    assert seen["unpooled"].shape == seen["encoded"].shape
    places = F.max_pool2d(seen["encoded"], 2, return_indices=True)[1].flatten(2)
    kept = torch.zeros_like(seen["encoded"]).flatten(2).scatter(2, places, 1).view_as(seen["encoded"])
    assert not (seen["unpooled"] * (1 - kept)).any()


def test_windows_are_undone() -> None:
    x = torch.randn(2, 6, 9, 4)
    windows = windows_of(x, 3)
    assert windows.shape == (2 * 2 * 3, 9, 4)
    assert torch.equal(windows[1], x[0, :3, 3:6].reshape(9, 4))
    assert torch.equal(map_of(windows, 3, 6, 9), x)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    drop = StochasticDepth(0.25).train()
    x = torch.ones(4000, 2, 2)
    kept = drop(x)
    values = kept.flatten(1)
    assert ((values == 0).all(1) | (values == 1 / 0.75).all(1)).all()
    assert 0.7 < (values[:, 0] > 0).float().mean() < 0.8  # 7 standard deviations
    assert drop.eval()(x) is x


@torch.no_grad()
def test_optimised_models_answer_alike() -> None:
    for build, size in (SMALL["resnet"], SMALL["unet"], SMALL["mobilenet_v2"]):
        network = scattered(build(fastcv.nn)).eval()
        x = torch.randn(size, dtype=torch.float64)
        expected = leaves(network(x))
        optimised = fastcv.optimize(network)
        torch.testing.assert_close(leaves(optimised(x)), expected)
        assert any(row.fused for row in optimised.fastcv_report.rows)
