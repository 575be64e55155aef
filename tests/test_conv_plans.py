"""The host arithmetic behind the CUDA convolutions, compiled alone: phases of input gradients, segments of long sums."""

from __future__ import annotations

import pytest
from programs import lines_of


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    lines = lines_of(tmp_path_factory.mktemp("plans"), "tests/emulator/conv_plans.cpp")
    return dict(line.split(" ", 1) for line in lines)


@pytest.mark.parametrize("subject", ["phases", "weight_gradient_segments", "forward_segments"])
def test_plans_are_those_of_the_plain_loops(said: dict[str, str], subject: str) -> None:
    assert said[subject] == "ok"
