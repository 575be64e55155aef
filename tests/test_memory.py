"""fastcv.keep_freed_memory: large tensors after it lie in memory of earlier ones."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

import fastcv

PROGRAM = """
import resource, sys, torch, fastcv
if sys.argv[1] == "keep":
    fastcv.keep_freed_memory()
def fill():
    large = torch.empty(40_000_000).fill_(1.0)
    del large
    several = [torch.empty(3_000_000).fill_(1.0) for _ in range(8)]
torch.set_num_threads(1)
for _ in range(3):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that come fresh while 160 MB and then eight times 12 MB are filled again."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not glibc")
def test_freed_memory_is_written_again() -> None:
    assert faults("keep") < 100 < faults("give back")


def test_another_c_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with pytest.raises(RuntimeError, match="needs glibc"):
        fastcv.keep_freed_memory()
