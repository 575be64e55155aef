"""The race: what it measures with a clock of known behaviour, who takes part, and what it says to bad calls."""

import itertools
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_common import CASE, CONV, Clock, known_roofs, only, race  # noqa: F401 - known_roofs is for every test

import fastcv
from fastcv.bench import Contender, contender, interleave, measure
from fastcv.bench.contenders import _registered, load_file, registered
from fastcv.bench.plan import Job, Options, run_job
from fastcv.testing import cases_of
from fastcv.testing.cases.networks import case_of


def test_times_are_those_of_the_clock() -> None:
    clock = Clock()
    rows = race({"one": clock.taking(F.softmax, 1e-3), "three": clock.taking(F.softmax, 3e-3)}, clock=clock)
    assert set(rows) == {(name, cache) for name in ("one", "three") for cache in ("hot", "cold")}
    for (name, _), row in rows.items():
        assert row.status == "OK" and row.checked >= 3
        assert row.median == pytest.approx({"one": 1e-3, "three": 3e-3}[name]) and row.interval == pytest.approx((row.median,) * 2)


@pytest.mark.parametrize(
    "draw", [lambda n: n.gauss(1e-3, 5e-5), lambda n: 1e-3 * n.lognormvariate(0, 0.2), lambda n: n.uniform(5e-4, 1.5e-3)]
)
def test_intervals_hold_the_median_of_known_distributions(draw: Any) -> None:
    held = 0
    for seed in range(8):
        clock, number = Clock(), random.Random(seed)
        row = race({"it": clock.taking(F.softmax, lambda n=number: draw(n))}, clock=clock, rounds=(25, 25), cache=("hot",), seed=seed)[
            "it", "hot"
        ]
        assert len(row.times) == 25
        held += row.interval[0] <= 1e-3 <= row.interval[1]
    assert held >= 6  # at 95 % each, fewer than 6 of 8 have a chance of 1 %; the seeds are fixed


def test_outliers_do_not_move_the_median() -> None:
    clock, number = Clock(), random.Random(0)
    noisy = clock.taking(F.softmax, lambda: 1e-3 if number.random() < 0.8 else 50e-3)
    row = race({"it": noisy}, clock=clock, rounds=(50, 50), cache=("hot",))["it", "hot"]
    assert row.median == pytest.approx(1e-3) and max(row.times) == pytest.approx(50e-3)


def test_turns_are_shuffled_and_drift_hits_all() -> None:
    """A machine that slows down while it is measured must not decide who wins."""
    clock, turns = Clock(), []

    def slower(name: str, base: float) -> Any:
        def seconds() -> float:
            turns.append(name)
            return base * (1 + len(turns) / 200)

        return clock.taking(F.softmax, seconds)

    rows = race({"a": slower("a", 1e-3), "b": slower("b", 1.2e-3)}, clock=clock, rounds=(40, 40), cache=("hot",))
    assert rows["b", "hot"].median / rows["a", "hot"].median == pytest.approx(1.2, rel=0.05)
    pairs = list(itertools.pairwise(turns))
    assert ("a", "b") in pairs and ("b", "a") in pairs and turns != sorted(turns)


def test_a_real_race_with_gradients() -> None:
    rows = race({"fastcv": fastcv.functional.conv2d, "torch": F.conv2d}, CONV, mode="fwd+bwd")
    for row in rows.values():
        assert row.status == "OK" and row.repeatable and row.median > 0 and row.error < 1e-5
        assert row.flops == 3 * CONV.flops and row.peak >= row.workspace >= 0
    assert rows["fastcv", "hot"].kernel and not rows["torch", "hot"].kernel


@pytest.mark.parametrize("mode", ["fwd", "bwd", "fwd+bwd"])
@pytest.mark.parametrize("op", ["batch_norm", "knn", "nearest", "max_pool2d", "cross_entropy", "layer_norm", "max_unpool2d"])
def test_every_kind_of_case_is_judged_right(op: str, mode: str) -> None:
    """Running statistics, choices, labels, indices: fastcv's own functions are neither wrong nor accused of changing arguments."""
    case = next(c for c in cases_of(op) if not c.bench and c.grad and torch.float32 in c.dtypes and "empty" not in c.name)
    if op == "batch_norm":
        assert case.name == "odd-3x5x7x3"
    entered = [Contender("fastcv", getattr(fastcv.functional, op)), Contender("torch", case.torch_function())]
    for row in race(entered, case, mode=mode, rounds=(3, 3)).values():
        assert row.status == "OK", (row.contender, row.reason)


def test_half_precision_and_layouts() -> None:
    entered = [Contender(f"fastcv {layout}", fastcv.functional.conv2d, layout) for layout in ("contiguous", "channels_last")]
    for row in race(entered, CONV, dtype=torch.bfloat16).values():
        assert row.status == "OK" and 1e-5 < row.error < 0.02 and row.dtype == "bf16"


def test_double_precision_is_judged_by_its_own_rounding() -> None:
    assert only(fastcv.functional.conv2d, CONV, dtype=torch.float64).status == "OK"
    assert only(lambda *a, **k: F.conv2d(*(t.float() for t in a), **k).double(), CONV, dtype=torch.float64).status == "WRONG"


