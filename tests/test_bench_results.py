"""Statistics, files of results, verdicts between runs, sweeps, and the commands with good and bad input."""

import json
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastcv
from fastcv.bench import Row, geometric_mean, machine, plan, probes, roofs, statistics, store, tables, verdicts
from fastcv.bench.cost import cost
from fastcv.bench.machine import describe
from fastcv.bench.rows import EPS
from fastcv.testing import runnable_variants
from fastcv.testing.cases.networks import NETWORKS, case_of, flops_of, model_cases, network_cases

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")


def row(times: Any, contender: str = "fastcv contiguous", **more: Any) -> Row:
    fields: dict[str, Any] = {
        **{"case": "softmax-a", "op": "softmax", "dtype": "f32", "mode": "fwd", "layout": "contiguous", "who": contender.split()[0]},
        **{"cache": "hot", "threads": 2},
    }
    return Row(contender=contender, times=tuple(times), **fields | more)


def around(seconds: float, n: int = 60, spread: float = 0.02, seed: int = 0) -> list[float]:
    number = random.Random(seed)
    return [seconds * number.lognormvariate(0, spread) for _ in range(n)]


# ---- statistics


def autocorrelated(n: int, r: float, number: np.random.Generator) -> list[float]:
    z = number.standard_normal(n)
    for i in range(1, n):
        z[i] = r * z[i - 1] + np.sqrt(1 - r * r) * z[i]
    return np.exp(z).tolist()


@pytest.mark.parametrize("n", [7, 10, 25, 100])
@pytest.mark.parametrize("r", [0.0, 0.5])
def test_the_interval_covers_the_median_as_often_as_it_says(n: int, r: float) -> None:
    number = np.random.default_rng(1)
    intervals = [statistics.median_interval(autocorrelated(n, r, number)) for _ in range(600)]
    covered = sum(low <= 1.0 <= high for low, high in intervals) / 600
    # 95 % with 2.5 standard errors of 600 trials; ten dependent rounds are too few to know how dependent they are.
    assert covered > (0.928 if r == 0 or n > 10 else 0.86)


def test_statistics_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    number = np.random.default_rng(0)
    for _ in range(20):
        a, b = number.integers(0, 9, 30), number.integers(1, 12, 41)
        expected = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
        p = statistics.rank_test(a.tolist(), b.tolist())
        if statistics.independent(a.tolist()) == 30 and statistics.independent(b.tolist()) == 41:
            assert p == pytest.approx(expected, rel=1e-9)
        else:
            assert p >= expected
    assert statistics.quantile([3.0, 1.0, 2.0], 0.5) == 2.0 and statistics.quantile([1.0, 2.0], 0.1) == pytest.approx(1.1)
    assert statistics.rank_test([1.0] * 5, [1.0] * 7) == 1.0
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_least_is_least() -> None:
    """min, median and quantiles are what they are called."""
    sample = row([5.0, 1.0, 4.0, 2.0, 3.0])
    assert sample.best == 1.0 and sample.median == 3.0 and sample.p10_p90 == pytest.approx((1.4, 4.6))
    assert sample.interval == (1.0, 5.0) and geometric_mean([2, 8]) == pytest.approx(4.0)


def test_the_ratio_covers_the_true_ratio() -> None:
    covered = 0
    for seed in range(200):
        low, middle, high = statistics.ratio_interval(around(1.3, 30, 0.2, seed), around(1.0, 30, 0.2, seed + 1000))
        assert low <= middle <= high
        covered += low <= 1.3 <= high
    assert covered >= 184


# ---- verdicts


def a_run(*rows: Row, **facts: Any) -> store.Run:
    machine = {"commit": "abc", "changed": False, "processor": "P", "threads": 2, **facts}
    return store.Run({"began": "2026-01-01T00:00:00", "machine": machine}, {r.key: r for r in rows})


