"""The one script for a machine with a GPU: ceilings, conformance, correctness, layers, timings, sanitizers and a picture.

    cmake -S . -B build -G Ninja -DFASTCV_CUDA=ON -DFASTCV_CUDA_ARCHS=90a-real -DPython_EXECUTABLE=$(which python) && cmake --build build
    PYTHONPATH=. python benchmarks/gpu.py --minutes 9 --output results --resume

Nothing waits for a person. Every row is on disk as soon as it is known (gpu_<part>.csv, gpu.json, gpu.png). Tasks run in worker
processes: a crash, a lost GPU context or a hang costs one row, which says so. When the minutes are over, --resume goes on from the
tables in the output folder, or in the folder it names, as long as the sources are the same. Without a GPU, --device emulator rehearses
every part in miniature.
Exit status: 0, 1 if something was wrong or failed, 2 if nothing can run here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PARTS = ("ceilings", "conformance", "correctness", "layers", "timings", "sanitizers")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--parts", nargs="*", default=[*PARTS, "picture"], choices=[*PARTS, "picture"], help="in this order")
    parser.add_argument("--ops", nargs="*", default=[], help="only these functions")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after about this long")
    parser.add_argument("--resume", nargs="?", type=Path, const=True, help="go on from the tables in this folder, by default the output")
    parser.add_argument("--seconds", type=float, default=0.3, help="about this long per timing")
    parser.add_argument("--device", default="cuda", choices=["cuda", "emulator"], help="emulator: a rehearsal on the CPU")
    parser.add_argument("--every", type=int, default=1, help="only every n-th task of correctness and timings")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sanitized", help=argparse.SUPPRESS)
    return parser.parse_args()


def unable(device: str) -> str:
    """Why nothing can run here; '' if it can."""
    import torch

    import fastcv

    if not fastcv.is_built():
        return f"benchmarks/gpu.py: {fastcv.why_missing()}"
    if device == "emulator":
        return "" if fastcv.build_info()["emulator"] else "benchmarks/gpu.py --device emulator needs fastcv built with FASTCV_EMULATOR=ON."
    if not torch.cuda.is_available():
        return "benchmarks/gpu.py needs a GPU that torch can use; this machine has none."
    return "" if fastcv.build_info()["cuda"] else "benchmarks/gpu.py needs fastcv built with FASTCV_CUDA=ON."


def write_facts(options: dict[str, Any], output: Path, build: str, command: list[str]) -> str:
    """gpu.json; returns the device, or '' if no worker can say. Asked in a worker, so that this process never holds a GPU context."""
    from gpu_parts.worker import Worker, WorkerLost

    try:
        worker = Worker(command)
        try:
            answer = worker.ask({"module": "gpu_parts.machine", "key": {}, "options": options}, 120)
        finally:
            worker.close()
    except WorkerLost as lost:
        print(f"no worker: {lost}", file=sys.stderr)
        return ""
    facts = answer["rows"][0]
    if facts.get("failed"):
        print(f"no worker: {facts['failed']}", file=sys.stderr)
        return ""
    facts |= {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "build": build}
    fresh = output / ".gpu.json"
    fresh.write_text(json.dumps(facts, indent=1, default=str) + "\n")
    os.replace(fresh, output / "gpu.json")
    return facts["device"]


def main() -> int:
    given = arguments()
    if given.worker:
        from gpu_parts.worker import serve

        return serve()
    if given.sanitized:
        from gpu_parts.sanitizers import sanitized

        return sanitized(given.sanitized, "cuda" if given.device == "cuda" else "cpu")
    parts = [part for part in given.parts if part != "picture"]
    if parts and (why := unable(given.device)):
        print(why, file=sys.stderr)
        return 2
    from gpu_parts import picture, results

    given.output.mkdir(parents=True, exist_ok=True)
    failed = bool(parts) and not run(given, parts)
    if "picture" in given.parts:
        try:
            drawn = picture.draw(given.output)
            print(f"picture: {drawn or 'no layers and no timings to draw'}")
        except Exception as error:  # the tables are what matters
            print(f"picture failed: {type(error).__name__}: {error}")
            failed = True
    bad = [row for part in PARTS for row in results.read(given.output / f"gpu_{part}.csv") if row.get("wrong") or row.get("failed")]
    return int(failed or bool(bad))


def run(given: argparse.Namespace, parts: list[str]) -> bool:
    """The parts in turn; whether all could be run."""
    from gpu_parts import device, results
    from gpu_parts.runner import run_part

    start = time.monotonic()
    deadline = start + 60 * given.minutes
    kept = given.output if given.resume is True else given.resume
    earlier = {part: results.read(kept / f"gpu_{part}.csv") if kept else [] for part in PARTS}
    options = {"device": given.device, "ops": given.ops, "seconds": given.seconds, "every": given.every, "ceilings": {}}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    build = device.build_id()
    found = write_facts(options, given.output, build, command)
    if not found:
        return False
    build = f"{build} {found}"
    print(f"{found}, sources {build.split()[0]}, {given.minutes:g} minutes", flush=True)
    tables, well = {}, True
    for name in PARTS:
        part = importlib.import_module(f"gpu_parts.{name}")
        if name in parts or kept:
            tables[name] = results.Table(given.output / f"gpu_{name}.csv", part.COLUMNS, part.KEY, build, earlier[name])
    for name in parts:
        rows = tables["ceilings"].rows if "ceilings" in tables else results.read(given.output / "gpu_ceilings.csv")
        options["ceilings"] = {row["ceiling"]: float(row["value"]) for row in rows if row.get("value")}
        begun = time.monotonic()
        try:
            outcome = run_part(importlib.import_module(f"gpu_parts.{name}"), tables[name], options, command, deadline)
        except Exception as error:  # a broken part must not cost the others
            print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
            well = False
            continue
        bad = sum(bool(row.get("wrong") or row.get("failed")) for row in tables[name].rows)
        left = f", {outcome.left} left: run again with --resume" if outcome.left else ""
        why = f", {outcome.given_up}" if outcome.given_up else ""
        print(
            f"{name}: {outcome.done} tasks done in {time.monotonic() - begun:.0f} s, {outcome.before} before{left}; "
            f"{len(tables[name].rows)} rows, {bad} wrong or failed{why}",
            flush=True,
        )
        well = well and not outcome.given_up
        if name == "ceilings":
            print(*(f"  {row['ceiling']}: {row['value']} {row['unit']}" for row in tables[name].rows if row["value"]), sep="\n", flush=True)
    return well


if __name__ == "__main__":
    raise SystemExit(main())
