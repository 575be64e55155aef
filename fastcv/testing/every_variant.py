"""Every case on every variant that its ops have: what the tests assert and ``fastcv doctor`` prints."""

from __future__ import annotations

import platform
from collections.abc import Iterable

import torch

from .. import _ext, functional
from .._variants import use, variants, why_not
from .cases import CASES, Case
from .compare import check_case

Outcomes = dict[tuple[str, str], list[str]]


def serves(op: str, variant: str, dtype: torch.dtype) -> bool:
    """Whether the objects of a variant's instruction set hold kernels for CPU tensors of a dtype (csrc/common/dispatch.h), whatever
    the call. CUDA kernels take CPU tensors in builds with the emulator."""
    needs = dict(variants(op))[variant]
    if needs.startswith("sm"):
        return bool(_ext.build_info()["emulator"])
    if needs in ("avx512", "avx512vnni", "avx512bf16", "amx"):
        return dtype != torch.float64
    narrow = needs == "portable" and variant != "ref" and platform.machine() in ("x86_64", "AMD64")
    return not (narrow and dtype in (torch.float64, torch.bfloat16, torch.float16))


def runnable_variants(op: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """The variants of an op that this CPU can run (whether they can run a call depends on the call), CUDA kernels not among them."""
    order = ["portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"]
    usable = order[: order.index(_ext.module().cpu_isa()) + 1]
    return [name for name, needs in variants(op) if needs in usable and serves(op, name, dtype)]


def check_variants(cases: Iterable[Case] | None = None, dtype: torch.dtype = torch.float32) -> Outcomes:
    """For each (op, variant): one entry per case that the variant can run, '' if it met the accuracy rule, else what failed.

    cases: by default all that are not benchmark rows. A variant that needs another CPU has no entries.
    """
    outcomes: Outcomes = {(op, name): [] for op, table in variants().items() for name, _ in table}
    for case in CASES if cases is None else cases:
        if dtype not in case.dtypes or (cases is None and case.bench):
            continue
        function = getattr(functional, case.op)
        choices = why_not(check_case, case, function, dtype)
        # What a call lacks it lacks on every instruction set, and rows behind the chosen one were not asked for all of it.
        # CUDA kernels lack what no other row does.
        lacking = {
            (op, name.rpartition("_")[0])
            for op, name, reason in choices
            if reason.startswith("needs ") and ", have " not in reason and "_sm" not in name
        }
        runnable = [
            (op, name)
            for op, name, reason in choices
            if name == "ref" or not (reason.startswith("needs ") or (op, name.rpartition("_")[0]) in lacking)
        ]
        for op, name in dict.fromkeys(runnable):
            try:
                with use(**{op: name}):
                    check_case(case, function, dtype)
            except AssertionError as error:
                outcomes[op, name].append(str(error))
            except (RuntimeError, ValueError) as error:
                if "cannot run this call" not in str(error) and f"variant {name} needs" not in str(error):
                    outcomes[op, name].append(f"{case.id}: {error}")
            else:
                outcomes[op, name].append("")
    return outcomes
