"""What a call costs beside its arithmetic: ``python benchmarks/overhead.py``. Writes results/overhead.csv and .md."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import fastcv
from fastcv.bench.machine import processor
from fastcv.bench.overhead import KEYS, markdown, measure, tiny


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=2.0, help="about this long per function")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "overhead", help="path without suffix")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (mine, theirs, args) in tiny().items():
        if not options.functions or name in options.functions:
            rows.append(measure(name, mine, theirs, args, options.seconds))
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    info = fastcv.build_info()
    machine = (
        f"Microseconds per call on tensors of a few elements, one thread. {processor()}, {fastcv.cpu_isa()}; torch {torch.__version__}, "
        f"Python {sys.version.split()[0]}, fastcv {info['version']} ({info['git']})."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{options.output}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["function", *KEYS])
        writer.writeheader()
        writer.writerows(rows)
    Path(f"{options.output}.md").write_text(markdown(rows, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
