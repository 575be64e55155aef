"""The host arithmetic behind the CUDA convolutions, compiled alone: phases of input gradients, segments of long sums."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path_factory.mktemp("plans") / "conv_plans"
    command = [compiler, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", str(ROOT / "tests/emulator/conv_plans.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines)


@pytest.mark.parametrize("subject", ["phases", "weight_gradient_segments", "forward_segments"])
def test_plans_are_those_of_the_plain_loops(said: dict[str, str], subject: str) -> None:
    assert said[subject] == "ok"
