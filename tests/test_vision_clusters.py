"""k-means, mean-shift and normalised cuts: scikit-learn's conventions and clusters, empty clusters, two processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

pytest.importorskip("sklearn")
from sklearn import cluster as peers
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_sample_image, make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastcv
import fastcv.functional as F
from fastcv.vision import KMeans, MeanShift, MiniBatchKMeans, cut_cost, estimate_bandwidth, image_graph, normalized_cut
from fastcv.vision.graph_cut import spectral_embedding
from fastcv.vision.kmeans import _Alone, lloyd

DIGITS = load_digits().data


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([KMeans(3), MiniBatchKMeans(3), MeanShift()])
def test_scikit_learns_conventions(estimator, check) -> None:
    if "sample_weight_equivalence" in str(check):
        pytest.skip("weights and repeated rows draw different starts, in scikit-learn's k-means too; the next test fixes the start")
    check(estimator)


def test_a_weight_of_two_is_a_row_twice() -> None:
    x, twice = load_iris().data, np.arange(150) % 3
    a = KMeans(3, init=x[[0, 70, 140]]).fit(x, sample_weight=twice)
    b = KMeans(3, init=x[[0, 70, 140]]).fit(np.repeat(x, twice, axis=0))
    np.testing.assert_allclose(a.cluster_centers_, b.cluster_centers_, rtol=1e-12)
    assert a.inertia_ == pytest.approx(b.inertia_, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_one_seed_gives_scikit_learns_clusters(init: str, weighted: bool) -> None:
    """Digits are whole numbers, in which many distances tie; noise makes every choice unique."""
    x = DIGITS + np.random.RandomState(0).uniform(0, 1e-3, DIGITS.shape)
    weights = np.random.RandomState(1).uniform(0.1, 2, len(x)) if weighted else None
    mine = KMeans(10, init=init, n_init=2, random_state=3).fit(x, sample_weight=weights)
    theirs = peers.KMeans(10, init=init, n_init=2, random_state=3).fit(x, sample_weight=weights)
    assert mine.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9) and mine.n_iter_ == theirs.n_iter_
    assert np.array_equal(mine.labels_, theirs.labels_) and np.array_equal(mine.predict(x), mine.labels_)
    np.testing.assert_allclose(mine.cluster_centers_, theirs.cluster_centers_, rtol=0, atol=1e-9)
    np.testing.assert_allclose(mine.transform(x[:9]), theirs.transform(x[:9]), rtol=1e-6)
    assert mine.score(x) == pytest.approx(theirs.score(x), rel=1e-9)


@pytest.mark.parametrize("few", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_leave_every_label_as_a_full_search_would(dtype, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round by hand, with all distances, from the same start; and the search without bounds, which few centres get."""
    monkeypatch.setattr(fastcv.vision.kmeans, "_FEW", few)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4000, 9)).astype(dtype))
    centres = x[:40].clone()
    for rounds in (1, 2, 5, 12):
        result = lloyd(x, x[:40].clone(), None, rounds, 0.0, _Alone())
        centres = x[:40].double()
        for _ in range(rounds):
            labels = F.nearest(x, centres.to(x.dtype))[1]
            centres = torch.stack([x[labels == c].double().mean(0) for c in range(40)])
        np.testing.assert_allclose(result.centres, centres, atol=1e-12 if dtype == np.float64 else 1e-6)
        assert torch.equal(result.labels, F.nearest(x, result.centres)[1])


@pytest.mark.parametrize(("k", "seed"), [(3, 0), (7, 5)])
def test_of_restarts_with_the_same_clusters_the_first_is_kept(k: int, seed: int) -> None:
    """Their inertias differ in the last digits only, which must not choose the names of the clusters."""
    x = load_breast_cancer().data
    mine, theirs = (kind(k, init="random", n_init=2, random_state=seed).fit(x) for kind in (KMeans, peers.KMeans))
    assert np.array_equal(mine.labels_, theirs.labels_) and mine.n_iter_ == theirs.n_iter_


def test_centres_from_a_function_are_scikit_learns() -> None:
    x = load_iris().data

    def drawn(X: np.ndarray, k: int, random_state: np.random.RandomState) -> np.ndarray:
        return X[random_state.permutation(len(X))[:k]]

    mine, theirs = (kind(4, init=drawn, n_init=3, random_state=2).fit(x) for kind in (KMeans, peers.KMeans))
    assert np.array_equal(mine.labels_, theirs.labels_) and mine.inertia_ == pytest.approx(theirs.inertia_)
    assert MiniBatchKMeans(4, init=drawn, random_state=2).fit(x).inertia_ < 3 * mine.inertia_


