"""Every timed case of fastcv.testing against torch in both layouts: ``make bench`` (BENCH="--ops conv2d" for some).

The race is fastcv.bench's. A row of the table is one case in one layout; its ratio is the time of torch's best layout over
fastcv's time in the row's layout: above 1 fastcv is faster. Writes benchmarks/results/ops.csv and .md after every case.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# See fastcv.bench.machine.wait_passively; before torch is imported, or it has no effect.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: F401  first: it loads OpenMP

import fastcv
from fastcv.bench import machine, plan, roofs, store, tables
from fastcv.bench.machine import processor as cpu_name
from fastcv.bench.race import CACHES
from fastcv.bench.rows import Row
from fastcv.bench.values import MODES

__all__ = ["cpu_name", "main"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", nargs="*", default=[], help="only these functions")
    parser.add_argument("--dtypes", nargs="*", default=["f32"], choices=sorted(roofs.DTYPES))
    parser.add_argument("--modes", nargs="*", default=["fwd", "fwd+bwd"], choices=MODES)
    parser.add_argument("--cache", nargs="*", default=["hot"], choices=CACHES)
    parser.add_argument("--seconds", type=float, default=1.0, help="about this long per case and mode")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ops", help="path without suffix")
    parser.add_argument("--old-buffers", action="store_true", help="outputs into memory of earlier calls (fastcv.keep_freed_memory)")
    parser.add_argument("--json", type=Path, help="append every time measured to this file")
    parser.add_argument("--resume", action="store_true", help="go on with the last run in the --json file")
    given = parser.parse_args()
    try:
        jobs = plan.plan(given.ops, dtypes=given.dtypes, modes=given.modes)
        facts = machine.describe()
        results = store.Results(given.json, facts, given.resume, " ".join(sys.argv[1:]))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    head = f"{machine.sentence(facts)}. Medians of interleaved calls on fresh values."
    if given.old_buffers:
        fastcv.keep_freed_memory()
        head += " Outputs in memory of earlier calls (fastcv.keep_freed_memory)."
    given.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []

    def done(job: plan.Job, new: list[Row]) -> None:
        rows.extend(new)
        for line in tables.broken(new):
            print(line, file=sys.stderr)
        for r in tables.against_torch(new):
            print(
                f"{r['case']:52} {r['dtype']:4} {r['mode']:7} {r['layout']:13} fastcv {r['fastcv_ms']:9.3f} ms"
                f"  torch {r['torch_ms']:9.3f} ms  ratio {r['ratio']:6.2f}  {r['status'] if r['status'] != 'OK' else ''}",
                flush=True,
            )
        table = tables.against_torch(rows)
        if table:
            tables.write_csv(Path(f"{given.output}.csv"), table)
            Path(f"{given.output}.md").write_text(tables.against_torch_markdown(head, table))

    plan.run(jobs, plan.Options(cache=tuple(given.cache), seconds=given.seconds), results, done)
    print(f"{head}\n{tables.summary(tables.against_torch(rows))}")
    return 1 if tables.broken(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
