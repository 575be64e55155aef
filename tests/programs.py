"""Programs that tests make or load: C++ sources compiled against csrc, and scripts that belong to no package."""

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = sorted((ROOT / "csrc/emulator").glob("*.cpp"))


def lines_of(folder: Path, *sources: str, emulator: bool = False) -> list[str]:
    """What the program of these sources (from the repository's root) prints; emulator: they are CUDA kernels and their calls."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    paths, flags = [ROOT / source for source in sources], ["-std=c++20", "-O1", "-w", f"-I{ROOT / 'csrc'}"]
    if emulator:
        paths += EMULATOR
        flags += ["-DFASTCV_GPU=emulated", "-DFASTCV_EMULATOR=1"]
    program = folder / "program"
    subprocess.run([compiler, *flags, *map(str, paths), "-o", str(program)], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()


def loaded(path: str) -> ModuleType:
    """The script at this path from the repository's root, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_script", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