@pytest.mark.parametrize(
    ("factor", "verdict", "code"), [(1.0, "SAME", 0), (1.01, "SAME", 0), (1.1, "SLOW", 1), (0.9, "FAST", 0), (2.0, "SLOW", 1)]
)
def test_planted_changes_are_found(factor: float, verdict: str, code: int) -> None:
    result = verdicts.compare(a_run(row(around(1e-3, seed=1))), a_run(row(around(factor * 1e-3, seed=2))))
    assert [c.verdict for c in result.changes] == [verdict] and result.exit_code() == code
    assert result.changes[0].low <= factor <= result.changes[0].high
    assert verdict in verdicts.markdown(result, a_run(), a_run())


def test_noise_is_unsure_not_slow() -> None:
    """Where the spread is far larger than the change there is no verdict, whatever the medians say."""
    result = verdicts.compare(a_run(row(around(1e-3, 12, 0.5, 1))), a_run(row(around(1.1e-3, 12, 0.5, 2))))
    assert result.changes[0].verdict == "UNSURE" and result.exit_code() == 0 and result.exit_code(strict=True) == 2
    assert "more rounds would tell" in result.changes[0].reason


def test_no_false_alarms_in_many_rows() -> None:
    """300 rows of the same program, twice: not one SLOW."""
    runs = [a_run(*(row(around(1e-3, 30, 0.05, 1000 * k + i), case=f"c{i}") for i in range(300))) for k in (1, 2)]
    result = verdicts.compare(*runs, gate=0.0)
    assert result.count("SLOW") == result.count("FAST") == 0


def test_the_gate_decides() -> None:
    old, new = a_run(row(around(1e-3, seed=1))), a_run(row(around(1.05e-3, seed=2)))
    assert [verdicts.compare(old, new, gate).changes[0].verdict for gate in (0.0, 0.02, 0.1)] == ["SLOW", "SLOW", "SAME"]
    with pytest.raises(ValueError, match="gate"):
        verdicts.compare(old, new, 1.5)


def test_doubtful_rows_get_no_verdict_and_broken_ones_fail() -> None:
    fine = row(around(1e-3))
    noisy = replace(row(around(2e-3)), status="UNRELIABLE", reason="load")
    wrong = replace(row(()), status="WRONG", reason="off")
    assert verdicts.compare(a_run(fine), a_run(noisy)).changes[0].verdict == "UNSURE"
    assert "UNRELIABLE then" in verdicts.compare(a_run(noisy), a_run(fine)).changes[0].reason
    broken = verdicts.compare(a_run(fine), a_run(wrong))
    assert broken.changes[0].verdict == "WRONG" and broken.exit_code() == 1
    assert verdicts.compare(a_run(wrong), a_run(wrong)).exit_code() == 0


def test_rows_of_one_run_alone_and_other_machines_are_told() -> None:
    result = verdicts.compare(a_run(row(around(1.0)), row(around(1.0), case="gone")), a_run(row(around(1.0)), processor="Q"))
    assert len(result.only_old) == 1 and not result.only_new and result.warnings == ["processor: 'P' then, 'Q' now"]
    assert result.exit_code(strict=True) == 2
    with pytest.raises(ValueError, match="no row in common"):
        verdicts.compare(a_run(row(around(1.0))), a_run(row(around(1.0), case="other")))


# ---- files


def test_results_come_back_and_a_broken_line_is_dropped(tmp_path: Path) -> None:
    file, facts = tmp_path / "new" / "r.jsonl", describe()
    first = store.Results(file, facts, command="bench softmax")
    first.add(row(around(1e-3)))
    first.add(replace(row((), case="b"), status="FAILED", reason="x", error=float("inf")))
    with open(file, "a") as f:
        f.write('{"kind": "row", "case": "half')
    run = store.last_run(file)
    assert [r.case for r in run.rows.values()] == ["softmax-a", "b"] and run.head["machine"] == facts
    assert run.rows[row(()).key].times == pytest.approx(around(1e-3), rel=1e-3)
    again = store.Results(file, facts, resume=True)
    again.add(row(around(1e-3), case="c"))
    assert len(store.read_runs(file)) == 1 and [r.case for r in store.last_run(file).rows.values()] == ["softmax-a", "b", "c"]
    store.Results(file, facts).add(row(around(1.0)))
    assert [len(r.rows) for r in store.read_runs(file)] == [3, 1]  # a new run leaves the old one


