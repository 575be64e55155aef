"""Without the compiled module, or with a broken one, the package imports and each op says in one sentence what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastcv

PACKAGE = Path(fastcv.__file__).parent
CALL = """
import torch, fastcv
print(fastcv.is_built())
try:
    {call}
except fastcv.NotBuiltError as error:
    print(error)
"""


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """A copy of the package without its compiled module."""
    shutil.copytree(PACKAGE, tmp_path / "fastcv", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


@pytest.mark.parametrize(
    "call",
    [
        "fastcv.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))",
        "fastcv.functional.softmax(torch.ones(2, 3), dim=1)",
        "fastcv.nn.MaxPool2d(2)(torch.ones(1, 1, 4, 4))",
        "fastcv.variants()",
    ],
)
def test_missing_module_is_one_sentence(unbuilt: Path, call: str) -> None:
    done = run(unbuilt, CALL.format(call=call))
    assert done.returncode == 0, done.stderr
    built, message = done.stdout.strip().split("\n")
    assert built == "False"
    assert "the compiled module fastcv._C is missing; build it with: pip install --no-build-isolation ." in message


def test_broken_module_says_so(unbuilt: Path) -> None:
    built = next(PACKAGE.glob("_C*.so"))
    (unbuilt / "fastcv" / built.name).write_bytes(b"not a library")
    done = run(unbuilt, CALL.format(call="fastcv.variants()"))
    assert done.returncode == 0, done.stderr
    assert "does not load into torch" in done.stdout and "make build" in done.stdout


def test_info_works_without_the_module(unbuilt: Path) -> None:
    pytest.importorskip("rich")
    done = run(unbuilt, "import sys; sys.argv = ['fastcv', 'info']; from fastcv.cli import main; main()")
    assert done.returncode == 0, done.stderr
    assert "is missing" in done.stdout


def test_metadata_needs_no_torch(tmp_path: Path) -> None:
    """setup.py must answer questions about the package in an environment that has no torch yet."""
    (tmp_path / "torch.py").write_text("raise ImportError('setup.py imported torch')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "setup.py", "-q", "--version"], cwd=PACKAGE.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert fastcv.__version__ in done.stdout
