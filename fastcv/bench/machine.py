"""The machine and the software that a result belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .. import _ext
from .._version import __version__
from .guard import driver


@cache
def _cpuinfo(key: str) -> str:
    """The first line of /proc/cpuinfo that begins with ``key``; "" without one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def processor() -> str:
    """The CPU's name as the system gives it."""
    return _cpuinfo("model name") or _cpuinfo("Model") or platform.processor() or platform.machine()


def wait_passively() -> None:
    """Starts this command anew with OMP_WAIT_POLICY=passive, which OpenMP reads when torch is loaded; returns where it is set.

    A worker thread that has gone to sleep is woken in some 5 ms where the waiting one spins on its core: longer than most
    calls, and charged to whoever comes after a single-threaded contender. Passive waiting wakes it in microseconds.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "fastcv", *sys.argv[1:]])


@cache
def caches() -> dict[int, int]:
    """Bytes of the first CPU's data caches by level; {} where the system does not say."""
    sizes: dict[int, int] = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, number, text = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 0)
        if kind != "Instruction" and number.isdigit() and unit and text[:-1].isdigit():
            sizes[int(number)] = int(text[:-1]) * unit
    return dict(sorted(sizes.items()))


def last_level_cache() -> int:
    """Bytes of the largest cache of the first CPU; 32 MiB where the system does not say."""
    return max(caches().values(), default=32 << 20)


def level(size: int) -> str:
    """The first level that holds so many bytes: "L2", or "memory"; "" where the system does not say."""
    return next((f"L{number}" for number, held in caches().items() if size <= held), "memory" if caches() else "")


def source_state() -> tuple[str, bool]:
    """(commit, changed since) of the checkout that this package lies in; the commit it was built from, unchanged, elsewhere.

    Results that were written since are no change: those of a run of several scripts come from one state of the source.
    """
    root = Path(__file__).resolve().parents[2]
    built = _ext.build_info()["git"] if _ext.is_built() else ""
    if not (root / ".git").exists():
        return built, False
    try:
        head, status = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            for command in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"),
            )
        )
    except (OSError, subprocess.SubprocessError):
        return built, False
    return head, bool(status)


def _waiting() -> str:
    """How idle threads wait: OMP_WAIT_POLICY, and the turns that they spin before they sleep where those are set."""
    spins = os.environ.get("GOMP_SPINCOUNT")
    return os.environ.get("OMP_WAIT_POLICY", "") + (f" GOMP_SPINCOUNT={spins}" if spins else "")


def describe(device: str = "cpu") -> dict[str, Any]:
    """All that a result depends on: kept in the head of every file of results."""
    commit, changed = source_state()
    info = _ext.build_info() if _ext.is_built() else {}
    facts = {
        "processor": processor(),
        "isa": _ext.cpu_isa() if _ext.is_built() else "",
        "microcode": _cpuinfo("microcode"),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": _waiting(),
        "last_level_cache": last_level_cache(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "fastcv": __version__,
        "commit": commit,
        "changed": changed,
        "built_from": info.get("git", ""),
        "compiler": info.get("compiler", ""),
        "float32_precision": torch.get_float32_matmul_precision(),
        "device": device,
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda, "driver": driver()}
    return facts


def sentence(facts: dict[str, Any]) -> str:
    """One line for the head of a table."""
    what = [
        f"{facts['processor']}, {facts['threads']} thread{'s' if facts['threads'] != 1 else ''}, {facts['isa']}",
        *([facts["gpu"]] if facts.get("gpu") else []),
        f"torch {facts['torch']}, fastcv {facts['fastcv']} ({facts['commit']}{' changed' if facts['changed'] else ''})",
        facts["compiler"],
    ]
    if facts.get("built_from") and facts["built_from"] != facts["commit"]:
        what.append(f"compiled from {facts['built_from']}")
    policy = f", OMP_WAIT_POLICY={facts['wait_policy']}" if facts.get("wait_policy") else ""
    return "; ".join(w for w in what if w) + policy
