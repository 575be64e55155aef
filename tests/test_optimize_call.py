"""fastcv.optimize: the call itself, its arguments, example and report, and restore."""

import json

import pytest
import torch
from optimize_models import (
    Branching,
    chains,
    check,
    images,
    make,
    ops_run,
    reason,
    trained,
)
from torch import nn

import fastcv


def test_restore_and_again() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    again = fastcv.optimize(ours)
    assert chains(again) == chains(ours)
    check(again, model)
    assert fastcv.restore(ours) is ours
    assert not hasattr(ours, "fastcv_report") and not any("forward" in vars(m) for m in ours.modules())
    with torch.no_grad():
        assert torch.equal(ours(images()), model(images()))
    check(again, model)
    assert fastcv.restore(model) is model


def test_inplace_and_exceptions_leave_the_model_as_it_was() -> None:
    model = make("options").eval()
    assert fastcv.optimize(model, inplace=True) is model
    report = model.fastcv_report
    forwards = {name: vars(m).get("forward") for name, m in model.named_modules()}
    with pytest.raises((TypeError, RuntimeError)):
        fastcv.optimize(model, inplace=True, mode="training", example=torch.zeros(1, 5))
    assert model.fastcv_report is report
    assert {name: vars(m).get("forward") for name, m in model.named_modules()} == forwards
    fresh = Branching()
    with pytest.raises(RuntimeError, match="cannot be traced"):
        fastcv.optimize(fresh, inplace=True, strict=True)
    assert not hasattr(fresh, "fastcv_report") and not any("forward" in vars(m) for m in fresh.modules())


def test_tracing_leaves_nothing_behind() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls, self.last = nn.Conv2d(8, 8, 3), 0, None
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.steps += 1
            self.last = self.conv(x)
            return self.last.relu() + torch.rand(())

    model = Remembers()
    state = torch.random.get_rng_state()
    ours = fastcv.optimize(model, inplace=True)
    assert (ours.calls, ours.last, ours.steps.item()) == (0, None, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_wrong_arguments() -> None:
    for error, arguments in (
        (TypeError, (torch.zeros(1),)),
        (ValueError, (nn.ReLU(), "fast")),
        (ValueError, (nn.ReLU(), "training", ["conv9"])),
    ):
        with pytest.raises(error, match=r"fastcv\.optimize"):
            fastcv.optimize(*arguments)
    with pytest.raises(TypeError, match="must be a torch"):
        fastcv.restore(3)


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", ["plain", "block", "functional", "decoder"])
def test_example_measures_every_module(name: str, mode: str) -> None:
    model = make(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ours = fastcv.optimize(model.eval(), mode=mode, example=(images(),))
    report = ours.fastcv_report
    assert not report.skipped(), report
    assert set(report.errors) == ({"output"} if mode == "inference" else {"output", "gradient"})
    for row in report.rows:
        assert (row.max_error is None) == (row.op.startswith(("folded into", "fused into")) or row.reason.startswith("runs on torch: "))
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items()) and not ours.training
    check(ours, model)


def test_example_undoes_what_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcv.optimizer import fold_cache

    exact = fold_cache.folded_parameters
    monkeypatch.setattr(
        fold_cache, "folded_parameters", lambda conv, bn: (exact(conv, bn)[0] * (1 + 1e-4 * (conv.groups > 1)), exact(conv, bn)[1])
    )
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU())
    trained(model).eval()
    ours = fastcv.optimize(model, example=images())
    assert list(chains(ours)) == ["0"] and "undone" in reason(ours, "3")
    assert ops_run(ours) == ["conv", "conv", "batch_norm"]
    check(ours, model)
    with pytest.raises(RuntimeError, match="undone"):
        fastcv.optimize(model, example=images(), strict=True)


def test_report() -> None:
    ours = fastcv.optimize(make("plain").eval(), example=images())
    report = ours.fastcv_report
    data = json.loads(report.to_json())
    assert data["mode"] == "inference" and data["left_to_torch"]["ReLU"] == 1
    first = data["rows"][0]
    assert (first["name"], first["type"], first["op"], first["fused"]) == ("0", "Conv2d", "conv2d_fused", ["1", "2"])
    assert first["max_error"] <= first["allowed"]
    text = str(report)
    assert "conv2d_fused" in text and "folded into 0" in text and "3 fused chains" in text and "runs on torch: 8 to 4 features" in text


@pytest.mark.parametrize("package", ["torchvision", "transformers"])
def test_models_of_others(package: str) -> None:
    library = pytest.importorskip(package)
    if package == "torchvision":
        models = [library.models.resnet18(), library.models.mobilenet_v2(), library.models.densenet121()]
        x = images(2, 3, 64, 64)
    else:
        models = [library.ResNetForImageClassification(library.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1]))]
        x = images(2, 3, 64, 64)
    for model in models:
        trained(model).eval()
        ours = fastcv.optimize(model, example=x)
        assert len(chains(ours)) > 3
        error, allowed = ours.fastcv_report.errors["output"]
        assert error <= allowed
