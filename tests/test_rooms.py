"""Who may include what, what may leave an instruction-set object, and what a public function must document."""

import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastcv

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
BUILD = ROOT / "build"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})
DOORS = [p for p in SOURCES if p.name.endswith(("_torch.cpp", "door.h")) or p.name in ("module.cpp", "watch.h", "steady.h")]
KERNELS = [p for p in SOURCES if p not in DOORS]
ISA_FILE = re.compile(r"_(simd|avx2|avx512|avx512vnni|avx512bf16|amx)\.cpp$")


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M)


def code(path: Path) -> str:
    """The text without comments and string literals."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\])*"', '""', text)


def name(path: Path) -> str:
    return str(path.relative_to(CSRC))


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_are_framework_free(path: Path) -> None:
    banned = [i for i in includes(path) if re.match(r"(torch|ATen|c10|pybind11|Python\.h)", i) or i == "common/door.h"]
    assert not banned, f"{name(path)} includes {banned}"
    assert not re.search(r"\b(malloc|calloc|aligned_alloc|std::thread|omp_\w+)\b", code(path))
    if path.name != "isa.cpp":
        assert "getenv" not in code(path)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name.endswith("_ref.cpp")], ids=name)
def test_references_are_plain(path: Path) -> None:
    assert not re.search(r"immintrin|common/simd|_mm\d*_|parallel_for|parallel_slots", path.read_text())


GPU_SOURCES = [p for p in KERNELS if p.suffix in {".cu", ".cuh"}]


@pytest.mark.parametrize("path", [p for p in GPU_SOURCES if not re.fullmatch(r"(gpu|ptx\w*|numbers)\.cuh", p.name)], ids=name)
def test_cuda_kernels_run_on_the_emulator_too(path: Path) -> None:
    """What only one compiler understands stands in gpu.cuh, numbers.cuh and ptx*.cuh; kernels use what those offer."""
    found = re.findall(r"<<<|__shared__|\basm\b|FASTCV_EMULATOR|\bcuda\w+\.h\b|__CUDA_ARCH__", code(path))
    assert not found, f"{name(path)} has {found}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix in {".cu", ".cuh"} or p in DOORS or p.stem == "door_torch"], ids=name)
def test_nothing_allocates_copies_or_waits_on_a_gpu(path: Path) -> None:
    """Memory is torch's, and calls can be captured in CUDA graphs; the stream is the one that the launcher is given."""
    found = re.findall(r"\bcuda(?:Malloc|Free|Memcpy|Memset|Host|Event|StreamCreate|StreamWait)\w*|\bcuda\w*Synchronize\b", code(path))
    assert not found, f"{name(path)} has {found}"
    launches = re.findall(r"\blaunch(?:_clusters)?\((?!Formal|void)[^;{]*", code(path))
    if path.suffix == ".cu":
        assert all("stream" in call for call in launches), f"{name(path)}: a launch without the stream"


@pytest.mark.parametrize("path", DOORS, ids=name)
def test_doors_do_no_arithmetic(path: Path) -> None:
    assert not re.search(r"immintrin|common/simd|_mm\d+_", path.read_text())


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix in {".cpp", ".cu"} and p.parent.name not in ("csrc", "common")], ids=name)
def test_own_header_comes_first(path: Path) -> None:
    first = includes(path)[0]
    assert first.startswith(f"{path.parent.name}/"), f"{name(path)} includes {first} first"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nobody_elses_compute(path: Path) -> None:
    text = code(path)
    assert not re.search(
        r"(at|aten)::(conv|mm|matmul|addmm|bmm|linear|native_|max_pool|_softmax|cdist)|mkldnn|dnnl|cudnn[A-Z]|cublas[A-Z]|cblas_|cutlass",
        text,
    )
    assert not re.search(r"stable::(matmul|pad|amax|sum|subtract)\b", text)


@pytest.mark.skipif(not BUILD.is_dir() or shutil.which("nm") is None, reason="needs the build folder and nm")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"])
def test_isa_objects_export_only_their_namespace(isa: str) -> None:
    """A weak symbol outside the namespace could be kept by the linker for every caller: AVX-512 code on an older CPU."""
    objects = sorted(BUILD.rglob(f"fastcv_{isa}.dir/**/*.o"))
    for path in objects:
        for line in subprocess.run(
            ["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True
        ).stdout.splitlines():
            kind, symbol = line[17:18], line[19:]
            if kind in "WVu" or kind == "T":
                assert f"fastcv::{isa}::" in symbol or symbol.startswith("DW.ref"), f"{path.name} defines {symbol} ({kind})"


@pytest.mark.skipif(not BUILD.is_dir() or shutil.which("objdump") is None, reason="needs the build folder and objdump")
@pytest.mark.parametrize("library", ["fastcv_base", "fastcv_portable"])
def test_baseline_objects_use_no_wide_registers(library: str) -> None:
    for path in sorted(BUILD.rglob(f"{library}.dir/**/*.o")):
        text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True).stdout
        assert not re.search(r"%[yz]mm\d", text), f"{path.name} uses AVX registers"


@pytest.mark.parametrize("function", fastcv.functional.__all__)
def test_public_functions_are_documented(function: str) -> None:
    doc = inspect.getdoc(getattr(fastcv.functional, function)) or ""
    for word in ("float32", "Raises", "csrc/"):
        assert word in doc, f"fastcv.functional.{function}: the docstring does not say {word!r}"


def test_public_functions_have_torchs_arguments() -> None:
    import torch
    import torch.nn.functional as F

    for function in fastcv.functional.__all__:
        peer = getattr(F, function, None) or getattr(torch, function, None)
        try:
            theirs = list(inspect.signature(peer).parameters) if peer else None
        except ValueError:  # a C function: its arguments are not introspectable
            continue
        if theirs and theirs != ["args", "kwargs"]:
            ours = list(inspect.signature(getattr(fastcv.functional, function)).parameters)
            assert ours[: len(theirs)] == theirs, f"{function}{ours}, torch has {theirs}"
