"""What ptxas made of the CUDA kernels: no registers spilt but where it is known, and the instructions that the kernels were written for.

Reads the objects of a build with nvcc (FASTCV_CUDA) through cuobjdump, from the CUDA toolkit or from the triton wheel.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("FASTCV_BUILD_DIR", ROOT / "build"))

# Tiles by cp.async, fragments by ldmatrix.
STAGED = [r"LDGSTS[^;]*\.128", r"LDSM\.16\.M88\.4"]
# Of kernels in a source: instructions that must appear for sm_90, as regular expressions.
EXPECTED = {
    ("loss/cross_entropy", "warp_kernel"): [r"LDG\.E\.128", r"STG\.E\.128", r"MUFU\.EX2"],
    ("loss/cross_entropy", "cross_entropy_block_kernel"): [r"LDG\.E\.128", r"STG\.E\.128", r"LDS\.128", r"STS\.128"],
    ("loss/kl_div", "Terms"): [r"LDG\.E\.128"],
    ("loss/kl_div", "backward_kernel"): [r"LDG\.E\.128", r"STG\.E\.128"],
    ("loss/scale", "scale_kernel"): [r"LDG\.E\.128", r"STG\.E\.128"],
    ("loss/soft_iou", "segments_kernel"): [r"LDG\.E\.128"],
    ("loss/linear_cross_entropy", "product_kernel"): [r"LDS\.128", r"FFMA"],
    ("neighbors/cdist", "L1If"): [r"LDS\.128", r"FADD [^;]*\|R\d+\|"],
    ("neighbors/cdist", "L2If"): [r"LDS\.128", r"FFMA"],
    ("neighbors/cdist", "L1Bytes"): [r"LDS\.128", r"VABSDIFF4\.U8"],
    ("neighbors/cdist", "L2Bytes"): [r"LDS\.128", r"IDP\.4A\.U8\.U8"],
    ("neighbors/knn", "lists_kernel"): [r"LDS\.128"],
    ("neighbors/knn_filter", "product_kernelI"): [r"HMMA\.16816\.F32\.BF16", r"HMMA\.16816\.F32 ", *STAGED],
    ("neighbors/knn_filter", "operands_kernel"): [r"LDG\.E\.128", r"STG\.E\.128"],
    ("neighbors/byte_products", "product_kernelI"): [r"IMMA\.16832\.U8\.U8", *STAGED],
    ("neighbors/byte_products", "bytes_kernel"): [r"LDG\.E\.128", r"STG\.E\.128", r"IDP\.4A\.U8\.U8"],
}
# Kernels that do spill, by their mangled names (nvcc 13.0; docs/gpu-status.md). A row leaves when its kernel is mended.
SPILLS = {
    "loss/cross_entropy": r"cross_entropy_block_kernelIdd",
    "loss/linear_cross_entropy": r"cross_entropy_block_kernelIdd",
    "neighbors/cdist_backward": r"tile_kernelI.*SlopeLpId",
    "neighbors/knn": r"lists_kernelI.*2LpId",
    "neighbors/knn_backward": r"grad_y_kernelI.*Slope(Linf|L2)Id",
    "pool/pool": r"avg_pool2d_backward_kernelIdLi1ELb1E",
}


@cache
def disassembler() -> str:
    found = shutil.which("cuobjdump")
    spec = None if found else importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        found = shutil.which(str(Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"))
    if found is None:
        pytest.skip("needs cuobjdump, from the CUDA toolkit or the triton wheel")
    return found


@cache
def objects() -> dict[str, Path]:
    """'loss/softmax' -> its object."""
    found = {}
    for path in BUILD.glob("CMakeFiles/fastcv_cuda.dir/csrc/*/*.cu.o"):
        found[f"{path.parent.name}/{path.name.removesuffix('.cu.o')}"] = path
    if not found:
        pytest.skip("needs a build with nvcc")
    return found


@cache
def sass(source: str) -> dict[str, str]:
    """Function -> its instructions for sm_90."""
    path = objects().get(source)
    if path is None:
        pytest.skip(f"no object of {source} in the build")
    environment = {**os.environ, "PATH": f"{Path(disassembler()).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [disassembler(), "--dump-sass", "--gpu-architecture", "sm_90a", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^\s*Function : (\S+)$", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def sources() -> list[str]:
    return sorted(str(p.relative_to(ROOT / "csrc").with_suffix("")) for p in (ROOT / "csrc").glob("*/*.cu"))


@pytest.mark.parametrize("source", sources())
def test_nothing_else_is_spilt(source: str) -> None:
    functions = sass(source)
    assert functions, f"no sm_90 kernel in {source}"
    spilt = [name for name, text in functions.items() if re.search(r"\b(LDL|STL)\b", text)]
    unknown = [name for name in spilt if source not in SPILLS or not re.search(SPILLS[source], name)]
    assert not unknown, f"local memory in {unknown}"


@pytest.mark.parametrize(("source", "kernel"), EXPECTED, ids=lambda value: value)
def test_the_expected_instructions_are_there(source: str, kernel: str) -> None:
    texts = [text for name, text in sass(source).items() if kernel in name]
    assert texts, f"no kernel like {kernel}"
    for instruction in EXPECTED[source, kernel]:
        assert any(re.search(instruction, text) for text in texts), f"{kernel}: no {instruction}"


@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "layer_norm"])
def test_every_sum_and_sweep_of_norms_moves_packs_of_16_bytes(op: str) -> None:
    sums = sweeps = 0
    for name, text in sass(f"norm/{op}").items():
        if "along_kernel" in name or "across_kernel" in name:
            sums += 1
        elif re.search(r"(planes|columns|matrix|warp)_kernel", name):
            assert re.search(r"STG\.E\.128", text), f"{name}: no store of 16 bytes"
            sweeps += 1
        else:
            continue
        assert re.search(r"LDG\.E\.128", text), f"{name}: no load of 16 bytes"
    assert sums >= 16 and sweeps >= 8, f"{sums} sums and {sweeps} sweeps"
