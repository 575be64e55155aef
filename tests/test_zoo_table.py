"""The zoo's table: what is measured replaces what stood there, and nothing else is lost."""

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastcv.testing.zoo import ZOO

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("zoo", "ops"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("zoo")


def test_cells_are_merged(zoo: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    zoo.write(path, zoo.table(zoo.merged(path, {"model": "levit", "ratio": 1.5, "ratio_compile": "", "compile_error": "it, refused"})))
    zoo.write(path, zoo.table(zoo.merged(path, {"model": "resnet", "ratio": 2.0})))
    zoo.write(path, zoo.table(zoo.merged(path, {"model": "levit", "ratio_compile": 3.0, "compile_error": ""})))
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["resnet", "levit"]
    assert rows[1]["ratio"] == "1.5" and rows[1]["ratio_compile"] == "3.0" and not rows[1]["compile_error"]
    assert rows[0]["ratio"] == "2.0" and not list(tmp_path.glob("*.part"))
    assert "| levit | - |" in zoo.markdown([{"model": "levit", "ratio_training": 1.5}], "machine")


def test_the_committed_table_survives(zoo: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    path.write_text((BENCHMARKS / "results" / "zoo.csv").read_text())
    with open(path, newline="") as file:
        before = {row["model"]: row for row in csv.DictReader(file)}
    after = {row["model"]: row for row in zoo.merged(path, {"model": "upernet-convnext", "ratio_training": 1.5})}
    assert all(
        after[name].get(key, "") == value for name, row in before.items() for key, value in row.items() if name != "upernet-convnext"
    )
    assert len(zoo.markdown(list(after.values()), "machine").splitlines()) == len(after) + 6


def test_references_are_computed_once(zoo: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    references, calls = zoo.References(tmp_path / "new"), []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.arange(3.0)

    for _ in range(2):
        assert torch.equal(references.get(ZOO[0], True, "output", compute), torch.arange(3.0))
    references.get(ZOO[0], False, "output", compute)
    assert len(calls) == 2 and not list(tmp_path.rglob("*.part"))
