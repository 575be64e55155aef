"""k-means, mean-shift and kNN classification against scikit-learn and faiss: ``python benchmarks/vision.py [--quick]``.

Every contender starts from the same centres, seeds or references, and must reach the same answer before it is timed: the
same inertia, the same centres, the same predictions but for ties. Rounds are interleaved; medians are reported. Data sets that
do not exist here in the needed size are drawn: blobs with unequal widths, in which clusters overlap, and random bytes. A peer that
would take minutes gets the first of the queries; its time is scaled to all of them, and the table says so.
Writes benchmarks/results/vision.json and .md after every case (``--quick``: nothing), in which it takes the place of an earlier row of its
name; ``--resume`` leaves out the cases that this build has measured with these settings. About ten minutes on two cores. faiss is left out
where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import sklearn
import sklearn.cluster
import sklearn.neighbors
import torch
from ops import cpu_name

import fastcv
from fastcv.bench import Sample, interleave
from fastcv.neighbors import KNeighborsClassifier
from fastcv.vision import KMeans, MeanShift

RESULTS = Path(__file__).parent / "results"
FAISS = importlib.util.find_spec("faiss") is not None
FAISS_VERSION = f", faiss {importlib.metadata.version('faiss-cpu')}" if FAISS else ""
Contenders = dict[str, tuple[Callable[[], Any], float]]  # what is called, and which share of the work that is


def blobs(rows: int, depth: int, centres: int, dtype: Any = np.float32) -> np.ndarray:
    """Gaussian clusters of unequal sizes and widths that overlap, with a tenth of the rows spread over all."""
    rng = np.random.default_rng(0)
    middle, width = rng.normal(size=(centres, depth)), rng.uniform(0.3, 1.2, centres)
    label = rng.choice(centres, rows, p=rng.dirichlet(np.full(centres, 3.0)))
    x = middle[label] + rng.normal(size=(rows, depth)) * width[label, None]
    x[: rows // 10] = rng.normal(size=(rows // 10, depth)) * 1.5
    return rng.permutation(x).astype(dtype)


def kmeans(rows: int, depth: int, k: int, rounds: int) -> Contenders:
    """``rounds`` of Lloyd from the same k rows."""
    x = blobs(rows, depth, k)
    start = x[:k].copy()
    ours = KMeans(k, init=start, max_iter=rounds, tol=0)
    peer = sklearn.cluster.KMeans(k, init=start, n_init=1, max_iter=rounds, tol=0, algorithm="lloyd")
    calls: dict[str, Callable[[], float]] = {"fastcv": lambda: ours.fit(x).inertia_, "scikit-learn": lambda: peer.fit(x).inertia_}
    if FAISS:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())

        def with_faiss() -> float:
            index = faiss.IndexFlatL2(depth)
            rule = faiss.Clustering(depth, k)
            rule.niter, rule.max_points_per_centroid, rule.min_points_per_centroid = rounds, rows, 1
            faiss.copy_array_to_vector(start.ravel(), rule.centroids)
            rule.train(x, index)
            centres = torch.from_numpy(faiss.vector_to_array(rule.centroids).reshape(k, depth))
            return float(fastcv.functional.nearest(torch.from_numpy(x), centres, squared=True)[0].double().sum())

        calls["faiss"] = with_faiss
    values = {name: call() for name, call in calls.items()}
    for name, value in values.items():  # float32 sums in another order move a few points of a million between clusters
        if abs(value - values["fastcv"]) > 1e-3 * values["fastcv"]:
            raise SystemExit(f"kmeans {rows}x{depth}: inertia {values['fastcv']:.6g} (fastcv) and {value:.6g} ({name})")
    return {name: (call, 1.0) for name, call in calls.items()}


def mean_shift(rows: int, depth: int, bandwidth: float) -> Contenders:
    x = blobs(rows, depth, 5, np.float64)
    ours, peer = MeanShift(bandwidth=bandwidth), sklearn.cluster.MeanShift(bandwidth=bandwidth)
    if not np.array_equal(ours.fit(x).labels_, peer.fit(x).labels_):
        raise SystemExit(f"mean-shift {rows}x{depth}: the labels differ")
    return {"fastcv": (lambda: ours.fit(x), 1.0), "scikit-learn": (lambda: peer.fit(x), 1.0)}


def knn(tests: int, train: int, depth: int, p: int, peers_tests: int) -> Contenders:
    """Classification of byte images by 5 neighbours. The peers get float32, which they are faster on, and fewer queries."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (train, depth), np.uint8), rng.integers(0, 10, train)
    q = rng.integers(0, 256, (tests, depth), np.uint8)
    fx, fq = x.astype(np.float32), q[:peers_tests].astype(np.float32)
    ours = KNeighborsClassifier(5, p=p).fit(x, y)
    peer = sklearn.neighbors.KNeighborsClassifier(5, p=p, algorithm="brute").fit(fx, y)
    calls: Contenders = {"fastcv": (lambda: ours.predict(q), 1.0), "scikit-learn": (lambda: peer.predict(fq), len(fq) / tests)}
    if FAISS:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlat(depth, faiss.METRIC_L1 if p == 1 else faiss.METRIC_L2)
        index.add(fx)
        vote = lambda labels: np.apply_along_axis(lambda row: np.bincount(row, minlength=10).argmax(), 1, labels)  # noqa: E731
        calls["faiss"] = (lambda: vote(y[index.search(fq, 5)[1]]), len(fq) / tests)
    part = slice(0, min(len(fq), 50))
    agree = (ours.predict(q[part]) == peer.predict(fq[part])).mean()
    if agree < 0.9:  # equal distances, and scikit-learn's rounding of |a|^2 + |b|^2 - 2ab, change a vote now and then
        raise SystemExit(f"knn p={p}: only {agree:.0%} of the predictions agree")
    return calls


