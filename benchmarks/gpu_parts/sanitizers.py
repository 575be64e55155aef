"""compute-sanitizer over small calls of every op: each tool and family of ops in a process of its own, for a limited time.

The process runs fastcv's kernels on small cases, forward and backward, the chosen ones and every other that could have run, until its time
is over; how many calls that were is in the row. A tool that does not run here says so in its row.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fastcv

from . import correctness
from . import device as dev
from .results import Key, Row

COLUMNS = ("tool", "family", "calls", "of", "summary", "first", "wrong")
KEY, LIMIT, JOBS = ("tool", "family"), 130.0, 3
TOOLS = ("memcheck", "racecheck", "synccheck")
FAMILIES = {
    "conv": ("conv2d", "conv_transpose2d", "conv2d_fused", "conv1d", "conv3d"),
    "norm": ("batch_norm", "batch_norm_act", "batch_norm_max_pool2d", "group_norm", "layer_norm", "local_response_norm"),
    "pool": ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "max_unpool2d", "upsample_bed_of_nails"),
    "loss": ("cross_entropy", "softmax", "nll_loss", "linear_cross_entropy", "multi_margin_loss", "kl_div", "soft_iou_loss"),
    "neighbors": ("cdist", "knn", "nearest"),
}
SECONDS = 75.0  # for the calls; loading torch under a sanitizer takes its own time


def plan(options: dict[str, Any]) -> list[Key]:
    families = [f for f, ops in FAMILIES.items() if not options["ops"] or {*ops} & {*options["ops"]}]
    return [{"tool": tool, "family": family} for tool in TOOLS for family in families]


def run(key: Key, options: dict[str, Any]) -> list[Row]:
    program = shutil.which("compute-sanitizer")
    if program is None or dev.name_of(options) == "cpu":
        return [{"summary": "compute-sanitizer is not on PATH" if program is None else "needs a GPU"}]
    script = Path(__file__).resolve().parents[1] / "gpu.py"
    command = [program, "--tool", key["tool"], "--error-exitcode", "9", sys.executable, str(script), "--sanitized", key["family"]]
    # Every tensor a piece of memory of its own, or what lies beyond one is found to be a neighbour's.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    try:
        text, late = process.communicate(timeout=LIMIT - 10)[0], False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, late = process.communicate()[0], True
    return [judged(text, process.returncode, late)]


def judged(text: str, code: int, late: bool) -> Row:
    """The row for what a sanitizer printed."""
    lines = text.splitlines()
    summaries = [line.strip("= ") for line in lines if "SUMMARY" in line]
    marks = [line.strip("= ") for line in lines if line.startswith("=========")]
    first = next(
        (m for m in marks if re.search(r"Invalid|Error|Race|hazard|Barrier|Uninitialized|not supported", m) and "SUMMARY" not in m), ""
    )
    counts = re.findall(r"^calls (\d+) of (\d+)$", text, re.M)
    summary = summaries[-1] if summaries else "stopped by its time" if late else f"exit status {code}"
    found = re.search(r"(\d+) (?:errors?|hazards?)", summaries[-1]) if summaries else None
    bad = bool(found and int(found[1])) or (code == 9 and not late)
    calls, of = counts[-1] if counts else ("", "")
    return {"calls": calls, "of": of, "summary": summary[:200], "first": first[:200], "wrong": f"{summary}; {first}"[:300] if bad else ""}


def sanitized(family: str, device: str = "cuda", seconds: float = SECONDS) -> int:
    """The process under a sanitizer: calls of the family's ops, the smallest first, float32 and bfloat16 in turn."""
    ops, end = FAMILIES[family], time.perf_counter() + seconds
    cases = [c for c in correctness._cases().values() if c.op in ops]
    tasks = [(c, d, c.layouts[-1]) for c in cases for d in c.dtypes if correctness.NAMES[d] in ("f32", "bf16")]
    tasks.sort(key=lambda t: sum(a.numel() for a in dev.tensors_of(list(t[0].arguments(t[1])[0]))))
    for done, (case, dtype, layout) in enumerate(tasks, 1):
        if time.perf_counter() > end:
            break
        choices = fastcv.why_not(correctness._once, case, dtype, layout, device)
        others = [(op, name) for op, name, reason in choices if reason.startswith("comes after")] if device == "cuda" else []
        for op, name in dict.fromkeys(others):
            try:
                with fastcv.use(**{op: name}):
                    correctness._once(case, dtype, layout, device)
            except (RuntimeError, ValueError) as error:
                if "cannot run this call" not in str(error):
                    raise
        dev.wait(device)
        print(f"calls {done} of {len(tasks)}", flush=True)
    return 0
