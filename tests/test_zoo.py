"""Models written by others, those of Hugging Face transformers, small and with random weights: optimise, compare, train, save, load.

Answers are compared in float64, where all of torch's arithmetic is: in float32 the gradient of a deep network with ReLU jumps
with the sign of an activation near zero, and any two correct programs may differ by it.
"""

import copy
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastcv
from fastcv.testing.zoo import ZOO, Entry, output_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
    pytest.mark.filterwarnings("ignore"),
]

# What optimize does: modules on fastcv, modules of the same kinds left alone, fused chains in inference and in training.
DONE = {
    "resnet": (34, 0, 16, 9),
    "resnet-basic": (26, 0, 12, 5),
    "regnet": (56, 0, 25, 11),
    "mobilenet_v1": (55, 0, 27, 27),
    "mobilenet_v2": (105, 0, 52, 35),
    "convnext": (10, 9, 0, 0),
    "convnextv2": (10, 9, 0, 0),
    "efficientnet": (75, 0, 33, 0),
    "segformer": (33, 0, 0, 0),
    "upernet-resnet": (65, 0, 29, 22),
    "upernet-convnext": (41, 13, 13, 13),
    "vit": (6, 0, 0, 0),
    "swin": (10, 0, 0, 0),
    "dinov2": (6, 0, 0, 0),
    "detr": (24, 0, 0, 0),
    "bit": (1, 31, 0, 0),
    "poolformer": (25, 0, 4, 0),
    "cvt": (55, 0, 18, 0),
    "levit": (31, 0, 4, 0),
}

BY_NAME = {e.name: e for e in ZOO}
each_model = pytest.mark.parametrize("entry", ZOO, ids=list(BY_NAME))


def done(model: nn.Module) -> tuple[int, int, int]:
    rows = model.fastcv_report.rows
    alone = [r for r in rows if not r.op and not r.reason.startswith("runs on torch: ")]  # those are the linear layers
    return sum(bool(r.op) for r in rows), len(alone), sum(bool(r.fused) for r in rows)


def step(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers after a training pass; dropout and stochastic depth are off, or the same where they are functions."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or "DropPath" in type(module).__name__:
            module.eval()
    torch.manual_seed(0)
    output = output_of(model(images))
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output))
    results = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **results, **dict(model.named_buffers())}


@each_model
def test_inference(entry: Entry, tmp_path: Path) -> None:
    model = entry.build(small=True).double()
    x = entry.images(small=True, batch=2).double()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        expected = output_of(model(x))
        torch.testing.assert_close(output_of(ours(x)), expected)
        torch.testing.assert_close(ours.state_dict(), model.state_dict(), rtol=0, atol=0)
        ours.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(output_of(loaded.eval()(x)), expected)
        other = {key: t * 1.25 if t.is_floating_point() else t for key, t in model.state_dict().items()}
        ours.load_state_dict(other)
        model.load_state_dict(other)
        torch.testing.assert_close(output_of(ours(x)), output_of(model(x)))
    served, alone, inference, _ = DONE[entry.name]
    assert done(ours) == (served, alone, inference)


@each_model
def test_training(entry: Entry) -> None:
    model = entry.build(small=True).double()
    x = entry.images(small=True, batch=4).double()
    ours = fastcv.optimize(model, mode="training")
    torch.testing.assert_close(step(ours, x), step(model, x))
    served, alone, _, training = DONE[entry.name]
    assert done(ours) == (served, alone, training)
    ours.load_state_dict(model.state_dict())
    restored = fastcv.restore(ours).eval()
    with torch.no_grad():
        assert torch.equal(output_of(restored(x)), output_of(model.eval()(x)))


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "convnext", "poolformer"])
def test_verified_by_an_example(name: str) -> None:
    """In float32, each module and the whole by the accuracy rule; nothing has to be undone."""
    entry = BY_NAME[name]
    ours = fastcv.optimize(entry.build(small=True), example=entry.images(small=True, batch=2))
    assert ours.fastcv_report.errors
    assert not [row for row in ours.fastcv_report.rows if row.reason.startswith("undone")]


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v1", "segformer", "levit"])
def test_copies_in_channels_last(name: str) -> None:
    entry = BY_NAME[name]
    model, x = entry.build(small=True).double(), entry.images(small=True, batch=2).double()
    with torch.no_grad():
        expected = output_of(model(x))
        ours = copy.deepcopy(fastcv.optimize(model)).to(memory_format=torch.channels_last)
        torch.testing.assert_close(output_of(ours(x.to(memory_format=torch.channels_last))), expected)
