"""fastcv.neighbors: scikit-learn's own checks and answers, chunks, progress, memory; references spread over processes."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import neighbors as peers
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastcv.functional as F
from fastcv import neighbors
from fastcv.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors, knn_chunked
from fastcv.neighbors import search as searching
from fastcv.neighbors.sharded import merge

METRICS = [{}, {"p": 1}, {"p": 3}, {"metric": "manhattan"}, {"metric": "chebyshev"}, {"metric": "euclidean"}, {"metric": "cosine"}]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([KNeighborsClassifier(), KNeighborsRegressor(weights="distance"), NearestNeighbors()])
def test_scikit_learns_conventions(estimator, check) -> None:
    check(estimator)


@pytest.mark.parametrize("options", METRICS, ids=str)
def test_neighbours_are_scikit_learns(options: dict) -> None:
    x = np.random.default_rng(0).normal(size=(300, 7))
    ours, theirs = NearestNeighbors(4, **options).fit(x), peers.NearestNeighbors(n_neighbors=4, algorithm="brute", **options).fit(x)
    for queries in (x[:50] + 0.01, None):
        for mine, peer in zip(ours.kneighbors(queries), theirs.kneighbors(queries), strict=True):
            np.testing.assert_allclose(mine, peer, rtol=1e-9)  # scikit-learn's cancel a few digits
    assert np.array_equal(ours.kneighbors(x[:5], 2, return_distance=False), theirs.kneighbors(x[:5], 2, return_distance=False))


def test_a_sample_is_not_its_own_neighbour_even_among_duplicates() -> None:
    x = np.array([[0.0], [0.0], [0.0], [0.0], [5.0]])
    indices = NearestNeighbors(2).fit(x).kneighbors(return_distance=False)
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]


@pytest.mark.parametrize("weights", ["uniform", "distance", None, lambda d: np.exp(-d)], ids=["uniform", "distance", "none", "function"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=str)
def test_votes_and_means_are_scikit_learns(weights, dtype) -> None:
    for x, y in (load_iris(return_X_y=True), load_digits(return_X_y=True)):
        x, fit = x.astype(dtype), slice(None, None, 2)
        pair = [E(7, weights=weights).fit(x[fit], y[fit]) for E in (KNeighborsClassifier, peers.KNeighborsClassifier)]
        mine, theirs = (e.predict_proba(x) for e in pair)
        np.testing.assert_allclose(mine, theirs, rtol=1e-5 if dtype == np.float32 else 1e-9, atol=1e-9)
        assert np.array_equal(mine.argmax(1), pair[0].predict(x)) and pair[0].score(x, y) == pytest.approx(pair[1].score(x, y), abs=0.01)
    x, y = load_diabetes(return_X_y=True)
    x, y = x.astype(dtype), np.stack([y, y**2], 1)
    for targets in (y, y[:, 0]):
        pair = [E(5, weights=weights).fit(x[::2], targets[::2]) for E in (KNeighborsRegressor, peers.KNeighborsRegressor)]
        np.testing.assert_allclose(*(e.predict(x) for e in pair), rtol=1e-4 if dtype == np.float32 else 1e-9)


def test_labels_of_any_kind_and_the_choice_of_k() -> None:
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = GridSearchCV(make_pipeline(StandardScaler(), KNeighborsClassifier()), {"kneighborsclassifier__n_neighbors": [1, 5, 9]}, cv=3)
    model.fit(x, names)
    assert set(model.predict(x)) == set(names) and model.best_score_ > 0.9


def test_bytes_are_compared_exactly() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 256, (200, 50), np.uint8), rng.integers(0, 3, 200)
    exact = np.abs(x[:, None].astype(int) - x[None]).sum(-1)
    distances, indices = NearestNeighbors(5, p=1).fit(x).kneighbors(x)
    assert np.array_equal(indices, exact.argsort(1, kind="stable")[:, :5]) and np.array_equal(distances, np.sort(exact)[:, :5])
    model = KNeighborsClassifier(1).fit(x, y)
    assert np.array_equal(model.predict(x), y) and np.array_equal(model.predict(x.astype(np.float32)), y)


def test_data_is_kept_without_a_copy(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    assert np.shares_memory(NearestNeighbors().fit(x)._fit_X, x)
    x.tofile(tmp_path / "points")
    mapped = np.memmap(tmp_path / "points", np.float32, "r", shape=(100, 8))
    model = NearestNeighbors(1).fit(mapped)
    assert np.shares_memory(model._fit_X, mapped)
    assert np.array_equal(model.kneighbors(mapped, return_distance=False)[:, 0], np.arange(100))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(700, 9), torch.randn(400, 9)
    whole = F.knn(x, y, 5)
    monkeypatch.setattr(searching, "_STEPS", 1)
    monkeypatch.setattr(searching, "_LEAST", 64)
    assert len(list(searching.chunks_of(700, 400, 9))) == 11
    for a, b in zip(whole, knn_chunked(x, y, 5), strict=True):
        assert torch.equal(a, b)
    labels = torch.randint(0, 4, (400,)).numpy()
    model = KNeighborsClassifier(5).fit(y.numpy(), labels)
    assert np.array_equal(model.predict(x.numpy()), peers.KNeighborsClassifier(5).fit(y.numpy(), labels).predict(x.numpy()))


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(progress: bool | str, stream: io.StringIO, patience: float = 0.0) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(searching, "_PATIENCE", patience)
        assert sum(part.stop - part.start for part in searching.chunks_of(5000, 1 << 20, 1 << 10, progress)) == 5000
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    assert "5000/5000" in shown(True, Terminal()) and "5000/5000" in shown("auto", Terminal())
    assert shown("auto", Terminal(), 60.0) == "" == shown("auto", io.StringIO()) == shown(False, Terminal())
    with pytest.raises(ValueError, match="progress must be"):
        next(searching.chunks_of(1, 1, 1, "yes"))


def test_errors() -> None:
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    with pytest.raises(NotFittedError):
        KNeighborsClassifier().predict(x)
    with pytest.raises(ValueError, match="n_neighbors = 21, n_samples_fit = 20"):
        NearestNeighbors(21).fit(x).kneighbors(x)
    with pytest.raises(ValueError, match="n_neighbors = 20, n_samples_fit = 19"):
        NearestNeighbors(20).fit(x).kneighbors()
    with pytest.raises(ValueError, match="Expected n_neighbors > 0"):
        NearestNeighbors(0).fit(x)
    with pytest.raises(TypeError, match="enter integer value"):
        NearestNeighbors(2.5).fit(x)
    with pytest.raises(ValueError, match="metric must be minkowski"):
        NearestNeighbors(metric="mahalanobis").fit(x)
    with pytest.raises(ValueError, match="p must be a positive number"):
        NearestNeighbors(p=0).fit(x)
    with pytest.raises(ValueError, match="weights must be"):
        KNeighborsClassifier(weights="near").fit(x, y)
    with pytest.raises(RuntimeError, match="takes matrices"):
        knn_chunked(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), 1)
    with pytest.raises(RuntimeError, match="init_process_group first"):
        neighbors.knn_sharded(torch.zeros(3, 4), torch.zeros(3, 4), 1)
    with pytest.raises(AttributeError, match="RadiusNeighbors"):
        neighbors.RadiusNeighbors  # noqa: B018


def test_without_scikit_learn_or_rich_one_sentence_says_so() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['rich'] = None\n"
        "import torch; from fastcv import neighbors\n"
        "print(neighbors.knn_chunked(torch.zeros(2, 3), torch.zeros(4, 3), 1)[1].tolist())\n"
        "for name, call in (('sklearn', lambda: neighbors.NearestNeighbors),\n"
        "        ('rich', lambda: neighbors.knn_chunked(torch.zeros(2, 3), torch.zeros(4, 3), 1, progress=True))):\n"
        "    try: call()\n"
        "    except ModuleNotFoundError as error: print(name, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[[0], [0]]"
    assert "needs scikit-learn: pip install 'fastcv[data]'" in done.stdout and "needs rich: pip install 'fastcv[cli]'" in done.stdout


def test_merge_puts_nan_behind_infinity_and_padding_last() -> None:
    inf, nan = torch.inf, torch.nan
    distances = torch.tensor([[1.0, inf, nan, 0.5, nan, inf, 1.0, inf, inf]])
    indices = torch.tensor([[0, 1, 2, 3, 4, -1, 5, 6, -1]])
    values, order = merge(distances, indices, 9)
    assert order.tolist() == [[3, 0, 5, 1, 6, 2, 4, -1, -1]]
    torch.testing.assert_close(values, torch.tensor([[0.5, 1, 1, inf, inf, nan, nan, inf, inf]]), equal_nan=True)


PROCESS = """
import sys
import torch, torch.distributed as dist
import fastcv.functional as F
from fastcv.neighbors import knn_sharded
rank, ranks, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=ranks)
torch.manual_seed(0)
normal, grid = torch.randn(500, 20), torch.randint(0, 3, (500, 3)).float()
strange = torch.where(torch.rand(500, 4) < 0.1, torch.nan, torch.randn(500, 4))
for points, k, p, options in ((normal, 7, 2, {}), (normal, 7, 2, {"squared": True}), (normal.double(), 3, 1, {}), (grid, 30, 2, {}),
        (grid, 500, 1, {}), (strange, 90, 2, {}), ((grid * 80).byte(), 9, 1, {}), (normal.half(), 4, float("inf"), {})):
    cuts = [0, 500] if ranks == 1 else [0, 120, 120, 500]  # one process holds nothing
    queries, shard = points[:40], points[cuts[rank] : cuts[rank + 1]]
    expected, answer = F.knn(queries, points, k, p, **options), knn_sharded(queries, shard, k, p, **options)
    assert torch.equal(answer[1], expected[1]), (rank, k, p, options)
    assert answer[0].dtype == expected[0].dtype, (rank, k, p, options)
    assert torch.equal(answer[0].nan_to_num(-1.0), expected[0].nan_to_num(-1.0)), (rank, k, p, options)
try:
    knn_sharded(queries, shard, 501)
except ValueError as error:
    print(error)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("ranks", [1, 3])
def test_references_spread_over_processes(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(tmp_path / "rendezvous")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert f"k=501 but there are 500 points on {ranks} processes" in out
