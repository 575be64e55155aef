"""benchmarks/models.py: rows come by their work, are kept as they come, and make one table of several runs."""

import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from programs import loaded

SMALL = ("--models", "lenet5", "linear_classifier", "--seconds", "0", "--batches", "2", "1")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = loaded("benchmarks/models.py")
    monkeypatch.setattr(module, "TRIAL", 0.0)
    return module


def call(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, output: Path, *args: str) -> int:
    monkeypatch.setattr("sys.argv", ["models.py", "--output", str(output), *args])
    return bench.main()


def lines(output: Path) -> list[dict[str, str]]:
    with output.with_suffix(".csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_table_of_parts(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output, real, seen = tmp_path / "m", bench.run, []

    def stops(job: Any, *rest: Any) -> dict[str, Any]:
        seen.append((job.model, job.kind, job.batch))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(job, *rest)

    monkeypatch.setattr(bench, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        call(bench, monkeypatch, output, *SMALL)
    # The least work first, and what was measured stays.
    assert seen[:2] == [("linear_classifier", "inference", 1), ("linear_classifier", "inference", 2)] and len(lines(output)) == 2
    kept = {(r["batch"], r["fastcv"]) for r in lines(output)}
    assert call(bench, monkeypatch, output, *SMALL, "--resume") == 0
    assert len(seen) == 9 and len(set(seen)) == 8  # the row that was interrupted comes twice, none else
    assert len(lines(output)) == 8 and kept <= {(r["batch"], r["fastcv"]) for r in lines(output)}
    assert call(bench, monkeypatch, output, *SMALL, "--resume") == 0 and len(seen) == 9
    # A row measured anew takes the place of the old one.
    assert call(bench, monkeypatch, output, *SMALL[:2], "--batches", "1", "--passes", "training", "--seconds", "0") == 0
    assert len(seen) == 10 and len(lines(output)) == 8
    page = output.with_suffix(".md").read_text()
    assert page.count("| lenet5 |") == 4 and "Geometric means: inference / torch " in page and "training / torch" in page
    output.with_suffix(".md").unlink()
    assert call(bench, monkeypatch, output, "--table") == 0 and output.with_suffix(".md").read_text() == page and len(seen) == 10
    # Rows of another build stay, marked, until this one has measured them.
    rows = bench.read(output.with_suffix(".csv"))
    bench.write(output.with_suffix(".csv"), bench.csv_text([row | {"build": "Another build"} for row in rows]))
    assert call(bench, monkeypatch, output, *SMALL, "--resume", "--batches", "1", "--passes", "inference") == 0 and len(seen) == 12
    page = output.with_suffix(".md").read_text()
    assert page.count("[1]") + page.count("[2]") == 2 + 8 and "Another build. [" in page
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.csv", "m.md"]


def test_a_budget_of_time_ends_with_the_smaller_rows(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    jobs = [bench.Job("lenet5", "inference", batch, (1, 32, 32), batch * 1e9) for batch in (1, 2, 4, 8)]
    monkeypatch.setattr(bench, "jobs_of", lambda _: jobs)

    def takes(job: Any, *_: Any) -> dict[str, Any]:
        now[0] += 10 * job.batch
        figures = {"torch": 1.0, "compile": None, "fastcv": 2.0, "difference": 0.0}
        return figures | {"door": "optimize", "layout": "nhwc", "torch layout": "nchw"}

    monkeypatch.setattr(bench, "run", takes)
    assert call(bench, monkeypatch, tmp_path / "m", "--minutes", "1.2") == 0
    assert [row["batch"] for row in lines(tmp_path / "m")] == ["1", "2", "4"]  # 70 s; the next would take 80 more
    assert "3 rows in 1.2 minutes, 1 are left for --resume" in capsys.readouterr().out


def test_a_wrong_answer_is_not_timed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = bench.build

    def broken(name: str, ours: bool, size: tuple[int, ...]) -> torch.nn.Module:
        network = real(name, ours, size)
        if ours:
            with torch.no_grad():
                next(network.parameters()).mul_(2)
        return network

    monkeypatch.setattr(bench, "build", broken)
    assert call(bench, monkeypatch, tmp_path / "m", *SMALL) == 1
    assert not list(tmp_path.iterdir())
    told = capsys.readouterr().err.splitlines()
    assert all("fastcv.nn, batch" in line and line.endswith("; nothing was timed") for line in told)
    assert {line.split(",")[0] for line in told} == {"lenet5", "linear_classifier"}


def test_a_foreign_table_stays_as_it_is(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("a,b\n1,2\n")
    for args in ((), ("--table",), ("--batches", "0"), ("--models", "resnet21")):
        with pytest.raises(SystemExit) as caught:
            call(bench, monkeypatch, tmp_path / "m", *args)
        assert caught.value.code == 2
    assert (tmp_path / "m.csv").read_text() == "a,b\n1,2\n" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(SystemExit):
        call(bench, monkeypatch, tmp_path / "none", "--table")