def cases(quick: bool) -> dict[str, Callable[[], Contenders]]:
    if quick:
        return {
            "kmeans 20,000x64, k = 256, 10 rounds": lambda: kmeans(20_000, 64, 256, 10),
            "mean-shift 500x3": lambda: mean_shift(500, 3, 0.9),
            "kNN L1, 200 among 2,000 of 3,072 bytes": lambda: knn(200, 2_000, 3072, 1, 100),
            "kNN L2, 200 among 2,000 of 3,072 bytes": lambda: knn(200, 2_000, 3072, 2, 100),
        }
    return {
        "kmeans 1,000,000x64, k = 256, 20 rounds": lambda: kmeans(1_000_000, 64, 256, 20),
        "kmeans 200,000x5, k = 8, 50 rounds": lambda: kmeans(200_000, 5, 8, 50),
        "mean-shift 3,000x3": lambda: mean_shift(3_000, 3, 0.9),
        "kNN L1, 10,000 among 50,000 of 3,072 bytes": lambda: knn(10_000, 50_000, 3072, 1, 20),
        "kNN L2, 10,000 among 50,000 of 3,072 bytes": lambda: knn(10_000, 50_000, 3072, 2, 1_000),
    }


def write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def save(rows: dict[str, dict[str, str]]) -> None:
    """All rows by case, each with how it was measured: what several have in common stands once, as a note."""
    RESULTS.mkdir(exist_ok=True)
    notes = list(dict.fromkeys(row["measured"] for row in rows.values()))
    columns = [name for name in next(iter(rows.values())) if name != "measured"]
    mark = (lambda row: "") if len(notes) == 1 else lambda row: f" ({notes.index(row['measured']) + 1})"
    lines = [
        *(f"{note}\n" if len(notes) == 1 else f"({i}) {note}\n" for i, note in enumerate(notes, 1)),
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join([row["case"] + mark(row), *(row[name] for name in columns[1:])]) + " |" for row in rows.values()),
        "",
    ]
    write(RESULTS / "vision.json", json.dumps(list(rows.values()), indent=1) + "\n")
    write(RESULTS / "vision.md", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing written")
    parser.add_argument("--resume", action="store_true", help="leave out what this build has measured with these settings")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured = (
        f"Medians of {arguments.rounds} interleaved rounds, {arguments.threads} threads, {cpu_name()}; fastcv {fastcv.__version__}"
        f" ({fastcv.build_info()['git']}), torch {torch.__version__}, scikit-learn {sklearn.__version__}{FAISS_VERSION}."
        " Times of peers that ran a share of the queries are scaled to all."
    )
    file = RESULTS / "vision.json"
    rows = {row["case"]: row for row in json.loads(file.read_text())} if file.exists() else {}
    for name, make in cases(arguments.quick).items():
        if arguments.only not in name or (arguments.resume and rows.get(name, {}).get("measured") == measured):
            continue
        contenders = make()
        samples: dict[str, Sample] = interleave(
            {who: call for who, (call, _) in contenders.items()}, seconds=0, rounds=(arguments.rounds, arguments.rounds)
        )
        seconds = {who: samples[who].median / share for who, (_, share) in contenders.items()}
        row = {"case": name}
        for who in ("fastcv", "scikit-learn", "faiss"):
            row[f"{who} s"] = f"{seconds[who]:.4g}" if who in seconds else ""
            if who != "fastcv":
                row[f"{who} / fastcv"] = f"{seconds[who] / seconds['fastcv']:.2f}" if who in seconds else ""
        shares = sorted({share for _, share in contenders.values() if share < 1})
        row["peers ran"] = ", ".join(f"{share:.2g} of it" for share in shares) or "all"
        print("  ".join(f"{key}: {value}" for key, value in row.items() if value), flush=True)
        if not arguments.quick:
            rows[name] = row | {"measured": measured}
            save({case: rows[case] for case in cases(False) if case in rows})


if __name__ == "__main__":
    main()