def test_a_run_of_another_program_is_not_resumed(tmp_path: Path) -> None:
    file, facts = tmp_path / "r.jsonl", describe()
    store.Results(file, facts)
    with pytest.raises(ValueError, match="cannot be resumed: its commit is"):
        store.Results(file, facts | {"commit": "other"}, resume=True)
    with pytest.raises(ValueError, match="does not exist"):
        store.Results(tmp_path / "none.jsonl", facts, resume=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no run"),
        ("hello\n", "line 1: no line of fastcv bench"),
        ('{"kind": "head", "schema": 9, "began": "", "machine": {}}\n', "schema 9, this fastcv reads schema 1"),
        ('{"kind": "head", "schema": 1}\n', "a head without the machine"),
        ('{"kind": "row"}\n', "a row before any head"),
        ('{"kind": "head", "schema": 1, "began": "x", "machine": {"commit": "", "changed": false}}\n{"kind": "row"}\n', "line 2: no row"),
        ("[1]\n", "line 1"),
    ],
)
def test_other_files_are_told(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        store.read_runs(file)
    if text:
        before = file.read_bytes()
        with pytest.raises(ValueError):
            store.Results(file, describe())
        assert file.read_bytes() == before  # what is not ours is not written to


def test_results_written_since_do_not_change_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*command: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True, capture_output=True)

    source, result = tmp_path / "fastcv/bench/machine.py", tmp_path / "benchmarks/results/ops.csv"
    for file in (source, result):
        file.parent.mkdir(parents=True)
        file.write_text("one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(machine, "__file__", str(source))
    commit, changed = machine.source_state()
    assert len(commit) >= 7 and not changed
    result.write_text("two")
    assert machine.source_state() == (commit, False)
    source.write_text("two")
    assert machine.source_state() == (commit, True)


# ---- sweeps


def test_networks_have_their_published_operations() -> None:
    """Multiply-adds of the convolutions at 224 x 224: 4.09, 15.35 and 0.30 billion."""
    published = {"resnet50": 4.09e9, "vgg16": 15.35e9, "mobilenet": 0.300e9}
    for name, macs in published.items():
        assert flops_of(network_cases(name)) / 2 == pytest.approx(macs, rel=0.01)
    for name in NETWORKS:
        cases = network_cases(name, 2)
        assert len({c.id for c in cases}) == len(cases)
    with pytest.raises(ValueError, match="no network 'resnet'"):
        network_cases("resnet")


def test_a_network_ends_where_it_should() -> None:
    ends = {"resnet50": (2, 1000), "vgg16": (2, 1000), "mobilenet": (2, 1000), "unet": (2, 2, 256, 256), "deeplab": (2, 21, 512, 512)}
    assert {name: walk(2).shape for name, walk in NETWORKS.items()} == ends
    # One shape of the paper inside each: the deepest map.
    deepest = {"resnet50": "2048x7x7", "vgg16": "512x14x14", "mobilenet": "320x7x7", "unet": "1024x16x16", "deeplab": "2048x64x64"}
    for name, size in deepest.items():
        assert any(f"{name}-2x{size}-" in case.name for case in network_cases(name, 2)), name


def test_layers_of_any_model() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    cases = model_cases("mine", torch.nn.Sequential(model, torch.nn.AdaptiveAvgPool2d(1)).eval(), torch.randn(1, 3, 20, 20))
    assert [c.op for c in cases] == ["conv2d", "batch_norm", "max_pool2d", "adaptive_avg_pool2d"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([1], "a row of shapes is an object"),
        ({"op": "conv9"}, "no shapes can be given for op 'conv9'"),
        ({"op": "conv2d", "input": [1, 4, 8], "out_channels": 4, "kernel": 3}, "needs 4 sizes, got 3"),
        ({"op": "conv2d", "input": [1, 4, 8, -1], "out_channels": 4, "kernel": 3}, "positive sizes"),
        ({"op": "conv2d", "input": [1, 4, 8, 8], "out_channels": 4}, "missing 1 required"),
        ({"op": "conv2d", "input": [1, 4, 8, 8], "out_chanels": 4, "kernel": 3}, "missing 1 required|out_chanels"),
        ({"op": "conv2d", "input": [1, 6, 8, 8], "out_channels": 4, "kernel": 3, "groups": 5}, "conv2d"),
        ({"op": "knn", "x": [3, 4], "y": [5, 4], "k": 9}, "knn"),
        ({"op": "max_pool2d", "input": [1, 2, 2, 2], "kernel": 5}, "max_pool2d"),
    ],
)
def test_bad_shapes_are_told(fields: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        case_of(fields)
    file = tmp_path / "shapes.json"
    file.write_text(json.dumps([{"op": "softmax", "input": [4, 5]}, fields]))
    with pytest.raises(ValueError, match="shape 2"):
        plan.sweep_cases(str(file), 1)


# ---- roofs


def test_roofs_are_kept_per_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCV_CACHE", str(tmp_path / "cache"))
    roofs.again()
    try:
        assert roofs.stored() == {}
        file = roofs.store({"flops": {"f32": 5e11, "bf16": 1e12}, "copy": {str(s): 1e10 for s in roofs.SIZES}})
        assert roofs.arithmetic(torch.float32) == 5e11 and roofs.copy(1 << 20) == 1e10
        other = json.loads(file.read_text())
        other["machines"] = {"another": other["machines"].popitem()[1]}
        file.write_text(json.dumps(other))
        roofs.again()
        assert roofs.stored() == {}
        roofs.store({"flops": {}, "copy": {}})
        assert set(json.loads(file.read_text())["machines"]) == {"another", roofs.machine_key()}
        file.write_text("damaged")
        roofs.again()
        assert roofs.stored() == {}
    finally:
        monkeypatch.undo()
        roofs.again()


CHAINS = [name for name, needs in fastcv.variants("step_chain") if not needs.startswith("sm")]


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("variant", CHAINS)
def test_chains_of_products_count_their_steps(variant: str, steps: int) -> None:
    """Each step adds one: on AMX tiles (where a CPU has none, on their software model), by dot products, by plain loops."""
    if not any(name == variant for name in runnable_variants("step_chain")):
        pytest.skip("not on this CPU")
    x = torch.randint(-100, 100, (2 * probes.CHAIN_TILE,), generator=torch.Generator().manual_seed(0)).float()
    with fastcv.use(step_chain=variant):
        assert torch.equal(torch.ops.fastcv.step_chain(x, steps), x + steps)
        if variant != "ref":
            with pytest.raises(ValueError, match="needs a multiple of 16384 elements"):
                torch.ops.fastcv.step_chain(x[1:], steps)


def test_chains_of_this_cpu_are_roofs() -> None:
    assert set(probes.CPU_CHAINS) == {"AMX tiles", "AVX-512 dot products"}
    for name in probes.CPU_CHAINS:
        if not probes.lacks(name):
            call, operations = probes.cpu_chain(name, 1)
            assert operations > 0 and bool((call() == 1 + 4096).all())
        else:
            assert probes.lacks(name) in ("not in this build", f"not on this CPU (it has {fastcv._ext.cpu_isa()})")


def test_levels_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "caches", lambda: {1: 32 << 10, 2: 1 << 20, 3: 32 << 20})
    assert [machine.level(size) for size in (1, 1 << 15, (1 << 15) + 1, 1 << 20, 1 << 25, 1 << 26)] == [
        "L1",
        "L1",
        "L2",
        "L2",
        "L3",
        "memory",
    ]
    assert machine.last_level_cache() == 32 << 20
    monkeypatch.setattr(machine, "caches", dict)
    assert machine.level(1) == "" and machine.last_level_cache() == 32 << 20


