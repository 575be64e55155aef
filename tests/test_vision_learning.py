"""Linear classifiers, kNN with its own cross-validation, losses, the gradient checker, the architecture search."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastcv.functional as F
from fastcv.train.data import Images
from fastcv.vision import (
    KNNImageClassifier,
    LinearSVM,
    SoftmaxClassifier,
    check_gradients,
    hinge_loss,
    kl_divergence,
    label_smoothing_loss,
    soft_iou_loss,
    softmax,
)

X, Y = (a[:600] for a in load_digits(return_X_y=True))


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([LinearSVM(epochs=20), SoftmaxClassifier(epochs=20), KNNImageClassifier((1, 2), folds=2)])
def test_scikit_learns_conventions(estimator, check) -> None:
    check(estimator)


def test_softmax_reaches_logistic_regressions_optimum() -> None:
    alpha, x = 0.01, X / 16
    peer = LogisticRegression(C=1 / (alpha * len(x)), max_iter=500).fit(x, Y)
    mine = SoftmaxClassifier(alpha=alpha, epochs=60, random_state=0).fit(x, Y)

    def objective(model) -> float:
        scores = torch.from_numpy(x @ model.coef_.T + model.intercept_)
        return float(F.cross_entropy(scores, torch.from_numpy(Y))) + alpha / 2 * (model.coef_**2).sum()

    assert objective(mine) <= 1.01 * objective(peer)
    assert (mine.predict(x) == peer.predict(x)).mean() > 0.99
    np.testing.assert_allclose(mine.predict_proba(x).sum(1), 1, rtol=1e-6)


def test_two_class_hinge_reaches_the_svms_optimum() -> None:
    """With w_1 = -w_0 = w / 2 the multiclass loss is the hinge of w, and the penalty is |w|^2 / 4 each way: C = 2 / (alpha n)."""
    x, y, alpha = X / 16, (Y == 8).astype(int), 0.01
    peer = SVC(kernel="linear", C=2 / (alpha * len(x))).fit(x, y)
    mine = LinearSVM(alpha=alpha, epochs=60, random_state=0).fit(x, y)

    def objective(w: np.ndarray, b: float) -> float:
        return np.maximum(0, 1 - (2 * y - 1) * (x @ w + b)).mean() + alpha / 4 * w @ w

    w = mine.coef_[1] - mine.coef_[0]
    assert objective(w, mine.intercept_[1] - mine.intercept_[0]) <= 1.05 * objective(peer.coef_[0], peer.intercept_[0])
    assert (mine.predict(x) == peer.predict(x)).mean() > 0.99


def test_multiclass_hinge_reaches_the_svms_optimum() -> None:
    """Kesler's construction: a pair of a sample and a wrong class is one row, x in the right class's place and -x in the wrong one's.

    Both signs of a row give the two classes that SVC asks for. The constant's weight is not penalised in `LinearSVM`; here it is
    by 1/400 of the others'.
    """
    x, y, alpha = load_iris().data - load_iris().data.mean(0), load_iris().target, 0.01
    wide = np.hstack([x, np.full((len(x), 1), 20.0)])
    pairs = np.zeros((len(x), 3, 3, 5))
    for wrong in range(3):
        pairs[np.arange(len(x)), wrong, y] += wide
        pairs[np.arange(len(x)), wrong, wrong] -= wide
    rows = pairs[np.arange(3) != y[:, None]].reshape(-1, 15)
    peer = SVC(kernel="linear", C=1 / (2 * alpha * len(x)), tol=1e-5).fit(np.vstack([rows, -rows]), np.repeat([1, 0], len(rows)))
    theirs = peer.coef_.reshape(3, 5)
    mine = LinearSVM(alpha=alpha, epochs=200, random_state=0).fit(x, y)

    def objective(w: np.ndarray, b: np.ndarray) -> float:
        return float(hinge_loss(torch.from_numpy(x @ w.T + b), torch.from_numpy(y))) + alpha / 2 * (w**2).sum()

    assert objective(mine.coef_, mine.intercept_) <= 1.02 * objective(theirs[:, :4], 20 * theirs[:, 4])
    assert (mine.predict(x) == (wide @ theirs.T).argmax(1)).mean() > 0.98


@pytest.mark.parametrize("model", [LinearSVM, SoftmaxClassifier])
def test_linear_classifiers_do_not_mind_the_datas_scale(model) -> None:
    names = np.array(["zero", "one", "two"])
    part = Y < 3
    plain = model(random_state=1, alpha=1e-4).fit(X[part] / 16, names[Y[part]])
    large = model(random_state=1, alpha=1e-4 * 16**-2 / 100**2 * 1.0).fit(X[part] * 100 + 5000, names[Y[part]])
    assert plain.score(X[part] / 16, names[Y[part]]) > 0.99 and large.score(X[part] * 100 + 5000, names[Y[part]]) > 0.99
    assert set(plain.predict(X[part] / 16)) == set(names) and plain.templates((8, 8)).shape == (3, 8, 8)
    losses: list[float] = []
    model(random_state=1, epochs=3, on_epoch=lambda epoch, loss: losses.append(loss)).fit(X[part], Y[part])
    assert len(losses) == 3 and losses[-1] < losses[0]
    with pytest.raises(ValueError, match=r"64 weights a class do not fold into images of shape \(7, 7\)"):
        plain.templates((7, 7))


def test_knn_chooses_on_the_training_images_alone() -> None:
    model = KNNImageClassifier((1, 3, 200, 10_000)).fit(X[:400].astype(np.uint8), Y[:400])
    assert model.ks_.tolist() == [1, 3, 200] and model.cv_accuracy_.shape == (2, 3, 5)
    assert model.best_k_ in (1, 3) and model.best_p_ in (1, 2)
    assert model.score(X[400:].astype(np.uint8), Y[400:]) > 0.8
    assert KNNImageClassifier((1,)).fit(X, Y).score(X, Y) == 1  # k = 1 is always perfect on its own images
    for options, sentence in (
        ({"ks": (0,)}, "k must be"),
        ({"ks": (500,)}, "none of ks"),
        ({"folds": 1}, "folds must be"),
        ({"folds": 601}, "cannot be split"),
    ):
        with pytest.raises(ValueError, match=sentence):
            KNNImageClassifier(**options).fit(X, Y)


def test_pipeline_of_features_and_classifier() -> None:
    from fastcv.vision import HOG

    model = make_pipeline(HOG(pixels_per_cell=4, cells_per_block=2, shape=(8, 8)), SoftmaxClassifier(alpha=1e-4, random_state=0)).fit(
        X[:400], Y[:400]
    )
    assert model.score(X[400:], Y[400:]) > 0.5


# Losses: the golden numbers ---------------------------------------------------------------------------------------------


SCORES = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])


def test_hinge_sums_over_the_wrong_classes() -> None:
    each = hinge_loss(SCORES, torch.arange(3), reduction="none")
    assert [round(v, 4) for v in each.tolist()] == [2.9, 0, 12.9] and round(hinge_loss(SCORES, torch.arange(3)).item(), 2) == 5.27
    assert hinge_loss(2 * SCORES[1:2], torch.tensor([1])).item() == 0


def test_softmax_with_temperature() -> None:
    assert [round(v, 2) for v in softmax(SCORES[0]).tolist()] == [0.13, 0.87, 0.0]
    assert softmax(torch.tensor([1.0, 3.0, 3.0]), beta=math.inf).tolist() == [0, 0.5, 0.5]
    assert softmax(SCORES, beta=0).allclose(torch.full((3, 3), 1 / 3)) and softmax(SCORES[0], beta=50)[1] > 0.9999
    z = torch.linspace(-5, 5, 11)
    assert softmax(torch.stack([z, torch.zeros(11)], 1))[:, 0].allclose(z.sigmoid())
    with pytest.raises(ValueError, match="beta must be at least 0, got -1"):
        softmax(SCORES, beta=-1)


def test_kl_is_cross_entropy_minus_entropy() -> None:
    p, q = (torch.rand(5, 7, generator=torch.Generator().manual_seed(s), dtype=torch.float64).softmax(1) for s in (0, 1))
    expected = -(p * q.log()).sum(1) + (p * p.log()).sum(1)
    assert kl_divergence(p, q, reduction="none").allclose(expected) and (expected > 0).all()
    assert kl_divergence(p, p, reduction="none").abs().max() < 1e-15 and not kl_divergence(q, p).isclose(kl_divergence(p, q))
    zeros = torch.tensor([[0.0, 1.0]])
    assert kl_divergence(zeros, torch.tensor([[0.5, 0.5]])).item() == pytest.approx(math.log(2))
    assert kl_divergence(torch.tensor([[0.5, 0.5]]), zeros).item() == math.inf
    with pytest.raises(ValueError, match="middle is not a valid value"):
        kl_divergence(p, q, reduction="middle")


def test_smoothing_and_soft_iou() -> None:
    mixed = 0.9 * torch.eye(3)[[0]] + 0.1 / 3
    expected = -(mixed * SCORES[:1].log_softmax(1)).sum()
    assert label_smoothing_loss(SCORES[:1], torch.tensor([0]), 0.1).allclose(expected)
    x, y = torch.tensor([[0.8, 0.1, 0.6]]), torch.tensor([[1.0, 0.0, 1.0]])
    assert soft_iou_loss(x, y).item() == pytest.approx(1 - (x * y).sum().item() / (x + y - x * y).sum().item())


def test_loss_before_training_is_ln_c() -> None:
    for classes in (2, 10, 100):
        assert F.cross_entropy(torch.zeros(4, classes), torch.arange(4) % classes).item() == pytest.approx(math.log(classes))
        assert hinge_loss(torch.zeros(4, classes), torch.arange(4) % classes).item() == classes - 1


# The gradient checker ---------------------------------------------------------------------------------------------------


def square(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x @ w).square().mean()


def test_right_gradients_pass() -> None:
    x, w = torch.randn(4, 3), torch.randn(3, 3)
    report = check_gradients(square, x, w, names=("x", "w"))
    assert report.ok and len(report.entries) == 21 and "x: ok" in str(report) and max(e.error for e in report.entries) < 1e-6
    assert check_gradients(lambda t: F.conv2d(t, torch.ones(2, 1, 3, 3, dtype=t.dtype)).square().sum(), torch.randn(1, 1, 6, 6)).ok
    assert check_gradients(lambda t: 0 * t.sum(), torch.randn(3)).ok
    turned = torch.randn(3, 4).t()
    assert check_gradients(lambda t: t.square().sum(), turned, gradients=lambda t: 2 * t).ok  # not contiguous; one gradient, no tuple
    large = check_gradients(lambda t: 1e8 + 1e-3 * t.sum(), torch.randn(3))  # all digits of the difference are lost in the loss
    assert large.ok


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda g: -g, "sign is reversed"),
        (lambda g: 4 * g, "right gradient times 4"),
        (lambda g: g.T, "transpose"),
        (lambda g: 0 * g, "zero everywhere"),
        (lambda g: g / 0, "not finite"),
        (lambda g: g + torch.eye(3, dtype=g.dtype)[:1].T @ torch.eye(3, dtype=g.dtype)[:1], "only 1 of 9 entries"),
        (lambda g: g.roll(1, 0), "directions differ"),
    ],
)
def test_wrong_gradients_are_told_apart(change, sentence: str) -> None:
    x, w = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 3)

    def analytic(w: torch.Tensor) -> tuple[torch.Tensor]:
        return (change(2 * x.T @ (x @ w) / 12),)

    report = check_gradients(lambda w: square(x, w), w, gradients=analytic, names=("w",))
    assert not report.ok and sentence in str(report) and "WRONG" in str(report)


def test_kinks_are_no_errors() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    report = check_gradients(lambda t: t.relu().sum(), x)
    assert report.ok and [e.kink for e in report.entries] == [False, True, False] and "1 at kinks" in str(report)


def test_a_detached_input_is_named() -> None:
    report = check_gradients(lambda a, b: (a.detach() * b).sum(), torch.ones(2), torch.ones(2), names=("a", "b"))
    assert not report.ok and "a: the analytic gradient is zero everywhere" in str(report) and "b: ok" in str(report)
    for call, sentence in (
        (lambda: check_gradients(lambda t: t, torch.ones(2)), "must be one number"),
        (
            lambda: check_gradients(lambda t: (t * torch.rand(2)).sum(), torch.ones(2)),
            "the loss draws at random: it is .*; seed it",
        ),
        (lambda: check_gradients(lambda t: t.sum()), "one or more floating-point tensors"),
        (lambda: check_gradients(lambda t: t.sum(), torch.ones(2), names=("a", "b")), "2 names for 1 inputs"),
        (lambda: check_gradients(lambda t: t.sum(), torch.ones(2), gradients=lambda t: (t[:1],)), "has shape"),
        (lambda: check_gradients(lambda t: t.sum(), torch.ones(2), gradients=lambda t: ()), "0 gradients for 1 inputs"),
        (lambda: check_gradients(lambda t: t.log().sum(), -torch.ones(2)), "the loss at these inputs is nan"),
        (lambda: check_gradients(lambda t: t.sum(), torch.ones(2), step=0), "step must be positive, got 0"),
        (lambda: check_gradients(lambda t: t.sum(), torch.ones(2), entries=0), "entries must be positive, got 0"),
        (lambda: check_gradients(lambda a, b: a.sum() + b.sum(), torch.ones(2), torch.ones(2), names=("a", "a")), "names must differ"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


# The architecture search ------------------------------------------------------------------------------------------------


def test_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    from fastcv.vision import search_architecture

    source = load_digits()
    images = torch.from_numpy(source.images[:300]).to(torch.uint8)[:, None].contiguous()
    data = Images("some digits", images, torch.from_numpy(source.target[:300]), tuple(map(str, range(10))), white=16)
    straight = search_architecture(data, tmp_path / "straight", trials=3, epochs=1, seed=5)
    calls: list[dict] = []

    def interrupt(row: dict) -> None:
        calls.append(row)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_architecture(data, tmp_path / "resumed", trials=3, epochs=1, seed=5, on_trial=interrupt)
    resumed = search_architecture(data, tmp_path / "resumed", trials=3, epochs=1, seed=5, on_trial=calls.append)
    assert len(calls) == 3 and {**resumed, "number": 0} == {**straight, "number": 0}
    rows = [json.loads((tmp_path / name / "search.json").read_text()) for name in ("straight", "resumed")]
    assert rows[0] == rows[1] and len(rows[0]) == 3 and (tmp_path / "resumed" / "search.png").stat().st_size > 5000
    assert search_architecture(data, tmp_path / "resumed", trials=3, epochs=1, seed=5) == resumed  # nothing left to do
    with pytest.raises(ValueError, match="holds a search with"):
        search_architecture(data, tmp_path / "resumed", trials=3, epochs=2, seed=5)
    with pytest.raises(ValueError, match="trials must be at least 1, got 0"):
        search_architecture(data, tmp_path / "none", trials=0)


def test_the_search_command_goes_on_and_names_bad_input(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from fastcv.cli import _application

    runner, folder = CliRunner(), str(tmp_path / "s")
    arguments = ["search", "--epochs", "1", "--threads", "1", "-o", folder, "--trials"]
    first = runner.invoke(_application(), [*arguments, "1"])
    assert first.exit_code == 0 and "candidate 1: blocks" in first.stdout and "best: candidate 1" in first.stdout, first.stderr
    again = runner.invoke(_application(), [*arguments, "2"])
    assert again.exit_code == 0 and "1 done" in again.stdout and "  candidate 2: blocks" in again.stdout
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "search.journal").write_text("hello\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("kept")
    for bad, sentence in (
        (["--trials", "0", "-o", folder], "trials must be at least 1, got 0"),
        (["--epochs", "2", "-o", folder], "holds a search with epochs 1 (not 2)"),
        (["--seed", "-1", "-o", folder], "seed must be at least 0, got -1"),
        (["-o", str(broken)], "is not the journal of a search"),
        (["-o", str(tmp_path / "mine")], "which this program did not write"),
        (["--data", str(tmp_path / "none"), "-o", str(tmp_path / "x")], "none"),
    ):
        found = runner.invoke(_application(), ["search", *bad])
        assert found.exit_code == 2 and sentence in found.stderr and found.stderr.startswith("fastcv search: "), (bad, found.stderr)
    assert not (tmp_path / "x").exists() and len(json.loads((tmp_path / "s" / "search.json").read_text())) == 2
