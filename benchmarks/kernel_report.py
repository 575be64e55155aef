"""What ptxas made of the CUDA kernels: registers, stack and shared memory of each on every target, from a build with nvcc.

    python benchmarks/kernel_report.py [--build build] [--all]

Prints the kernels that spill (stack > 0), and with --all every kernel, as a Markdown table. tests/test_sass.py reads the same.
Needs cuobjdump and nvdisasm: from the CUDA toolkit, the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, or the triton wheel.
Exit status: 0, 2 if there is nothing to read or nothing to read it with.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Resources(NamedTuple):
    registers: int
    stack: int  # bytes a thread: registers that are spilt, and arrays that are no registers
    shared: int  # bytes a block, without the dynamic part


@cache
def disassembler() -> str:
    """The path of cuobjdump, beside which or on PATH nvdisasm lies; '' if there is none."""
    places = [os.environ.get("PATH", "")]
    for package, folder in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            places += map(str, sorted(Path(root).glob(folder)))
    return next((found for place in places if (found := shutil.which("cuobjdump", path=place))), "")


def objects(build: Path) -> dict[str, Path]:
    """'loss/softmax' -> its object in a build with nvcc."""
    found = build.glob("CMakeFiles/fastcv_cuda.dir/csrc/*/*.cu.o")
    return {f"{path.parent.name}/{path.name.removesuffix('.cu.o')}": path for path in found}


def setting(build: Path, name: str) -> str:
    """An entry of the build's CMake cache; '' if there is none."""
    cache_file = build / "CMakeCache.txt"
    found = re.search(rf"^{name}:\w+=(.*)$", cache_file.read_text(), re.M) if cache_file.exists() else None
    return found[1] if found else ""


def dump(path: Path, *options: str) -> str:
    """What cuobjdump says of an object. Raises RuntimeError with its words if it fails."""
    program = disassembler()
    environment = {**os.environ, "PATH": f"{Path(program).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run([program, *options, str(path)], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{program} {' '.join(options)} {path}: {done.stderr}")
    return done.stdout


def resources(path: Path) -> dict[str, dict[str, Resources]]:
    """Target ('sm_90a', or 'ptx sm_80', which has no kernels of its own) -> mangled kernel -> what it takes."""
    targets: dict[str, dict[str, Resources]] = {}
    for part in re.split(r"^Fatbin ", dump(path, "--dump-resource-usage"), flags=re.M)[1:]:
        arch = re.search(r"^arch = (\S+)$", part, re.M)[1]
        kernels = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", part)
        taken = {name: Resources(int(reg), int(stack) + int(local), int(shared)) for name, reg, stack, shared, local in kernels}
        targets[arch if part.startswith("elf") else f"ptx {arch}"] = taken
    return targets


def sass(path: Path, target: str) -> dict[str, str]:
    """Mangled kernel -> its instructions for a target."""
    parts = re.split(r"^\s*Function : (\S+)$", dump(path, "--dump-sass", "--gpu-architecture", target), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def readable(name: str) -> str:
    program = shutil.which("c++filt")
    words = subprocess.run([program, name], capture_output=True, text=True).stdout.strip() if program else name
    return re.sub(r"\(anonymous namespace\)::|fastcv::(cuda::)?|^void ", "", words).split("(")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder of a build with nvcc")
    parser.add_argument("--all", action="store_true", help="all kernels, not only those that spill")
    given = parser.parse_args()
    found = objects(given.build)
    if not found or not disassembler():
        print(
            f"no CUDA objects in {given.build}" if not found else "no cuobjdump: " + __doc__.split("Needs ")[1].split("\n")[0],
            file=sys.stderr,
        )
        return 2
    print("| source | target | kernel | registers | stack | shared |\n|---|---|---|---|---|---|")
    counts: dict[str, int] = {}
    for source, path in sorted(found.items()):
        for target, kernels in resources(path).items():
            counts[target] = counts.get(target, 0) + len(kernels)
            for name, taken in kernels.items():
                if given.all or taken.stack:
                    print(f"| {source} | {target} | `{readable(name)}` | {taken.registers} | {taken.stack} | {taken.shared} |")
    print("\n" + ", ".join(f"{target}: {count} kernels" for target, count in sorted(counts.items()) if count))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
