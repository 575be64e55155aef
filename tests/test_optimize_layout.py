"""fastcv.optimize with an example: row-major images in channels_last inside, and nobody notices."""

import copy
import pickle

import pytest
import torch
from optimize_models import trained
from torch import nn

import fastcv
from fastcv.optimizer.layout import LayoutForward
from fastcv.testing import assert_close


class Mobile(nn.Module):
    """Depthwise and 1x1 convolutions; returns maps and logits. view: takes a view that only row-major maps have."""

    def __init__(self, view: bool = False, changes: bool = False, asserts: bool = False, returns: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.depthwise = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1, groups=3, bias=False), nn.BatchNorm2d(3), nn.ReLU6())
        self.pointwise = nn.Sequential(nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.view, self.changes, self.asserts, self.returns, self.layouts = view, changes, asserts, returns, []

    def forward(self, x):
        if self.changes:
            x.mul_(2)
        image = x
        x = self.pointwise(self.depthwise(x))
        assert x.is_contiguous() or not self.asserts
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
        return {"maps": x, "logits": (x.view(len(x), -1) if self.view else x.flatten(1)).sum(1), "n": image if self.returns else len(x)}


X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def made(**options: bool) -> tuple[nn.Module, nn.Module]:
    model = trained(Mobile(**options)).eval()
    return model, fastcv.optimize(model, example=X)


def inside(model: nn.Module, x: torch.Tensor = X) -> bool:
    """Whether a call of the model runs in channels_last."""
    model(x)
    return model.layouts[-1]


@torch.no_grad()
def test_images_are_channels_last_inside_only() -> None:
    model, ours = made()
    assert ours.fastcv_report.layout_kept == "" and "channels_last inside the model" in str(ours.fastcv_report)
    assert inside(ours) and not inside(model)
    expected, got, exact = model(X), ours(X), copy.deepcopy(model).double()(X.double())
    for key in ("maps", "logits"):
        assert_close(got[key], exact[key], expected[key])
        assert got[key].stride() == expected[key].stride()
    assert got["n"] == 2
    assert list(ours.state_dict()) == list(model.state_dict()) and ours.depthwise[0].weight.is_contiguous()


@torch.no_grad()
def test_channels_last_images_stay_so() -> None:
    model, ours = made()
    x = X.contiguous(memory_format=torch.channels_last)
    assert inside(ours, x) and ours(x)["maps"].stride() == model(x)["maps"].stride()


def test_with_gradients_and_in_training_the_layout_stays() -> None:
    _, ours = made()
    assert not inside(ours)
    with torch.no_grad():
        assert not inside(ours.train())
        assert inside(ours.eval())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"view": True}, "asks for row-major images (RuntimeError: view size is not compatible"),
        ({"asserts": True}, "asks for row-major images (AssertionError"),
        ({"changes": True}, "changes its input"),
        ({"returns": True}, "returns its input"),
    ],
)
def test_what_cannot_be_is_left_and_named(options: dict[str, bool], reason: str) -> None:
    _, ours = made(**options)
    assert reason in ours.fastcv_report.layout_kept and "images keep their layout" in str(ours.fastcv_report)
    with torch.no_grad():
        assert not inside(ours)


def test_models_of_other_convolutions_keep_their_layout() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 2, 1))).eval()
    assert fastcv.optimize(model, example=X).fastcv_report.layout_kept == "1 of 3 convolutions are 1x1 or depthwise"
    rows = fastcv.optimize(model, example=X.contiguous(memory_format=torch.channels_last)).fastcv_report.layout_kept
    assert rows == "the example has no row-major images"
    assert fastcv.optimize(model).fastcv_report.layout_kept is None
    assert fastcv.optimize(model.train(), mode="training", example=X).fastcv_report.layout_kept is None


def test_hooks_would_see_the_layout() -> None:
    model = trained(Mobile()).eval()
    model.depthwise[2].register_forward_hook(lambda *_: None)
    assert "hooks" in fastcv.optimize(model, example=X).fastcv_report.layout_kept


@torch.no_grad()
def test_a_path_the_example_did_not_take() -> None:
    model, ours = made()
    model.view = ours.view = True
    with pytest.raises(RuntimeError, match="channels"):
        ours(torch.randn(1, 4, 8, 8))
    assert ours.fastcv_report.layout_kept == ""  # the error was the input's, not the layout's
    for calls in (2, 1):  # the first finds out, in two runs of the forward; from then on the layout stays
        before = len(ours.layouts)
        assert torch.allclose(ours(X)["logits"], model(X)["logits"], rtol=1e-5) and not ours.layouts[-1]
        assert len(ours.layouts) - before == calls
    assert ours.fastcv_report.layout_kept.startswith("in a later call it asks for row-major images (RuntimeError: view size")


@torch.no_grad()
def test_copies_pickles_and_restore() -> None:
    model, ours = made()
    expected = ours(X)["maps"]
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert inside(twin) and torch.equal(twin(X)["maps"], expected)
        assert isinstance(vars(twin)["forward"], LayoutForward) and vars(twin)["forward"].module is twin
    assert not inside(fastcv.restore(ours)) and "forward" not in vars(ours)
    torch._dynamo.reset()
    again = fastcv.optimize(model, example=X)
    compiled = torch.compile(lambda x: again(x)["maps"], backend="eager")
    assert_close(compiled(X), copy.deepcopy(model).double()(X.double())["maps"], model(X)["maps"])
