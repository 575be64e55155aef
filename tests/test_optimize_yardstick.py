"""What an optimised model's answers are held against: torch's own, in the example's layout or the other, and what is undone."""

import copy

import pytest
import torch
from optimize_models import chains, images, make, reason, trained
from torch import Tensor, nn

import fastcv
from fastcv.optimizer import fold_cache, verify
from fastcv.optimizer.yardstick import Yardstick

ROWS, LAST = torch.contiguous_format, torch.channels_last
X = images(2, 8, 12, 10)


class Layered(nn.Module):
    """x * 2, in float32 with an error of ``lucky`` for row-major images and of ``unlucky`` for channels_last ones."""

    def __init__(self, lucky: float = 1e-7, unlucky: float = 8e-7, exact_too: bool = False) -> None:
        super().__init__()
        self.errors = {True: lucky, False: unlucky}
        self.exact_too = exact_too
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        error = self.errors[x.is_contiguous()] if x.dtype is torch.float32 or self.exact_too else 0.0
        return (x.double() * self.scale.double() * (1 + error)).to(x.dtype)


class RowsOnly(Layered):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(x.shape[0], -1).view_as(x))


def judged(model: nn.Module, error: float, x: Tensor = X, training: bool = False) -> tuple[bool, bool]:
    """Whether answers with this error pass, and whether the other layout was taken in to say so."""
    yardstick = Yardstick(model, (x,), {}, training)
    ours = {"output": (2 * x.double() * (1 + error)).float().flatten()}
    return yardstick.judge(ours)["output"].passed, yardstick.both_layouts


@pytest.mark.parametrize("layout", [ROWS, LAST])
def test_the_worse_of_torchs_two_layouts(layout: torch.memory_format) -> None:
    x = X.contiguous(memory_format=layout)
    rows = layout is ROWS
    assert judged(Layered(), 1e-7, x) == (True, False)
    assert judged(Layered(), 1.2e-6, x) == (True, rows)  # more than the lucky layout allows, not more than the other
    assert judged(Layered(), 3e-6, x) == (False, True)
    assert judged(Layered(lucky=8e-7, unlucky=1e-7), 1.2e-6, x) == (True, not rows)


def test_where_the_other_layout_does_not_count() -> None:
    assert judged(RowsOnly(), 1.2e-6) == (False, False)  # it raises there
    assert judged(Layered(unlucky=0.5, exact_too=True), 0.3) == (False, False)  # another function: float64 shows it
    flat = X.flatten(1)
    assert judged(Layered(), 1.2e-6, flat) == (False, False)  # no images


def test_weights_alone_may_be_channels_last() -> None:
    """torch's kernels are those of channels_last then; row-major ones are the other answer."""
    seen = []

    class Watching(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.weight.is_contiguous())
            return super().forward(x)

    model = nn.Sequential(Watching(8, 4, 3)).to(memory_format=LAST)
    yardstick = Yardstick(model, (X,), {}, False)
    assert not any(seen)
    seen.clear()
    with torch.no_grad():
        yardstick.judge({"output": 2 * model(X).flatten()})
    assert yardstick.both_layouts and seen == [False, True, True]
    assert not model[0].weight.is_contiguous() and X.is_contiguous()


def test_float64_is_its_own_reference() -> None:
    model = Layered().double()
    x = X.double()
    yardstick = Yardstick(model, (x,), {}, False)
    exact = (2 * x).flatten()
    assert yardstick.judge({"output": exact * (1 + 3e-16)})["output"].passed
    assert not yardstick.judge({"output": exact * (1 + 1e-13)})["output"].passed


def wrong_folds(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Folds of grouped convolutions are wrong, and no part's own measurement fails."""
    exact, measure = fold_cache.folded_parameters, verify._measure

    def folded(conv: nn.Module, bn: nn.Module) -> tuple[Tensor, Tensor]:
        weight, bias = exact(conv, bn)
        return weight * (1 + factor * (conv.groups > 1)), bias

    monkeypatch.setattr(fold_cache, "folded_parameters", folded)
    monkeypatch.setattr(verify, "_measure", lambda *args: measure(*args)._replace(passed=True))


def deep(grouped: set[int]) -> nn.Module:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2 if i in grouped else 1), nn.BatchNorm2d(8), nn.ReLU()) for i in range(6)]
    return trained(nn.Sequential(*blocks)).eval()


@pytest.mark.parametrize("grouped", [{3}, {0, 5}, set(range(6))])
def test_only_the_fusions_that_matter_are_undone(monkeypatch: pytest.MonkeyPatch, grouped: set[int]) -> None:
    wrong_folds(monkeypatch, 1e-3)
    model = deep(grouped)
    ours = fastcv.optimize(model, example=X)
    assert chains(ours).keys() == {f"{i}.0" for i in range(6) if i not in grouped}
    for i in grouped:
        assert reason(ours, f"{i}.0") == "undone: the model's output erred by more than twice torch's own error"
    error, allowed = ours.fastcv_report.errors["output"]
    assert error <= allowed < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(ours(X), model(X), rtol=1e-4, atol=1e-5)


def test_kernels_that_matter_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcv.nn import pool

    wrong, measure = pool.MaxPool2d.forward, verify._measure
    monkeypatch.setattr(pool.MaxPool2d, "forward", lambda self, x: wrong(self, x) * 1.01)
    monkeypatch.setattr(verify, "_measure", lambda *args: measure(*args)._replace(passed=True))
    ours = fastcv.optimize(make("plain").eval(), example=X)
    undone = [row.name for row in ours.fastcv_report.rows if row.reason.startswith("undone") and not row.op]
    assert undone == ["3"]


def test_the_report_names_the_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("plain").eval()
    assert "2x torch's own + eps" in str(fastcv.optimize(model, example=X).fastcv_report)

    class Lucky(Layered):
        """Exact for the reference model; the optimised one, told by its forward, errs within what the other layout allows."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * (1 + 6e-7) if "forward" in vars(self.conv) else y

    model = Lucky().eval()
    report = fastcv.optimize(model, example=X).fastcv_report
    assert report.both_layouts and "2x torch's own in the worse of its two layouts + eps" in str(report)
    assert not [row for row in report.rows if row.reason]


def test_statistics_and_inputs_stay() -> None:
    model = make("block").train()
    before, x = copy.deepcopy(model.state_dict()), X.clone()
    yardstick = Yardstick(model, (x,), {}, True)
    yardstick.judge({key: 2 * t for key, t in yardstick._exact.items()})
    assert yardstick.both_layouts and torch.equal(x, X)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
