"""benchmarks/gpu.py without a GPU: workers that die and hang, its budget, resume, tables and picture; the emulator as its device."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fastcv

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"
EMULATOR = {"device": "emulator", "ops": [], "seconds": 0.0, "every": 1, "ceilings": {"copy": 1.0, "matmul bf16": 1.0}}
emulated = pytest.mark.skipif(
    not (fastcv.is_built() and fastcv.build_info()["emulator"]), reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes"
)


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    sys.path.insert(0, str(SCRIPT.parent))
    yield
    sys.path.remove(str(SCRIPT.parent))


def part(name: str) -> ModuleType:
    return importlib.import_module(f"gpu_parts.{name}")


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)


# ---- workers, budget, resume: a part of our own, on the real runner ------------------------------------------------------

PART = """
import ctypes, os, time
COLUMNS, KEY, LIMIT, JOBS = ("task", "value", "wrong"), ("task",), 1.5, {jobs}
ENVIRONMENT = {{"PYTHONPATH": {path!r}}}
TASKS = {tasks!r}
def plan(options):
    return [{{"task": name}} for name in TASKS]
def more(row):
    return [{{"task": "child"}}] if row["task"] == "parent" else []
def run(key, options):
    task = key["task"]
    if task == "dies":
        os._exit(7)
    if task == "crashes":
        print("about to read what is not there", flush=True)
        ctypes.string_at(0)
    if task == "hangs":
        time.sleep(1000)
    if task == "raises":
        raise ValueError("a sentence\\nand more")
    return [{{"value": os.getpid(), "wrong": "off by one" if task == "wrong" else ""}}]
"""
# The worker's own code with a device of which nothing is left after the task "poisons".
WORKER = """
import sys, types
sys.path.insert(0, {benchmarks!r})
lost = []
def wait(device):
    if lost:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
stub = types.ModuleType("gpu_parts.device")
stub.name_of, stub.wait = lambda options: "cuda", wait
stub.one_line = lambda error: type(error).__name__ + ": " + str(error).splitlines()[0]
sys.modules["gpu_parts.device"] = stub
import our_part
run = our_part.run
def poisoning(key, options):
    if key["task"] == "poisons":
        lost.append(1)
    return run(key, options)