def test_what_tiles_reach_in_parts_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 as six products of bfloat16, float16 as three: above the roof of float32, and nobody's cheating."""
    monkeypatch.setattr(roofs, "arithmetic", lambda dtype: 3e12 if dtype == torch.bfloat16 else 3e11)
    monkeypatch.setattr(roofs, "copy", lambda size: 1e12)
    conv = case_of({"op": "conv2d", "name": "c", "input": [1, 256, 28, 28], "out_channels": 256, "kernel": 1})
    for dtype, rate in ((torch.float32, 5e11), (torch.float16, 1e12), (torch.float64, 3e11)):
        least = cost(conv, dtype).possible("hot")
        assert conv.flops / rate / 1.2 < least < conv.flops / rate


def test_a_roof_that_was_hidden_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on a busy machine, exceeded by a contender, measured again."""
    speeds = iter([1e11, 4e11, 2e11])
    monkeypatch.setattr(roofs, "_measure_arithmetic", lambda dtype, threads, seconds: next(speeds))
    monkeypatch.setattr(roofs, "stored", lambda: {})
    monkeypatch.setattr(roofs, "_known", {})
    assert roofs.arithmetic(torch.float32) == roofs.arithmetic(torch.float32) == 1e11
    roofs.look_again()
    assert roofs.arithmetic(torch.float32) == 4e11
    roofs.look_again()
    assert roofs.arithmetic(torch.float32) == 4e11


# ---- tables


def test_tables_count_what_they_say() -> None:
    rows = [row(around(1e-3)), row(around(3e-3), "torch contiguous"), row(around(2e-3), "torch channels_last", layout="channels_last")]
    table = tables.against_torch(rows)
    assert len(table) == 1 and table[0]["ratio"] == pytest.approx(2.0, rel=0.05) and table[0]["torch_ms"] == pytest.approx(3.0, rel=0.05)
    assert tables.speedup(rows, rows[0]) == pytest.approx(2.0, rel=0.05)
    assert tables.speedup([rows[0], replace(rows[2], status="UNRELIABLE")], rows[0]) is None
    assert "1 rows, geometric mean" in tables.summary(table) and "| softmax | f32 | fwd | hot | 1 |" in tables.by_op(table)
    assert len(tables.cells(rows, rows[0])) == len(tables.COLUMNS)
    assert replace(rows[0], error=2.0**-22).ulps == 2.0 and replace(rows[0], error=2.0**-8, dtype="bf16").ulps == 0.5
    assert {name: torch.finfo(dtype).eps for name, dtype in roofs.DTYPES.items()} == EPS
    heads, line = tables.overview([*rows, row((), "mine", status="WRONG")])
    assert heads == ["case", "dtype", "pass", "threads", "cache", "fastcv", "torch", "mine", "torch/fastcv", "of roof"]
    assert line[:5] == ["softmax-a", "f32", "fwd", "2", "hot"] and line[7] == "WRONG" and float(line[8]) == pytest.approx(2.0, rel=0.05)
    for seconds, text in ((1.5, "1.5 s"), (0.0123, "12.3 ms"), (4e-5, "40 us"), (2e-8, "20 ns")):
        assert tables.time_text(seconds) == text


# ---- commands


def command(*args: str) -> Any:
    from fastcv.cli import _application

    return typer_testing.CliRunner().invoke(_application(), ["bench", *args], env={"COLUMNS": "200"})


@pytest.fixture
def shapes(tmp_path: Path) -> str:
    file = tmp_path / "shapes.json"
    file.write_text(json.dumps([{"op": "softmax", "name": "a", "input": [8, 33]}, {"op": "softmax", "name": "b", "input": [4, 17]}]))
    return str(file)


FAST = ("--seconds", "0", "--rounds", "2", "--cache", "hot")


def test_a_run_is_written_resumed_and_compared(tmp_path: Path, shapes: str) -> None:
    file = tmp_path / "r.jsonl"
    result = command("softmax", "--sweep", shapes, *FAST, "--json", str(file), "--markdown", str(tmp_path / "t.md"))
    assert result.exit_code == 0, result.output
    assert "softmax-a f32 fwd" in result.output and len(store.last_run(file).rows) == 4
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])  # killed while it wrote its last row
    again = command("softmax", "--sweep", shapes, *FAST, "--json", str(file), "--resume")
    assert again.exit_code == 0, again.output
    kept = file.read_text().splitlines()
    assert kept[: len(lines) - 1] == lines[:-1] and len(store.last_run(file).rows) == 4
    other = command("compare", str(file), str(file), "--markdown", str(tmp_path / "c.md"))
    assert other.exit_code == 0 and "geometric mean of new/old 1.000" in other.output
    assert (tmp_path / "c.md").read_text().startswith("**")


def test_a_planted_regression_exits_with_1(tmp_path: Path) -> None:
    for name, seconds in (("old", 1e-3), ("new", 1.3e-3)):
        results = store.Results(tmp_path / name, describe())
        results.add(row(around(seconds)))
    assert command("compare", str(tmp_path / "old"), str(tmp_path / "new")).exit_code == 1
    assert command("compare", str(tmp_path / "new"), str(tmp_path / "old")).exit_code == 0
    assert command("compare", str(tmp_path / "old"), str(tmp_path / "new"), "--gate", "40%").exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("conv2",), "did you mean conv2d"),
        (("softmax", "--sweep", "resnet51"), "no sweep 'resnet51'"),
        (("softmax", "--sweep", "vgg16"), "nothing to measure"),
        (("softmax", "--dtype", "f31"), "--dtype f31: expected some of"),
        (("softmax", "--vs", "tensorflow"), "--vs tensorflow"),
        (("softmax", "--mode", "train"), "--mode train"),
        (("softmax", "--cache", "warm"), "--cache warm"),
        (("softmax", "--threads", "0"), "--threads '0'"),
        (("softmax", "--graph"), "--graph is of a GPU"),
        (("softmax", "--device", "tpu"), "--device tpu: expected cpu or cuda"),
        (("softmax", "--profile", "--json", "x", "--html", "y"), "--profile times nothing: there are no results for --json and --html"),
        (("softmax", "--threads", "1,100000"), f"--threads 100000: this machine has {os.cpu_count()} CPUs"),
        (("softmax", "--layout", "nhcw"), "--layout nhcw"),
        (("softmax", "--with", "none.py"), "none.py is no Python file"),
        (("softmax", "--resume"), "--resume needs the file"),
        (("softmax", "--html", "/none/x.html"), "/none is no folder"),
        (("softmax", "--plot", "/dev/null/x"), "/dev/null"),
        (("softmax", "--plot", "p.png"), "expected a folder"),
        (("compare", "/none/a", "/none/b"), "cannot be read"),
        (("softmax", "--device", "cuda"), "torch sees no GPU"),
    ],
)
def test_bad_input_is_one_sentence(args: tuple[str, ...], message: str) -> None:
    if "cuda" in args and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = command(*args)
    assert result.exit_code == 2 and message in result.output, result.output
    assert "Traceback" not in result.output and len(result.output.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_told(tmp_path: Path, shapes: str) -> None:
    tmp_path.chmod(0o500)
    result = command("softmax", "--sweep", shapes, *FAST, "--json", str(tmp_path / "r.jsonl"))
    assert result.exit_code == 2 and "cannot be written" in result.output


def test_a_folder_is_no_file(tmp_path: Path, shapes: str) -> None:
    result = command("softmax", "--sweep", shapes, *FAST, "--json", str(tmp_path))
    assert result.exit_code == 2 and "cannot be read: Is a directory" in result.output


def test_a_contender_that_is_wrong_or_raises_is_a_row(tmp_path: Path, shapes: str) -> None:
    from fastcv.bench.contenders import _registered

    file = tmp_path / "mine.py"
    file.write_text(
        "from fastcv.bench import contender\n@contender('softmax')\ndef zero(x, *a): return x * 0\n"
        "@contender('softmax')\ndef boom(x, *a): raise OSError('disk')\n"
    )
    try:
        result = command("softmax", "--sweep", shapes, *FAST, "--with", str(file), "--json", str(tmp_path / "r"))
    finally:
        _registered.clear()
    assert result.exit_code == 0 and "WRONG: output 0 is" in result.output and "FAILED: OSError: disk" in result.output
    assert {r.status for r in store.last_run(tmp_path / "r").rows.values() if r.who == "zero"} == {"WRONG"}


def test_a_layout_that_a_case_does_not_have_stops_nothing(tmp_path: Path, shapes: str) -> None:
    """Rows of numbers have no channels: they are raced as they are."""
    result = command("softmax", "--sweep", shapes, *FAST, "--layout", "nhwc", "--json", str(tmp_path / "r"))
    assert result.exit_code == 0, result.output
    assert {r.contender for r in store.last_run(tmp_path / "r").rows.values()} == {"fastcv contiguous", "torch contiguous"}


def test_who_takes_no_part_is_told(tmp_path: Path, shapes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcv.bench import peers
    from fastcv.bench.contenders import _registered

    monkeypatch.setattr(peers, "missing", lambda peer: "")
    result = command("softmax", "--sweep", shapes, *FAST, "--dtype", "bf16", "--vs", "torch,sklearn")
    assert result.exit_code == 0 and "sklearn took part in no race" in result.output and "torch took" not in result.output
    file = tmp_path / "mine.py"
    file.write_text("from fastcv.bench import contender\n@contender('softmx')\ndef mine(x): return x\n")
    try:
        result = command("softmax", "--sweep", shapes, *FAST, "--with", str(file))
    finally:
        _registered.clear()
    assert result.exit_code == 2 and "no op 'softmx' to measure; did you mean softmax" in result.output


def test_list_and_profile(shapes: str) -> None:
    result = command("--list")
    assert result.exit_code == 0 and "conv2d" in result.output and "resnet50" in result.output and "igemm" in result.output
    result = command("softmax", "--sweep", shapes, "--profile")
    assert result.exit_code == 0 and "softmax-a f32 fwd, " in result.output and "torch contiguous" in result.output


def test_profiled_ranges_are_named_and_hold_the_call() -> None:
    """What a profiler around `--profile` sees: a range for every contender, and torch's own ops of the one call within it."""
    jobs = [plan.Job(case_of({"op": "softmax", "name": "a", "input": [8, 33]}), "f32", mode, 1) for mode in ("fwd", "fwd+bwd")]
    with torch.profiler.profile() as profiler:
        seen = [name for _, name in plan.profile(jobs, plan.Options())]
    events = {e.name: e for e in profiler.events()}
    for job in jobs:
        for name in ("fastcv contiguous", "torch contiguous"):
            inside = [c.name for c in events[f"{job.title} {name}"].cpu_children]
            assert inside and (name.startswith("fastcv") or inside.count("aten::softmax") == 1), inside
    assert seen == ["fastcv contiguous", "torch contiguous"] * 2


def test_the_machine_is_described() -> None:
    facts = describe()
    assert (
        facts["torch"] == str(torch.__version__) and facts["threads"] == torch.get_num_threads() and facts["fastcv"] == fastcv.__version__
    )
    json.dumps(facts)