def test_interleave_takes_turns_and_divides_repeats() -> None:
    calls = []
    samples = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, (5, 5), floor=0.0)
    assert all(len(s.times) == 5 for s in samples.values()) and calls.count("a") == calls.count("b") == 7


def test_bad_calls_are_told() -> None:
    with pytest.raises(ValueError, match="different names"):
        measure(CASE, {})
    with pytest.raises(ValueError, match="is none of hot, cold"):
        measure(CASE, {"it": F.softmax}, cache=("warm",))
    with pytest.raises(ValueError, match="mode 'train' is none of"):
        measure(CASE, {"it": F.softmax}, mode="train")
    with pytest.raises(ValueError, match=r"not defined for torch\.float64"):
        measure(CASE, {"it": F.softmax}, dtype=torch.float64)
    with pytest.raises(ValueError, match="layout 'nhcw'"):
        Contender("it", F.softmax, "nhcw")
    with pytest.raises(ValueError, match="has no gradients"):
        measure(replace(CASE, grad=()), {"it": F.softmax}, mode="bwd")


def test_registered_contenders_take_part(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom fastcv.bench import contender\n"
        "@contender('softmax', name='exp')\ndef exp(x, dim, _stacklevel=3, dtype=None):\n"
        "    e = (x - x.amax(dim, True)).exp()\n    return e / e.sum(dim, True)\n"
    )
    try:
        load_file(file)
        assert [c.who for c in registered("softmax")] == ["exp"]
        with pytest.raises(ValueError, match="a contender named exp already"):
            contender("softmax", name="exp")(F.softmax)
        rows = run_job(Job(CASE, "f32", "fwd", 1), Options(vs=(), cache=("hot",), seconds=0.0, rounds=(2, 2)))
        assert {r.contender: r.status in ("OK", "UNRELIABLE") for r in rows} == {"fastcv contiguous": True, "exp": True}
        assert all(r.threads == 1 for r in rows)
        modes = run_job(Job(CASE, "f32", "fwd+bwd", 1), Options(vs=(), cache=("hot",), seconds=0.0, rounds=(2, 2)))
        assert [r.contender for r in modes] == ["fastcv contiguous"]  # it has no backward
    finally:
        _registered.clear()
    for text, message in (
        ("1 +", "does not run: SyntaxError"),
        ("raise SystemExit(3)", "does not run: SystemExit: 3"),
        ("x = 1", "registers no contender"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_file(file)
    with pytest.raises(ValueError, match="is no Python file"):
        load_file(tmp_path / "none.py")


@pytest.mark.parametrize("peer", ["compile", "onnxruntime", "openvino", "faiss", "sklearn"])
def test_peers_give_right_answers(peer: str) -> None:
    from fastcv.bench import peers

    if peers.missing(peer):
        pytest.skip(peers.missing(peer))
    tables: dict[str, list[dict[str, Any]]] = {
        "compile": [{"op": "softmax", "input": [8, 33]}],
        "onnxruntime": [
            {"op": "conv2d", "input": [1, 4, 9, 8], "out_channels": 6, "kernel": 3, "padding": 1, "stride": 2},
            {"op": "conv_transpose2d", "input": [1, 4, 5, 6], "out_channels": 3, "kernel": 2, "stride": 2},
            {"op": "max_pool2d", "input": [1, 4, 8, 8], "kernel": 3, "stride": 2, "padding": 1},
            {"op": "avg_pool2d", "input": [1, 4, 8, 8], "kernel": 2},
            {"op": "softmax", "input": [8, 33]},
            {"op": "layer_norm", "input": [8, 33]},
            {"op": "batch_norm", "input": [2, 5, 4, 4], "training": False},
        ],
        "faiss": [
            {"op": op, "x": [12, 6], "y": [30, 6], **({"k": 3} if op == "knn" else {}), "p": p} for op in ("knn", "nearest") for p in (1, 2)
        ],
    }
    tables["openvino"], tables["sklearn"] = (
        tables["onnxruntime"][:4],
        [*tables["faiss"], {"op": "cdist", "x": [12, 6], "y": [30, 6], "p": 1}],
    )
    for fields in tables[peer]:
        case = case_of(fields)
        rows = run_job(Job(case, "f32", "fwd", 1), Options(vs=(peer,), layouts=("contiguous",), cache=("hot",), seconds=0.0, rounds=(2, 2)))
        theirs = [r for r in rows if r.who == peer]
        assert theirs and all(r.status in ("OK", "UNRELIABLE") for r in theirs), [(r.contender, r.status, r.reason) for r in rows]


def test_the_examples_of_the_docs_run(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "bench.md").read_text()
    mine, own = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "mine.py").write_text(mine)
    try:
        load_file(tmp_path / "mine.py")
        assert only(registered("softmax")[0].function).status == "OK"
    finally:
        _registered.clear()
    exec(compile(own.replace("seconds=0.5", "seconds=0.0"), "bench.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"^plain (OK|UNRELIABLE|IMPOSSIBLE) ", printed, re.M) and re.search(r"^fused WRONG output 0 is ", printed, re.M), (
        printed
    )
