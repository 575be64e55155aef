"""fastcv.optimize: batch norms folded into linear layers, here of sizes whose product stays torch's."""

import copy

import pytest
import torch
from optimize_models import trained
from torch import nn

import fastcv
from fastcv.optimizer.chain import ConvChain
from fastcv.testing import assert_close


def head() -> nn.Module:
    """A projection head, as of self-supervised learning."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(12, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(inplace=True),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    ]
    return trained(nn.Sequential(*layers)).eval()


def rows_of(model: nn.Module) -> dict[str, tuple[str, list[str], str]]:
    return {row.name: (row.op, row.fused, row.reason) for row in model.fastcv_report.rows}


X = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))


def folds(model: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many chains compute a folded layer in one call."""
    count, compute = 0, ConvChain.compute

    def counted(chain, pending, *rest):
        nonlocal count
        count += pending.normalised
        return compute(chain, pending, *rest)

    monkeypatch.setattr(ConvChain, "compute", counted)
    model(x)
    return count


@torch.no_grad()
def test_batch_norms_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = head()
    ours = fastcv.optimize(model)
    assert rows_of(ours) == {
        "0": ("", ["1"], "runs on torch: 12 to 16 features in float32 is too small to gain"),
        "1": ("folded into 0", [], ""),
        "3": ("", ["4"], "runs on torch: 16 to 8 features in float32 is too small to gain"),
        "4": ("folded into 3", [], ""),
        "5": ("", [], "runs on torch: 8 to 3 features in float32 is too small to gain"),
    }
    assert ours.fastcv_report.left_to_torch == {"ReLU": 1} and not ours.fastcv_report.skipped()
    exact = copy.deepcopy(model).double()(X.double())
    assert_close(ours(X), exact, model(X))
    assert folds(ours, X, monkeypatch) == 2
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), model.state_dict().values(), strict=True))


def test_with_an_example_and_undone() -> None:
    model = head()
    ours = fastcv.optimize(model, example=X)
    assert [row.max_error is not None for row in ours.fastcv_report.rows] == [True, False, True, False, False]
    assert ours.fastcv_report.errors["output"][0] <= ours.fastcv_report.errors["output"][1]
    fastcv.restore(ours)
    assert not any("forward" in vars(m) for m in ours.modules())


def test_an_erring_fold_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcv.optimizer import fold_cache

    exact = fold_cache.folded_parameters
    monkeypatch.setattr(
        fold_cache, "folded_parameters", lambda m, bn: (exact(m, bn)[0] * (1 + 1e-3 * (m.in_features == 16)), exact(m, bn)[1])
    )
    ours = fastcv.optimize(head(), example=X)
    rows = rows_of(ours)
    assert rows["0"][:2] == ("", ["1"]) and rows["3"][:2] == ("", []) and rows["3"][2].startswith("undone: error")
    assert "forward" not in vars(ours[3])


def test_it_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    model = head()
    ours = fastcv.optimize(model)
    assert folds(ours, X, monkeypatch) == 0  # a gradient is needed
    with torch.no_grad():
        assert folds(ours.train(), X, monkeypatch) == 0
    torch.testing.assert_close(ours.eval()(X), ours(X))


@torch.no_grad()
def test_features_of_sequences_are_not_channels() -> None:
    """[N, L, C]: torch's BatchNorm1d normalises L there, the linear layer works on C."""
    model = trained(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))).eval()
    ours = fastcv.optimize(model)
    x = torch.randn(2, 8, 5)
    torch.testing.assert_close(ours(x), model(x))


def test_what_cannot_be_folded_says_why() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, track_running_stats=False)).eval()
    ours = fastcv.optimize(model)
    assert rows_of(ours)["0"] == ("", [], "not fused: batch norm 1: it has no running statistics")
    with pytest.raises(RuntimeError, match="no running statistics"):
        fastcv.optimize(model, strict=True)
