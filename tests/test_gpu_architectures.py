"""Which CUDA kernel a GPU of which architecture gets: the real table code, compiled with a table of three rows."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """'<capability> <size> <forced or ->' -> the row taken, or why there is none; then each row's reason."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path_factory.mktemp("architectures") / "architectures"
    sources = [ROOT / "tests/emulator/architectures.cpp", ROOT / "csrc/common/variant.cpp", ROOT / "csrc/common/isa.cpp"]
    subprocess.run([compiler, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program)], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    return {call: said.split(" | ") for call, said in (line.split(" -> ") for line in lines)}


@pytest.mark.parametrize(
    ("capability", "row"), {80: "block_sm80", 86: "block_sm80", 90: "groups_sm90a", 100: "cluster_sm90", 120: "cluster_sm90"}.items()
)
def test_the_first_row_that_the_gpu_has_is_taken(taken: dict[str, list[str]], capability: int, row: str) -> None:
    assert taken[f"{capability} even -"][0] == row


def test_kernels_of_an_architecture_alone_are_refused_on_older_and_newer_ones(taken: dict[str, list[str]]) -> None:
    for capability in (80, 100):
        assert taken[f"{capability} even groups_sm90a"] == [
            f"planted: variant groups_sm90a cannot run this call: needs sm90a, have sm{capability}"
        ]
        assert f"groups_sm90a: needs sm90a, have sm{capability}" in taken[f"{capability} even -"]
    assert taken["75 even -"] == ["planted: variant (any) cannot run this call: needs sm80, have sm75"]


def test_the_other_reasons_stay(taken: dict[str, list[str]]) -> None:
    assert taken["90 odd cluster_sm90"] == ["planted: variant cluster_sm90 cannot run this call: needs an even size"]
    assert "block_sm80: comes after groups_sm90a" in taken["90 even -"]
    assert "cluster_sm90: needs sm90, have sm86" in taken["86 odd -"]