def test_an_empty_cluster_takes_the_farthest_point() -> None:
    x = np.array([[0.0], [1.0], [2.5], [100.0]])
    init = np.array([[1.0], [500.0], [600.0]])
    mine, theirs = KMeans(3, init=init).fit(x), peers.KMeans(3, init=init, n_init=1).fit(x)
    assert mine.inertia_ == theirs.inertia_ and np.array_equal(np.sort(mine.cluster_centers_, 0), np.sort(theirs.cluster_centers_, 0))
    assert len(np.unique(mine.labels_)) == 3
    same = KMeans(3, random_state=0).fit(np.zeros((5, 2)))  # fewer different points than clusters
    assert same.inertia_ == 0 and not np.isnan(same.cluster_centers_).any()


def test_same_bits_for_any_number_of_threads() -> None:
    x = np.random.default_rng(1).normal(size=(20000, 8)).astype(np.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(KMeans(16, random_state=0, max_iter=10).fit(x).cluster_centers_)
    torch.set_num_threads(before)
    assert np.array_equal(*found)


def test_far_from_the_origin_no_digits_are_lost() -> None:
    x = np.random.default_rng(2).normal(size=(500, 3)) + 1e7
    mine = KMeans(4, random_state=0).fit(x)
    for label in range(4):
        np.testing.assert_allclose(mine.cluster_centers_[label], x[mine.labels_ == label].mean(0), rtol=1e-14)


def test_minibatches_come_near_full_batches() -> None:
    x, _ = make_blobs(3000, centers=8, n_features=5, random_state=0)
    full = KMeans(8, n_init=3, random_state=0).fit(x)
    mini = MiniBatchKMeans(8, batch_size=200, n_init=3, random_state=0).fit(x)
    assert mini.inertia_ <= 1.1 * full.inertia_ and adjusted_rand_score(full.labels_, mini.labels_) > 0.95
    stream = MiniBatchKMeans(8, random_state=0)
    for start in range(0, 3000, 200):
        stream.partial_fit(x[start : start + 200])
    assert stream.n_steps_ == 15 and -stream.score(x) < 4 * full.inertia_


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: KMeans(0), "n_clusters must be an integer of at least 1, got 0"),
        (lambda: KMeans(2, init="best"), "init must be"),
        (lambda: KMeans(2, init=np.zeros((3, 4))), r"init has shape \(3, 4\), expected \(2, 4\)"),
        (lambda: KMeans(2, init=np.full((2, 4), np.nan)), "init has centres that are not finite"),
        (lambda: KMeans(2, init=lambda X, k, random_state: X[:5]), r"init has shape \(5, 4\), expected \(2, 4\)"),
        (lambda: KMeans(2, n_init=0), "n_init must be"),
        (lambda: KMeans(2, tol=-1), "tol must be"),
        (lambda: KMeans(151), "n_samples=150 should be >= n_clusters=151"),
        (lambda: MeanShift(bandwidth=-1), "bandwidth must be"),
        (lambda: MeanShift(seeds=np.zeros((2, 3))), "seeds has shape"),
        (lambda: MeanShift(bandwidth=0.1, seeds=np.full((1, 4), 1e6)), "No point was within bandwidth=0.1"),
    ],
)
def test_bad_arguments_are_named(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make().fit(load_iris().data)


@pytest.mark.parametrize(
    "options",
    [{}, {"bin_seeding": True}, {"bandwidth": 1.5}, {"bandwidth": 0.5, "cluster_all": False}, {"bandwidth": 3, "max_iter": 2}],
    ids=str,
)
def test_mean_shift_is_scikit_learns(options: dict) -> None:
    x, _ = make_blobs(250, centers=5, cluster_std=0.7, n_features=3, random_state=1)
    mine, theirs = MeanShift(**options).fit(x), peers.MeanShift(**options).fit(x)
    np.testing.assert_allclose(mine.cluster_centers_, theirs.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert np.array_equal(mine.labels_, theirs.labels_) and mine.n_iter_ == theirs.n_iter_
    assert np.array_equal(mine.predict(x[:20] + 0.3), theirs.predict(x[:20] + 0.3))


def test_bandwidth_is_scikit_learns() -> None:
    x = load_iris().data
    for options in ({}, {"quantile": 0.1}, {"n_samples": 60, "random_state": 2}):
        assert estimate_bandwidth(x, **options) == pytest.approx(peers.estimate_bandwidth(x, **options), rel=1e-6)
    with pytest.raises(ValueError, match="quantile must be in"):
        estimate_bandwidth(x, quantile=2)


def test_eigenvectors_of_the_cut_are_those_of_the_dense_problem() -> None:
    image = load_sample_image("china.jpg")[100:160:5, 200:280:5].astype(float) / 255
    affinity = image_graph(image, radius=4, sigma=0.2)
    dense = affinity.toarray()
    assert np.array_equal(dense, dense.T) and not dense.diagonal().any()
    y, x = np.divmod(np.arange(12 * 16), 16)
    squared = np.square(y[:, None] - y) + np.square(x[:, None] - x)
    flat = image.reshape(-1, 3)
    expected = np.exp(-np.square(flat[:, None] - flat).sum(-1) / (2 * 0.2**2) - squared / (2 * 4.0**2)) * (squared <= 16)
    np.testing.assert_allclose(dense, expected - np.eye(len(flat)), atol=1e-12)
    degree = np.diag(dense.sum(1))
    values, vectors = scipy.linalg.eigh(degree - dense, degree)
    mine, found = spectral_embedding(affinity, 4)
    np.testing.assert_allclose(mine, values[:4], atol=1e-8)
    for i in range(1, 4):
        cosine = found[:, i] @ degree @ vectors[:, i]
        assert abs(cosine) == pytest.approx(1, abs=1e-5)


def test_cuts_are_scikit_learns_spectral_clusters() -> None:
    points, truth = make_blobs(200, centers=[[0, 0], [4, 0], [0, 4]], cluster_std=0.8, random_state=0)
    affinity = np.exp(-np.square(points[:, None] - points).sum(-1))
    mine = normalized_cut(affinity, 3)
    theirs = peers.SpectralClustering(3, affinity="precomputed", assign_labels="kmeans", random_state=0).fit(affinity).labels_
    assert adjusted_rand_score(mine, theirs) > 0.97 and adjusted_rand_score(mine, truth) > 0.97
    assert cut_cost(affinity, mine) <= cut_cost(affinity, theirs) * 1.01
    with pytest.raises(ValueError, match="must be a symmetric matrix"):
        normalized_cut(np.arange(9.0).reshape(3, 3))
    with pytest.raises(ValueError, match="3 nodes cannot be cut into n_clusters=4"):
        normalized_cut(np.ones((3, 3)), 4)


def test_two_squares_are_cut_along_their_border() -> None:
    image = np.zeros((12, 20))
    image[:, 9:] = 1
    labels = normalized_cut(image_graph(image), 2).reshape(12, 20)
    assert (labels[:, :9] == 0).all() and (labels[:, 9:] == 1).all()
    between = image_graph(image).toarray()[labels.ravel() == 0][:, labels.ravel() == 1].sum()
    total = image_graph(image).toarray().sum(1)
    expected = between / total[labels.ravel() == 0].sum() + between / total[labels.ravel() == 1].sum()
    assert cut_cost(image_graph(image), labels.ravel()) == pytest.approx(expected)


PROCESS = """
import sys
import numpy as np, torch, torch.distributed as dist
from sklearn.datasets import load_digits
from fastcv.vision import KMeans, kmeans_sharded
rank, ranks, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=ranks)
digits = load_digits().data[:600] + np.random.RandomState(0).uniform(0, 1e-3, (600, 64))
lattice = np.repeat(np.arange(5.0), 4)[:, None]
for x, k in ((digits, 7), (digits.astype(np.float32), 5), (lattice, 8)):  # 8 clusters of 5 points: some stay empty
    cuts = {1: [0, len(x)], 2: [0, len(x) // 3, len(x)], 3: [0, 0, len(x) // 2, len(x)]}[ranks]
    whole = KMeans(k, random_state=4).fit(x)
    mine = slice(cuts[rank], cuts[rank + 1])
    centres, labels, inertia, rounds = kmeans_sharded(torch.from_numpy(x[mine]), k, seed=4)
    assert abs(inertia - whole.inertia_) <= 1e-5 * whole.inertia_, (rank, inertia, whole.inertia_)
    if x is not lattice:
        assert np.array_equal(labels.numpy(), whole.labels_[mine]) and rounds == whole.n_iter_, (rank, k)
        np.testing.assert_allclose(centres.numpy(), whole.cluster_centers_, rtol=0, atol=1e-4)
try:
    kmeans_sharded(torch.zeros(1, 2), 9)
except ValueError as error:
    print(error)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_rows_spread_over_processes(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS]
    arguments = [[*command, str(rank), str(ranks), str(tmp_path / "rendezvous")] for rank in range(ranks)]
    processes = [subprocess.Popen(a, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for a in arguments]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert f"{ranks} rows on {ranks} processes should be at least n_clusters=9" in out
