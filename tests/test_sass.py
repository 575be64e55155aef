"""What ptxas made of the CUDA kernels: no registers spilt but where it is known, and the instructions that the kernels were written for.

Reads the objects of a build with nvcc (FASTCV_CUDA) as benchmarks/kernel_report.py does, for every target of the build.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("FASTCV_BUILD_DIR", ROOT / "build"))

# Tiles by cp.async, fragments by ldmatrix.
STAGED = [r"LDGSTS[^;]*\.128", r"LDSM\.16\.M88\.4"]
# Of kernels in a source: instructions that must appear for sm_90, as regular expressions.
EXPECTED = {
    ("conv/conv_igemm_serial_sm90", "igemm_serial_kernel"): [
        r"HGMMA\.64x128x16",
        r"UTMALDG\.4D\.IM2COL",
        r"UTMALDG\.3D",
        r"LDS\.128",
        r"STG\.E\.128",
    ],
    ("conv/conv_igemm_sm90", "igemm_pipeline_kernel"): [
        r"HGMMA\.64x128x16",
        r"UTMALDG\.4D\.IM2COL",
        r"USETMAXREG",
        r"STG\.E\.128",
        r"DFMA",
    ],
    ("conv/conv_igemm_multicast_sm90", "igemm_pipeline_kernel"): [r"HGMMA\.64x256x16", r"UTMALDG\.3D\.MULTICAST", r"UTMALDG\.4D\.IM2COL"],
    ("conv/conv_igemm_pingpong_sm90", "igemm_pingpong_kernel"): [r"HGMMA\.64x128x16", r"UTMALDG\.4D\.IM2COL", r"UTMALDG\.3D"],
    ("conv/conv_igemm_planned_sm90", "igemm_pipeline_kernel"): [r"HGMMA\.64x64x16", r"HGMMA\.64x256x16", r"UTMALDG\.3D\.MULTICAST"],
    ("conv/conv_igemm_tf32_sm90", "igemm_pipeline_kernel"): [r"HGMMA\.64x128x8\.F32\.TF32", r"UTMALDG\.4D\.IM2COL"],
    ("conv/conv_depthwise", "depthwise_kernel"): [r"LDG\.E\.128", r"STG\.E\.128", r"FFMA"],
    ("conv/conv_halo_sm90", "halo_sm90_kernel"): [r"HGMMA\.64x64x16", r"UTMALDG\.4D", r"UTMALDG\.3D", r"LDSM\.16\.M88\.4", r"STG\.E\.128"],
    ("conv/conv_igemm", "igemm"): [r"LDGSTS\.E\.BYPASS\.128", r"LDSM\.16\.M88\.4", r"HMMA\.16816\.F32\.BF16", r"HMMA\.1688\.F32\.TF32"],
    ("conv/conv_igemm_sm90", "igemm"): [r"UTMALDG\.4D\.IM2COL", r"UTMALDG\.3D", r"HGMMA\.64x128x16\.F32", r"SYNCS"],
    ("conv/conv_tiled", "tiled"): [r"LDS\.128", r"FFMA"],
    ("conv/conv_wgrad_igemm", "igemm"): [r"LDGSTS\.E\.BYPASS\.128", r"LDSM\.16\.MT88\.4", r"HMMA\.16816\.F32\.BF16"],
    ("norm/group_norm_staged", "staged_kernel"): [r"LDG\.E\.128", r"STS\.128", r"LDS\.128", r"STG\.E\.128"],
    ("pool/batch_norm_max_pool2d", "strips_kernelINS_4bf16ELi8E"): [r"LDG\.E\.128", r"STG\.E\.128", r"STG\.E\.64"],
    ("pool/batch_norm_max_pool2d", "tiles_kernelINS_4bf16ELb1E"): [r"LDG\.E\.128", r"STS\.128"],
    ("pool/pool", "max_pool2d_kernelINS_4bf16ELi8ELb1E"): [r"LDG\.E\.128", r"STG\.E\.128", r"STG\.E\.64"],
    ("pool/pool", "max_pool2d_backward_kernelINS_4bf16ELi8ELb1E"): [r"LDG\.E\.128", r"LDG\.E\.64", r"STG\.E\.128"],
    ("pool/pool", "avg_pool2d_kernelIfLi4ELb1E"): [r"LDG\.E\.128", r"STG\.E\.128"],
    ("roof/tile_product", "stmatrix_kernel"): [r"STSM\.16\.M88\.4", r"LDSM\.16\.M88\.4", r"HMMA\.16816\.F32"],
    ("loss/cross_entropy", "warp_kernel"): [r"LDG\.E\.128", r"STG\.E\.128", r"MUFU\.EX2"],
    ("loss/cross_entropy", "cross_entropy_block_kernel"): [r"LDG\.E\.128", r"STG\.E\.128", r"LDS\.128", r"STS\.128"],
    ("loss/kl_div", "Terms"): [r"LDG\.E\.128"],
    ("loss/kl_div", "backward_kernel"): [r"LDG\.E\.128", r"STG\.E\.128"],
    ("loss/scale", "scale_kernel"): [r"LDG\.E\.128", r"STG\.E\.128"],
    ("loss/soft_iou", "segments_kernel"): [r"LDG\.E\.128"],
    ("loss/linear_cross_entropy", "product_kernel"): [r"LDS\.128", r"FFMA"],
    ("conv/conv_wgrad_igemm_sm90", "wgrad_igemm_sm90_kernel"): [
        r"HGMMA\.64x128x16\.F32\S* R\d+, gdesc\[UR\d+\]\.tnspA\.tnspB",
        r"UTMALDG\.4D\.IM2COL",
        r"UTMALDG\.3D",
        r"UTMALDG\.3D\.MULTICAST",
        r"STG\.E\.64",
    ],
    ("conv/conv_wgrad_igemm_sm90", "add_kernel"): [r"LDG\.E\.128"],
    ("conv/conv_igemm_splitk", "igemm_kernel"): [
        r"HMMA\.16816\.F32",
        r"HMMA\.1688\.F32\.TF32",
        r"LDGSTS\.E\.(BYPASS\.)?128",
        r"LDSM\.16\.M88\.4",
    ],
    ("conv/conv_igemm_splitk", "add_tiles_kernel"): [r"LDG\.E\.128", r"STG\.E\.128"],
    ("conv/conv_igemm_pairs", "igemm_kernel"): [r"HMMA\.16816\.F32", r"LDGSTS\.E\.(BYPASS\.)?128"],
    ("conv/conv_igemm_pairs", "pack_pairs_kernel"): [r"STG\.E\.128"],
    ("conv/conv_igemm_phases_sm90", "igemm_phases_kernel"): [r"HGMMA\.64x128x16", r"UTMALDG\.4D\.IM2COL", r"UTMALDG\.3D", r"USETMAXREG"],
    ("conv/conv_igemm_phases_sm90", "fill_phases_kernel"): [r"STG\.E\.128"],
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
# Kernels that do spill on a target, by their mangled names (nvcc 13.0; docs/gpu-status.md). A row leaves when its kernel is mended.
SPILLS = {
    ("conv/conv_depthwise", "sm_100"): r"depthwise_kernelIfLi4E",
    ("conv/conv_igemm_splitk", "sm_90a"): r"add_tiles_kernelINS_(3f16|4bf16)E",
    ("conv/conv_igemm_splitk", "sm_80"): r"add_tiles_kernelINS_(3f16|4bf16)E",
    ("loss/cross_entropy", "sm_80"): r"warp_kernelIf|block_kernelIddLi2ELb0E",
    ("loss/cross_entropy", "sm_90a"): r"block_kernelI(ddLi1|ffLi4)ELb0E",
    (
        "loss/cross_entropy",
        "sm_100",
    ): r"block_kernelIddLi2E|cluster_kernelIfLi1E|column_kernelIdLi0E|warp_kernelI(f|NS_4bf16E|NS_3f16E)Li32ELi8ELi[48]E",
    ("loss/linear_cross_entropy", "sm_80"): r"block_kernelIddLi2ELb0E",
    ("loss/linear_cross_entropy", "sm_90a"): r"block_kernelI(ddLi1|ffLi4|fNS_3f16ELi4)ELb0E",
    ("loss/linear_cross_entropy", "sm_100"): r"block_kernelIddLi2ELb0E",
    ("neighbors/byte_products", "sm_100"): r"store_ranked_kernelINS0_7L2Bytes",
    ("neighbors/cdist_backward", "sm_90a"): r"tile_kernelI.*SlopeLpId",
    ("neighbors/knn", "sm_80"): r"lists_kernelI.*(Linf|2Lp)Id",
    ("neighbors/knn", "sm_90a"): r"lists_kernelI.*2LpId",
    ("neighbors/knn", "sm_100"): r"lists_kernelI.*(L1Id|L2Id|L2Bytes|LinfId|2LpId)|keys_kernelI.*2LpIf",
    ("neighbors/knn_backward", "sm_80"): r"grad_y_kernelI.*SlopeL2Id",
    ("neighbors/knn_backward", "sm_90a"): r"grad_y_kernelI.*Slope(Linf|L2)Id",
    ("pool/max_unpool2d", "sm_100"): r"gather_kernelId",
    ("pool/pool", "sm_80"): r"avg_pool2d_kernelIfLi4ELb1E",
    ("pool/pool", "sm_90a"): r"avg_pool2d_backward_kernelIdLi1ELb1E",
    ("pool/pool", "sm_100"): r"avg_pool2d_(backward_kernelI.*Li1E|kernelI(dLi2|fLi4)ELb1E)",
}


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[ModuleType]:
    """benchmarks/kernel_report.py. Skips where nothing was to be built with nvcc; what was and is missing or unreadable is an error."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    module = importlib.import_module("kernel_report")
    if not module.objects(BUILD):
        wanted = module.setting(BUILD, "FASTCV_CUDA") != "OFF" and module.setting(BUILD, "FASTCV_NVCC")
        if not wanted or wanted.endswith("NOTFOUND"):
            pytest.skip("needs a build with nvcc")
        pytest.fail(f"{BUILD} was configured with {wanted} and holds no CUDA kernels; run `make build`")
    if not module.disassembler():
        pytest.fail("there are CUDA kernels and no cuobjdump to read them; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))


def path_of(source: str) -> Path:
    found = sys.modules["kernel_report"].objects(BUILD)
    if source not in found and "FASTCV_BUILD_DIR" in os.environ:
        pytest.skip(f"{BUILD} has no object of {source}")
    assert source in found, f"{BUILD} has no object of {source}"
    return found[source]


@cache
def resources(source: str) -> dict[str, dict[str, Any]]:
    return sys.modules["kernel_report"].resources(path_of(source))


@cache
def sass(source: str) -> dict[str, str]:
    """Function -> its instructions for sm_90."""
    return sys.modules["kernel_report"].sass(path_of(source), "sm_90a")


def sources() -> list[str]:
    return sorted(str(p.relative_to(ROOT / "csrc").with_suffix("")) for p in (ROOT / "csrc").glob("*/*.cu"))


@pytest.mark.parametrize("source", sources())
def test_every_target_is_there(source: str, report: ModuleType) -> None:
    """Machine code for each `-real` target of the build and PTX for each `-virtual` one, all with the same kernels."""
    asked = report.setting(BUILD, "FASTCV_CUDA_ARCHS").split(";")
    expected = {f"sm_{a.removesuffix('-real')}" if a.endswith("-real") else f"ptx sm_{a.removesuffix('-virtual')}" for a in asked}
    found = resources(source)
    assert set(found) == expected
    kernels = [sorted(re.sub(r"_[0-9a-f]{8}", "", name) for name in taken) for target, taken in found.items() if target.startswith("sm_")]
    assert kernels[0] and all(names == kernels[0] for names in kernels[1:]), f"other kernels for other targets in {source}"


@pytest.mark.parametrize("source", sources())
def test_nothing_else_is_spilt(source: str) -> None:
    """On every target: stack is registers in local memory, or an array that is indexed by what the compiler cannot know."""
    for target, kernels in resources(source).items():
        known = SPILLS.get((source, target), "(?!)")
        unknown = [name for name, taken in kernels.items() if taken.stack and not re.search(known, name)]
        assert not unknown, f"local memory for {target} in {unknown}"


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


@pytest.mark.parametrize("source", [s for s in sources() if re.fullmatch(r"conv/conv_\w+_sm90", s)])
def test_products_of_a_step_are_on_their_way_together(source: str) -> None:
    """ptxas has products wait for each other where it cannot see that all warps of a group make them (its C7520 and their like): each
    then begins and is waited for by itself.
    """
    found = 0
    for name, text in sass(source).items():
        products, begun, waits = (
            len(re.findall(word, text)) for word in (r"\bHGMMA\b", r"\bWARPGROUP\.ARRIVE\b", r"\bWARPGROUP\.DEPBAR\b")
        )
        found += products > 0
        assert 4 * begun <= products and waits <= begun + 1, f"{name}: {products} products, begun in {begun} places, {waits} waits"
    assert found > 0, f"no products in {source}"


def test_products_of_the_halo_kernel_are_on_their_way_together() -> None:
    """Two lines of pixels, nine taps, four parts of 64 channels, from 12 times four loads; one wait per step and one at the end."""
    kernels = [text for name, text in sass("conv/conv_halo_sm90").items() if "halo_sm90_kernel" in name]
    assert len(kernels) == 2  # bfloat16 and float16
    for text in kernels:
        counts = [len(re.findall(word, text)) for word in (r"\bHGMMA\b", r"\bLDSM\b", r"\bWARPGROUP\.DEPBAR\b")]
        assert counts == [72, 48, 13]
