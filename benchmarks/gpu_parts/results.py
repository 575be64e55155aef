"""A part's table: a csv that grows by a line as soon as a row is known, and that a later run goes on with."""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows of a csv; none if there is no file. A line that was cut short is left out."""
    try:
        with path.open(newline="") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            return [dict(zip(columns, line, strict=True)) for line in reader if len(line) == len(columns)]
    except OSError:
        return []


class Table:
    """columns: of the part; "failed", "seconds" and "build" are added. kept: rows of an earlier run, of which those of this build stay."""

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str], build: str, kept: Sequence[Row] = ()) -> None:
        self.path, self.build, self.key = path, build, tuple(key)
        self.columns = [*columns, "failed", "seconds", "build"]
        self.rows: list[Row] = [row for row in kept if row.get("build") == build and set(row) == set(self.columns)]
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(fresh, path)

    def has(self, key: Key) -> bool:
        return any(all(str(row[k]) == key[k] for k in self.key) for row in self.rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Appends rows and leaves them on disk."""
        whole = [{c: row.get(c, "") for c in self.columns} | {"build": self.build} for row in rows]
        with self._lock, self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerows(whole)
            file.flush()
            os.fsync(file.fileno())
            self.rows += whole
