"""Runs CMake and copies the module `_C`; everything about the build itself stands in CMakeLists.txt."""

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def jobs() -> int:
    """Parallel compilers: one per core, but no more than one per GiB of free memory. MAX_JOBS overrides."""
    if "MAX_JOBS" in os.environ:
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    except (ValueError, OSError):
        free = cores
    return max(1, min(cores, free))


def tool(name: str) -> str | None:
    """A program beside this interpreter, else on PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def run(command: list[str]) -> None:
    if subprocess.run(command).returncode != 0:
        raise SystemExit(
            f"fastcv: the build failed at: {' '.join(command)}\n(torch must be importable: pip install --no-build-isolation .)"
        )


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(os.environ.get("FASTCV_BUILD_DIR", ROOT / "build"))
        cmake, ninja = tool("cmake"), tool("ninja")
        if cmake is None:
            raise SystemExit("fastcv needs CMake 3.22 or newer: pip install cmake ninja")
        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(build)),
            *(("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ()),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFASTCV_OUTPUT_DIR={output}",
            f"-DFASTCV_CUDA={os.environ.get('FASTCV_CUDA', 'AUTO')}",
            f"-DFASTCV_EMULATOR={os.environ.get('FASTCV_EMULATOR', 'OFF')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        # Configuring is done again only when something it depends on has changed.
        torch_version = importlib.metadata.version("torch") if importlib.util.find_spec("torch") else "none"
        wanted, stamp = "\n".join([*configure, torch_version]), build / "configured.txt"
        if not stamp.exists() or stamp.read_text() != wanted:
            if (build / "CMakeCache.txt").exists():
                (build / "CMakeCache.txt").unlink()
            run(configure)
            stamp.write_text(wanted)
        run([cmake, "--build", str(build), "--parallel", str(jobs())])


setup(ext_modules=[Extension("fastcv._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
