"""Every row of every variant table runs the cases of its family and meets the accuracy rule; the tables obey their grammar."""

import os
import re
import subprocess
import sys

import pytest
import torch

import fastcv
from fastcv.functional._skeleton import skeleton
from fastcv.testing import cases_of, check_variants

ORDER = ["portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"]
OPS = sorted({case.op for case in cases_of()})


@pytest.mark.parametrize("op", OPS)
def test_every_variant_of(op: str) -> None:
    outcomes = check_variants([case for case in cases_of(op) if not case.bench])
    failures = [f"{key}: {text}" for key, texts in outcomes.items() for text in texts if text]
    assert not failures, "\n".join(failures[:10])
    assert any(outcomes.values()), f"no variant ran any case of {op}"


def test_names_follow_the_grammar() -> None:
    for op, table in fastcv.variants().items():
        on_cpu = [row for row in table if row[1] in ORDER]
        assert [name for name, _ in table].count("ref") == 1 and on_cpu[-1] == ("ref", "portable"), f"{op}: the last CPU row must be ref"
        for name, isa in table:
            if name == "ref":
                continue
            assert isa in ORDER or re.fullmatch(r"sm\d+a?", isa), f"{op}: {name} needs {isa}"
            assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*_" + isa, name), f"{op}: {name} must end in {isa}"


def test_force_and_refuse() -> None:
    x = torch.ones(3)
    with fastcv.use(skeleton="ref"):
        assert ("skeleton", "ref", "") in fastcv.why_not(skeleton, x)
    assert ("skeleton", "ref", "") not in fastcv.why_not(skeleton, x)
    with pytest.raises(ValueError, match="no variant 'fastest'; it has"), fastcv.use(skeleton="fastest"):
        pass
    with pytest.raises(ValueError, match="no variants of 'nothing'"):
        fastcv.variants("nothing")
    with pytest.raises(ValueError, match=r"no function 'conv9d' in fastcv\.functional"):
        fastcv.why_not("conv9d", x)


def run_with_isa(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, "FASTCV_CPU_ISA": isa}, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ORDER)
def test_isa_cap_is_obeyed(isa: str) -> None:
    done = run_with_isa(isa, "import fastcv; print(fastcv.cpu_isa())")
    assert done.returncode == 0, done.stderr
    assert ORDER.index(done.stdout.strip()) <= ORDER.index(isa)


def test_unknown_isa_cap_is_one_sentence() -> None:
    done = run_with_isa("sse9", "import fastcv; print(fastcv.is_built()); fastcv.cpu_isa()")
    assert done.stdout.strip() == "False"
    assert "FASTCV_CPU_ISA=sse9 is none of portable, avx2, avx512, avx512vnni, avx512bf16, amx" in done.stderr
