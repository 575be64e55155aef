"""Which CUDA kernel a GPU of which architecture gets: the real table code, compiled with a table of three rows."""

import pytest
from programs import lines_of


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """'<capability> <size> <forced or ->' -> the row taken, or why there is none; then each row's reason."""
    sources = ("tests/emulator/architectures.cpp", "csrc/common/variant.cpp", "csrc/common/isa.cpp")
    lines = lines_of(tmp_path_factory.mktemp("architectures"), *sources)
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
