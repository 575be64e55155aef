"""Vision models written by others: those of Hugging Face transformers with random weights, small for tests and in their true sizes.

Nothing is downloaded. Each entry names the classes, the options that make the model small, and those of its published size.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Options = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """kind: the classes' prefix in transformers; head: the rest of the model class's name; size: pixels of a side, small and true."""

    name: str
    kind: str
    head: str = "ForImageClassification"
    small: Options = field(default_factory=dict)
    true: Options = field(default_factory=dict)
    size: tuple[int, int] = (64, 224)
    adjust: Callable[[Options], Options] | None = None

    def build(self, small: bool) -> nn.Module:
        """The model in evaluation mode. Raises ImportError without transformers."""
        transformers = importlib.import_module("transformers")
        options = self.small if small else self.true
        config = getattr(transformers, f"{self.kind}Config")(**(self.adjust(options) if self.adjust else options))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, f"{self.kind}{self.head}")(config)
            settle(model)
        return model.eval()

    def images(self, small: bool, batch: int) -> Tensor:
        side = self.size[0 if small else 1]
        return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def settle(model: nn.Module) -> None:
    """Gives norms other than trivial parameters and statistics, and layer scales a weight that the output shows."""
    for name, p in model.named_parameters():
        if name.endswith(("layer_scale_1", "layer_scale_2", "layer_scale_parameter", "lambda1")):
            nn.init.constant_(p, 0.5)
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.7, 1.3)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.7, 1.3)


def output_of(result: Any) -> Tensor:
    """The first tensor of a model's result: logits, or the last hidden state."""
    return result[0] if not isinstance(result, Tensor) else result


def _with_backbone(kind: str, key: str = "backbone_config", **fixed: Any) -> Callable[[Options], Options]:
    def adjust(options: Options) -> Options:
        transformers = importlib.import_module("transformers")
        backbone = dict(options.get("backbone", {}))
        rest = {k: v for k, v in options.items() if k != "backbone"}
        return {key: getattr(transformers, f"{kind}Config")(**backbone), **fixed, **rest}

    return adjust


_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_SMALL_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
_TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}

ZOO: tuple[Entry, ...] = (
    Entry("resnet", "ResNet", small={**_SMALL_RESNET, "layer_type": "bottleneck"}),
    Entry(
        "resnet-basic",
        "ResNet",
        small={**_SMALL_RESNET, "layer_type": "basic"},
        true={"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    ),
    Entry(
        "regnet",
        "RegNet",
        small={"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 2, 1], "groups_width": 8},
        true={"hidden_sizes": [96, 192, 432, 1008], "depths": [2, 6, 15, 2], "groups_width": 48},
    ),
    Entry("mobilenet_v1", "MobileNetV1", small={"depth_multiplier": 0.25}),
    Entry("mobilenet_v2", "MobileNetV2", small={"depth_multiplier": 0.35}),
    Entry("convnext", "ConvNext", small={"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 2, 1]}),
    Entry("convnextv2", "ConvNextV2", small={"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 2, 1]}),
    Entry(
        "efficientnet",
        "EfficientNet",
        small={"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
        true={"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    ),
    Entry(
        "segformer",
        "Segformer",
        "ForSemanticSegmentation",
        small={"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32, "num_attention_heads": [1, 2, 2, 4]},
        size=(64, 512),
    ),
    Entry(
        "upernet-resnet",
        "UperNet",
        "ForSemanticSegmentation",
        adjust=_with_backbone("ResNet"),
        small={
            "backbone": {**_SMALL_RESNET, **_STAGES},
            "hidden_size": 32,
            "auxiliary_in_channels": 32,
            "auxiliary_channels": 32,
            "num_labels": 7,
        },
        true={"backbone": _STAGES, "auxiliary_in_channels": 1024},
        size=(64, 512),
    ),
    Entry(
        "upernet-convnext",
        "UperNet",
        "ForSemanticSegmentation",
        adjust=_with_backbone("ConvNext"),
        small={
            "backbone": {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 2, 1], **_STAGES},
            "hidden_size": 32,
            "auxiliary_in_channels": 32,
            "auxiliary_channels": 32,
            "num_labels": 7,
        },
        true={"backbone": {"hidden_sizes": [96, 192, 384, 768], **_STAGES}},
        size=(64, 512),
    ),
    Entry("vit", "ViT", small={**_TRANSFORMER, "intermediate_size": 64}),
    Entry("swin", "Swin", small={"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 64}),
    Entry("dinov2", "Dinov2", small=_TRANSFORMER, true={"image_size": 224}),
    Entry(
        "detr",
        "Detr",
        "ForObjectDetection",
        adjust=_with_backbone("ResNet", use_timm_backbone=False, use_pretrained_backbone=False, backbone=None),
        small={
            "backbone": {**_SMALL_RESNET, "out_features": ["stage4"]},
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "num_queries": 10,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
        },
        true={"backbone": {"out_features": ["stage4"]}},
        size=(64, 512),
    ),
    Entry("bit", "Bit", small={"hidden_sizes": [32, 64, 64, 128], "depths": [1, 1, 1, 1], "embedding_size": 32, "num_groups": 8}),
    Entry("poolformer", "PoolFormer", small={"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}),
    Entry("cvt", "Cvt", small={"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}),
    Entry(
        "levit",
        "Levit",
        small={"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    ),
)
