"""Writes the README's table of measurements (hot caches) from benchmarks/results/ops.csv and .md: ``benchmarks/readme.py``.

It replaces what stands between the lines ``<!-- measured: begin -->`` and ``<!-- measured: end -->`` and nothing else; ``--check``
says by its exit code whether the README is up to date, and writes nothing.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from fastcv.bench import geometric_mean

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def table(rows: list[dict[str, str]], machine: str, summary: str) -> str:
    """The text between the markers."""
    groups: dict[str, dict[str, list[float]]] = {}
    for r in rows:
        groups.setdefault(r["case"].split("-")[0], {}).setdefault(r["mode"], []).append(float(r["ratio"]))

    def cell(ratios: list[float]) -> str:
        return f"{geometric_mean(ratios):.2f} | {min(ratios):.2f}" if ratios else "- | -"

    lines = [
        f"{machine} {summary}.",
        "",
        "| op | rows | forward: mean | slowest | forward + backward: mean | slowest |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for op, modes in groups.items():
        forward, backward = modes.get("fwd", []), modes.get("fwd+bwd", [])
        lines.append(f"| {op} | {len(forward) + len(backward)} | {cell(forward)} | {cell(backward)} |")
    below = [f"{r['case']} {r['mode']} {r['layout']} ({float(r['ratio']):.2f})" for r in rows if float(r["ratio"]) < 0.5]
    if below:
        lines += ["", f"Below half of torch's best layout: {', '.join(below)}."]
    return "\n".join(lines) + "\n"


def replaced(text: str, new: str) -> str:
    """``text`` with ``new`` between the markers. Raises ValueError where they do not stand once each, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"needs one line {BEGIN} and, after it, one line {END}")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return f"{head}\n{new}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "ops", help="path without suffix")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="exit code 1 if the README is not up to date")
    given = parser.parse_args()
    try:
        with open(f"{given.results}.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("cache", "hot") == "hot"]
        lines = Path(f"{given.results}.md").read_text().split("\n")
        old = given.readme.read_text()
        new = replaced(old, table(rows, lines[0], lines[2]))
    except (OSError, ValueError) as error:
        print(f"{given.readme}: {error}", file=sys.stderr)
        return 2
    if given.check:
        return int(new != old)
    fresh = given.readme.with_name(given.readme.name + ".new")
    fresh.write_text(new)
    fresh.replace(given.readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