our_part.run = poisoning
from gpu_parts.worker import serve
raise SystemExit(serve())
"""


class Run:
    """One run of the runner over our part."""

    def __init__(self, folder: Path, *tasks: str, jobs: int = 1) -> None:
        self.folder, self.said = folder, []
        (folder / "our_part.py").write_text(PART.format(jobs=jobs, path=str(folder), tasks=list(tasks)))
        (folder / "worker.py").write_text(WORKER.format(benchmarks=str(SCRIPT.parent)))

    def __call__(self, minutes: float = 5.0, resume: bool = False, build: str = "b") -> Any:
        results, runner = part("results"), part("runner")
        sys.path.insert(0, str(self.folder))
        try:
            sys.modules.pop("our_part", None)
            ours = importlib.import_module("our_part")
        finally:
            sys.path.remove(str(self.folder))
        path = self.folder / "table.csv"
        self.table = results.Table(path, ours.COLUMNS, ours.KEY, build, results.read(path) if resume else ())
        command = [sys.executable, str(self.folder / "worker.py")]
        return runner.run_part(ours, self.table, {}, command, time.monotonic() + 60 * minutes, self.said.append)

    def rows(self) -> dict[str, dict[str, str]]:
        with (self.folder / "table.csv").open(newline="") as file:
            return {row["task"]: row for row in csv.DictReader(file)}


def test_a_task_that_dies_hangs_or_raises_costs_its_row_only(tmp_path: Path) -> None:
    run = Run(tmp_path, "first", "dies", "second", "crashes", "hangs", "raises", "wrong", "last")
    outcome, rows = run(), run.rows()
    assert (outcome.done, outcome.left, outcome.given_up) == (8, 0, "")
    assert rows["dies"]["failed"] == "the process died (exit status 7)"
    assert rows["crashes"]["failed"] == "the process died (signal SIGSEGV): about to read what is not there"
    assert rows["hangs"]["failed"].startswith("not done after")
    assert rows["raises"]["failed"] == "ValueError: a sentence"
    assert all(rows[task]["value"] and not rows[task]["failed"] for task in ("first", "second", "wrong", "last"))
    assert rows["first"]["value"] != rows["second"]["value"] and rows["wrong"]["value"] == rows["last"]["value"]
    assert len(run.said) == 5 and "WRONG wrong: off by one" in run.said


def test_a_lost_gpu_is_blamed_on_the_task_that_lost_it(tmp_path: Path) -> None:
    run = Run(tmp_path, "first", "poisons", "last")
    run()
    rows = run.rows()
    assert "illegal memory access" in rows["poisons"]["failed"] and not rows["poisons"]["value"]
    assert rows["last"]["value"] and rows["last"]["value"] != rows["first"]["value"]


def test_resume_does_what_is_left_and_nothing_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, "first", "parent", "dies")
    assert run().done == 4  # with the child that the parent asked for
    before = run.rows()
    with (tmp_path / "table.csv").open("a") as file:
        file.write("half a li")
    text = (tmp_path / "our_part.py").read_text().replace("['first',", "['new', 'first',")
    (tmp_path / "our_part.py").write_text(text)
    outcome = run(resume=True)
    assert (outcome.done, outcome.before) == (1, 4)
    assert run.rows() == before | {"new": run.rows()["new"]}
    outcome = run(resume=True, build="another")
    assert (outcome.done, outcome.before) == (5, 0)


def test_without_time_tasks_are_left_and_not_marked(tmp_path: Path) -> None:
    run = Run(tmp_path, "first", "last")
    outcome = run(minutes=0)
    assert (outcome.done, outcome.left) == (0, 2) and run.rows() == {}
    assert run(resume=True).done == 2


def test_several_workers_share_the_tasks(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(12)]
    run = Run(tmp_path, *names, "dies", "parent", jobs=3)
    assert run().done == 15
    rows = run.rows()
    assert {*rows} == {*names, "dies", "parent", "child"} and sum(bool(row["failed"]) for row in rows.values()) == 1


def test_workers_that_never_start_end_the_part(tmp_path: Path) -> None:
    run = Run(tmp_path, "first", "second", "third")
    (tmp_path / "worker.py").write_text("raise SystemExit('no such GPU')")
    outcome = run()
    assert outcome.given_up == "no worker starts: the process died (exit status 1): no such GPU"
    assert (outcome.done, outcome.left) == (0, 3)


# ---- the script itself -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = script("--output", str(tmp_path / "results"))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "benchmarks/gpu.py needs a GPU that torch can use; this machine has none.\n"
    assert not (tmp_path / "results").exists()


@emulated
def test_a_rehearsal_on_the_emulator_and_its_resumption(tmp_path: Path) -> None:
    arguments = ["--device", "emulator", "--parts", "correctness", "--ops", "softmax", "--every", "100"]
    done = script(*arguments, "--output", str(tmp_path / "a"))
    assert done.returncode == 0, done.stdout + done.stderr
    results = part("results")
    rows = results.read(tmp_path / "a" / "gpu_correctness.csv")
    assert {row["variant"] for row in rows} >= {"(chosen)", "softmax:block_sm80"} and all(row["result"] == "right" for row in rows)
    again = script(*arguments, "--output", str(tmp_path / "b"), "--resume", str(tmp_path / "a"))
    assert again.returncode == 0 and "correctness: 0 tasks done" in again.stdout and f"{len(rows)} before" in again.stdout
    assert results.read(tmp_path / "b" / "gpu_correctness.csv") == rows


# ---- the parts ---------------------------------------------------------------------------------------------------------


@emulated
def test_every_wrapper_conforms_on_the_emulator() -> None:
    conformance = part("conformance")
    keys = conformance.plan(EMULATOR)
    assert {key["op"] for key in keys} == {"tma_tile", "tile_product", "step_chain", "cache_read"}
    for key in keys:
        if "f16" in key["call"] and "bf16" not in key["call"] and key["op"] == "tma_tile":
            continue  # the same copies of the same bytes
        (row,) = conformance.run(key, EMULATOR)
        assert not row.get("wrong") and ("random" in key["call"] or row["differ"] == 0), (key, row)


@emulated
def test_a_tile_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    conformance = part("conformance")
    real = conformance._ext.op

    def shifted(name: str) -> Any:
        def call(*args: Any) -> torch.Tensor:
            y = real(name)(*args)
            return y if fastcv._C.forced_variant(name) == "ref" else y.index_fill(0, torch.tensor([3]), 200)

        return call

    monkeypatch.setattr(conformance._ext, "op", shifted)
    key = {"op": "tma_tile", "row": "copy_sm90a", "call": "im2col 3x3 bf16 corrected"}
    (row,) = conformance.run(key, EMULATOR)
    assert row["differ"] == 64 and row["first"].startswith("[3, 0]: 200.0, expected ") and "64 of 4096 elements differ" in row["wrong"]
    (row,) = conformance.run(key | {"call": "im2col 3x3 bf16 as encoded"}, EMULATOR)
    assert row["differ"] == 64 and not row["wrong"]  # what happens without the correction is a finding, not an error


@pytest.mark.skipif(not fastcv.is_built(), reason="needs the compiled module")
def test_the_rule_of_im2col_is_convolutions() -> None:
    """The reference tile, unswizzled, is what a padded image holds under the tap of consecutive output pixels."""
    conformance = part("conformance")
    for name, (shape, kernel, stride, padding, dilation, first, tap, c, pixels) in conformance.IM2COL.items():
        image, *values = conformance.arguments("tma_tile", f"im2col {name} bf16 corrected")
        with fastcv.use(tma_tile="ref"):
            tile = torch.ops.fastcv.tma_tile(image, *values)
        rows = torch.arange(pixels)[:, None]
        tile = tile.reshape(pixels, 8, 8)[rows, torch.arange(8)[None] ^ rows % 8].reshape(pixels, 64)
        top, bottom, left, right = padding
        padded = F.pad(image.float(), (0, 64, left, right, top, bottom))
        out_h, out_w = ((padded.shape[i + 1] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
        for i in range(pixels):
            n, oh, ow = (first + i) // out_w // out_h, (first + i) // out_w % out_h, (first + i) % out_w
            expected = torch.zeros(64)
            if n < shape[0]:
                expected = padded[n, oh * stride[0] + tap[0] * dilation[0], ow * stride[1] + tap[1] * dilation[1], c : c + 64]
            assert torch.equal(tile[i].float(), expected), (name, i)


@pytest.mark.skipif(not fastcv.is_built(), reason="needs the compiled module")
@pytest.mark.parametrize(
    ("call", "message"),
    {
        lambda o: o.step_chain(torch.ones(2), -1): "expected 0 to 16777216 steps, got -1",
        lambda o: o.step_chain(torch.ones(2).double(), 1): "expected float32, got Double",
        lambda o: o.cache_read(torch.ones(2), 1 << 20, 1): "expected less than 65536 readers, got 1048576",
        lambda o: o.tile_product(torch.ones(64, 64), torch.ones(64, 64)): r"expected \[64, 64\] and \[128, 64\]",
        lambda o: o.tma_tile(torch.ones(1, 3, 3, 4).half(), [0] * 4, [0] * 2, [0] * 2, [0] * 2, [1] * 2, 8, True, True): "of 8 channels",
        lambda o: o.tma_tile(torch.ones(1, 3, 3, 8).half(), [0, 1, 0, 0], [0] * 2, [0] * 2, [0] * 2, [2] * 2, 8, True, True): "no position",
        lambda o: o.tma_tile(torch.ones(1, 3, 3, 8).half(), [0] * 4, [0] * 2, [0] * 2, [-9] * 2, [1] * 2, 8, True, True): "is empty",
    }.items(),
)
def test_probes_name_a_wrong_argument(call: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(torch.ops.fastcv)


@emulated
def test_correctness_finds_kernels_refusals_and_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    correctness = part("correctness")
    key = {"case": "conv2d-plain", "dtype": "bf16", "layout": "channels_last", "variant": "(chosen)"}
    (row,) = correctness.run(key, EMULATOR)
    assert row["result"] == "right" and "conv:igemm_sm90a" in row["others"].split() and "conv_wgrad:igemm_sm80" in row["others"].split()
    children = correctness.more(key | row)
    assert {"case": "conv2d-plain", "dtype": "bf16", "layout": "channels_last", "variant": "conv:igemm_sm90a"} in children
    assert correctness.run(key | {"variant": "conv:igemm_sm90a"}, EMULATOR)[0]["result"] == "right"
    assert correctness.run(key | {"dtype": "f32", "variant": "conv:igemm_sm90a"}, EMULATOR) == [{"result": "refused"}]
    monkeypatch.setattr(correctness.functional, "conv2d", lambda *a, **k: F.conv2d(*a, **k) + 1)
    (row,) = correctness.run(key, EMULATOR)
    assert row["result"] == "wrong" and "against float64" in row["wrong"]


def test_layers_are_those_of_the_networks() -> None:
    layers = part("layers")
    assert len(layers.LAYERS) == 15 and len(layers.plan(EMULATOR)) == 15 * 2 * 3
    gflop = {name: layer.flops / 1e9 for name, layer in layers.LAYERS.items()}
    assert gflop["resnet50 stem 7x7 s2 3-64 @224"] == pytest.approx(15.1, abs=0.05)
    assert gflop["vgg16 3x3 64 @224"] == pytest.approx(236.8, abs=0.05)
    assert gflop["unet up 2x2 s2 1024-512 @28"] == pytest.approx(13.2, abs=0.05)
    for layer in layers.LAYERS.values():
        x, w, y = (torch.empty(shape, device="meta") for shape in layer.shapes())
        call = F.conv_transpose2d if layer.transposed else F.conv2d
        assert call(x, w, None, layer.stride, layer.pad, groups=layer.groups).shape == y.shape


@emulated
@pytest.mark.parametrize("which", ["forward", "input gradient", "weight gradient"])
@pytest.mark.parametrize("layer", ["resnet50 3x3 s2 128 @56", "unet up 2x2 s2 1024-512 @28", "mobilenet depthwise 3x3 144 @56"])
def test_layers_run_beside_torch(layer: str, which: str) -> None:
    for dtype in ("bf16", "tf32"):
        rows = part("layers").run({"layer": layer, "dtype": dtype, "pass": which}, EMULATOR)
        assert {"torch NCHW", "torch channels_last", "fastcv tiled_sm80"} <= {row["contender"] for row in rows}
        assert all(row["us"] > 0 and float(row["error"]) < 0.01 and not row.get("wrong") and not row["failed"] for row in rows)


@emulated
def test_timings_have_both_contenders() -> None:
    timings = part("timings")
    (row,) = timings.run({"case": "cross_entropy-cifar_256x10", "dtype": "f32", "layout": "contiguous", "pass": "fwd+bwd"}, EMULATOR)
    assert row["fastcv_us"] > 0 and row["torch_us"] > 0 and float(row["difference"]) < 1e-6


def test_what_sanitizers_say() -> None:
    judged = part("sanitizers").judged
    clean = "========= COMPUTE-SANITIZER\ncalls 3 of 9\ncalls 9 of 9\n========= ERROR SUMMARY: 0 errors\n"
    assert judged(clean, 0, False) == {"calls": "9", "of": "9", "summary": "ERROR SUMMARY: 0 errors", "first": "", "wrong": ""}
    bad = "========= Invalid __global__ write of size 4 bytes\ncalls 1 of 9\n========= ERROR SUMMARY: 2 errors\n"
    assert "Invalid __global__ write" in judged(bad, 9, False)["wrong"]
    races = "========= Error: Race reported between Write access\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    assert "Race reported" in judged(races, 9, False)["wrong"]
    assert judged("calls 4 of 9\n", -9, True) == {"calls": "4", "of": "9", "summary": "stopped by its time", "first": "", "wrong": ""}
    refused = judged("========= Error: Target application terminated, Device not supported\n", 1, False)
    assert refused["summary"] == "exit status 1" and "not supported" in refused["first"] and not refused["wrong"]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_the_picture_comes_from_the_tables_alone(tmp_path: Path) -> None:
    picture, results, layers = part("picture"), part("results"), part("layers")
    assert picture.draw(tmp_path) is None
    rows = []
    for i, key in enumerate(layers.plan(EMULATOR)):
        flops = layers.LAYERS[key["layer"]].flops
        for who, us in (("torch NCHW", 300.0), ("torch.compile", 150.0), ("fastcv igemm_sm80", 100.0 + i), ("fastcv tiled_sm80", 1.0)):
            rows.append(key | {"contender": who, "us": us, "tflops": flops / us / 1e6, "wrong": "no" if us == 1 else ""})
    results.Table(tmp_path / "gpu_layers.csv", layers.COLUMNS, layers.KEY, "b").add(rows)
    key = ("vgg16 3x3 64 @224", "bf16", "forward")
    both = picture.best(results.read(tmp_path / "gpu_layers.csv"))[key]
    assert both["torch"]["contender"] == "torch.compile" and both["fastcv"]["contender"] == "fastcv igemm_sm80"
    assert picture.draw(tmp_path) == tmp_path / "gpu.png" and (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


def test_a_changed_source_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = part("device")
    (tmp_path / "csrc/roof").mkdir(parents=True)
    (tmp_path / "CMakeLists.txt").write_text("project(x)")
    kernel = tmp_path / "csrc/roof/a.cu"
    kernel.write_text("1")
    monkeypatch.setattr(device, "ROOT", tmp_path)
    before = device.build_id()
    assert device.build_id() == before
    kernel.write_text("2")
    assert device.build_id() != before
